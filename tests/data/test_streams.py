"""Streams give each pair once a pass, in an order of their own, and go on from any batch without reading it all."""

import json

import datasets
import pytest
from torch.utils.data import DataLoader

from hf_cots.data.images import BrokenImageReport
from hf_cots.data.streams import PairStream, StreamBatches, load_stream
from tests.support.worlds import all_pairs, draw, encoded, write_parquet


IN_ORDER = [caption for _, _, caption in all_pairs()]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Eight parquet files of five pairs."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(8):
        write_parquet(folder / f"shard-{shard}.parquet", all_pairs()[5 * shard : 5 * shard + 5])
    return folder


def draw_batches(stream, count, size=6, start=None, workers=0, **shard):
    """The captions and seeds of `count` batches, and the sampler."""
    batches = StreamBatches(stream, size, **shard)
    if start is not None:
        batches.load_state_dict(json.loads(json.dumps(start)))
    loader = DataLoader(stream, batch_sampler=batches, num_workers=workers, collate_fn=list)
    drawn = []
    for items in loader:
        drawn.append([(item["caption"], item["seed"], item["image"].tobytes()) for item in items])
        if len(drawn) == count:
            return drawn, batches


def captions_of(drawn):
    return [caption for batch in drawn for caption, _, _ in batch]


@pytest.mark.parametrize("source", ["imagefolder", "parquet", "tars", ".csv", ".jsonl"])
def test_each_source_streams_the_same_pairs(world, source):
    data = world.paths_in(source) if source.startswith(".") else getattr(world, source)
    image_column = "png" if source == "tars" else "image"
    drawn, _ = draw_batches(load_stream(str(data), image_column, shuffle_buffer_size=40), 1, size=40)
    assert {caption: pixels for caption, _, pixels in drawn[0]} == {c: image.tobytes() for _, image, c in all_pairs()}


def test_every_pass_gives_each_pair_once_in_an_order_of_its_own(shards):
    drawn, _ = draw_batches(load_stream(str(shards), shuffle_buffer_size=12, seed=3), 20, size=4)
    captions = captions_of(drawn)
    first, second = captions[:40], captions[40:]
    assert sorted(first) == sorted(second) == sorted(IN_ORDER)
    assert first not in (second, IN_ORDER)
    # Shuffled within blocks (which end with the row that fills them), not beyond.
    assert set(first[:12]) == set(IN_ORDER[:12])
    seeds = [seed for batch in drawn for _, seed, _ in batch]
    assert len(set(seeds)) == 80
    assert draw_batches(load_stream(str(shards), shuffle_buffer_size=12, seed=3), 20, size=4)[0] == drawn
    assert draw_batches(load_stream(str(shards), shuffle_buffer_size=12, seed=4), 20, size=4)[0] != drawn


def test_a_block_of_one_keeps_the_order(shards):
    drawn, _ = draw_batches(load_stream(str(shards), shuffle_buffer_size=1), 10, size=4)
    assert captions_of(drawn) == IN_ORDER


@pytest.mark.parametrize("stop", range(1, 14))
@pytest.mark.parametrize("block", [1, 7, 12, 100])
def test_a_resumed_stream_goes_on_where_it_stopped(shards, stop, block):
    """At any batch: within a block, at its end, at the end of a pass, in the second pass."""
    whole, batches = draw_batches(load_stream(str(shards), shuffle_buffer_size=block), 15, size=8)
    state = batches.state_dict(stop)
    again, resumed = draw_batches(load_stream(str(shards), shuffle_buffer_size=block), 15 - stop, size=8, start=state)
    assert again == whole[stop:]
    # A position that a resumed run writes is as good.
    last, _ = draw_batches(
        load_stream(str(shards), shuffle_buffer_size=block), 1, size=8, start=resumed.state_dict(14 - stop)
    )
    assert last == whole[14:]


@pytest.mark.parametrize("size", [1, 3, 4, 5, 16])
@pytest.mark.parametrize("stop", [1, 4, 5, 7])
def test_a_stream_goes_on_with_the_next_pair_in_batches_of_another_size(shards, stop, size):
    whole, batches = draw_batches(load_stream(str(shards), shuffle_buffer_size=12), 14, size=8)
    stream = load_stream(str(shards), shuffle_buffer_size=12)
    again, resumed = draw_batches(stream, 16 // size + 1, size=size, start=batches.state_dict(stop))
    pairs = [pair for batch in whole[stop:] for pair in batch]
    assert [pair for batch in again for pair in batch] == pairs[: len(again) * size]
    # And back to the first size.
    stream = load_stream(str(shards), shuffle_buffer_size=12)
    last, _ = draw_batches(stream, 2, size=8, start=resumed.state_dict(len(again)))
    assert [pair for batch in last for pair in batch] == pairs[len(again) * size : len(again) * size + 16]


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_stream_goes_on_with_another_number_of_ranks(shards, ranks):
    whole, batches = draw_batches(load_stream(str(shards), shuffle_buffer_size=12), 9, size=8)
    state = batches.state_dict(3)
    parts = [
        draw_batches(
            load_stream(str(shards), shuffle_buffer_size=12),
            *(6, 8 // ranks, state),
            rank=rank,
            world_size=ranks,
        )[0]
        for rank in range(ranks)
    ]
    assert [[pair for shard in batch for pair in shard] for batch in zip(*parts)] == whole[3:]


@pytest.mark.parametrize("block", [1, 7, 30])
@pytest.mark.parametrize("stop", [1, 2, 5, 6])
def test_a_stream_goes_on_with_blocks_of_another_size(shards, stop, block):
    """The block under way is finished as it was begun: no pair twice, none left out, in this pass."""
    whole, batches = draw_batches(load_stream(str(shards), shuffle_buffer_size=12), 10, size=4)
    stream = load_stream(str(shards), shuffle_buffer_size=block)
    again, _ = draw_batches(stream, 10 - stop, size=4, start=batches.state_dict(stop))
    assert sorted(captions_of(whole[:stop] + again)) == sorted(IN_ORDER)


def test_a_position_of_an_older_version_is_read(shards):
    """They counted batches, too, which no longer matters."""
    whole, batches = draw_batches(load_stream(str(shards), shuffle_buffer_size=12), 6, size=8)
    state = batches.state_dict(4)
    old = {"batches": 4} | {name: state[name] for name in ("epoch", "number", "offset", "source")}
    again, _ = draw_batches(load_stream(str(shards), shuffle_buffer_size=12), 4, size=4, start=old)
    assert captions_of(again) == captions_of(whole[4:])


def test_a_resumed_stream_does_not_read_what_lies_before(shards, monkeypatch):
    _, batches = draw_batches(load_stream(str(shards), shuffle_buffer_size=10), 6, size=5)
    state = batches.state_dict(6)  # 30 pairs: six shards
    stream = load_stream(str(shards), shuffle_buffer_size=10)
    read = []
    original = PairStream.split_row
    monkeypatch.setattr(
        PairStream, "split_row", lambda self, row, *rest: read.append(row["caption"]) or original(self, row, *rest)
    )
    draw_batches(stream, 2, size=5, start=state)
    assert read == IN_ORDER[20:]  # the block under way and the last one, not the twenty pairs before


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(shards, workers):
    alone, batches = draw_batches(load_stream(str(shards), shuffle_buffer_size=12), 9)
    parallel, ahead = draw_batches(load_stream(str(shards), shuffle_buffer_size=12), 9, workers=workers)
    assert parallel == alone
    assert ahead.state_dict(9) == batches.state_dict(9)  # though the workers have asked for later ones


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_shards_of_all_ranks_are_the_batch_of_one_process(shards, ranks):
    whole, _ = draw_batches(load_stream(str(shards), shuffle_buffer_size=12), 9, size=8)
    parts = [
        draw_batches(
            load_stream(str(shards), shuffle_buffer_size=12), 9, size=8 // ranks, rank=rank, world_size=ranks
        )[0]
        for rank in range(ranks)
    ]
    assert [[pair for shard in batch for pair in shard] for batch in zip(*parts)] == whole


def test_captions_of_a_row_share_its_image(tmp_path):
    rows = [
        {"image": encoded(draw("red", "circle", place)), "caption": [place, f"at {place}"]}
        for place in ("left", "top")
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "pairs.parquet")
    stream = load_stream(str(tmp_path / "pairs.parquet"))
    items = [stream[pair] for pair in next(iter(StreamBatches(stream, 4)))]
    ids = {item["caption"]: item["image_id"] for item in items}
    assert ids["left"] == ids["at left"] != ids["top"] == ids["at top"]


def test_what_cannot_be_used_is_reported_and_dropped(tmp_path):
    good = encoded(draw("red", "circle", "left"))
    rows = [{"image": image, "caption": c} for image, c in [(good, "a"), (b"no image", "b"), (good, " "), (good, "d")]]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "pairs.parquet")
    stream = load_stream(str(tmp_path / "pairs.parquet"), report=tmp_path / "report.jsonl")
    items = [stream[pair] for pair in next(iter(StreamBatches(stream, 4)))]
    assert sorted(item["caption"] for item in items if item) == ["a", "d"]
    report = BrokenImageReport(tmp_path / "report.jsonl")
    assert {name.rpartition(", ")[2] for name in report.names()} == {"pair 1", "pair 2"}
    assert "column 'caption' is empty" in report.path.read_text()


def test_a_missing_column_is_named_with_its_flag(world):
    with pytest.raises(ValueError, match=r"no column 'text'.*--caption-column"):
        load_stream(str(world.imagefolder), caption_column="text")


def test_an_empty_source_is_an_error(tmp_path):
    (tmp_path / "pairs.csv").write_text("image,caption\n")
    with pytest.raises(ValueError, match="no rows"):
        load_stream(str(tmp_path / "pairs.csv"))
    datasets.Dataset.from_dict({"image": [], "caption": []}).to_parquet(tmp_path / "pairs.parquet")
    with pytest.raises(ValueError, match="no rows"):
        load_stream(str(tmp_path / "pairs.parquet"))


def test_a_block_must_be_positive(world):
    with pytest.raises(ValueError, match="--shuffle_buffer_size"):
        load_stream(str(world.parquet), shuffle_buffer_size=0)
