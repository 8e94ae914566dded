"""Where other people's data lie: splits in names, folders of several kinds, odd names, tars of several suffixes."""

import io
import json
import logging
import os
import tarfile

import datasets
import pytest

from hf_cots.data.folders import find_images, read_class_folders, walk_files
from hf_cots.data.resolve import resolve
from hf_cots.data.sources import load_pairs
from hf_cots.data.streams import StreamBatches, load_stream
from hf_cots.evaluation.tasks.labelled_images import load_labelled_images
from hf_cots.evaluation.tasks.sts import load_sts_benchmark
from tests.support.worlds import all_pairs, draw, encoded, write_images, write_json_lines, write_parquet


CAPTIONS = [caption for *_, caption in all_pairs()]


def write_tar(path, start=0, stop=40, suffixes=("png",), text="txt", mode="w"):
    """A shard of pairs whose images have the suffixes by turns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for i, (name, image, caption) in list(enumerate(all_pairs()))[start:stop]:
            suffix, stem = suffixes[i % len(suffixes)], name.split(".")[0]
            kind = {"jpg": "JPEG"}.get(suffix, suffix.upper())
            data = json.dumps({"caption": caption, "more": {"a": 1}}) if text == "json" else caption
            for member, content in ((f"{stem}.{suffix}", encoded(image, kind)), (f"{stem}.{text}", data.encode())):
                entry = tarfile.TarInfo(member)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return path


def read(load, data, *columns, **options):
    """The captions of all pairs, in their order."""
    source = load(str(data), *columns, **options)
    if load is load_pairs:
        return [source.caption(index) for index in range(len(source))]
    return [pair.caption for row in source.table for pair in source.split_row(row, 0, 0)]


LOADERS = pytest.mark.parametrize("load", [load_pairs, load_stream])


@LOADERS
@pytest.mark.parametrize("layout", ["{}-0.parquet", "data/{}-00000-of-00001.parquet", "{}/0.parquet"])
def test_train_and_test_are_never_the_same_rows(tmp_path, load, layout):
    (tmp_path / "README.md").write_text("x")
    for split, part in (("train", all_pairs()[:30]), ("test", all_pairs()[30:])):
        path = tmp_path / layout.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(path, part)
    assert read(load, tmp_path, split="train") == CAPTIONS[:30]
    assert read(load, tmp_path, split="test") == CAPTIONS[30:]
    with pytest.raises(ValueError, match="no split 'validation'; it has test, train"):
        load(str(tmp_path), split="validation")


@LOADERS
def test_tables_of_splits_beside_a_folder_of_images(tmp_path, load):
    """d/train.csv, d/test.csv and d/images/."""
    write_images(tmp_path / "images", 10)
    for split, rows in (("train", all_pairs()[:6]), ("test", all_pairs()[6:10])):
        lines = [f"images/{name},{caption}\n" for name, _, caption in rows]
        (tmp_path / f"{split}.csv").write_text("image,caption\n" + "".join(lines))
    assert read(load, tmp_path, split="train") == CAPTIONS[:6]
    assert read(load, tmp_path, split="test") == CAPTIONS[6:10]


@LOADERS
def test_img2dataset(tmp_path, load):
    """Its webdataset format has a parquet of the metadata beside each shard, its files format beside each folder."""
    write_tar(tmp_path / "tars" / "00000.tar", 0, 10, ("jpg",))
    write_parquet(tmp_path / "tars" / "00000.parquet", all_pairs()[:10])
    (tmp_path / "tars" / "00000_stats.json").write_text('{"count": 10}')
    assert read(load, tmp_path / "tars", "jpg") == CAPTIONS[:10]
    folder = tmp_path / "files" / "00000"
    folder.parent.mkdir()
    write_images(folder, 10)
    write_parquet(tmp_path / "files" / "00000.parquet", all_pairs()[:10])
    for name, _, caption in all_pairs()[:10]:
        (folder / name).with_suffix(".txt").write_text(caption)
        (folder / name).with_suffix(".json").write_text(json.dumps({"caption": caption.upper(), "exif": {}}))
    assert read(load, tmp_path / "files") == CAPTIONS[:10]
    assert read(load, tmp_path / "files", "image", "json.caption") == [text.upper() for text in CAPTIONS[:10]]


@LOADERS
def test_tables_of_two_kinds_are_not_read_together(tmp_path, load):
    """`hf-cots audit` itself writes a CSV and JSON lines of the same pairs."""
    (tmp_path / "p.csv").write_text("image,caption\na.png,x\n")
    write_json_lines(tmp_path / "p.jsonl", [{"image": "a.png", "caption": "x"}])
    with pytest.raises(ValueError, match=r"several kinds: \.csv, \.jsonl; select one kind"):
        load(str(tmp_path))


@LOADERS
def test_suffixes_by_turns_and_captions_in_json(tmp_path, load):
    path = write_tar(tmp_path / "a.tar", 0, 12, ("jpg", "png", "webp"), "json")
    assert read(load, path, "jpg,png,webp", "json.caption") == CAPTIONS[:12]
    with pytest.raises(ValueError, match=r"no column 'gif'; it has .*jpg.*json\.caption, json\.more\.a"):
        load(str(path), "gif", "json.caption")


@LOADERS
def test_compressed_shards_and_ranges(tmp_path, load):
    write_tar(tmp_path / "p-00000.tar.gz", 0, 10, mode="w:gz")
    write_tar(tmp_path / "p-00001.tar.gz", 10, 20, mode="w:gz")
    assert read(load, tmp_path / "p-{00000..00001}.tar.gz", "png") == CAPTIONS[:20]
    with pytest.raises(FileNotFoundError, match=r"p-00002\.tar\.gz"):
        load(str(tmp_path / "p-{00000..00002}.tar.gz"), "png")


def read_all(source):
    return [pair for batch, _ in zip(StreamBatches(source, 1), range(12)) for pair in batch]


@LOADERS
@pytest.mark.parametrize("columns", [("png", "txt"), ("png", None)])
def test_a_tar_cut_off_anywhere_is_named(tmp_path, load, columns):
    path = write_tar(tmp_path / "shards" / "shard-1.tar", 0, 6)
    write_tar(tmp_path / "shards" / "shard-0.tar", 6, 12)
    whole = path.read_bytes()
    size = len(whole.rstrip(b"\0"))
    for cut in [*range(0, size, 1021), *range(512, size, 2048), size]:
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"shard-1\.tar") as error:
            read_all(load(str(tmp_path / "shards"), *columns))
        assert "\n" not in str(error.value)


@LOADERS
@pytest.mark.parametrize("name", ["photos [2024]/p.csv", "p[1].csv", "a*b?.csv", "{a,b}/p.csv", "x#y 100%/p.csv"])
def test_signs_in_names(tmp_path, load, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    draw("red", "circle", "left").save(path.parent / "a.png")
    path.write_text("image,caption\na.png,x\n")
    assert read(load, path) == ["x"]


def test_a_path_object_is_a_name(world):
    assert len(load_pairs(world.parquet)) == 40
    assert load_pairs(world.parquet).name == str(world.parquet)


def test_a_place_that_is_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match="photos/new: no such file or folder, and no such data set on the Hub"
    ) as error:
        load_pairs("photos/new")
    assert "\n" not in str(error.value)


def test_damaged_parquet_is_named(tmp_path):
    path = write_parquet(tmp_path / "p.parquet", all_pairs()[:10])
    data = bytearray(path.read_bytes())
    data[200:2000] = bytes(1800)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"p\.parquet") as error:
        load_pairs(str(path))
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------- folders of images


def test_walking_follows_links_once_and_ends(tmp_path, caplog):
    write_images(tmp_path / "photos", 2)
    write_images(tmp_path / "elsewhere", 3)
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "up").symlink_to(tmp_path)
    (tmp_path / "photos" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "photos" / ".hidden.png").write_bytes(b"")
    os.mkfifo(tmp_path / "photos" / "pipe.png")  # reading it would wait forever
    found = [path.name for path in walk_files(tmp_path / "photos")]
    assert sorted(found) == ["gone.png", "p00.png", "p00.png", "p01.png", "p01.png", "p02.png"]


def test_files_that_are_no_images_are_counted(tmp_path, caplog):
    folder = write_images(tmp_path / "photos", 1)
    for name in ("a.mp4", "b.txt", "c"):
        (folder / name).write_bytes(b"x")
    with caplog.at_level(logging.INFO):
        assert len(find_images(folder)) == 1
    assert "skipping 3 files that are not images (.mp4, .txt, no suffix)" in caplog.text


def test_class_folders(tmp_path, caplog):
    """Links, deeper folders, other suffixes, a split's folder; a stray image at the top is told of."""
    for name in ("red", "green"):
        (tmp_path / "train" / name / "deep").mkdir(parents=True)
        draw("red", "circle", "left").save(tmp_path / "train" / name / "deep" / "a.ppm")
    write_images(tmp_path / "black", 2)
    (tmp_path / "train" / "black").symlink_to(tmp_path / "black")
    draw("red", "circle", "left").save(tmp_path / "train" / "cover.png")
    (tmp_path / "test" / "red").mkdir(parents=True)
    draw("red", "circle", "left").save(tmp_path / "test" / "red" / "b.png")
    (tmp_path / "both").mkdir()
    for split in ("train", "test"):
        (tmp_path / "both" / split).symlink_to(tmp_path / split)
    for place in ("both", "train"):
        images = load_labelled_images(str(tmp_path / place), split="train")
        assert (images.labels, images.classes) == (["black", "black", "green", "red"], ["black", "green", "red"])
    assert load_labelled_images(str(tmp_path / "both")).labels == ["red"]
    assert "skipping 1 images that are not in a class folder" in caplog.text
    source = resolve(str(tmp_path / "train"))
    assert read_class_folders(source.root, source.files)[-1] == {"image": "red/deep/a.ppm", "label": "red"}


def test_metadata_in_parquet_and_twice(tmp_path):
    folder = write_images(tmp_path / "t", 2)
    rows = {"file_name": ["p01.png", "p00.png"], "caption": ["b", "a"]}
    datasets.Dataset.from_dict(rows).to_parquet(folder / "metadata.parquet")
    assert read(load_pairs, folder) == ["b", "a"]
    (folder / "metadata.csv").write_text("file_name;caption, long\np00.png;x\n")
    with pytest.raises(ValueError, match=r"metadata\.csv and metadata\.parquet are both metadata of one folder"):
        load_pairs(str(folder))
    (folder / "metadata.parquet").unlink()
    assert read(load_pairs, folder, "image", "caption, long", separator=";") == ["x"]


def test_captions_beside_images_in_upper_case(tmp_path):
    draw("red", "circle", "left").save(tmp_path / "A.PNG")
    (tmp_path / "A.TXT").write_text("x")
    assert read(load_pairs, tmp_path) == ["x"]


@pytest.mark.parametrize("data", ["", " ", "p-{3..1}.csv", "p-{0..99999999999}.csv"])
def test_names_that_can_be_none(data):
    with pytest.raises(ValueError, match=r"the name of the data is empty|must be ascending and name at most"):
        load_pairs(data)


def test_a_tar_without_samples(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("README"))
    with pytest.raises(ValueError, match=r"a\.tar: no samples"):
        load_pairs(str(tmp_path / "a.tar"), "png")


def test_numbers_as_labels_are_in_their_order(tmp_path):
    write_images(tmp_path / "t", 4)
    rows = [{"image": f"p0{i}.png", "label": label} for i, label in enumerate((10, 9, 2, 10))]
    path = write_json_lines(tmp_path / "t" / "p.jsonl", rows)
    assert load_labelled_images(str(path)).classes == ["2", "9", "10"]


def test_the_benchmark_of_similar_texts_is_read_by_the_same_rules(tmp_path):
    path = tmp_path / "sts-test.csv"
    line = 'main\tfile\t2012\t1\t3.5\tcaf\u00e9 "a\tb\n'
    path.write_text(line + line, encoding="utf-8")
    assert load_sts_benchmark(path).first == ['caf\u00e9 "a'] * 2
    path.write_text(line, encoding="cp1252")
    with pytest.raises(ValueError, match=r"sts-test\.csv, line 1: byte 0xe9 is not UTF-8"):
        load_sts_benchmark(path)
