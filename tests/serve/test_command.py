"""`hf-cots serve`: what it opens, says and refuses."""

import builtins
import importlib
import socket
import sys

import pytest
from fastapi.testclient import TestClient

from hf_cots import ImageIndex
from hf_cots.cli import serve as command
from tests.serve.conftest import BASE
from tests.support.cli import call, error_of, succeed


@pytest.fixture
def served(monkeypatch):
    """What would be served, in place of a server that never ends."""
    apps = []
    monkeypatch.setattr(command, "run", lambda app, listener: (apps.append(app), listener.close()))
    return apps


def test_an_index_and_a_folder(world, tmp_path, served, monkeypatch):
    monkeypatch.setenv("HF_COTS_CACHE", str(tmp_path / "cache"))
    ImageIndex.build(str(world.model), world.imagefolder, tmp_path / "index")
    result = succeed("serve", tmp_path / "index", "--port", 0)
    assert "40 images at http://localhost:" in result.stdout
    assert "40 images" in succeed("serve", world.model, world.imagefolder, "--port", 0).stdout
    for app in served:
        client = TestClient(app, base_url=BASE)
        assert client.get("/api/info").json()["images"] == 40
        assert client.get("/api/info", headers={"host": "evil.com"}).status_code == 421
    open_to_others = succeed("serve", tmp_path / "index", "--host", "0.0.0.0", "--port", 0)
    assert "warning: anyone who can reach" in open_to_others.stderr
    assert TestClient(served[-1], base_url="http://photos.lan").get("/api/info").status_code == 200


def test_what_is_refused(world, tmp_path, served):
    assert "is not an index" in error_of(call("serve", world.imagefolder, "--port", 0))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port}" in error_of(call("serve", tmp_path, "--port", port))
    assert "cannot listen on 203.0.113.9" in error_of(call("serve", tmp_path, "--host", "203.0.113.9", "--port", 0))
    assert served == []


def test_a_missing_extra_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args):
        if name == "fastapi":
            raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")
        return real(name, *args)

    for name in [name for name in sys.modules if name.startswith("hf_cots.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"fastapi is not installed, .*hf-cots\[serve\]"):
        importlib.import_module("hf_cots.serve")
