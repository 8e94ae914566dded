"""Every source of data gives the same pairs; wrong data is told by name; broken images stop nothing."""

import json
import logging

import datasets
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from hf_cots.data.batches import PairBatches
from hf_cots.data.images import BrokenImage, BrokenImageReport, read_image
from hf_cots.data.sources import PairDataset, load_pairs
from hf_cots.data.streams import load_stream
from hf_cots.models.masking import mix
from tests.support.worlds import World, all_pairs, draw, encoded, write_broken_images, write_json_lines


RED = encoded(draw("red", "circle", "left"))


def in_memory(captions, images=None, **columns):
    """A table of encoded images and caption cells."""
    return datasets.Dataset.from_dict({"image": images or [RED] * len(captions), "caption": captions, **columns})


SOURCES = {
    "imagefolder": (lambda w: w.imagefolder, "image"),
    "parquet": (lambda w: w.parquet, "image"),
    "csv": (lambda w: w.paths_in(".csv"), "image"),
    "tsv": (lambda w: w.paths_in(".tsv"), "image"),
    "jsonl": (lambda w: w.paths_in(".jsonl"), "image"),
    "tar_folder": (lambda w: w.tars, "png"),
    "tar_glob": (lambda w: w.tars / "*.tar", "png"),
}


@pytest.mark.parametrize("source", SOURCES)
def test_each_source_gives_the_same_pairs(world, source):
    path, image_column = SOURCES[source]
    pairs = load_pairs(str(path(world)), image_column)
    assert len(pairs) == 40
    for index, (_, image, caption) in enumerate(all_pairs()):
        item = pairs[index]
        assert item["caption"] == caption
        assert item["image"].mode == "RGB"
        assert np.array_equal(np.asarray(item["image"]), np.asarray(image))
    assert len(set(pairs.image_ids.tolist())) == 40
    assert pairs.image_ids.min() >= 0


@pytest.mark.parametrize("load", [load_pairs, load_stream])
def test_the_column_of_captions_is_found_by_its_name(tmp_path, caplog, load):
    def write(*columns):
        datasets.Dataset.from_dict({"image": [RED]} | {name: ["a"] for name in columns}).to_parquet(path)

    path = str(tmp_path / "pairs.parquet")
    for column in ("caption", "captions", "text", "txt", "auto"):
        write(column, "title")
        with caplog.at_level(logging.INFO, "hf_cots"):
            assert load(path).caption_column == column
        assert column == "auto" or f"reading captions from column '{column}'" in caplog.text
        assert load(path, caption_column="title").caption_column == "title"
        assert load(path, caption_column=None).caption_column is None
    write("text", "caption", "title")
    with pytest.raises(ValueError, match=r"several caption columns: caption, text\. Choose one with --caption-column"):
        load(path)
    write("title")
    with pytest.raises(
        ValueError, match=r"no column 'caption', .*; it has image, title\. Choose one with --caption-c"
    ):
        load(path)


def test_a_folder_of_parquet_files_is_read_whole(world, tmp_path):
    for name in ("a.parquet", "b.parquet"):
        (tmp_path / name).write_bytes(world.parquet.read_bytes())
    assert len(load_pairs(str(tmp_path))) == 80


def test_a_folder_without_splits_needs_none(world):
    """`hf-cots evaluate` asks for the split "test", which a plain folder does not have."""
    assert len(load_pairs(str(world.imagefolder), split="test")) == 40


@pytest.mark.parametrize("metadata", [True, False])
def test_images_that_are_called_like_splits(tmp_path, metadata):
    """Only folders are splits: `datasets` would take toy_train_02.png for all there is to train on."""
    folder = tmp_path / "train [new]"
    names = {"apple.png", "toy_train_02.png", "test.png", "val-01.png", "deep/eval/plum.png"}
    (folder / "deep" / "eval").mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(RED)
    if metadata:
        World.write_metadata(folder, [{"file_name": name, "caption": name} for name in names])
    pairs = load_pairs(str(folder), caption_column="auto" if metadata else None)
    assert {pairs.caption(index) for index in range(len(pairs))} == (names if metadata else {""})
    assert len(pairs) == 5


def test_splits_of_a_folder(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.png").write_bytes(RED)
        World.write_metadata(tmp_path / split, [{"file_name": "a.png", "caption": f"of {split}"}])
    assert load_pairs(str(tmp_path), split="test").caption(0) == "of test"
    assert load_pairs(str(tmp_path)).caption(0) == "of train"
    with pytest.raises(ValueError, match=r"no split 'validation'; it has .*train"):
        load_pairs(str(tmp_path), split="validation")


def test_many_captions_of_an_image_share_its_id():
    images = [encoded(draw(color, "circle", "left")) for color in ("red", "green", "black")]
    items = list(PairDataset(in_memory([["a", "b", "c"], ["d"], ["e", "f"]], images)))
    assert [item["caption"] for item in items] == list("abcdef")
    assert [item["image_id"] for item in items] == [0, 0, 0, 1, 2, 2]
    assert [items[i]["image"].getpixel((8, 15)) for i in (2, 3, 4)] == [(220, 30, 30), (20, 160, 40), (10, 10, 10)]
    assert len({item["seed"] for item in items}) == 6


def test_equal_cells_of_the_id_column_mean_the_same_image():
    pairs = PairDataset(in_memory(list("abcd"), number=[5, 9, 5, 7]), image_id_column="number")
    first, second, third, fourth = (pairs[i]["image_id"] for i in range(4))
    assert first == third
    assert len({first, second, fourth}) == 3


def test_equal_paths_are_the_same_image(world, tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("image,caption\n" + "".join(f"{world.imagefolder}/{n},x\n" for n in ("p00.png", "p01.png") * 2))
    ids = load_pairs(str(path)).image_ids
    assert ids[0] == ids[2] != ids[1] == ids[3]


@pytest.mark.parametrize("flag", ["image_column", "caption_column", "image_id_column"])
def test_a_missing_column_is_named_with_its_flag(world, flag):
    with pytest.raises(ValueError, match=rf"no column 'nothing'; it has image, caption.*--{flag.replace('_', '-')}"):
        load_pairs(str(world.imagefolder), **{flag: "nothing"})


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        *((["a", empty, "b", empty], r"2 row\(s\): 1, 3 \(counted from 0\)\.") for empty in ("", "  \n", None)),
        *(([["a"], cell], r"1 row\(s\): 1 \(counted from 0\)\.") for cell in ([], ["a", ""], None)),
        ([""] * 12, r"12 row\(s\).*: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, \.\.\."),
        ([1, 2], r"2 row\(s\)"),
    ],
)
def test_rows_without_captions_are_named(captions, message):
    with pytest.raises(ValueError, match=rf"'caption' is empty or not a text in {message}"):
        PairDataset(in_memory(captions))


def test_a_table_without_rows_is_refused():
    with pytest.raises(ValueError, match="no rows"):
        PairDataset(in_memory(["a"]).select([]))


@pytest.mark.parametrize("name", ["nothing.parquet", "nothing.csv", "*.tar", "./nothing"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=name.strip("*./")):
        load_pairs(str(tmp_path / name))


def test_an_unknown_kind_of_file_is_refused(tmp_path):
    path = tmp_path / "pairs.xlsx"
    path.write_text("?")
    with pytest.raises(ValueError, match=r"pairs\.xlsx: cannot read '\.xlsx' files; supported are .*\.parquet"):
        load_pairs(str(path))


def test_unreadable_first_images_stop_the_run_before_it_starts(tmp_path):
    path = write_json_lines(tmp_path / "pairs.jsonl", [{"image": f"gone/{i}.png", "caption": "x"} for i in range(20)])
    with pytest.raises(ValueError, match=r"none of the first 8 images in column 'image'.*gone/0\.png: no such file"):
        load_pairs(str(path))
    with pytest.raises(ValueError, match="contains int, not an image"):
        PairDataset(in_memory(["a", "b"], [1, 2]))
    assert len(PairDataset(in_memory(list("abcdefgh"), [b"no image"] * 7 + [RED]))) == 8


# ---------------------------------------------------------------------- seeds


def test_the_seed_of_an_item_depends_on_seed_epoch_and_index_only(world):
    pairs, again = (load_pairs(str(world.imagefolder), seed=3) for _ in range(2))
    other = load_pairs(str(world.imagefolder), seed=4)
    _ = again[(0, 17)], again[(9, 3)]  # the history of use changes nothing
    assert pairs[(2, 5)]["seed"] == again[(2, 5)]["seed"] == mix(3, 2, 5)
    assert pairs[5]["seed"] == pairs[(0, 5)]["seed"]
    seeds = {pairs[(2, 5)]["seed"], pairs[(5, 2)]["seed"], pairs[(2, 6)]["seed"], other[(2, 5)]["seed"]}
    assert len(seeds) == 4


# ---------------------------------------------------------------------- broken images


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """JSON lines of images of which every second one is broken, and what is wrong with each of those."""
    folder = tmp_path_factory.mktemp("broken")
    reasons = write_broken_images(folder)
    names = []
    for i, name in enumerate(reasons):
        (folder / f"good{i}.png").write_bytes(RED)
        names += [f"good{i}.png", name]
    rows = [{"image": name, "caption": f"caption of {name}"} for name in names]
    return write_json_lines(folder / "pairs.jsonl", rows), reasons


def test_every_broken_image_is_told_with_the_reason(broken):
    path, reasons = broken
    for name, reason in reasons.items():
        with pytest.raises(BrokenImage, match=reason) as caught:
            read_image(path.parent / name)
        assert caught.value.name == str(path.parent / name)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_reported_once_and_batches_keep_their_size(broken, tmp_path, workers):
    path, reasons = broken
    report = tmp_path / "deep" / "report.jsonl"
    pairs = load_pairs(str(path), report=report)
    loader = DataLoader(pairs, batch_sampler=PairBatches(len(pairs), 4), num_workers=workers, collate_fn=list)
    for _ in range(2):
        batches = list(loader)
        assert [len(batch) for batch in batches] == [4, 4, 4, 4]
        assert all(item["caption"].startswith("caption of good") for batch in batches for item in batch)
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    assert sorted(line["image"] for line in lines) == sorted(str(path.parent / name) for name in reasons)
    for line in lines:
        assert reasons[line["image"].rpartition("/")[2]] in line["reason"]


def test_the_next_readable_pair_replaces_a_broken_one_with_a_warning(broken, caplog):
    pairs = load_pairs(str(broken[0]))
    assert not caplog.text
    assert pairs[(4, 1)]["caption"] == "caption of good1.png"
    assert f"skipping unreadable {broken[0].parent}/truncated.png: " in caplog.text
    assert pairs[(4, 1)]["seed"] == pairs[(4, 2)]["seed"]
    assert pairs[len(pairs) - 1]["caption"] == "caption of good0.png"  # after the last comes the first


def test_broken_bytes_are_named_by_data_set_and_row():
    pairs = PairDataset(in_memory(["a", "b"], [RED, b"nothing"]), name="shapes")
    with pytest.raises(BrokenImage, match="shapes, row 1"):
        pairs.read_row(1)


def test_data_that_breaks_altogether_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(RED)
    (tmp_path / "pairs.csv").write_text("image,caption\na.png,x\n")
    pairs = load_pairs(str(tmp_path / "pairs.csv"))
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match="none of its images can be read"):
        pairs[0]


def test_a_report_survives_a_torn_last_line(tmp_path):
    report = BrokenImageReport(tmp_path / "report.jsonl")
    assert report.names() == set()
    report.add("a.png", "why")
    with open(report.path, "a") as file:
        file.write('{"image": "b.p')
    report = BrokenImageReport(report.path)  # the run starts again
    assert report.names() == {"a.png"}
    report.add("b.png", "why", used=True)
    report.add("a.png", "why")
    assert report.names() == BrokenImageReport(report.path).names() == {"a.png", "b.png"}
    assert report.skipped() == 1
    assert len(report.path.read_text().splitlines()) == 3  # the torn line keeps to itself


def test_rows_of_one_file_are_one_image(tmp_path):
    for color in ("red", "blue"):
        Image.new("RGB", (8, 8), color).save(tmp_path / f"{color}.png")
    rows = [("red.png", "red"), ("red.png", "a red square"), ("blue.png", "blue")]
    World.write_metadata(tmp_path, [{"file_name": name, "caption": caption} for name, caption in rows])
    pairs = load_pairs(str(tmp_path))
    first, second, third = pairs.image_ids[pairs.pair_rows]
    assert first == second != third
    assert pairs.first_rows().tolist() == [0, 0, 2]
