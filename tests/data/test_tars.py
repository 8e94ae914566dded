"""Webdataset tars: samples, suffixes, compression; a shard that is cut off anywhere is an error that names it."""

import gzip
import io
import tarfile

import pytest

from hf_cots.data.tars import BLOCK, TarError, read_samples


def pack(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def shard(samples: int) -> bytes:
    return pack(
        {
            f"a/{i:03d}.{suffix}": data
            for i in range(samples)
            for suffix, data in (
                ("jpg", bytes([i]) * 700),
                ("txt", b"a cat\n"),
                ("json", b'{"caption": "x", "n": 07.0}'),
            )
        }
    ).replace(b"07.0", b" 7.0")


def test_samples(tmp_path):
    (tmp_path / "a.tar").write_bytes(shard(3))
    rows = list(read_samples(tmp_path / "a.tar"))
    assert [row["__key__"] for row in rows] == ["a/000", "a/001", "a/002"]
    assert rows[1]["jpg"] == b"\x01" * 700
    assert (rows[1]["txt"], rows[1]["json"]) == ("a cat", {"caption": "x", "n": "7.0"})


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz"])
def test_compressed(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(shard(3)))
    assert len(list(read_samples(tmp_path / name))) == 3
    (tmp_path / name).write_bytes(gzip.compress(shard(3))[:200])
    with pytest.raises(TarError, match=name):
        list(read_samples(tmp_path / name))


def test_suffixes_by_turns_hidden_files_and_folders(tmp_path):
    members = {
        "0.jpg": b"x",
        "0.txt": b"a",
        "1.PNG": b"y",
        "1.txt": b"b",
        "__MACOSX/._1.png": b"no",
        "1.seg.png": b"z",
    }
    (tmp_path / "a.tar").write_bytes(pack(members))
    rows = list(read_samples(tmp_path / "a.tar"))
    assert [set(row) - {"__key__", "txt"} for row in rows] == [{"jpg"}, {"png", "seg.png"}]


def test_a_cut_anywhere_is_an_error(tmp_path):
    """At every block, and within blocks: never fewer samples without a word."""
    whole, path = shard(4), tmp_path / "cut.tar"
    used = len(whole.rstrip(b"\0")) // BLOCK * BLOCK + BLOCK
    for cut in [*range(0, used + 1, BLOCK // 4), used - 1, 1]:
        path.write_bytes(whole[:cut])
        with pytest.raises(TarError, match=r"cut\.tar"):
            list(read_samples(path))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"0.txt": b"caf\xe9"}, r"a\.tar: 0\.txt: .*utf-8"),
        ({"0.json": b'{"a": '}, r"a\.tar: 0\.json"),
        ({"0.txt": b"a", "0.TXT": b"b"}, r"0\.TXT occurs twice"),
    ],
)
def test_bad_members_are_named(tmp_path, members, message):
    (tmp_path / "a.tar").write_bytes(pack(members))
    with pytest.raises(TarError, match=message):
        list(read_samples(tmp_path / "a.tar"))


def test_no_tar(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(TarError, match=r"a\.tar is truncated or not a tar"):
        list(read_samples(tmp_path / "a.tar"))
