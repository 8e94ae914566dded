"""Re-ranking of an index on disk: features follow the bytes of files, not their names."""

import os

import pytest

from hf_cots import ImageIndex, RerankedIndex
from hf_cots.search.fusion import CandidateBudget, Fusion
from tests.support.pixel_encoder import PixelEncoder, write_folder, write_image
from tests.support.simla_world import simla_folder
from tests.support.worlds import write_json_lines


TEXT = "a red circle"


@pytest.fixture
def photos(tmp_path):
    return write_folder(tmp_path / "photos", 8)


@pytest.fixture
def index(photos, tmp_path):
    return ImageIndex.build(PixelEncoder(), photos, tmp_path / "index")


@pytest.fixture
def simla(world):
    return str(simla_folder(world))


def scores(reranked):
    return {match.path.name: match.score for match in reranked.search(TEXT, 20)}


def fresh(index, simla):
    """What a re-ranker that has seen nothing yet finds."""
    return scores(RerankedIndex.from_index(index, simla))


def check(reranked, index, simla):
    assert scores(reranked) == pytest.approx(fresh(index, simla), abs=1e-5)


def test_changed_files_are_encoded_again_and_renamed_ones_are_not(photos, index, simla):
    reranked = RerankedIndex.from_index(index, simla)
    before = scores(reranked)
    assert reranked.reranker.cost.images == 8
    os.rename(photos / "000.png", photos / "renamed.png")
    os.rename(photos / "001.png", photos / "000.png")  # another file under a name that was known
    write_image(photos / "002.png", 100, age=1800)
    (photos / "copy.png").write_bytes((photos / "003.png").read_bytes())
    index.update()
    check(reranked, index, simla)
    assert reranked.reranker.cost.images == 9, "only the changed file"
    after = scores(reranked)
    assert (after["renamed.png"], after["000.png"]) == pytest.approx((before["000.png"], before["001.png"]), abs=1e-5)
    assert after["copy.png"] == after["003.png"]
    assert after["002.png"] != pytest.approx(before["002.png"], abs=1e-3)


def test_features_of_a_file_that_the_index_does_not_know_yet_are_not_kept(photos, index, simla):
    reranked = RerankedIndex.from_index(index, simla)
    before, original = fresh(index, simla), (photos / "002.png").read_bytes()
    write_image(photos / "002.png", 100)
    assert scores(reranked)["002.png"] != pytest.approx(before["002.png"], abs=1e-3)
    (photos / "002.png").write_bytes(original)
    assert scores(reranked) == pytest.approx(before, abs=1e-5)


def test_a_replaced_index_is_read_from_its_own_place(photos, index, simla, tmp_path):
    reranked = RerankedIndex.from_index(index, simla)
    moved = photos.rename(tmp_path / "moved")
    reranked.index = ImageIndex.build(PixelEncoder(), moved, tmp_path / "index")
    check(reranked, reranked.index, simla)


def test_an_index_in_memory_is_re_ranked_by_paths(photos, index, simla):
    in_memory = ImageIndex(PixelEncoder(), sorted(photos.glob("*.png")))
    check(RerankedIndex.from_index(in_memory, simla), index, simla)


def test_the_fusion_of_a_hybrid_search_is_of_similarities(photos, simla, tmp_path):
    write_json_lines(photos / "metadata.jsonl", [{"file_name": "005.png", "name": "circle"}])
    index = ImageIndex.build(PixelEncoder(), photos, tmp_path / "index")
    first = index.search(TEXT, 8, hybrid="name")
    assert first[0].path.name == "005.png"
    by_similarity = RerankedIndex.from_index(index, simla, fusion=Fusion(weight=1.0), budget=CandidateBudget(8))
    found = by_similarity.search(TEXT, 8, hybrid="name")
    assert found == index.search(TEXT, 8)
    by_logit = RerankedIndex.from_index(index, simla).search(TEXT, 8, hybrid="name")
    assert by_logit == RerankedIndex.from_index(index, simla).search(TEXT, 8)
