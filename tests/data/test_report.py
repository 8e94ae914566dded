"""A run's data are counted, and what is odd about them is warned of; a stream that can use nothing stops at once."""

import json
import logging
import time

import datasets
import numpy as np
import pytest

from hf_cots.data.report import caption_key, find_overlap, report_data, spread, summarize
from hf_cots.data.sources import load_pairs
from hf_cots.data.streams import StreamBatches, load_stream
from tests.support.worlds import all_pairs, draw, encoded, tiny_tokenizer, write_images, write_json_lines


ROWS = [{"image": f"t/{name}", "caption": caption} for name, _, caption in all_pairs()]


@pytest.fixture
def write(tmp_path):
    """Write rows, by default of images that are there, as JSON lines."""
    write_images(tmp_path / "t")

    def write_rows(rows, name="p.jsonl"):
        return str(write_json_lines(tmp_path / name, rows))

    return write_rows


def test_counts(write):
    rows = [row | {"caption": [row["caption"], "a " + row["caption"]]} for row in ROWS[:10]]
    pairs = load_pairs(write([*rows, ROWS[0]]))
    pairs.keep(np.arange(21) != 3, "keep mask a.json")
    summary = summarize(pairs, tiny_tokenizer())
    assert (summary.pairs, summary.images, summary.captions_per_image) == (20, 10, 2.0)
    assert summary.dropped == {"keep mask a.json": 1}
    assert (summary.sampled, summary.truncated, summary.unknown_tokens) == (20, 0, 0)
    assert "20 pairs of 10 images, 2.00 captions per image; 1 pairs left out: keep mask a.json" in str(summary)
    assert summary.warnings() == []


def test_captions_that_are_cut_or_unknown(write):
    texts = ["red " * 30, "猫", "red 猫", "red square"]
    pairs = load_pairs(write([row | {"caption": text} for row, text in zip(ROWS, texts)]))
    summary = summarize(pairs, tiny_tokenizer())
    assert (summary.truncated, summary.unknown_tokens) == (1 / 4, 2 / 35)
    assert ["25.0% of the captions are longer" in summary.warnings()[0], "5.7% of" in summary.warnings()[1]] == [
        True
    ] * 2
    assert summarize(pairs, tiny_tokenizer(), max_length=32).truncated == 0
    assert summarize(pairs, tiny_tokenizer(), max_length=31).truncated == 1 / 4  # 30 words and two special tokens


def test_images_without_captions(write):
    pairs = load_pairs(write(ROWS), caption_column=None)
    assert summarize(pairs, tiny_tokenizer()).sampled == 0
    assert find_overlap(pairs, pairs).captions == 0
    assert find_overlap(pairs, pairs).images == 40


@pytest.mark.parametrize("streamed", [False, True])
def test_evaluation_on_training_data_is_told(write, streamed):
    path = write(ROWS[:20])
    train = (load_stream if streamed else load_pairs)(path)
    overlap = find_overlap(train, load_pairs(path))
    assert (overlap.pairs, overlap.captions, overlap.images) == (20, 20, 20)
    assert overlap.warnings()[0].startswith("evaluation on training data: of 20 ")
    assert "(100.0%)" in str(overlap)
    other = find_overlap(train, load_pairs(write(ROWS[20:], "q.jsonl")))
    assert (other.captions, other.images, other.warnings()) == (0, 0, [])


def test_overlap_of_copies_and_of_reworded_captions(write, tmp_path):
    """Images by their bytes, whatever holds them; captions but for case and punctuation."""
    train = load_pairs(write(ROWS[:20]))
    cells = [encoded(image) for _, image, _ in all_pairs()[10:30]]
    texts = [caption.upper() + "!" for *_, caption in all_pairs()[15:35]]
    datasets.Dataset.from_dict({"image": cells, "caption": texts}).to_parquet(tmp_path / "e.parquet")
    overlap = find_overlap(train, load_pairs(str(tmp_path / "e.parquet")))
    assert (overlap.images, overlap.captions) == (10, 5)
    assert overlap.warnings() == [f"overlap: {overlap}"]
    assert caption_key("Two cats, & a dog.") == "two cats a dog"
    assert caption_key("😀") != caption_key("😁")


def test_a_report_is_logged_and_written(write, tmp_path, caplog):
    pairs, path = load_pairs(write(ROWS)), tmp_path / "deep" / "data_report.json"
    with caplog.at_level(logging.INFO):
        report = report_data(pairs, pairs, tiny_tokenizer(), path)
    assert json.loads(path.read_text()) == report
    assert report["train"]["pairs"] == report["evaluation"]["pairs"] == 40
    assert report["overlap"]["images"] == 40
    levels = {record.levelname for record in caplog.records}
    assert levels == {"INFO", "WARNING"}
    assert report_data(load_stream(write(ROWS)), None)["train"]["pairs"] is None


def test_large_data_are_sampled(tmp_path):
    """200,000 rows cost about a second."""
    cells, count = [encoded(draw("red", "circle", "left"))] * 200_000, 200_000
    table = datasets.Dataset.from_dict({"image": cells, "caption": [f"red {i}" for i in range(count)]})
    table.to_parquet(tmp_path / "p.parquet")
    pairs = load_pairs(str(tmp_path / "p.parquet"))
    started = time.process_time()
    summary, overlap = summarize(pairs, tiny_tokenizer()), find_overlap(pairs, pairs)
    assert time.process_time() - started < 20
    assert (summary.sampled, overlap.pairs, overlap.compared, overlap.read) == (10_000, 2_000, 200_000, 2_000)
    assert spread(10, 4).tolist() == [0, 3, 6, 9]


# ---------------------------------------------------------------------- streams


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image": "gone.png"}, r"gone\.png: no such file"),
        ({"image": None}, "column 'image' is empty"),
        ({"caption": " "}, "column 'caption' is empty or not a text"),
        ({"caption": []}, "column 'caption' is empty or not a text"),
    ],
)
def test_a_stream_that_can_use_nothing_stops_at_once(write, change, reason):
    path = write([row | change for row in ROWS])
    with pytest.raises(ValueError, match=rf"p\.jsonl.*{reason}") as error:
        load_stream(path)
    assert "\n" not in str(error.value)


def test_a_stream_that_can_use_something_begins_as_before(write):
    """Looking at the first rows moves nothing."""
    rows = [row | {"image": "gone.png"} for row in ROWS[:30]] + ROWS[30:]
    stream = load_stream(write(rows), shuffle_buffer_size=1)
    batch = next(iter(StreamBatches(stream, 40)))
    assert [pair.caption for pair in batch] == [row["caption"] for row in rows]


def test_a_position_of_an_older_reader_is_refused(write):
    stream = load_stream(write(ROWS), shuffle_buffer_size=5)
    batches = StreamBatches(stream, 4)
    next(iter(batches))
    rows = {"shard_idx": 0, "shard_example_idx": 5, "type": "ArrowExamplesIterable"}
    source = {"examples_iterable": {"examples_iterable": rows, "type": "RebatchedArrowExamplesIterable"}, "epoch": 0}
    state = batches.state_dict(0) | {"source": source}
    with pytest.raises(ValueError, match=r"cannot resume the stream .*p\.jsonl where the checkpoint stopped"):
        StreamBatches(stream, 4).load_state_dict(state)
    StreamBatches(stream, 4).load_state_dict(batches.state_dict(1))
