"""Translate SQL filters to Milvus' filter language where it can express them exactly; the rest is refused by name.

SQL has three truth values and Milvus two: in SQL neither `width > 9` nor `NOT width > 9` is true where `width` is
missing. So each expression is translated to a condition for being true or to one for being false, using only
comparisons that Milvus evaluates to false where a value is missing or of the other type. Numbers sort before texts,
as in SQLite.
"""

import json
import re
import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from .disk_index import select_images
from .store import SCHEMA, quote_name
from .where import only_reading


TOKEN = re.compile(
    r"\s*(?:(?P<text>'(?:[^']|'')*')|(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    r'|(?P<quoted>"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\])|(?P<name>\w+)|(?P<sign><=|>=|<>|!=|==|.))',
    re.DOTALL,
)
OPERATORS = {"=": "==", "!=": "<>"} | {sign: sign for sign in ("==", "<>", "<", "<=", ">", ">=")}
MIRRORED = {"==": "==", "<>": "<>", "<": ">", ">": "<", "<=": ">=", ">=": "<="}
WILDCARDS = {"LIKE": "%_", "GLOB": "*?["}
EXACT = 2**53  # doubles below it represent all whole numbers exactly
CAN = (
    "an index in Milvus compares columns with values by =, <>, <, <=, >, >=, IN, BETWEEN, IS NULL and GLOB 'begin*', "
    "joined by AND, OR and NOT; an index in a folder takes more"
)


class Token(NamedTuple):
    kind: str
    text: str

    @property
    def word(self) -> str:
        return self.text.upper() if self.kind in ("name", "sign") else ""


class Column(NamedTuple):
    """A column by its Milvus field and SQLite affinity; all values of a TEXT column are texts."""

    field: str
    affinity: str

    @property
    def present(self) -> str:
        return f'({self.field} >= "")' if self.field == "path" else f"(exists {self.field})"


class WhereTranslator:
    """Translates SQL filters over the columns of an index.

    Args:
        columns: names and affinities of the columns, in the order of their keys in Milvus ("c0", "c1", ...).
    """

    def __init__(self, columns: Sequence[tuple[str, str]]):
        self.names = [name for name, _ in columns]
        self.columns = {"path": Column("path", "TEXT")}
        self.columns |= {
            name.lower(): Column(f'columns["c{i}"]', affinity) for i, (name, affinity) in enumerate(columns)
        }
        self.database = sqlite3.connect(":memory:", check_same_thread=False)
        self.database.executescript(SCHEMA + "CREATE TABLE literals(TEXT TEXT, NUMERIC NUMERIC);")
        for name, affinity in columns:
            self.database.execute(f"ALTER TABLE columns ADD COLUMN {quote_name(name)} {affinity}")

    def translate(self, where: str) -> str:
        """Translate a filter to Milvus' language.

        Raises:
            ValueError: as for an index in a folder; or naming what Milvus cannot express.
        """
        with only_reading(self.database, where, [*self.names, "path"]):
            self.database.execute(f"SELECT 1 {select_images(self.names, where)} LIMIT 0")
        self.where = where
        self.tokens = [Token(str(match.lastgroup), match[match.lastgroup or 0]) for match in TOKEN.finditer(where)]
        self.tokens = [token for token in self.tokens if token.text.strip()]
        self.tokens.append(Token("end", ""))
        self.at = 0
        written = self._either(True)
        if self._peek().kind != "end":
            raise self._refuse()
        return written

    # -------------------------- grammar; `holds`: translate to the condition for being true, or for being false

    def _either(self, holds: bool) -> str:
        parts = [self._both(holds)]
        while self._skip("OR"):
            parts.append(self._both(holds))
        return f"({(' or ' if holds else ' and ').join(parts)})" if len(parts) > 1 else parts[0]

    def _both(self, holds: bool) -> str:
        parts = [self._not(holds)]
        while self._skip("AND"):
            parts.append(self._not(holds))
        return f"({(' and ' if holds else ' or ').join(parts)})" if len(parts) > 1 else parts[0]

    def _not(self, holds: bool) -> str:
        if self._skip("NOT"):
            return self._not(not holds)
        if not self._skip("("):
            return self._predicate(holds)
        written = self._either(holds)
        self._expect(")")
        return written

    def _predicate(self, holds: bool) -> str:
        if self._peek().kind in ("text", "number") or self._peek().word in ("+", "-"):
            literal, operator = self._literal(), self._operator()
            return self._compare(self._column(), MIRRORED[operator], literal, holds)
        column = self._column()
        if self._skip("IS", "NULL") or self._skip("ISNULL"):
            return f"not {column.present}" if holds else column.present
        if self._skip("IS", "NOT", "NULL") or self._skip("NOT", "NULL") or self._skip("NOTNULL"):
            return column.present if holds else f"not {column.present}"
        holds = holds != self._skip("NOT")
        if self._skip("IN", "("):
            return self._is_among(column, holds)
        if self._skip("BETWEEN"):
            least = self._literal()
            self._expect("AND")
            bounds = (self._compare(column, ">=", least, holds), self._compare(column, "<=", self._literal(), holds))
            return f"({(' and ' if holds else ' or ').join(bounds)})"
        if self._peek().word in WILDCARDS:
            return self._begins(column, self._take().word, holds)
        return self._compare(column, self._operator(), self._literal(), holds)

    # ------------------------------------------------------------------ tokens

    def _peek(self) -> Token:
        return self.tokens[self.at]

    def _take(self) -> Token:
        self.at += 1
        return self.tokens[self.at - 1]

    def _skip(self, *words: str) -> bool:
        """Consume these words if they come next; returns whether they did."""
        found = tuple(token.word for token in self.tokens[self.at : self.at + len(words)]) == words
        self.at += len(words) if found else 0
        return found

    def _expect(self, word: str) -> None:
        if not self._skip(word):
            raise self._refuse()

    def _refuse(self, what: str | None = None) -> ValueError:
        what = what or (f"at {self._peek().text!r}" if self._peek().text else "at its end")
        return ValueError(f"--where {self.where!r}: {what}: {CAN}")

    def _column(self) -> Column:
        token = self._take()
        name = token.text
        if token.kind == "quoted":
            name = name[1:-1].replace('""', '"') if name[0] == '"' else name[1:-1]
        if token.kind not in ("name", "quoted") or name.lower() not in self.columns:
            self.at -= 1
            raise self._refuse()
        return self.columns[name.lower()]

    def _operator(self) -> str:
        if self._peek().word not in OPERATORS:
            raise self._refuse()
        return OPERATORS[self._take().word]

    def _literal(self) -> str:
        """Consume a text or number literal; returns its SQL text."""
        sign = self._take().text if self._peek().word in ("+", "-") else ""
        token = self._peek()
        if token.kind != "number" and (token.kind != "text" or sign):
            raise self._refuse()
        self.at += 1
        return sign + token.text

    # ------------------------------------------------------------------ comparisons

    def _answer(self, column: Column, written: str, holds: bool) -> str:
        """Return a condition, or its negation where the column is not missing."""
        return written if holds else f"({column.present} and not ({written}))"

    def _value(self, column: Column, literal: str) -> str | int | float:
        """Convert a literal as SQLite does to compare it with a column: to a text for TEXT, and for NUMERIC to a
        number if it looks like one."""
        self.database.execute("DELETE FROM literals")
        self.database.execute(f"INSERT INTO literals({column.affinity}) VALUES ({literal})")
        value = self.database.execute(f"SELECT {column.affinity} FROM literals").fetchone()[0]
        if not isinstance(value, str) and not abs(value) < EXACT:
            raise self._refuse(f"{literal} is too large to be exact")
        return value

    def _compare(self, column: Column, operator: str, literal: str, holds: bool) -> str:
        if operator == "<>":
            return self._compare(column, "==", literal, not holds)
        value, field = self._value(column, literal), column.field
        written = f"{field} {operator} {write(value)}"
        if column.affinity == "NUMERIC" and operator[0] == (">" if not isinstance(value, str) else "<"):
            others = f"{field} < 0 or {field} >= 0" if isinstance(value, str) else f'{field} >= ""'
            written = f"({written} or {others})"
        return self._answer(column, written, holds)

    def _is_among(self, column: Column, holds: bool) -> str:
        values = [self._value(column, self._literal())]
        while self._skip(","):
            values.append(self._value(column, self._literal()))
        self._expect(")")
        texts, numbers = ([v for v in values if isinstance(v, str) == is_text] for is_text in (True, False))
        parts = [f"{column.field} == {write(number)}" for number in numbers]
        parts += [f"{column.field} in [{', '.join(map(write, texts))}]"] if texts else []
        return self._answer(column, f"({' or '.join(parts)})", holds)

    def _begins(self, column: Column, operator: str, holds: bool) -> str:
        """Translate `GLOB 'begin*'`; and `LIKE 'begin%'` only without letters, since LIKE ignores their case."""
        token = self._take()
        pattern = token.text[1:-1].replace("''", "'")
        wildcards = WILDCARDS[operator]
        begin = pattern.removesuffix(wildcards[0])
        if token.kind != "text" or any(wildcard in begin for wildcard in wildcards) or column.affinity != "TEXT":
            raise self._refuse(f"{operator} {token.text}")
        if operator == "LIKE" and any(c.isascii() and c.isalpha() for c in begin):
            raise self._refuse(f"LIKE {token.text} takes letters of both cases, GLOB does not")
        after = next_text(begin)
        written = f"{column.field} >= {write(begin)}" + (f" and {column.field} < {write(after)}" if after else "")
        written = f"({written})" if begin != pattern else f"{column.field} == {write(begin)}"
        return self._answer(column, written, holds)


def write(value: str | int | float) -> str:
    """Format a value as a Milvus literal."""
    return json.dumps(value, ensure_ascii=False)


def next_text(begin: str) -> str | None:
    """Return the first text, by code points, after all texts with this beginning; None if there is none."""
    while begin:
        code = ord(begin[-1]) + 1
        if code <= 0x10FFFF:
            return begin[:-1] + chr(0xE000 if code == 0xD800 else code)  # skip the surrogates
        begin = begin[:-1]
    return None
