"""Filters in Milvus' language, without a server; what they mean there is in tests/milvus."""

import sys

import pytest

from hf_cots import ImageIndex
from hf_cots.search.milvus import Collection
from hf_cots.search.milvus_where import WhereTranslator, next_text
from tests.support.cli import call, error_of


COLUMNS = [("license", "TEXT"), ("width", "NUMERIC"), ('na"me', "TEXT")]
L, W = 'columns["c0"]', 'columns["c1"]'


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("license = 'O''Reilly \"x\"'", f'{L} == "O\'Reilly \\"x\\""'),
        ("LICENSE = 12", f'{L} == "12"'),
        ("width > '9'", f'({W} > 9 or {W} >= "")'),
        ("9 < width", f'({W} > 9 or {W} >= "")'),
        ("width < 1e2", f"{W} < 100"),
        ("width < 'x'", f'({W} < "x" or {W} < 0 or {W} >= 0)'),
        ("width <> -.5", f"((exists {W}) and not ({W} == -0.5))"),
        ("not license >= 'a'", f'((exists {L}) and not ({L} >= "a"))'),
        ("not not [license] is null", f"not (exists {L})"),
        ("`path` notnull", '(path >= "")'),
        ("license in ('a', 2)", f'({L} in ["a", "2"])'),
        ("width not in (1, 'a')", f'((exists {W}) and not (({W} == 1 or {W} in ["a"])))'),
        ("width between 1 and 2", f'(({W} >= 1 or {W} >= "") and {W} <= 2)'),
        ("path glob 'a*' or path like '0-%'", '((path >= "a" and path < "b") or (path >= "0-" and path < "0."))'),
        ('"na""me" glob \'x\'', 'columns["c2"] == "x"'),
        (
            "not (license = 'a' and width = 1 or width = 2)",
            f'((((exists {L}) and not ({L} == "a")) or ((exists {W}) and not ({W} == 1))) '
            f"and ((exists {W}) and not ({W} == 2)))",
        ),
    ],
)
def test_what_milvus_can_say(where, expected):
    assert WhereTranslator(COLUMNS).translate(where) == expected


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("lower(license) = 'mit'", "at 'lower': an index in Milvus compares columns with values by =, <>"),
        ("license = width", "at 'width'"),
        ("license", "at its end"),
        ("1", "at its end"),
        ("(license) = 'a'", r"at '\)'"),
        ("width + 1 > 2", r"at '\+'"),
        ("license = 'a' = 1", "at '='"),
        ("license like 'mit%'", "LIKE 'mit%' takes letters of both cases, GLOB does not"),
        ("license like '%0'", "LIKE '%0'"),
        ("license like '0!%%' escape '!'", "LIKE '0!%%'"),
        ("license glob 'a*b*'", r"GLOB 'a\*b\*'"),
        ("width glob '1*'", r"GLOB '1\*'"),
        ("license is 'a'", "at 'is'"),
        ("width > 9007199254740992", "9007199254740992 is too large to be exact"),
        ("width > 9e999", "9e999 is too large to be exact"),
        ("license = null", "at 'null'"),
        ("case when width then 1 end", "at 'case'"),
        ("licence = 'MIT'", "no column 'licence'; the index has license, width, na\"me, path"),
        ("license = 'MIT", "a quote is not closed"),
        ("license =", "incomplete input|syntax error"),
        ("randomblob(9) is null", "not authorized"),
    ],
)
def test_what_it_cannot_is_refused_by_name(where, message):
    with pytest.raises(ValueError, match=f"(?s)--where.*({message})"):
        WhereTranslator(COLUMNS).translate(where)


def test_the_text_after_all_that_begin_so():
    assert next_text("ab") == "ac"
    assert next_text("a\ud7ff") == "a\ue000"
    assert next_text("a\U0010ffff") == "b"
    assert next_text("\U0010ffff") is None


def test_a_missing_package_names_the_extra(monkeypatch, world):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'hf-cots\[milvus\]'"):
        ImageIndex.open("http://127.0.0.1:19530/images")
    uri = "http://127.0.0.1:19530/images"
    for arguments in (("search", uri, "red"), ("index", world.model, world.imagefolder, "--to", uri)):
        assert "pip install 'hf-cots[milvus]'" in error_of(call(*arguments))


def test_addresses(monkeypatch):
    pytest.importorskip("pymilvus")
    for uri in ("http://127.0.0.1:1", "http://127.0.0.1:1/a/b", "http://127.0.0.1:1/a-b", "http://127.0.0.1:1/a?b=c"):
        with pytest.raises(ValueError, match=r"is server and collection, such as http://127\.0\.0\.1:19530/images"):
            Collection(uri)
