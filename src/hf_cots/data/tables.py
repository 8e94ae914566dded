"""Read CSV, TSV and JSON-lines files as rows of text, with explicit rules.

    .csv          RFC 4180: fields may be enclosed in double quotes, a quote inside is doubled, and such a field may
                  hold line breaks. The separator is that of the header (comma, semicolon, tab or bar), or given.
    .tsv .tab     text/tab-separated-values (IANA): one record per line, quotes are ordinary characters, as in CC3M.
    .jsonl .json  one JSON object per line, or one array of objects.

All files are UTF-8, with or without a byte order mark, and may be compressed (.gz, .bz2, .xz). Values are text as
the file spells it: `007`, `null`, `true` and `2024-01-01` in a CSV are captions like any other, and so is a number in
JSON. A missing value (an empty CSV field, a JSON null or NaN, an absent key) is None, and nothing else is. What does
not fit these rules is a [`TableError`] that names the file and the line.
"""

import bz2
import csv
import gzip
import itertools
import json
import logging
import lzma
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


logger = logging.getLogger(__name__)

csv.field_size_limit(1 << 30)

DELIMITED_SUFFIXES = (".csv", ".tsv", ".tab")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = DELIMITED_SUFFIXES + JSON_SUFFIXES
DAMAGED = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)
COMPRESSIONS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
SEPARATOR_NAMES = {name: sign for sign, name in SEPARATORS.items()} | {"\\t": "\t", "pipe": "|"}
LONE_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
LFS_POINTER = b"version https://git-lfs"
UTF32_MARKS = (b"\xff\xfe\0\0", b"\0\0\xfe\xff")
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


class TableError(ValueError):
    """A table that breaks the format's rules; the message names the file and, if known, the line."""


class NoRowsError(TableError):
    """A table that has only a header, or only blank lines."""


def data_suffix(path: Path | str) -> str:
    """The suffix that tells a file's kind, in lower case and without its compression: `.jsonl` of `a.jsonl.gz`."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] == ".tgz":
        return ".tar"
    while suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def check_pointer(path: Path | str) -> None:
    """Check that a file is not a git-lfs pointer.

    Raises:
        TableError: naming the file.
    """
    with open(path, "rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise TableError(f"{path} is a git-lfs pointer, not the file itself: run git lfs pull")


def open_binary(path: Path | str) -> IO[bytes]:
    """Open a file for reading, decompressed if its last suffix says so.

    Raises:
        TableError: if it is only the pointer of git-lfs to a file.
    """
    check_pointer(path)
    suffix = Path(path).suffix.lower()
    opener = gzip.open if suffix == ".tgz" else COMPRESSIONS.get(suffix, open)
    return opener(path, "rb")  # type: ignore[return-value]  # all are files of bytes


def parse_separator(text: str | None) -> str | None:
    """The sign that `--separator` means: one character, `\\t`, or a name (comma, semicolon, tab, bar).

    Raises:
        ValueError: for anything else.
    """
    sign = text if text is None else SEPARATOR_NAMES.get(text.lower(), text)
    if sign is not None and (len(sign) != 1 or sign in '"\r\n'):
        raise ValueError(f"--separator must be one character or one of {', '.join(SEPARATOR_NAMES)}, got {text!r}")
    return sign


def read_rows(path: Path | str, separator: str | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a table file, one after the other.

    Args:
        path: the file; its suffix tells its kind.
        separator: of a CSV; by default the one that its header uses, and a tab of a TSV.

    Yields:
        One dict per row. CSV and TSV rows have every column of the header, with text or None; a JSON row has what its
        object holds, with numbers and booleans as text.

    Raises:
        FileNotFoundError: if there is no such file.
        TableError: for a file that is empty, has no rows ([`NoRowsError`]), is not UTF-8, is cut off, or has a line
            that breaks a rule.
    """
    path, suffix = Path(path), data_suffix(path)
    reader = _read_json(path) if suffix in JSON_SUFFIXES else _read_delimited(path, suffix, separator)
    count = 0
    try:
        for row in reader:
            count += 1
            yield row
    except DAMAGED as error:
        raise TableError(f"{path}: the compressed file is damaged or truncated after row {count}: {error}") from None
    except OSError as error:
        if error.errno is not None:  # bz2 has no exception of its own
            raise
        raise TableError(f"{path}: the compressed file is damaged after row {count}: {error}") from None
    if count == 0:
        raise NoRowsError(f"{path} has no rows")
    logger.info("%s: %d rows", path, count)


def read_records(path: Path | str, separator: str = "\t") -> Iterator[tuple[int, list[str]]]:
    """The lines of a table without header or quoting, as their numbers, counted from 1, and fields.

    Raises:
        FileNotFoundError: if there is no such file.
        TableError: if it is not UTF-8.
    """
    for number, text in _decoded_lines(Path(path)):
        yield number, text.rstrip("\r\n").split(separator)


def _decoded_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers, counted from 1, and the lines with their ends."""
    with open_binary(path) as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                if line.startswith(UTF32_MARKS + UTF16_MARKS):
                    name = "UTF-32" if line.startswith(UTF32_MARKS) else "UTF-16"
                    raise TableError(f"{path} is {name}; convert it to UTF-8: iconv -f {name} -t UTF-8 {path.name}")
                line = line.removeprefix(b"\xef\xbb\xbf")
            if b"\0" in line:
                raise TableError(f"{path}, line {number}: NUL byte; this is not UTF-8 text")
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise TableError(
                    f"{path}, line {number}: byte 0x{line[error.start]:02x} is not UTF-8; if the file is in another "
                    f"encoding, convert it: iconv -f CP1252 -t UTF-8 {path.name}"
                ) from None


# ---------------------------------------------------------------------- CSV and TSV


def _read_delimited(path: Path, suffix: str, separator: str | None) -> Iterator[dict[str, str | None]]:
    lines = _decoded_lines(path)
    first = next((text for _, text in lines), None)
    if first is None:
        raise TableError(f"{path} is empty")
    if "\r" in first.rstrip("\r\n"):
        raise TableError(f"{path}, line 1: lines end with CR alone; convert them: tr '\\r' '\\n'")
    if suffix == ".csv":
        told = re.fullmatch(r'"?sep=(.)"?', first.strip("\r\n"))  # what some spreadsheets begin with
        if told:
            separator, first = separator or told[1], next((text for _, text in lines), "")
        records = _csv_records(path, first, lines, separator or find_separator(path, first))
    else:
        records = _tsv_records(first, lines, separator or "\t")
    _, header = next(records)
    header = [name.strip() for name in header]
    _check_header(path, header)
    enclosed = 0
    for line, fields in records:
        if not fields:
            continue  # an empty line
        if len(fields) != len(header):
            raise TableError(
                f"{path}, line {line}: {len(fields)} fields, but the header has {len(header)} ({', '.join(header)}). "
                + ("Quote fields that contain the separator" if suffix == ".csv" else "A field must not contain a tab")
            )
        enclosed += suffix != ".csv" and any(len(f) > 1 and f[0] == f[-1] == '"' for f in fields)
        yield {name: field or None for name, field in zip(header, fields)}
    if enclosed:
        logger.warning(
            "%s: %d rows have a field that begins and ends with a double quote; TSV has no quoting, so the quotes "
            "are part of the text (save the table as .csv if they enclose it)",
            *(path, enclosed),
        )


def find_separator(path: Path, header: str) -> str:
    """The separator of a CSV, from its header.

    Raises:
        TableError: if two candidates are equally frequent.
    """
    counts = {sign: _outside_quotes(header).count(sign) for sign in SEPARATORS}
    best = max(counts.values())
    if best == 0:
        return ","  # one column
    found = [sign for sign, count in counts.items() if count == best]
    if len(found) > 1:
        names = " or ".join(SEPARATORS[sign] for sign in found)
        raise TableError(f"{path}, line 1: the separator could be {names}; choose it with --separator")
    return found[0]


def _outside_quotes(text: str) -> str:
    return "".join(text.split('"')[::2])


def _csv_records(
    path: Path, first: str, lines: Iterator[tuple[int, str]], separator: str
) -> Iterator[tuple[int, list[str]]]:
    """The line at which each record begins, and its fields."""

    read: list[str] = []  # the lines of a record

    def texts() -> Iterator[str]:
        for text in itertools.chain([first], (text for _, text in lines)):
            read.append(text)
            yield text

    reader = csv.reader(texts(), delimiter=separator, strict=True)
    width, suspect = 0, 0
    while True:
        line = reader.line_num + 1
        read.clear()
        try:
            fields = next(reader)
        except StopIteration:
            if suspect:
                logger.warning(
                    "%s, line %d: a quoted field spans lines that look like rows; is a quote missing?",
                    path,
                    suspect,
                )
            return
        except csv.Error as error:
            reason = "a quoted field is never closed" if "end of data" in str(error) else str(error)
            raise TableError(f"{path}, line {line}: {reason}; double quotes inside a field must be doubled") from None
        width = width or len(fields)
        if len(read) > 1 and width > 1 and all(text.count(separator) == width - 1 for text in read[1:]):
            suspect = suspect or line
        yield line, fields


def _tsv_records(first: str, lines: Iterator[tuple[int, str]], separator: str) -> Iterator[tuple[int, list[str]]]:
    yield 1, first.rstrip("\r\n").split(separator)
    for number, text in lines:
        text = text.rstrip("\r\n")
        yield number, text.split(separator) if text else []


def _check_header(path: Path, header: list[str]) -> None:
    if not any(header):
        raise TableError(f"{path}, line 1: the header with the column names is missing")
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise TableError(f"{path}, line 1: column '{twice[0]}' occurs twice in the header")


# ---------------------------------------------------------------------- JSON


def _read_json(path: Path) -> Iterator[dict[str, Any]]:
    lines = _decoded_lines(path)
    for number, text in lines:
        if not text.strip():
            continue
        if text.lstrip().startswith("["):
            yield from _read_array(path, text + "".join(more for _, more in lines))
            return
        yield _json_row(path, f"line {number}", _parse(path, number, text))


def _parse(path: Path, number: int, text: str) -> Any:
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        line = number + error.lineno - 1
        raise TableError(f"{path}, line {line}: not JSON, one object a line or one array: {error.msg}") from None
    except ValueError as error:
        raise TableError(f"{path}, line {number}: {error}") from None


def parse_json(text: str) -> Any:
    """JSON whose values are text as it spells them: an id 1e5 is a name, not a quantity. NaN is missing, as null is.

    Raises:
        json.JSONDecodeError: if it is none.
        ValueError: if an object has a key twice, or a text has half of a surrogate pair or is nested too deeply.
    """
    constants = {"NaN": None}
    try:
        value = json.loads(
            text,
            parse_int=str,
            parse_float=str,
            parse_constant=lambda name: constants.get(name, name),
            object_pairs_hook=_check_keys,
        )
        if LONE_SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError(
            "a text contains half of a surrogate pair (\\ud800 to \\udfff), which is not a character"
        ) from None
    return _as_text(value)


def _check_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key '{next(name for name in names if names.count(name) > 1)}' occurs twice in an object")
    return found


def _read_array(path: Path, text: str) -> Iterator[dict[str, Any]]:
    for index, row in enumerate(_parse(path, 1, text)):
        yield _json_row(path, f"entry {index}", row)


def _json_row(path: Path, where: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise TableError(f"{path}, {where}: expected an object with the columns, got {type(row).__name__}")
    return row


def _as_text(value: Any) -> Any:
    """Booleans as JSON spells them; lists and objects element by element."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return [_as_text(each) for each in value]
    if isinstance(value, dict):
        return {name: _as_text(each) for name, each in value.items()}
    return value
