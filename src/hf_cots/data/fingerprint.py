"""The fingerprint of a data set: what reports name it by, and what is computed once from it is kept under."""

from collections.abc import Iterator
from typing import Any

from .hashes import hex_digest
from .sources import PairDataset


ROWS_AT_ONCE = 1000


def data_fingerprint(pairs: PairDataset) -> str:
    """32 hexadecimal digits: blake2b over the rows' image ids, captions and encoded images, in their order.

    Equal for equal data under any file name or data format, if the ids are equal, too.
    """

    def chunks() -> Iterator[bytes]:
        captions = pairs.table[pairs.caption_column]
        for row, (cell, image) in enumerate(zip(captions, image_cells(pairs), strict=True)):
            yield f"{pairs.image_ids[row]}\0".encode()
            yield "".join(f"{text}\0" for text in (cell if isinstance(cell, (list, tuple)) else [cell])).encode()
            yield bytes.fromhex(hex_digest([encoded_image(pairs, image)], digest_size=64))

    return hex_digest(chunks())


def image_cells(pairs: PairDataset) -> Iterator[Any]:
    """The image column of each row, as the table holds it."""
    table = pairs.table.select_columns([pairs.image_column])
    for first in range(0, len(table), ROWS_AT_ONCE):
        yield from table[first : first + ROWS_AT_ONCE][pairs.image_column]


def encoded_image(pairs: PairDataset, cell: Any) -> bytes:
    """The bytes of an image's file; none for a file that cannot be opened."""
    if isinstance(cell, dict):
        cell = cell["bytes"] if cell.get("bytes") is not None else cell.get("path")
    if isinstance(cell, bytes):
        return cell
    try:
        return (pairs.root / str(cell)).read_bytes()
    except OSError:
        return b""
