"""An application over a small index of a folder with columns."""

import pytest
from fastapi.testclient import TestClient

from hf_cots import ImageIndex
from hf_cots.search import approximate
from hf_cots.serve import create_app
from tests.support.pixel_encoder import PixelEncoder, write_folder
from tests.support.worlds import write_json_lines


BASE = "http://127.0.0.1"
STYLES = ("flat", "line", "O'Neil's", None)


def client_of(index, **options):
    """A client that gets errors as answers."""
    return TestClient(create_app(index, **options), base_url=BASE, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """30 images with columns."""
    folder = write_folder(tmp_path_factory.mktemp("serve") / "photos", 30)
    rows = [
        {"file_name": f"{i:03d}.png", "style": STYLES[i % 4], "size": i, "title": f"number {i}"} for i in range(30)
    ]
    write_json_lines(folder / "metadata.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def index(photos):
    return ImageIndex.build(PixelEncoder(), photos, photos.parent / "index")


RECALL = {"10": {"images": 0.875, "texts": 0.75}, "100": {"images": 0.99239, "texts": 1.0}}


@pytest.fixture
def approximate_index(photos, tmp_path, monkeypatch):
    """The same images, searched approximately, as if [`RECALL`] had been measured."""
    pytest.importorskip("faiss")
    monkeypatch.setattr(approximate, "MIN_VECTORS", 10)
    monkeypatch.setattr(approximate, "_choose", lambda search, *_: search.nprobe.update({10: 8, 100: 8}) or RECALL)
    return ImageIndex.build(PixelEncoder(), photos, tmp_path / "index", approximate=True)


@pytest.fixture(scope="module")
def client(index):
    return client_of(index)
