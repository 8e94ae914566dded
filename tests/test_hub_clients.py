"""A model goes to the Hub and comes back through every client of the README: the same numbers, bit for bit."""

import json

import pytest

from tests.support.hub_clients import run_clients, serve_clients
from tests.support.hub_stub import sha256
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def place(world):
    """A Hub, and the folder of its user."""
    with serve_clients(world) as place:
        yield place


@pytest.fixture(scope="module")
def owner(place):
    return run_clients(*place, "with")


@pytest.fixture(scope="module")
def anybody(place, owner):
    return run_clients(*place, "without")


def check(found, clients):
    assert {name: error for name, error in found.items() if isinstance(error, str)} == {}
    assert len(found) == clients
    assert {name: each for name, each in found.items() if any(each.values())} == {}


def test_every_client_gets_the_numbers_of_the_local_folder(owner):
    check(owner, 15)


def test_so_does_everybody_without_the_package(anybody):
    check(anybody, 6)


def test_the_recorded_differences_are_those_of_the_same_clients(owner, anybody):
    recorded = json.loads((ROOT / "benchmarks" / "results" / "hub_clients.json").read_text())["largest differences"]
    assert recorded == {"with": owner, "without": anybody}


def test_what_was_uploaded_is_the_folder(place, owner):
    server, folder = place
    local = {path.name: path.read_bytes() for path in (folder / "model").iterdir()}
    for name in ("org/published", "org/uploaded"):
        files = server.files(name)
        assert {path: data for path, data in files.items() if path not in (".gitattributes", "README.md")} == {
            path: data for path, data in local.items() if path != "README.md"
        }
    assert b'from_pretrained("org/published"' in server.files("org/published")["README.md"]
    trained = {path.name: path.read_bytes() for path in (folder / "trained" / "model").iterdir()}
    assert server.files("org/trained").items() >= trained.items()


def test_weights_came_from_the_other_host_once_and_without_the_token(place, owner, anybody):
    """The stub refuses the token there. Each of the two caches takes the weights of a repository once."""
    server, _ = place
    files = [server.files(name).items() for name in ("org/published", "org/sentence-clip")]
    weights = {f"/cdn/{sha256(data)}" for each in files for path, data in each if path.endswith(".safetensors")}
    gets = [path for method, path, _ in server.log if method == "GET" and path in weights]
    assert len(gets) == 3 + 2  # and a snapshot's folder takes them from the cache
