"""Packages of the registry: verified, kept, and never downloaded unasked."""

import base64
import dataclasses
import hashlib
import urllib.error

import pytest

from hf_cots.data.sets import packages
from hf_cots.data.sets.packages import ICONIFY, LUCIDE, Package, fetch_package, read_members
from tests.support.icon_packages import write_tgz


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A registry of files with one package, an empty cache, and the machine online."""
    monkeypatch.setenv("HF_COTS_CACHE", str(tmp_path / "cache"))
    for name in packages.OFFLINE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(packages, "REGISTRY", (tmp_path / "registry").as_uri())
    monkeypatch.setattr(packages.time, "sleep", lambda seconds: None)
    file = tmp_path / "registry" / "@scope" / "some" / "-" / "some-1.0.0.tgz"
    file.parent.mkdir(parents=True)
    write_tgz(file, {"a.json": {"a": 1}, "b/c.json": b"c"})
    digest = base64.b64encode(hashlib.sha512(file.read_bytes()).digest()).decode()
    return Package("@scope/some", "1.0.0", 0.1, "MIT", digest), file


def test_a_package_is_downloaded_once_and_kept(registry, tmp_path, monkeypatch, capsys):
    package, file = registry
    path = fetch_package(package)
    assert path == tmp_path / "cache" / "packages" / "scope-some-1.0.0.tgz"
    assert path.read_bytes() == file.read_bytes()
    line = capsys.readouterr().err
    assert all(word in line for word in ("@scope/some 1.0.0", "0.1 MB", "MIT", package.url))
    monkeypatch.setattr(packages.urllib.request, "urlopen", lambda *_, **__: pytest.fail("it was downloaded again"))
    assert fetch_package(package) == path
    assert fetch_package(package, offline=True) == path
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("offline", ["flag", *packages.OFFLINE_VARIABLES])
def test_offline_nothing_is_downloaded_and_the_error_says_what_to_do(offline, registry, tmp_path, monkeypatch):
    package, _ = registry
    monkeypatch.setattr(packages.urllib.request, "urlopen", lambda *_, **__: pytest.fail("it was downloaded"))
    if offline != "flag":
        monkeypatch.setenv(offline, "1")
    with pytest.raises(FileNotFoundError, match="downloads are disabled") as caught:
        fetch_package(package, offline=offline == "flag")
    assert str(tmp_path / "cache" / "packages" / "scope-some-1.0.0.tgz") in str(caught.value)
    assert package.url in str(caught.value)


def test_without_a_network_the_error_says_what_to_do(registry, tmp_path, monkeypatch):
    package, _ = registry
    tried = []

    def fail(url, timeout):
        tried.append(url)
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(packages.urllib.request, "urlopen", fail)
    with pytest.raises(FileNotFoundError, match=r"no route to host.*put it there") as caught:
        fetch_package(package)
    assert str(tmp_path / "cache" / "packages" / "scope-some-1.0.0.tgz") in str(caught.value)
    assert tried == [package.url] * packages.ATTEMPTS
    assert list((tmp_path / "cache" / "packages").iterdir()) == []


def test_a_file_that_is_not_the_registrys_is_refused(registry, tmp_path):
    package, file = registry
    with pytest.raises(ValueError, match="sha512"):
        fetch_package(dataclasses.replace(package, sha512="wrong"))
    assert list((tmp_path / "cache" / "packages").iterdir()) == []
    path = fetch_package(package)
    path.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"scope-some-1\.0\.0\.tgz is not .*delete it"):
        fetch_package(package)


def test_members_are_read_by_name(registry):
    _, file = registry
    assert list(read_members(file, ["b/c.json"])) == [("b/c.json", b"c")]
    assert [name for name, _ in read_members(file, lambda name: name.endswith(".json"))] == ["a.json", "b/c.json"]
    with pytest.raises(ValueError, match=r"some-1\.0\.0\.tgz has no gone\.json"):
        list(read_members(file, ["a.json", "gone.json"]))


def test_addresses_and_file_names():
    assert ICONIFY.url == "https://registry.npmjs.org/@iconify/json/-/json-2.2.535.tgz"
    assert (ICONIFY.file_name, LUCIDE.file_name) == ("iconify-json-2.2.535.tgz", "lucide-static-1.62.0.tgz")
