"""Webdataset tars: files that share a name up to its first dot are one sample.

A shard that is cut off is an error that names it, wherever the cut lies: the last file must be whole and be followed
by the block of zeros that ends an archive.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from .tables import DAMAGED, open_binary, parse_json


BLOCK = 512  # bytes
TEXT_SUFFIXES = ("txt", "text", "caption", "captions", "cls", "label")


class TarError(ValueError):
    """A shard that is truncated or not a tar; the message names it."""


def read_samples(path: Path | str) -> Iterator[dict[str, Any]]:
    """The samples of a tar, one after the other.

    Yields:
        `{"__key__": name, suffix: content, ...}`: text files as str, JSON files as objects, all others as bytes.
        Suffixes are in lower case and hold all that follows the first dot, such as `seg.png`.

    Raises:
        TarError: if the shard is empty, cut off, or no tar; or if a text or JSON file in it cannot be read.
    """
    sample: dict[str, Any] = {}
    for name, data in read_members(path):
        key, _, suffix = PurePosixPath(name).name.partition(".")
        key = str(PurePosixPath(name).with_name(key))
        if sample and sample["__key__"] != key:
            yield sample
            sample = {}
        if suffix.lower() in sample:
            raise TarError(f"{path}: {name} occurs twice")
        sample["__key__"] = key
        sample[suffix.lower()] = decode(f"{path}: {name}", suffix.lower(), data)
    if sample:
        yield sample


def read_members(path: Path | str) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files of a tar, which may be compressed; hidden files and folders are passed over."""
    try:
        with open_binary(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            end = 0
            for member in tar:
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK
                name = PurePosixPath(member.name)
                if member.isdir() or name.name.startswith(".") or "." not in name.name:
                    continue
                content = tar.extractfile(member)  # of a link, what it leads to
                if content is not None:
                    yield member.name, content.read()
            file.seek(end)
            if file.read(BLOCK) != bytes(BLOCK):
                raise TarError(f"{path} is truncated: the end of the archive is missing")
    except KeyError as error:
        raise TarError(f"{path} contains a broken link: {error.args[0]}") from None
    except (tarfile.TarError, *DAMAGED) as error:
        raise TarError(f"{path} is truncated or not a tar: {error}") from None
    except OSError as error:
        if error.errno is not None:  # bz2 has no exception of its own
            raise
        raise TarError(f"{path} is damaged: {error}") from None


def decode(name: str, suffix: str, data: bytes) -> Any:
    """The content of a file of a sample, by its suffix.

    Raises:
        TarError: if text is not UTF-8, or JSON is none.
    """
    kind = suffix.rpartition(".")[2]
    try:
        if kind == "json":
            return parse_json(data.decode("utf-8-sig"))
        return data.decode("utf-8-sig").strip("\r\n") if kind in TEXT_SUFFIXES else data
    except ValueError as error:  # of decoding, of JSON
        raise TarError(f"{name}: {error}") from None
