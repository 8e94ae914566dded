"""Filters: SQL expressions over the columns of an index, limited to reading rows and harmless functions."""

import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


TOKEN = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^\]]*\]|--|/\*|[;()?:@$]|['\"`\[]|(?i:\bselect\b)")
# Functions without side effects whose results cannot become arbitrarily large.
TEXT_FUNCTIONS = ("glob", "instr", "length", "like", "lower", "ltrim", "rtrim", "substr", "substring", "trim", "upper")
OTHER_FUNCTIONS = (
    "abs",
    "ceil",
    "coalesce",
    "floor",
    "ifnull",
    "iif",
    "max",
    "min",
    "nullif",
    "round",
    "sign",
    "typeof",
)
TIME_FUNCTIONS = ("date", "datetime", "julianday", "strftime", "time")
JSON_FUNCTIONS = ("json_array_length", "json_extract", "json_type", "->", "->>")
FUNCTIONS = {*TEXT_FUNCTIONS, *OTHER_FUNCTIONS, *TIME_FUNCTIONS, *JSON_FUNCTIONS}
UNKNOWN = re.compile(r"no such column: (.*)")


def check_expression(where: str, columns: Sequence[str]) -> str:
    """Check that a text is one SQL expression over these columns; returns it in parentheses.

    Raises:
        ValueError: naming the mistake.
    """
    depth = 0
    if not where.strip() or "\0" in where:
        raise ValueError("--where is empty" if not where.strip() else "--where contains a null character")
    for token in TOKEN.findall(where):
        if token[0] in '"`[' and len(token) > 1:
            name = token[1:-1].replace('""', '"') if token[0] == '"' else token[1:-1]
            if name.lower() not in {column.lower() for column in columns}:
                raise ValueError(
                    f"--where: no column '{name}'; the index has {', '.join(columns)}. Put texts in single quotes: "
                    f"'{name}'"
                )
        elif token in "()":
            depth += 1 if token == "(" else -1
            if depth < 0:
                raise ValueError(f"--where: unmatched closing parenthesis: {where}")
        elif token[0] != "'" or len(token) == 1:
            raise ValueError(f"--where: {token} is not allowed outside quotes, or a quote is not closed: {where}")
    if depth:
        raise ValueError(f"--where: unclosed parenthesis: {where}")
    return f"({where})"


@contextmanager
def only_reading(database: sqlite3.Connection, where: str, columns: Sequence[str]) -> Iterator[None]:
    """Within this context, let SQLite refuse everything but reading rows and harmless functions, and turn its errors
    into one line.

    Raises:
        ValueError: naming the mistake in the expression.
    """

    def authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
        allowed = action == sqlite3.SQLITE_SELECT
        allowed |= action == sqlite3.SQLITE_READ and first in ("columns", "images")
        allowed |= action == sqlite3.SQLITE_FUNCTION and str(second).lower() in FUNCTIONS
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY

    database.set_authorizer(authorize)
    try:
        yield
    except (sqlite3.Error, sqlite3.Warning, UnicodeEncodeError) as error:
        unknown = UNKNOWN.search(str(error))
        if unknown:
            known = ", ".join(columns)
            raise ValueError(f"--where: no column '{unknown[1].strip()}'; the index has {known}") from None
        raise ValueError(f"--where {where!r}: {error}") from None
    finally:
        database.set_authorizer(lambda *_: sqlite3.SQLITE_OK)  # None only since Python 3.11
