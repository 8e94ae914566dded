"""Every source of data gives the same pairs; wrong data is told by name; broken pictures stop nothing."""

import json

import datasets
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from hf_cots.data.batches import PairBatches
from hf_cots.data.images import BrokenImage, BrokenImageReport, read_image
from hf_cots.data.sources import PairDataset, load_pairs
from hf_cots.models.masking import mix
from tests.support.worlds import World, all_pairs, break_pictures, draw, encoded


def in_memory(captions, pictures=None, **columns):
    """A table of encoded pictures and caption cells."""
    pictures = pictures or [encoded(draw("red", "circle", "left"))] * len(captions)
    return datasets.Dataset.from_dict({"image": pictures, "caption": captions, **columns})


def keep_items(items):
    """A collator that changes nothing."""
    return items


SOURCES = {
    "imagefolder": (lambda w: w.imagefolder, {}),
    "parquet": (lambda w: w.parquet, {}),
    "csv": (lambda w: w.paths_in(".csv"), {}),
    "tsv": (lambda w: w.paths_in(".tsv"), {}),
    "jsonl": (lambda w: w.paths_in(".jsonl"), {}),
    "tar_folder": (lambda w: w.tars, {"image_column": "png", "caption_column": "txt"}),
    "tar_glob": (lambda w: w.tars / "*.tar", {"image_column": "png", "caption_column": "txt"}),
}


@pytest.mark.parametrize("source", SOURCES)
def test_each_source_gives_the_same_pairs(world, source):
    path, columns = SOURCES[source]
    pairs = load_pairs(str(path(world)), **columns)
    assert len(pairs) == 40
    for index, (_, picture, caption) in enumerate(all_pairs()):
        item = pairs[index]
        assert item["caption"] == caption
        assert item["image"].mode == "RGB"
        assert np.array_equal(np.asarray(item["image"]), np.asarray(picture))
    assert len(set(pairs.image_ids.tolist())) == 40
    assert pairs.image_ids.min() >= 0


def test_a_folder_of_parquet_files_is_read_whole(world, tmp_path):
    for name in ("a.parquet", "b.parquet"):
        (tmp_path / name).write_bytes(world.parquet.read_bytes())
    assert len(load_pairs(str(tmp_path))) == 80


def test_a_folder_without_splits_needs_none(world):
    """`hf-cots evaluate` asks for the split "test", which a plain folder does not have."""
    assert len(load_pairs(str(world.imagefolder), split="test")) == 40


@pytest.mark.parametrize("metadata", [True, False])
def test_pictures_that_are_called_like_splits(tmp_path, metadata):
    """Only folders are splits: `datasets` would take toy_train_02.png for all there is to train on."""
    folder = tmp_path / "train [new]"
    names = {"apple.png", "toy_train_02.png", "test.png", "val-01.png", "deep/eval/plum.png"}
    (folder / "deep" / "eval").mkdir(parents=True)
    for name in names:
        draw("red", "circle", "left").save(folder / name)
    if metadata:
        World.write_metadata(folder, [{"file_name": name, "caption": name} for name in names])
    pairs = load_pairs(str(folder), caption_column="caption" if metadata else None)
    assert {pairs.caption(index) for index in range(len(pairs))} == (names if metadata else {""})
    assert len(pairs) == 5


def test_splits_of_a_folder(tmp_path):
    for split, colour in (("train", "red"), ("test", "green")):
        folder = tmp_path / split
        folder.mkdir()
        draw(colour, "circle", "left").save(folder / "a.png")
        World.write_metadata(folder, [{"file_name": "a.png", "caption": colour}])
    assert load_pairs(str(tmp_path), split="test").caption(0) == "green"
    assert load_pairs(str(tmp_path)).caption(0) == "red"
    with pytest.raises(ValueError, match=r"no split 'validation'; it has .*train"):
        load_pairs(str(tmp_path), split="validation")


def test_many_captions_of_a_picture_share_its_id():
    pictures = [encoded(draw(colour, "circle", "left")) for colour in ("red", "green", "black")]
    pairs = PairDataset(in_memory([["a", "b", "c"], ["d"], ["e", "f"]], pictures))
    assert [pairs[i]["caption"] for i in range(len(pairs))] == list("abcdef")
    assert [pairs[i]["image_id"] for i in range(len(pairs))] == [0, 0, 0, 1, 2, 2]
    assert [pairs[i]["image"].getpixel((8, 15)) for i in (2, 3, 4)] == [(220, 30, 30), (20, 160, 40), (10, 10, 10)]
    assert len({pairs[i]["seed"] for i in range(len(pairs))}) == 6


def test_equal_cells_of_the_id_column_mean_the_same_picture():
    pairs = PairDataset(in_memory(list("abcd"), number=[5, 9, 5, 7]), image_id_column="number")
    first, second, third, fourth = (pairs[i]["image_id"] for i in range(4))
    assert first == third
    assert len({first, second, fourth}) == 3


def test_equal_paths_are_the_same_picture(world, tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("image,caption\n" + "".join(f"{world.imagefolder}/{n},x\n" for n in ("p00.png", "p01.png") * 2))
    ids = load_pairs(str(path)).image_ids
    assert ids[0] == ids[2] != ids[1] == ids[3]


@pytest.mark.parametrize("flag", ["image_column", "caption_column", "image_id_column"])
def test_a_missing_column_is_named_with_its_flag(world, flag):
    with pytest.raises(ValueError, match=rf"no column 'nothing'; it has image, caption.*--{flag.replace('_', '-')}"):
        load_pairs(str(world.imagefolder), **{flag: "nothing"})


@pytest.mark.parametrize("empty", ["", "  \n", None])
def test_rows_of_empty_captions_are_named(empty):
    with pytest.raises(ValueError, match=r"'caption' is empty or no text in 2 row\(s\), counted from 0: 1, 3\."):
        PairDataset(in_memory(["a", empty, "b", empty]))


@pytest.mark.parametrize("cell", [[], ["a", ""], None])
def test_rows_of_empty_caption_lists_are_named(cell):
    with pytest.raises(ValueError, match=r"1 row\(s\), counted from 0: 1\."):
        PairDataset(in_memory([["a"], cell]))


def test_only_the_first_empty_rows_are_listed():
    with pytest.raises(ValueError, match=r"12 row\(s\).*: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, \.\.\."):
        PairDataset(in_memory([""] * 12))


def test_a_table_without_rows_is_refused():
    with pytest.raises(ValueError, match="holds no rows"):
        PairDataset(in_memory(["a"]).select([]))


@pytest.mark.parametrize("name", ["nothing.parquet", "nothing.csv", "*.tar", "./nothing"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=name.strip("*./")):
        load_pairs(str(tmp_path / name))


def test_an_unknown_kind_of_file_is_refused(tmp_path):
    path = tmp_path / "pairs.xlsx"
    path.write_text("?")
    with pytest.raises(ValueError, match=r"pairs\.xlsx: cannot read '\.xlsx' files; known are .*\.parquet"):
        load_pairs(str(path))


def test_unreadable_first_pictures_stop_the_run_before_it_starts(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"image": f"gone/{i}.png", "caption": "x"}) + "\n" for i in range(20)))
    with pytest.raises(ValueError, match=r"none of the first 8 images in column 'image'.*gone/0\.png: no such file"):
        load_pairs(str(path))
    with pytest.raises(ValueError, match="holds int, not an image"):
        PairDataset(in_memory(["a", "b"], [1, 2]))


def test_one_readable_first_picture_is_enough():
    pictures = [b"no picture"] * 7 + [encoded(draw("red", "circle", "left"))]
    assert len(PairDataset(in_memory(list("abcdefgh"), pictures))) == 8


# ---------------------------------------------------------------------- seeds


def test_the_seed_of_an_item_depends_on_seed_epoch_and_index_only(world):
    pairs, again = (load_pairs(str(world.imagefolder), seed=3) for _ in range(2))
    other = load_pairs(str(world.imagefolder), seed=4)
    _ = again[(0, 17)], again[(9, 3)]  # the history of use changes nothing
    assert pairs[(2, 5)]["seed"] == again[(2, 5)]["seed"] == mix(3, 2, 5)
    assert pairs[5]["seed"] == pairs[(0, 5)]["seed"]
    seeds = {pairs[(2, 5)]["seed"], pairs[(5, 2)]["seed"], pairs[(2, 6)]["seed"], other[(2, 5)]["seed"]}
    assert len(seeds) == 4


# ---------------------------------------------------------------------- broken pictures


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A folder of broken and whole pictures, and a JSON-lines file in which whole ones lie between broken ones."""
    folder = tmp_path_factory.mktemp("broken")
    reasons = break_pictures(folder)
    names = []
    for i, name in enumerate(reasons):
        draw("red", "circle", "left").save(folder / f"whole{i}.png")
        names += [f"whole{i}.png", name]
    rows = [{"image": name, "caption": f"caption of {name}"} for name in names]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, reasons


def test_every_broken_picture_is_told_with_the_reason(broken):
    folder, reasons = broken
    for name, reason in reasons.items():
        with pytest.raises(BrokenImage, match=reason) as caught:
            read_image(folder / name)
        assert caught.value.name == str(folder / name)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_pictures_are_reported_once_and_batches_keep_their_size(broken, tmp_path, workers):
    folder, reasons = broken
    report = tmp_path / "deep" / "report.jsonl"
    pairs = load_pairs(str(folder / "pairs.jsonl"), report=report)
    batches = PairBatches(len(pairs), 4)
    loader = DataLoader(pairs, batch_sampler=batches, num_workers=workers, collate_fn=keep_items)
    for _ in range(2):
        batches = list(loader)
        assert [len(batch) for batch in batches] == [4, 4, 4, 4]
        items = [item for batch in batches for item in batch]
        assert all(item["caption"].startswith("caption of whole") for item in items)
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    assert sorted(line["image"] for line in lines) == sorted(str(folder / name) for name in reasons)
    for line in lines:
        assert reasons[line["image"].rpartition("/")[2]] in line["reason"]


def test_the_next_readable_pair_takes_the_place_of_a_broken_one(broken):
    folder, _ = broken
    pairs = load_pairs(str(folder / "pairs.jsonl"))
    assert pairs[(4, 1)]["caption"] == "caption of whole1.png"
    assert pairs[(4, 1)]["seed"] == pairs[(4, 2)]["seed"]
    assert pairs[len(pairs) - 1]["caption"] == "caption of whole0.png"  # after the last comes the first


def test_without_a_report_a_broken_picture_is_a_warning(broken, caplog):
    folder, _ = broken
    pairs = load_pairs(str(folder / "pairs.jsonl"))
    assert "truncated.png" not in caplog.text
    _ = pairs[1]
    assert "truncated.png" in caplog.text


def test_broken_bytes_are_named_by_data_set_and_row():
    pictures = [encoded(draw("red", "circle", "left")), b"nothing"]
    pairs = PairDataset(in_memory(["a", "b"], pictures), name="shapes")
    with pytest.raises(BrokenImage, match="shapes, row 1"):
        pairs.read_row(1)


def test_data_that_breaks_altogether_is_an_error(tmp_path):
    draw("red", "circle", "left").save(tmp_path / "a.png")
    (tmp_path / "pairs.csv").write_text("image,caption\na.png,x\n")
    pairs = load_pairs(str(tmp_path / "pairs.csv"))
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match="no image can be read"):
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


def test_numbers_for_captions_are_refused_by_row():
    table = datasets.Dataset.from_dict({"image": ["a.png", "b.png"], "caption": [1, 2]})
    with pytest.raises(ValueError, match="empty or no text in 2 row"):
        PairDataset(table)


def test_rows_of_one_imagefolder_file_are_one_picture(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "b.png")
    rows = [("a.png", "red"), ("a.png", "a red square"), ("b.png", "blue")]
    lines = [json.dumps({"file_name": name, "caption": caption}) for name, caption in rows]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    pairs = load_pairs(str(tmp_path))
    ids = {pairs.caption(i): int(pairs.image_ids[pairs.pair_rows[i]]) for i in range(3)}
    assert ids["red"] == ids["a red square"] != ids["blue"]
    assert len(set(pairs.first_rows().tolist())) == 2
