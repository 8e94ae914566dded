"""The per-query table of an evaluation: a parquet file with one row per query and its metrics.

All metrics and intervals can be recomputed from it, and another model compared, without encoding anything.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...data.sources import PairDataset
from ...search.encoders import DIRECTIONS, EncodedPairs
from .directions import DirectionResult
from .metrics import MEANS


KEY = b"hf_cots"


def query_table_path(results: Path) -> Path:
    """Return the path of the table beside a results file: `results.queries.parquet` beside `results.json`."""
    return results.with_suffix(".queries.parquet")


def write_query_table(
    path: Path,
    directions: dict[str, DirectionResult],
    parts: list[EncodedPairs],
    pairs: PairDataset,
    about: dict[str, str],
) -> None:
    """Write the per-query table.

    Columns: `direction`, `query` (the text, or the name of the image), `image_id`, `fold`, and those of
    [`hf_cots.evaluation.retrieval.metrics.per_query_metrics`].

    Args:
        path: the parquet file.
        directions: results, with as many folds as there are parts.
        parts: the encoded data, one part per fold.
        pairs: the data set.
        about: `model`, `fingerprint` and `data_fingerprint`, stored in the file's metadata.
    """
    texts = [pairs.caption(index) for part in parts for index in part.captions]
    images = [pairs.image_name(row) for part in parts for row in part.rows]
    tables = []
    for name, queries in zip(DIRECTIONS, (texts, images)):
        direction = directions[name]
        columns = {
            "direction": [name] * len(queries),
            "query": queries,
            "image_id": direction.query_ids,
            "fold": direction.query_folds,
        }
        tables.append(pa.table(columns | direction.columns))
    table = pa.concat_tables(tables)
    pq.write_table(table.replace_schema_metadata({KEY: json.dumps(about)}), path)


def read_query_table(path: Path) -> tuple[dict[str, DirectionResult], dict[str, str]]:
    """Read the results of both directions and `about`, as given to [`write_query_table`].

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not such a table.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a parquet file: {error}") from None
    absent = {"direction", "image_id", "fold", *MEANS} - set(table.column_names)
    if absent or KEY not in (table.schema.metadata or {}):
        what = f"the column '{min(absent)}'" if absent else "the names of model and data"
        raise ValueError(f"{path} is not a per-query table of `hf-cots evaluate`: it has no {what}")
    names = np.asarray(table["direction"])
    rows = {name: np.flatnonzero(names == name) for name in DIRECTIONS}
    ids, folds = table["image_id"].to_numpy(), table["fold"].to_numpy()
    directions = {}
    for name, other in zip(DIRECTIONS, reversed(DIRECTIONS)):
        mine, theirs = rows[name], rows[other]  # the queries of one direction are the gallery of the other
        columns = {column: table[column].to_numpy()[mine] for column in MEANS}
        directions[name] = DirectionResult(columns, ids[mine], ids[theirs], folds[mine], folds[theirs])
    return directions, json.loads(table.schema.metadata[KEY])
