"""An index with binary vectors: its recall is what is measured, and what must be exact is."""

import json
import shutil

import numpy as np
import pytest

from hf_cots import ImageIndex
from hf_cots.search import signs, vectors
from hf_cots.search.vectors import l2_normalize
from tests.support.cli import call, error_of, succeed
from tests.support.pixel_encoder import DIM, PixelEncoder, write_folder, write_image


pytest.importorskip("faiss")
IMAGES = 300


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("signs") / "photos", IMAGES)


@pytest.fixture(scope="module")
def folder(photos):
    ImageIndex.build(PixelEncoder(), photos, photos.parent / "index", dtype="binary")
    return photos.parent / "index"


@pytest.fixture
def index(folder):
    return ImageIndex.open(folder, PixelEncoder())


def test_the_recall_is_that_of_its_answers(photos, tmp_path, monkeypatch):
    """Measured on all images, since there are so few, and on their names."""
    monkeypatch.setattr(signs, "TARGET", 0.6)
    index = ImageIndex.build(PixelEncoder(), photos, tmp_path / "index", dtype="binary")
    measured, embeds = index.approximation(), index.embeds
    assert (measured.target, index.store.dtype) == (0.6, "binary")
    names = PixelEncoder().encode_texts([path.stem for path in index.paths])
    for kind, queries in (("images", embeds), ("texts", l2_normalize(names))):
        tenth = -np.sort(-(queries.astype(float) @ embeds.T.astype(float)), axis=1)[:, 9]
        found = [[match.score for match in index.search_vector(query, 10)] for query in queries]
        hits = [sum(score >= least - 1e-9 for score in scores) for scores, least in zip(found, tenth)]
        assert measured.recall["10"][kind] == pytest.approx(sum(hits) / len(hits) / 10)
        assert 0.6 <= measured.recall["10"][kind] < 1  # else this would compare nothing
    assert 40 <= measured.candidates["10"] < IMAGES
    assert "approximate search, measured recall@10" in str(measured)
    assert "candidates" in measured.measured()


def test_vectors_are_kept_as_int8(index, photos, tmp_path):
    other = ImageIndex.build(PixelEncoder(), photos, tmp_path / "int8", dtype="int8")
    np.testing.assert_array_equal(index.embeds, other.embeds)
    assert index.meta["error"] == other.meta["error"]
    assert index.search("red", 10, exact=True) == other.search("red", 10)
    with index.store.reading() as snapshot:
        assert snapshot.bits.shape == (IMAGES, -(-DIM // 8))


def test_filters_long_answers_and_exact_ones_are_exact(index, monkeypatch):
    given = ({"exact": True}, {"where": "path < '100'"})
    expected = [index.search("red", 10, **options) for options in given] + [index.search("red", 101)]
    monkeypatch.setattr(signs.SignSearch, "nearest", None)
    assert [index.search("red", 10, **options) for options in given] + [index.search("red", 101)] == expected
    with pytest.raises(TypeError):
        index.search("red", 10)
    assert (index.approximation(101), index.approximation(where="1"), index.approximation(exact=True)) == (None,) * 3


def test_updates_are_seen_and_many_changes_measured(photos, tmp_path):
    copy = shutil.copytree(photos, tmp_path / "photos")
    index = ImageIndex.build(PixelEncoder(), copy, tmp_path / "index", dtype="binary")
    before = index.store.meta["signs"]
    new = write_image(copy / "new.png", 999)
    index.update()
    (copy / "000.png").unlink()
    index.update()
    assert index.search(new, 1)[0].path == new
    assert copy / "000.png" not in {match.path for match in index.search(photos / "000.png", 100)}
    assert ImageIndex.open(tmp_path / "index", PixelEncoder()).meta["signs"] == before
    for i in range(20):
        write_image(copy / f"more-{i}.png", 2000 + i)
    index.update()
    assert json.loads(ImageIndex.open(tmp_path / "index", PixelEncoder()).meta["signs"])["live"] == IMAGES + 20


def test_the_command_prints_the_recall(world, tmp_path):
    result = succeed(
        "index", world.model, world.imagefolder, "--to", tmp_path / "index", "--dtype", "binary", "--json"
    )
    assert "approximate search, measured recall@10" in result.stderr
    assert "int8 changes scores by at most" in result.stderr
    told = json.loads(result.stdout.splitlines()[-1])["approximate"]
    assert set(told) == {"target", "recall", "candidates", "milliseconds", "exact_milliseconds"}
    assert "--exact searches all" in succeed("search", tmp_path / "index", "a red circle").stderr
    refused = error_of(call("index", world.model, world.imagefolder, "--to", tmp_path / "index", "--dtype", "int8"))
    assert "stores binary vectors, not int8" in refused


def test_without_faiss_it_is_not_begun_but_searched(folder, photos, tmp_path, monkeypatch):
    expected = ImageIndex.open(folder, PixelEncoder()).search("red", 10)
    for module in (signs, vectors):
        monkeypatch.setattr(module, "load_faiss", lambda: None)
    assert ImageIndex.open(folder, PixelEncoder()).search("red", 10) == expected
    with pytest.raises(ModuleNotFoundError, match=r"which --dtype binary needs: pip install 'hf-cots\[search\]'"):
        ImageIndex.build(PixelEncoder(), photos, tmp_path / "other", dtype="binary")
    assert not (tmp_path / "other").exists()
