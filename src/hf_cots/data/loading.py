"""Load data sources as tables of `datasets`, without decoding images.

Parquet, saved and Hub data sets are read by `datasets`; CSV, TSV and JSON lines ([`read_rows`]), tars
([`read_samples`]) and folders of images ([`read_image_rows`]) by this package's own readers, which have explicit
rules. A column name can be `json.caption`, a field of an object, or `jpg,png`, the first of several columns that
exists.
"""

import glob
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from .._errors import describe_hub_fault
from .folders import read_image_rows
from .resolve import CANONICAL, Source, may_be_clip, resolve
from .tables import NoRowsError, TableError, check_pointer, parse_separator, read_rows
from .tars import TarError, read_samples


logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 100_000  # that become Arrow together
FIRST_SAMPLES = 1_000  # of tars, which tell what columns there are

Table: TypeAlias = Any  # datasets.Dataset or datasets.IterableDataset, an untyped package's
Reader = Callable[[Sequence[Any]], Iterator[dict[str, Any]]]


def load_table(
    data: str,
    split: str = "train",
    streaming: bool = False,
    columns: Sequence[str] = (),
    separator: str | None = None,
) -> Table:
    """Open data without decoding anything.

    Args:
        data: a file (CSV, TSV, JSON lines, parquet, tar; all but parquet also compressed), a folder of such files or
            of images, a pattern such as `shards/*.tar` or `shard-{000..099}.tar`, or a Hub id.
        split: which split; see [`hf_cots.data.resolve`].
        streaming: read rows as they are needed, and keep no copy on this machine.
        columns: the columns that will be used; names such as `json.caption` and `jpg,png` become columns. Other
            contents of tars are not kept.
        separator: separator of CSV files, if it cannot be detected from the header.

    Raises:
        FileNotFoundError: if a path or pattern matches nothing.
        ValueError: naming the file and line that cannot be read, or the splits if there is no such one.
    """
    return read_source(resolve(data, split), split, streaming, columns, separator)


def read_source(
    source: Source, split: str, streaming: bool = False, columns: Sequence[str] = (), separator: str | None = None
) -> Table:
    """[`load_table`] of a source whose files are known."""
    files = [str(file) for file in source.files]
    separator = parse_separator(separator)
    if source.kind == "table":
        return _from_rows(files, partial(_read_tables, separator=separator), streaming, columns)
    if source.kind in ("images", "clips"):
        reader = partial(read_image_rows, source.root, separator=separator)
        if source.kind == "clips":
            reader = partial(reader, is_wanted=may_be_clip, column="video")
        return _from_rows(source.files, reader, streaming, columns)
    if source.kind == "tar":
        return _from_tars(files, streaming, columns)
    if source.kind == "arrow":
        table = datasets.load_from_disk(files[0])
        if isinstance(table, datasets.DatasetDict):
            table = _pick_split(table, source.name, split)
        table = table.to_iterable_dataset() if streaming else table
    elif source.kind == "parquet":
        if not sum(check_parquet(name) for name in files):
            raise ValueError(f"{source.name} has no rows")
        names = [glob.escape(name) for name in files]  # which `datasets` reads as patterns
        with _named_errors(source.name):
            table = datasets.load_dataset("parquet", data_files=names, split="train", streaming=streaming)
    else:
        with _named_errors(source.name):
            splits = datasets.load_dataset(source.name, streaming=streaming)
        table = _pick_split(splits, source.name, split)
    return _with_columns(table, columns)


@contextmanager
def _named_errors(data: str) -> Iterator[None]:
    """Turn the errors of `datasets`, which quote whole tables, into one line with the cause.

    Raises:
        FileNotFoundError: if there is no such data set on the Hub, or the Hub cannot be reached.
        OSError: if the Hub refuses, or the connection fails.
        ValueError: if the data cannot be read.
    """
    try:
        yield
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
        reason = _first_line(error)
        raise FileNotFoundError(f"{data}: no such file or folder, and no such data set on the Hub: {reason}") from None
    except FileNotFoundError as error:  # `datasets` quotes what huggingface_hub says of its cache
        if "on the Hugging Face Hub either" not in str(error):
            raise
        advice = "check the network, wait a while, then run it again"
        raise FileNotFoundError(f"{data}: no such file or folder, and the Hub cannot be reached: {advice}") from None
    except datasets.exceptions.DatasetGenerationError as error:
        cause = error.__cause__ or error
        if isinstance(cause, (TarError, TableError)):
            raise cause from None
        raise ValueError(f"cannot read {data}: {type(cause).__name__}: {_first_line(cause)}") from None
    except Exception as error:
        fault = describe_hub_fault(error)
        if fault is None:
            raise
        raise OSError(f"{data}: no such file or folder, and {fault}") from error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def check_parquet(file: str) -> int:
    """Check that a file is parquet and whole, and count its rows.

    Raises:
        ValueError: naming the file.
    """
    check_pointer(file)
    try:
        return pq.read_metadata(file).num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file} is truncated or not a parquet file: {_first_line(error)}") from None


def _pick_split(splits: dict[str, Any], data: str, split: str) -> Table:
    wanted = split if split in splits else CANONICAL.get(split, split)
    if wanted not in splits:
        raise ValueError(f"{data} has no split '{split}'; it has {', '.join(map(str, splits))}")
    return splits[wanted]


# ---------------------------------------------------------------------- cells


def get_cell(row: dict[str, Any], column: str) -> Any:
    """A row's cell of a column `a`, of a field `a.b` of an object, or the first that is there of `a,b`."""
    if column in row:
        return row[column]
    for name in column.split(","):
        value = row.get(name)
        if value is None and "." in name:
            value = row
            for part in name.split("."):
                value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None


def to_text(cell: Any) -> str | None:
    """A cell as text: numbers as Python writes them; None for a missing value (None, NaN, NaT, white space alone)."""
    if cell is None or cell != cell:
        return None
    text = cell if isinstance(cell, str) else str(cell)
    return text if text.strip() else None


def is_derived(column: str) -> bool:
    """Whether a column's name asks for a field of an object, or for one of several columns."""
    return "." in column or "," in column


def list_leaves(row: dict[str, Any]) -> list[str]:
    """The columns of a row; of objects their fields, as `a.b`."""
    leaves = []
    for name, cell in row.items():
        leaves += [f"{name}.{field}" for field in list_leaves(cell)] if isinstance(cell, dict) else [name]
    return leaves


def not_decoded(table: Table, *columns: str) -> Table:
    """The table with the files of images and clips in these columns as they are."""
    for name in columns:
        feature = table.features[name]
        if isinstance(feature, (datasets.Image, datasets.Video)):
            table = table.cast_column(name, type(feature)(decode=False))
    return table


def _with_columns(table: Table, columns: Sequence[str]) -> Table:
    """Add the columns that are derived from others."""
    present = table.column_names or list(next(iter(table), {}))
    derived = [column for column in columns if column not in present and is_derived(column)]
    if not derived:
        return table
    if table.features:
        table = not_decoded(table, *table.features)
    return table.map(lambda row: {column: get_cell(row, column) for column in derived})


# ---------------------------------------------------------------------- rows as tables


def _read_tables(files: list[str], separator: str | None) -> Iterator[dict[str, Any]]:
    for file in files:
        try:
            yield from read_rows(file, separator)
        except NoRowsError as error:  # as one of many parts may be
            logger.warning("%s", error)


def _read_with_columns(files: Sequence[Any], reader: Reader, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The rows of files with the derived columns. (A list of files, but not a tuple, `datasets` reads as shards.)"""
    for row in reader(files):
        yield row | {column: get_cell(row, column) for column in columns}


def _from_rows(files: Sequence[Any], reader: Reader, streaming: bool, columns: Sequence[str]) -> Table:
    derived = tuple(column for column in columns if is_derived(column))
    arguments: dict[str, Any] = {"files": files, "reader": reader, "columns": derived}
    if streaming:
        return datasets.IterableDataset.from_generator(_read_with_columns, gen_kwargs=arguments)
    table = to_arrow(_read_with_columns(**arguments), columns)
    if len(table) == 0:
        raise ValueError(f"{', '.join(map(str, files[:3]))}: no rows")
    return datasets.Dataset(table)


def to_arrow(rows: Iterable[dict[str, Any]], wanted: Sequence[str] = ()) -> pa.Table:
    """Rows as an Arrow table: text, bytes, lists of texts, or objects. A column of texts and lists holds lists; a key
    that a row lacks is None there. A column of other mixtures becomes text (JSON).

    Raises:
        ValueError: if a wanted column is such a mixture.
    """
    rows, parts = iter(rows), []
    while chunk := list(itertools.islice(rows, ROWS_AT_ONCE)):
        names = dict.fromkeys(name for row in chunk for name in row)
        parts.append({name: _to_array([row.get(name) for row in chunk], name, wanted) for name in names})
    kinds: dict[str, set[str]] = {}
    for part in parts:
        for name, array in part.items():
            kinds.setdefault(name, set()).add(_kind(array))
    for name, found in kinds.items():
        if len(found - {"null"}) > 1:
            for part in parts:
                if name in part and _kind(part[name]) != "list":
                    part[name] = _mix(part[name].to_pylist(), name, wanted, as_lists="list" in found)
    if not parts:
        return pa.table({})
    table = pa.concat_tables([pa.table(part) for part in parts], promote_options="permissive")
    empty = [index for index, field in enumerate(table.schema) if pa.types.is_null(field.type)]
    for index in empty:
        table = table.set_column(index, table.schema.field(index).name, table.column(index).cast(pa.string()))
    return table


def _kind(array: pa.Array) -> str:
    if pa.types.is_list(array.type) or pa.types.is_struct(array.type):
        return "list" if pa.types.is_list(array.type) else "object"
    return "null" if pa.types.is_null(array.type) else "text"


def _to_array(cells: list[Any], name: str, wanted: Sequence[str]) -> pa.Array:
    if len({type(cell) for cell in cells if cell is not None}) > 1:
        return _mix(cells, name, wanted, as_lists=any(isinstance(cell, list) for cell in cells))
    try:
        return pa.array(cells)
    except pa.ArrowException:  # lists or objects of mixtures
        return _mix(cells, name, wanted, as_lists=False)


def _mix(cells: list[Any], name: str, wanted: Sequence[str], as_lists: bool) -> pa.Array:
    """An array of cells of several types: of lists if they are texts and lists, else of JSON."""
    if as_lists and all(cell is None or isinstance(cell, (str, list)) for cell in cells):
        return pa.array([cell if cell is None or isinstance(cell, list) else [cell] for cell in cells])
    if name in wanted:
        row = next(row for row, cell in enumerate(cells) if cell is not None and not isinstance(cell, str))
        raise ValueError(
            f"column '{name}' contains text in some rows and other types in others, such as "
            f"{type(cells[row]).__name__} in row {row}"
        )
    return pa.array([cell if cell is None or isinstance(cell, str) else json.dumps(cell) for cell in cells])


def _from_tars(files: list[str], streaming: bool, columns: Sequence[str]) -> Table:
    """The columns are the suffixes of the first samples, the fields of their JSON, and those derived."""
    first = list(itertools.islice(_read_tars(files), FIRST_SAMPLES))
    if not first:
        raise ValueError(f"{', '.join(files[:3])}: no samples")
    derived = [column for column in columns if "," in column]
    parts = {part for column in derived for part in column.split(",")}  # kept once, under the derived name
    names = dict.fromkeys(name for sample in first for name in list_leaves(sample) if name not in parts)
    found = {name: _find_kind([get_cell(sample, name) for sample in first]) for name in (*names, *derived)}
    kinds = {name: kind for name, kind in found.items() if kind is not None}
    arguments: dict[str, Any] = {"files": files, "kinds": tuple(kinds.items()), "wanted": tuple(columns)}
    if streaming:
        return datasets.IterableDataset.from_generator(_read_tars, gen_kwargs=arguments)
    # A copy in the cache of `datasets`, under a key that knows the files' sizes and times.
    arguments["stamps"] = tuple((stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, files))
    features = datasets.Features({name: FEATURES[kind] for name, kind in kinds.items()})
    with _named_errors(files[0]):
        return datasets.Dataset.from_generator(_read_tars, features=features, gen_kwargs=arguments)


def _read_tars(
    files: list[str],
    kinds: tuple[tuple[str, str], ...] = (),
    wanted: tuple[str, ...] = (),
    stamps: tuple[tuple[int, int], ...] = (),
) -> Iterator[dict[str, Any]]:
    """The samples of tars with the columns of `kinds`, or as they are; `stamps` only tell the cache when files change.
    A cell of another kind is None.

    Raises:
        TarError: if a wanted column is not of its kind.
    """
    for file in files:
        for sample in read_samples(file):
            if not kinds:
                yield sample
                continue
            row = {name: get_cell(sample, name) for name, _ in kinds}
            for name, kind in kinds:
                cell = row[name]
                if cell is None or isinstance(cell, CELL_TYPES[kind]):
                    continue
                if name in wanted and not (kind == "list" and isinstance(cell, str)):
                    raise TarError(f"{file}: {sample['__key__']}: {name} contains {type(cell).__name__}, not {kind}")
                row[name] = [cell] if kind == "list" and isinstance(cell, str) else None
            yield row


CELL_TYPES = {"text": str, "bytes": bytes, "list": list}
FEATURES = {
    "text": datasets.Value("string"),
    "bytes": datasets.Value("binary"),
    "list": datasets.List(datasets.Value("string")),
}


def _find_kind(cells: list[Any]) -> str | None:
    """What a column holds, by its first cells."""
    for kind in ("list", "bytes", "text"):
        if any(isinstance(cell, CELL_TYPES[kind]) for cell in cells):
            return kind
    return None
