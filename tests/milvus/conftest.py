"""One Milvus for all tests, in a temporary folder; or that of HF_COTS_MILVUS, such as http://127.0.0.1:19530."""

import itertools
import os

import pytest

from tests.support.pixel_encoder import PixelEncoder, write_folder


NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    if "HF_COTS_MILVUS" in os.environ:
        yield os.environ["HF_COTS_MILVUS"]
        return
    from tests.milvus.server import running_server

    with running_server(tmp_path_factory.mktemp("milvus")) as address:
        yield address


@pytest.fixture
def uri(server):
    """The address of a collection that is not there yet, and is removed after the test."""
    from pymilvus import MilvusClient

    name = f"test_{os.getpid()}_{next(NUMBERS)}"
    yield f"{server}/{name}"
    client = MilvusClient(server)
    if client.has_collection(name):
        client.drop_collection(name)
    client.close()


@pytest.fixture
def encoder():
    return PixelEncoder()


@pytest.fixture
def photos(tmp_path):
    return write_folder(tmp_path / "photos", 30)
