"""Approximate search: its recall is what is measured, its scores are exact, and nothing out of date is used."""

import json
import logging
import os
import random
import shutil
import signal

import numpy as np
import pytest

from hf_cots import ImageIndex
from hf_cots.search import approximate, disk_index, update, vectors
from hf_cots.search.vectors import l2_normalize
from tests.search.test_disk_index_safety import FORK
from tests.support.cli import call, error_of, succeed
from tests.support.kills import run_killed
from tests.support.pixel_encoder import PixelEncoder, write_folder, write_image
from tests.support.worlds import write_json_lines


faiss = pytest.importorskip("faiss")
IMAGES = 240
LOGGER = "hf_cots.search.approximate"


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(approximate, "MIN_VECTORS", 100)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("approximate") / "photos", IMAGES)


@pytest.fixture
def photos(gallery, tmp_path):
    return shutil.copytree(gallery, tmp_path / "photos", copy_function=os.link)


def build(source, to, approximate=True, **options):
    return ImageIndex.build(PixelEncoder(), source, to, approximate=approximate, **options)


def exact_answers(index, query, k=10):
    return index.search(query, k, exact=True)


def files(folder):
    return sorted(path.name for path in folder.glob("approximate*"))


# ---------------------------------------------------------------------- what it finds


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_the_recall_is_that_of_its_answers(photos, tmp_path, dtype):
    """Measured on all images, since there are so few, and on their names."""
    index = build(photos, tmp_path / "index", recall=0.8, dtype=dtype)
    measured = index.approximation()
    embeds = index.embeds.astype(float)
    scores, found = {}, {}
    texts = l2_normalize(PixelEncoder().encode_texts([path.stem for path in index.paths]))
    for kind, queries in (("images", index.embeds), ("texts", texts)):
        scores[kind] = -np.sort(-(queries.astype(float) @ embeds.T), axis=1)
        found[kind] = [index.search_vector(query, 10) for query in queries]
        hits = [
            sum(match.score >= row[9] - 1e-9 for match in matches)
            for row, matches in zip(scores[kind].tolist(), found[kind])
        ]
        assert measured.recall["10"][kind] == pytest.approx(sum(hits) / len(hits) / 10)
        assert measured.recall["10"][kind] >= 0.8
    assert min(measured.recall["10"].values()) < 1  # else this would compare nothing
    for kind, queries in (("images", index.embeds), ("texts", texts)):
        for query, matches in zip(queries[:20], found[kind]):
            exact = {match.path: match.score for match in index.search_vector(query, 1000, exact=True)}
            assert [match.score for match in matches] == [exact[match.path] for match in matches]
            assert len(matches) == 10


def test_a_higher_recall_looks_into_more_clusters(photos, tmp_path):
    probes = []
    for target in (0.5, 0.99, 1.0):
        index = build(photos, tmp_path / "index", recall=target)
        measured = index.approximation(k=100)
        probes.append(measured.nprobe["10"])
        assert min(value for recall in measured.recall.values() for value in recall.values()) >= target
    assert probes == sorted(probes)
    assert probes[0] < probes[-1]
    assert [index.search(name, 10) for name in ("a", "b")] == [exact_answers(index, name) for name in ("a", "b")]


def test_filters_and_long_answers_are_exact(photos, tmp_path, monkeypatch):
    index = build(photos, tmp_path / "index", recall=0.5)
    assert index.approximation() == index.approximation(k=100) is not None
    exact = exact_answers(index, "red", 101), index.search("red", 10, where="path < '100'", exact=True)
    assert (index.approximation(101), index.approximation(where="1"), index.approximation(exact=True)) == (None,) * 3
    monkeypatch.setattr(approximate.ApproximateSearch, "nearest", None)  # would be a TypeError
    assert (index.search("red", 101), index.search("red", 10, where="path < '100'")) == exact
    with pytest.raises(TypeError):
        index.search("red", 10)


def test_clusters_that_are_too_small_for_an_answer_do_not_cut_it(photos, tmp_path):
    index = build(photos, tmp_path / "index", recall=0.01)
    assert index.approximation().nprobe["100"] <= 2
    assert index.search("red", 100) == exact_answers(index, "red", 100)


def test_captions_are_the_texts_that_it_is_measured_on(photos, tmp_path, monkeypatch):
    rows = [
        {"image": f"{i:03d}.png", "license": "MIT", "caption": f"number {i}", "path": "a", "slot": "b"}
        for i in range(IMAGES)
    ]
    seen = []
    monkeypatch.setattr(
        PixelEncoder, "encode_texts", lambda self, texts, batch_size=256: seen.extend(texts) or np.eye(12)
    )
    build(write_json_lines(photos / "rows.jsonl", rows), tmp_path / "index")
    assert sorted(seen) == sorted(row["caption"] for row in rows)


# ---------------------------------------------------------------------- up to date


@pytest.mark.parametrize("rewritten", [True, False])
def test_what_is_deleted_or_changed_does_not_come_back(photos, tmp_path, monkeypatch, rewritten):
    """Whether the file is written again or not."""
    monkeypatch.setattr(approximate, "CHANGED_FRACTION", 0.0 if rewritten else 0.9)
    index = build(photos, tmp_path / "index", recall=0.9)
    written, query = files(tmp_path / "index"), write_image(tmp_path / "new.png", 5000)
    vector = index.embed_query(query)
    best = index.search_vector(vector, 12)
    for match in best[1:11]:
        match.path.unlink()
    best[0].path.unlink()
    write_image(best[0].path, 999)
    query.rename(photos / "new.png")  # a hit that only the newest rows have
    index.update()
    found = index.search_vector(vector, 10)
    assert len(found) == 10
    assert found[0].path.name == "new.png"
    assert found[0].score == pytest.approx(1)
    assert not {match.path for match in best[1:11]} & {match.path for match in found}
    assert index.approximation() is not None
    assert (files(tmp_path / "index") != written) == rewritten
    assert len(files(tmp_path / "index")) == 1
    assert [match.score for match in found] == sorted((match.score for match in found), reverse=True)


def test_small_changes_do_not_write_it_again_and_growth_finds_new_clusters(photos, tmp_path, monkeypatch):
    index = build(photos, tmp_path / "index")
    first = index.approximation()
    for i in range(4):
        write_image(photos / f"few{i}.png", 1000 + i)
    index.update()
    assert index.approximation() == first
    for i in range(20):
        write_image(photos / f"more{i}.png", 2000 + i)
    index.update()
    second = index.approximation()
    assert (second.end, second.trained, second.file) == (IMAGES + 24, IMAGES, "approximate-2.faiss")
    monkeypatch.setattr(approximate, "GROWTH", 1.2)
    for i in range(40):
        write_image(photos / f"many{i}.png", 3000 + i)
    index.update()
    assert index.approximation().trained == IMAGES + 64
    assert faiss.read_index(str(tmp_path / "index" / "approximate-3.faiss")).ntotal == IMAGES + 64


def test_holes_are_removed_and_the_file_of_before_is_not_used(photos, tmp_path, monkeypatch, caplog):
    """By an update that ends before the new file is there; the next one makes it."""
    monkeypatch.setattr(update, "COMPACT_HOLES", 5)
    index = build(photos, tmp_path / "index")
    for i in range(0, 120):
        (photos / f"{i:03d}.png").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(disk_index, "update_approximate", lambda store, encoder: None)
        index.update()
    with caplog.at_level(logging.WARNING, LOGGER):
        for _ in range(3):
            assert index.search("red", 100) == exact_answers(index, "red", 100)
    assert len(caplog.records) == 1
    assert "exactly, because its file for approximate search is missing, damaged or not up to date" in (
        caplog.records[0].getMessage()
    )
    assert index.approximation() is None
    index.update()
    assert (index.approximation().end, files(tmp_path / "index")) == (120, ["approximate-2.faiss"])


def test_an_index_that_has_become_small_is_searched_exactly(photos, tmp_path, monkeypatch, caplog):
    index = build(photos, tmp_path / "index")
    monkeypatch.setattr(approximate, "MIN_VECTORS", 1000)
    with caplog.at_level(logging.WARNING, LOGGER):
        index.update()
    assert "fewer than 1000 different images" in caplog.text
    assert files(tmp_path / "index") == []
    assert index.search("red") == exact_answers(index, "red")


def test_it_stays_until_it_is_no_longer_wanted(photos, tmp_path):
    index = build(photos, tmp_path / "index", recall=0.9)
    assert build(photos, tmp_path / "index", approximate=None).approximation().target == 0.9
    assert build(photos, tmp_path / "index", approximate=False).approximation() is None
    assert files(tmp_path / "index") == []
    assert index.approximation() is None


# ---------------------------------------------------------------------- damage


@pytest.mark.parametrize("damage", ["missing", "cut", "zeroed", "garbage"])
def test_a_damaged_file_is_noticed_and_repaired(photos, tmp_path, caplog, damage):
    built = build(photos, tmp_path / "index")
    path = tmp_path / "index" / built.approximation().file
    data = path.read_bytes()
    damaged = {"cut": data[:-100], "zeroed": data[:-100] + bytes(100), "garbage": os.urandom(len(data))}
    path.unlink() if damage == "missing" else path.write_bytes(damaged[damage])
    index = ImageIndex.open(tmp_path / "index", PixelEncoder())
    with caplog.at_level(logging.WARNING, LOGGER):
        assert index.search("red", 20) == exact_answers(index, "red", 20)
    assert len(caplog.records) == 1
    index.update()
    assert index.approximation() is not None


def test_vectors_that_are_damaged_make_it_anew(photos, tmp_path):
    """Their slots may get other vectors."""
    build(photos, tmp_path / "index")
    with open(tmp_path / "index" / "vectors-0.bin", "r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(bytes(8))
    index = build(photos, tmp_path / "index", approximate=None)
    assert index.approximation().file == "approximate-2.faiss"
    assert index.search("red", 20, exact=True)[0].score == pytest.approx(index.search("red", 20)[0].score)


def run(source, to, **options):
    """Build in a process of its own, killed after so many `lines` of the code that writes the file."""
    searching = ("nearest", "_candidates", "rank")  # most lines, and they write nothing
    files = ("search/approximate.py", "search/store.py")
    return run_killed(FORK, files, build, source, to, skipped=searching, **options)


@pytest.mark.timeout(120)
def test_a_kill_at_any_line_leaves_a_file_that_is_whole_or_not_named(photos, tmp_path):
    before = tmp_path / "before"
    build(photos, before)
    for i in range(30):
        (photos / f"{i:03d}.png").unlink()
        write_image(photos / f"new{i}.png", 1000 + i)
    code, lines = run(photos, shutil.copytree(before, tmp_path / "whole"))
    assert code == 0
    draws = random.Random(0)
    for stop in [draws.randrange(1, lines) for _ in range(3)] + [lines - n for n in (2, 12, 25)]:
        to = shutil.copytree(before, tmp_path / "index", dirs_exist_ok=True)
        assert run(photos, to, lines=stop)[0] == -signal.SIGKILL
        index = ImageIndex.open(to, PixelEncoder())
        assert len(index.search("red", 1000)) == len(index)
        exact = {match.path: match.score for match in exact_answers(index, "red", 1000)}
        assert all(exact[match.path] == match.score for match in index.search("red", 10))
        index.update()
        assert index.approximation().live == IMAGES
        assert len(files(to)) == 1
        index.store.close()
        shutil.rmtree(to)


# ---------------------------------------------------------------------- refused, and shown


def test_what_cannot_be_is_refused_before_anything_is_encoded(photos, tmp_path, monkeypatch, world):
    monkeypatch.setattr(approximate, "MIN_VECTORS", 200_000)
    with pytest.raises(
        ValueError, match="--approximate needs at least 200000 images: 240 images are searched exactly in milliseconds"
    ):
        build(photos, tmp_path / "index")
    monkeypatch.setattr(approximate, "MIN_VECTORS", 100)
    with pytest.raises(ValueError, match=r"--recall must be above 0 and at most 1, got 1[.]5"):
        build(photos, tmp_path / "index", recall=1.5)
    with pytest.raises(ValueError, match="--recall is only for approximate search: add --approximate"):
        build(photos, tmp_path / "index", approximate=None, recall=0.5)
    monkeypatch.setattr(approximate, "load_faiss", lambda: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'hf-cots\[search\]'"):
        build(photos, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_without_faiss_it_is_searched_exactly(photos, tmp_path, monkeypatch, caplog):
    index = build(photos, tmp_path / "index")
    written = files(tmp_path / "index")
    monkeypatch.setattr(approximate, "load_faiss", lambda: None)
    monkeypatch.setattr(vectors, "load_faiss", lambda: None)
    opened = ImageIndex.open(tmp_path / "index", PixelEncoder())
    assert opened.search("red", 20) == exact_answers(index, "red", 20)
    assert "faiss is not installed" in caplog.text
    opened.update()
    assert files(tmp_path / "index") == written


def test_the_command_line_tells_the_recall(world, tmp_path, monkeypatch):
    monkeypatch.setattr(approximate, "MIN_VECTORS", 2)
    model, source, to = world.model, world.imagefolder, tmp_path / "index"
    result = succeed("index", model, source, "--to", to, "--approximate", "--recall", "0.9", "--json")
    told = json.loads(result.stdout)["approximate"]
    assert told["target"] == 0.9 <= min(told["recall"]["10"].values())
    assert set(told) == {"target", "recall", "nprobe", "milliseconds", "exact_milliseconds"}
    assert "approximate search, measured recall@10" in result.stderr
    found = succeed("search", to, "a red circle", "-k", 3)
    assert "approximate search, measured recall@10" in found.stderr
    assert "--exact searches all" in found.stderr
    assert "approximate" not in found.stdout
    exact = succeed("search", to, "a red circle", "-k", 3, "--exact")
    assert "approximate" not in exact.stderr
    assert "approximate" not in succeed("search", to, "a red circle", "--where", "1").stderr
    again = succeed("index", model, source, "--to", to, "--no-approximate", "--json")
    assert "approximate" not in json.loads(again.stdout)
    monkeypatch.undo()
    refused = error_of(call("index", model, source, "--to", to, "--approximate"))
    assert "--approximate needs at least 200000 images" in refused
