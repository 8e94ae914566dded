"""What a user names becomes the files of one split: files, folders, patterns, compressed files, split words."""

import logging

import pytest
from PIL import Image

from hf_cots.data.folders import find_images, read_image_rows, walk_files
from hf_cots.data.resolve import expand_braces, find_split, is_pattern, resolve


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".png", ".jpg"):
            Image.new("RGB", (8, 8), "red").save(path)
        else:
            path.write_text("")
    return folder


def resolved(folder, split="train", data=None):
    source = resolve(str(folder if data is None else data), split)
    return source.kind, [str(path.relative_to(folder)) for path in source.files]


@pytest.mark.parametrize("suffix", ["parquet", "tar", "csv", "jsonl.gz", "tsv"])
def test_split_words_in_names_of_files(tmp_path, suffix):
    names = [f"train-0.{suffix}", f"train-1.{suffix}", f"val_0.{suffix}", f"my.test.{suffix}"]
    touch(tmp_path, *names)
    assert resolved(tmp_path, "train")[1] == names[:2]
    assert resolved(tmp_path, "test")[1] == names[3:]
    assert resolved(tmp_path, "dev")[1] == resolved(tmp_path, "validation")[1] == names[2:3]
    with pytest.raises(ValueError, match="no split 'other'; it has test, train, validation"):
        resolve(str(tmp_path), "other")


def test_a_downloaded_hub_set(tmp_path):
    touch(
        tmp_path,
        "README.md",
        ".gitattributes",
        "data/train-00000-of-00001.parquet",
        "data/test-00000-of-00001.parquet",
    )
    assert resolved(tmp_path) == ("parquet", ["data/train-00000-of-00001.parquet"])
    assert resolved(tmp_path, "test") == ("parquet", ["data/test-00000-of-00001.parquet"])


def test_data_without_split_words_are_one_split(tmp_path):
    touch(tmp_path, "b.csv", "sub/a.csv")
    assert resolved(tmp_path, "train") == resolved(tmp_path, "test") == ("table", ["b.csv", "sub/a.csv"])


def test_files_of_no_split_are_told(tmp_path, caplog):
    touch(tmp_path, "train.csv", "extra.csv")
    with caplog.at_level(logging.WARNING):
        assert resolved(tmp_path)[1] == ["train.csv"]
    assert "ignoring 1 files that belong to no split, such as extra.csv" in caplog.text


@pytest.mark.parametrize("name", ["photos [2024]/pairs.csv", "pairs[1].csv", "a*b?.csv", "{x}.csv", "with space.csv"])
def test_a_path_that_exists_is_no_pattern(tmp_path, name):
    touch(tmp_path, name, "pairs1.csv")
    assert resolved(tmp_path, data=tmp_path / name) == ("table", [name])


def test_patterns(tmp_path):
    touch(tmp_path, *(f"p-{i:05d}.tar" for i in range(4)), "q-a.tar", "sub/r.tar")
    assert resolved(tmp_path, data=tmp_path / "p-{00001..00002}.tar")[1] == ["p-00001.tar", "p-00002.tar"]
    assert resolved(tmp_path, data=tmp_path / "p-0000[03].tar")[1] == ["p-00000.tar", "p-00003.tar"]
    assert resolved(tmp_path, data=tmp_path / "{q-a,sub/r}.tar")[1] == ["q-a.tar", "sub/r.tar"]
    with pytest.raises(FileNotFoundError, match="no file matches"):
        resolve(str(tmp_path / "z*.tar"))
    assert list(expand_braces("{a,b}{1..2}")) == ["a1", "a2", "b1", "b2"]
    assert [is_pattern(data) for data in ("a/b", "a*", "a{1..2}", "org/name")] == [False, True, True, False]


def test_errors(tmp_path):
    touch(tmp_path, "a.csv", "b.tar", "c.docx", "empty/.hidden", "mixed/a.parquet", "mixed/b.tar")
    for data, message in (
        ("*.[ct][sa][vr]", "files of several kinds"),
        ("c.docx", r"cannot read '\.docx' files"),
        ("empty", "contains no data"),
        ("mixed", "parquet files and tars"),
        ("no.csv", "no such file or folder"),
        ("no/such/folder", "no such file or folder"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            resolve(str(tmp_path / data))
    assert resolve("org/name").kind == "hub"


def test_images_split_by_folders_alone(tmp_path):
    """`toy_train_02.png` is an image; a folder `train` among others is a class of images."""
    touch(tmp_path, "train/a.png", "train/metadata.jsonl", "test/toy_train_02.png")
    assert resolved(tmp_path) == ("images", ["train/a.png", "train/metadata.jsonl"])
    assert resolved(tmp_path, "test") == ("images", ["test/toy_train_02.png"])
    touch(tmp_path, "bus/a.png")
    assert len(resolved(tmp_path)[1]) == 4


def test_links_are_followed_once(tmp_path):
    touch(tmp_path, "photos/a.png", "elsewhere/b.png")
    (tmp_path / "photos" / "link").symlink_to("../elsewhere")
    (tmp_path / "photos" / "again").symlink_to("../elsewhere")
    (tmp_path / "photos" / "circle").symlink_to("../photos")
    assert [path.name for path in walk_files(tmp_path / "photos")] == ["a.png", "b.png"]


def test_images_of_all_suffixes(tmp_path, caplog):
    suffixes = ["jfif", "jpe", "jp2", "ppm", "tga", "ico", "PNG", "webp", "bmp"]
    suffixes += ["avif"] if ".avif" in Image.registered_extensions() else []  # since Pillow 11.3
    names = [f"a.{suffix}" for suffix in suffixes]
    for name in (*names, "notes.txt", "b.pdf"):
        (tmp_path / name).write_bytes(b"")
    with caplog.at_level(logging.INFO):
        assert sorted(path.name for path in find_images(tmp_path)) == sorted(names)
    assert "skipping 2 files that are not images (.pdf, .txt)" in caplog.text
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_images(tmp_path / "none")


def rows_of(folder):
    return list(read_image_rows(folder, resolve(str(folder)).files))


def test_rows_of_metadata_in_their_order(tmp_path, caplog):
    touch(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "b.png", "text": "B"}\n{"file_name": "a.png", "text": "A"}\n'
    )
    assert rows_of(tmp_path) == [
        {"image": str(tmp_path / "b.png"), "text": "B"},
        {"image": str(tmp_path / "a.png"), "text": "A"},
    ]
    assert "skipping 1 images that are not in the metadata, such as c.png" in caplog.text
    (tmp_path / "metadata.jsonl").write_text('{"name": "b.png"}\n')
    with pytest.raises(ValueError, match=r"metadata\.jsonl, row 0: 'file_name'"):
        rows_of(tmp_path)


def test_rows_of_files_beside_images(tmp_path):
    """img2dataset's "files" format."""
    touch(tmp_path, "0.jpg", "1.jpg")
    (tmp_path / "0.txt").write_text("a cat\n")
    (tmp_path / "0.json").write_text('{"caption": "x"}')
    assert rows_of(tmp_path) == [
        {"image": str(tmp_path / "0.jpg"), "txt": "a cat", "json": {"caption": "x"}},
        {"image": str(tmp_path / "1.jpg")},
    ]


def test_folders_of_images_are_labels(tmp_path):
    touch(tmp_path, "cat/a.png", "dog/b.png")
    assert [row["label"] for row in rows_of(tmp_path)] == ["cat", "dog"]


@pytest.mark.parametrize("name", ["metadata.json", "captions.jsonl", "pairs.csv"])
def test_what_looks_like_the_metadata_is_named(tmp_path, name):
    touch(tmp_path, "a.png", "b.png", name)
    assert f"{name} may hold the captions" in resolve(str(tmp_path)).hint


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train-00000-of-00001.parquet", "train"),
        ("data/Validation/a.csv", "validation"),
        ("my_eval_set.tar", "test"),
        ("constraint.csv", None),
        ("latest.tar", None),
        ("devices.csv", None),
        ("train/test.csv", "test"),
    ],
)
def test_words(tmp_path, path, split):
    assert find_split(tmp_path.relative_to(tmp_path) / path) == split


def test_a_longer_name_beside_a_plain_one_is_a_split_of_its_own(tmp_path):
    for name in ("train", "test-00000-of-00002", "test-00001-of-00002", "test_new_styles", "flags"):
        (tmp_path / f"{name}.csv").write_text("image,text\na.png,a\n")
    names = {split: [file.stem for file in resolve(tmp_path, split).files] for split in ("test", "test_new_styles")}
    assert names == {"test": ["test-00000-of-00002", "test-00001-of-00002"], "test_new_styles": ["test_new_styles"]}
    with pytest.raises(ValueError, match="has no split 'validation'; it has test, test_new_styles, train"):
        resolve(tmp_path, "validation")


def test_without_a_plain_name_all_files_with_the_word_are_the_split(tmp_path):
    for name in ("cats_test", "dogs_test", "cats_train"):
        (tmp_path / f"{name}.csv").write_text("image,text\na.png,a\n")
    assert [file.stem for file in resolve(tmp_path, "test").files] == ["cats_test", "dogs_test"]
