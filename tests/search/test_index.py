"""Searching a folder with a text or an image."""

import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from hf_cots.search.index import ImageIndex, Match
from tests.support.worlds import all_pairs, draw


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five images in nested folders and of several kinds, two broken ones, and a file that is no image."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "deep" / "deeper").mkdir(parents=True)
    draw("red", "circle", "left").save(folder / "red.png")
    draw("green", "circle", "left").save(folder / "green.JPG", "JPEG")
    draw("black", "square", "top").save(folder / "deep" / "black.webp")
    draw("yellow", "square", "top").convert("L").save(folder / "deep" / "deeper" / "grey.gif")
    draw("yellow", "square", "right").save(folder / "deep" / "deeper" / "yellow.bmp")
    (folder / "deep" / "page.jpg").write_bytes(b"<html>")
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def index(world, folder):
    return ImageIndex.from_folder(str(world.model), folder, batch_size=2)


def test_readable_images_of_all_folders_are_found(index, folder):
    names = {str(path.relative_to(folder)) for path in index.paths}
    deep = {f"deep/{name}" for name in ("black.webp", "deeper/grey.gif", "deeper/yellow.bmp")}
    assert names == {"red.png", "green.JPG"} | deep
    assert len(index) == 5
    assert index.embeds.shape == (5, 16)


def test_broken_images_are_listed(index):
    assert sorted(broken.name.rpartition("/")[2] for broken in index.broken) == ["empty.png", "page.jpg"]


def test_scores_are_the_models_own_best_first(index, world):
    matches = index.search("green circle")
    assert [type(match) for match in matches] == [Match] * 5
    scores = [match.score for match in matches]
    assert scores == sorted(scores, reverse=True)
    model, processor = AutoModel.from_pretrained(world.model).eval(), AutoProcessor.from_pretrained(world.model)
    for match in matches:
        with torch.no_grad(), Image.open(match.path) as image:
            inputs = processor(images=[image.convert("RGB")], text=["green circle"], return_tensors="pt")
            output = model(**inputs)
        assert match.score == pytest.approx(float(output.image_embeds[0] @ output.text_embeds[0]), abs=1e-5)


def test_an_image_finds_itself_first_in_any_mode(index):
    for path in index.paths:
        for mode in ("RGB", "RGBA"):
            with Image.open(path) as image:
                (best,) = index.search(image.convert(mode), k=1)
            assert best.path == path
            assert best.score == pytest.approx(1, abs=1e-3)


def test_k(index):
    whole = index.search("red", k=5)
    assert index.search("red", k=2) == whole[:2]
    assert index.search("red", k=1000) == whole
    for k in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            index.search("red", k=k)


@pytest.mark.parametrize("query", ["", "  \n"])
def test_an_empty_query(index, query):
    with pytest.raises(ValueError, match="query is empty"):
        index.search(query)


def test_a_query_of_unknown_letters_and_any_length(index):
    assert len(index.search("Ärger 猫 " * 100)) == 5


def test_folders_without_images_are_refused(world, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*nothing"):
        ImageIndex.from_folder(str(world.model), tmp_path / "nothing")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"no image \(.*\.png"):
        ImageIndex.from_folder(str(world.model), tmp_path)
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of 5 image files can be read.*0\.png"):
        ImageIndex.from_folder(str(world.model), tmp_path)


def test_a_folder_with_the_name_of_an_image_is_searched(world, tmp_path):
    (tmp_path / "holiday.png").mkdir()
    all_pairs()[0][1].save(tmp_path / "holiday.png" / "a.png")
    index = ImageIndex.from_folder(str(world.model), tmp_path)
    assert [path.name for path in index.paths] == ["a.png"]
    assert not index.broken
