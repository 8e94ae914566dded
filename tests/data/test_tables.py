"""Tables are read by explicit rules: every record is a row, every value is text, and what breaks a rule is named."""

import csv
import gzip
import logging
import lzma

import pytest

from hf_cots.data.tables import TableError, data_suffix, read_rows


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def captions(path, **options):
    return [row["caption"] for row in read_rows(path, **options)]


def test_quotes_are_ordinary_characters_in_a_tsv(tmp_path):
    """CC3M's form: 30 lines are 30 pairs, whatever quotes the captions hold."""
    wanted = [f"caption {i}" for i in range(30)]
    wanted[3], wanted[17], wanted[20] = '"welcome sign on a door', '17" monitor', '"hello" says the sign'
    path = write(
        tmp_path, "a.tsv", "image\tcaption\n" + "".join(f"{i}.png\t{text}\n" for i, text in enumerate(wanted))
    )
    assert captions(path) == wanted


def test_a_tsv_whose_fields_look_quoted_is_told(tmp_path, caplog):
    path = write(tmp_path, "a.tsv", 'image\tcaption\n1\t"a cat"\n2\tplain\n')
    with caplog.at_level(logging.WARNING):
        assert captions(path) == ['"a cat"', "plain"]
    assert "1 rows have a field that begins and ends with a double quote" in caplog.text


def test_quoting_of_a_csv_is_rfc_4180s(tmp_path):
    """Against Python's own writer: separators, quotes and line breaks within fields come back."""
    wanted = ["a, b", 'say "hi"', "two\nlines", "two\r\nlines", "plain", " spaces "]
    with open(tmp_path / "a.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *((str(i), text) for i, text in enumerate(wanted))])
    assert captions(tmp_path / "a.csv") == wanted


WORDS = ["null", "None", "NA", "n/a", "nan", "NULL", "N/A", "000", "007", "1e5", "true", "False", "2024-01-31", "1.0"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_values_are_text_as_the_file_spells_it(tmp_path, name):
    separator = {"a.csv": ",", "a.tsv": "\t"}.get(name)
    if separator:
        content = f"image{separator}caption\n" + "".join(f"{i}{separator}{word}\n" for i, word in enumerate(WORDS))
    else:
        content = "".join(f'{{"image": {i}, "caption": "{word}"}}\n' for i, word in enumerate(WORDS))
    rows = list(read_rows(write(tmp_path, name, content)))
    assert [row["caption"] for row in rows] == WORDS
    assert [row["image"] for row in rows] == [str(i) for i in range(len(WORDS))]


def test_json_values(tmp_path):
    """Numbers keep their spelling; null and absent keys are missing; lists and objects stay."""
    path = write(
        tmp_path, "a.jsonl", '{"a": 1.0, "b": true, "c": null}\n\n{"a": [1, "x"], "d": {"e": 007}}'.replace("007", "7")
    )
    assert list(read_rows(path)) == [{"a": "1.0", "b": "true", "c": None}, {"a": ["1", "x"], "d": {"e": "7"}}]
    assert list(read_rows(write(tmp_path, "a.json", '[{"a": 1},\n {"a": "b"}]'))) == [{"a": "1"}, {"a": "b"}]


def test_an_empty_field_is_missing(tmp_path):
    assert captions(write(tmp_path, "a.csv", 'image,caption\n1,\n2,""\n3, \n')) == [None, None, " "]


@pytest.mark.parametrize(
    ("header", "separator"),
    [("image,caption", ","), ("image;caption", ";"), ("image\tcaption", "\t"), ("caption", ",")],
)
def test_the_separator_is_the_headers(tmp_path, header, separator):
    row = separator.join([*header.split(separator)[:-1], "a cat"])
    assert captions(write(tmp_path, "a.csv", f"{header}\n{row}\n")) == ["a cat"]


def test_the_separator_may_be_given(tmp_path):
    path = write(tmp_path, "a.csv", "image;caption, long\n1;x\n")
    with pytest.raises(TableError, match=r"a\.csv, line 1: the separator could be comma or semicolon; .* --separator"):
        list(read_rows(path))
    assert list(read_rows(path, separator=";")) == [{"image": "1", "caption, long": "x"}]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_byte_order_marks_line_ends_and_compression(tmp_path, name, ending):
    lines = {
        "a.csv": ["image,caption", "1,été"],
        "a.tsv": ["image\tcaption", "1\tété"],
        "a.jsonl": ['{"image": 1, "caption": "été"}'],
    }[name]
    content = ("\ufeff" + ending.join(lines) + ending).encode()
    for suffix, compress in (("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)):
        assert list(read_rows(write(tmp_path, name + suffix, compress(content)))) == [{"image": "1", "caption": "été"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "caption,image\na, b,1.png\n", r"line 2: 3 fields, but the header has 2 \(caption, image\)"),
        ("a.tsv", "image\tcaption\n1\tx\ty\n", "line 2: 3 fields, but the header has 2"),
        ("a.csv", "image,caption\n1,x\n2\n", "line 3: 1 fields"),
        ("a.csv", b"image,caption\n1,x\n2,caf\xe9\n", "line 3: byte 0xe9 is not UTF-8; .*iconv -f CP1252"),
        ("a.tsv", "image\tcaption\n1\tx\n".encode("utf-16"), "is UTF-16"),
        ("a.csv", "image,caption\n1,x\n".encode("utf-16-le"), "line 1: NUL byte"),
        ("a.jsonl", '{"image": 1, "caption": "x"}\n{"image": 2, "cap', "line 2: not JSON"),
        ("a.jsonl", '{"image": 1}\n"text"\n', "line 2: expected an object"),
        ("a.json", '[{"image": 1},\n{"image": 2}\n', "line 3: not JSON"),
        ("a.csv", 'image,caption\n1,"abc\n2,def\n', "line 2: a quoted field is never closed"),
        ("a.csv", 'image,caption\n1,"ab"c\n', "line 2: .* double quotes inside a field must be doubled"),
        ("a.csv", "", "is empty"),
        ("a.jsonl", "\n\n", "no rows"),
        ("a.tsv", "image\tcaption\n", "no rows"),
        ("a.csv", "image,image\n1,2\n", "line 1: column 'image' occurs twice"),
        ("a.csv", "\n1,2\n", "line 1: the header"),
        ("a.jsonl.gz", gzip.compress(b'{"a": "b"}\n' * 3000, mtime=0)[:-20], "damaged or truncated after row"),
        ("a.csv.gz", b"image,caption\n1,x\n", "damaged or truncated"),
    ],
)
def test_what_breaks_a_rule_is_named(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    with pytest.raises(TableError, match=message) as error:
        list(read_rows(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("a.CSV", ".csv"), ("a.jsonl.gz", ".jsonl"), ("a.tgz", ".tar"), ("a.tar.gz", ".tar"), ("v1.2", ".2"), ("a", "")],
)
def test_suffixes(name, suffix):
    assert data_suffix(name) == suffix
