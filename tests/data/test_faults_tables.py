"""Other people's tables, through `load_pairs` and `load_stream`: every row is a pair, or its line is named."""

import datasets
import pytest

from hf_cots.data.loading import load_table, to_text
from hf_cots.data.sources import load_pairs
from hf_cots.data.streams import StreamBatches, load_stream
from hf_cots.data.tables import parse_separator
from tests.support.worlds import all_pairs, draw, encoded, write_images, write_json_lines


NAMES = [name for name, *_ in all_pairs()]
RED = encoded(draw("red", "circle", "left"))


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "t", 20)


def write(path, texts, separator=",", header=("image", "caption")):
    rows = [header, *zip(NAMES, texts)]
    path.write_bytes("".join(separator.join(row) + "\n" for row in rows).encode())
    return path


def read_pairs(path, *columns, **options):
    pairs = load_pairs(str(path), *columns, **options)
    return [pairs.caption(index) for index in range(len(pairs))]


def read_stream(path, *columns, **options):
    """The captions of one pass, those that cannot be used left out."""
    stream = load_stream(str(path), *columns, shuffle_buffer_size=1, **options)
    return [pair.caption for row in stream.table for pair in stream.split_row(row, 0, 0)]


READERS = pytest.mark.parametrize("read", [read_pairs, read_stream])


@READERS
def test_unquoted_tsv(folder, read):
    texts = [f"caption {i}" for i in range(20)]
    texts[3], texts[7], texts[12] = '"welcome sign on a door', '17" monitor', '"hello" says the sign'
    assert read(write(folder / "p.tsv", texts, "\t")) == texts


@READERS
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_captions_are_as_the_file_spells_them(folder, read, suffix):
    texts = ["null", "None", "NA", "n/a", "nan", "NULL", "N/A", "007", "true", "False", "2024-01-31", "1.0", "1e5"]
    if suffix == ".jsonl":
        rows = [{"image": name, "caption": text} for name, text in zip(NAMES, texts)]
        path = write_json_lines(folder / "p.jsonl", rows)
    else:
        path = write(folder / f"p{suffix}", texts, "\t" if suffix == ".tsv" else ",")
    assert read(path) == texts


@READERS
def test_numbers_in_json_lines_are_captions(folder, read):
    rows = [{"image": name, "caption": number} for name, number in zip(NAMES, (7, 1.5, True))]
    assert read(write_json_lines(folder / "p.jsonl", rows)) == ["7", "1.5", "true"]


@READERS
def test_names_of_files_that_are_numbers(tmp_path, read):
    for name in ("001", "002"):
        (tmp_path / name).write_bytes(RED)
    (tmp_path / "p.csv").write_text("image,caption\n001,a\n002,b\n")
    assert read(tmp_path / "p.csv") == ["a", "b"]


@READERS
def test_an_unquoted_comma_is_named_by_its_line(folder, read):
    with pytest.raises(ValueError, match=r"p\.csv, line 2: 3 fields, but the header has 2"):
        read(write(folder / "p.csv", ["red, square"]))


@READERS
@pytest.mark.parametrize(("sign", "name"), [("\t", "tab"), (";", ";"), ("|", "bar")])
def test_the_separator_is_found_or_given(folder, read, sign, name):
    path = write(folder / "p.csv", ["a", "b"], sign)
    assert read(path) == read(path, separator=name) == ["a", "b"]
    path = write(folder / "q.csv", ["a", "b"], sign, ("image", "caption, in English"))
    assert read(path, "image", "caption, in English", separator=name) == ["a", "b"]


def test_separators():
    assert [parse_separator(text) for text in (None, ",", "\\t", "tab", "Semicolon", "^")] == [
        None, ",", "\t", "\t", ";", "^",
    ]  # fmt: skip
    for text in ("", "ab", '"', "\n"):
        with pytest.raises(ValueError, match="--separator must be one character"):
            parse_separator(text)


def test_a_quote_that_swallows_rows_is_told(folder, caplog):
    """By RFC 4180 this is one record of three lines, and hardly what was meant."""
    path = write(folder / "p.csv", ["a", '"red square', "b", 'c"', "d"])
    assert read_pairs(path) == ["a", "red square\np02.png,b\np03.png,c", "d"]
    assert "p.csv, line 3: a quoted field spans lines that look like rows" in caplog.text


def test_what_spreadsheets_write(folder):
    path = write(folder / "p.csv", ["a"], ";")
    path.write_bytes(b"\xef\xbb\xbfsep=;\r\n" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_pairs(path) == ["a"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "a", "caption": "x", "caption": "y"}', "line 1: key 'caption' occurs twice"),
        ('{"image": "a", "caption": "cut \\ud83d"}', "line 1: a text contains half of a surrogate pair"),
        ("[" * 100_000, "line 1: nested too deeply"),
        ('{"image": "a"}\r{"image": "b"}', "line 1: not JSON"),
    ],
)
def test_odd_json_is_named_by_its_line(tmp_path, line, message):
    (tmp_path / "p.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=rf"p\.jsonl, {message}") as error:
        load_pairs(str(tmp_path / "p.jsonl"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl", "p.tar", "p.parquet"])
def test_pointers_of_git_lfs(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match=rf"{name} is a git-lfs pointer.*: run git lfs pull"):
        load_pairs(str(tmp_path / name))


def test_columns_without_a_name(folder):
    path = folder / "p.csv"
    path.write_text(f",image,caption,,\n0,{NAMES[0]},a,,\n")
    assert read_pairs(path) == ["a"]


def test_columns_of_mixtures(folder):
    """Of no matter where nobody asks for them; captions of texts and lists are lists; else refused."""
    rows = [{"image": n, "caption": c, "x": x} for n, c, x in zip(NAMES, ["a", ["b", "c"]], ["", {"deep": [1]}])]
    path = write_json_lines(folder / "p.jsonl", rows)
    assert read_pairs(path) == ["a", "b", "c"]
    with pytest.raises(
        ValueError, match="column 'x' contains text in some rows and other types in others, such as dict in row"
    ):
        read_pairs(path, "image", "x")


@READERS
def test_parts_without_rows_among_others(folder, read, caplog):
    write(folder / "part-0.csv", [])
    write(folder / "part-1.csv", ["a"])
    assert read(folder / "part-*.csv") == ["a"]
    assert "part-0.csv has no rows" in caplog.text
    with pytest.raises(ValueError, match=r"no rows"):
        read(folder / "part-0.csv")


# ---------------------------------------------------------------------- missing values


IDS = ["1", "1", "", "", "", "", "", "2", "3", ""]
COLUMNS = ("image", "caption", "image_id")


def count_ids(path):
    stream = load_stream(str(path), *COLUMNS, shuffle_buffer_size=1)
    streamed = {pair.image_id for batch, _ in zip(StreamBatches(stream, 1), range(10)) for pair in batch}
    return len(set(load_pairs(str(path), *COLUMNS).image_ids.tolist())), len(streamed)


@pytest.mark.parametrize("empty", ["", " ", "null", "absent", "NaN"])
def test_rows_without_an_image_id_are_images_of_their_own(folder, empty):
    if empty in ("", " "):
        path = folder / "p.csv"
        rows = [",".join(row) for row in zip(NAMES, "abcdefghij", [cell or empty for cell in IDS])]
        path.write_text("\n".join(["image,caption,image_id", *rows]) + "\n")
    else:
        rows = [
            {"image": n, "caption": c} | ({"image_id": i} if i else {}) for n, c, i in zip(NAMES, "abcdefghij", IDS)
        ]
        if empty != "absent":
            value = {"null": None, "NaN": float("nan")}[empty]
            rows = [{"image_id": value} | row for row in rows]
        path = write_json_lines(folder / "p.jsonl", rows)
    assert count_ids(path) == (9, 9)


@pytest.mark.parametrize(("kind", "empty"), [(int, None), (float, float("nan")), (str, None), (str, "")])
def test_rows_without_an_image_id_in_parquet(tmp_path, kind, empty):
    columns = {"image": [RED] * 10, "caption": list("abcdefghij"), "image_id": [kind(i) if i else empty for i in IDS]}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "p.parquet")
    assert count_ids(tmp_path / "p.parquet") == (9, 9)


def test_missing_values():
    assert [to_text(cell) for cell in (None, "", " \t", float("nan"))] == [None] * 4
    assert [to_text(cell) for cell in ("None", "nan", "NA", 0, 1.0, False)] == [
        "None",
        "nan",
        "NA",
        "0",
        "1.0",
        "False",
    ]


def test_rows_without_a_path_are_no_copies_of_each_other(folder):
    rows = [{"image": name, "caption": "x"} for name in (NAMES[0], None, "", NAMES[0], None)]
    pairs = load_pairs(str(write_json_lines(folder / "p.jsonl", rows)))
    assert pairs.first_rows().tolist() == [0, 1, 2, 0, 4]
    assert len(set(pairs.image_ids.tolist())) == 4
    assert len(pairs.fingerprint()) == 16


def test_a_first_row_that_lacks_a_key(folder):
    """A stream learns its columns from its first rows, not from the first alone."""
    rows = [{"image": n, "caption": "x"} | ({"image_id": 1} if i else {}) for i, n in enumerate(NAMES[:10])]
    assert count_ids(write_json_lines(folder / "p.jsonl", rows)) == (2, 2)


def test_dotted_names_and_literal_ones(folder):
    rows = [{"image": n, "meta": {"text": n}, "a.b": "dot", "a,b": "comma"} for n in NAMES[:2]]
    path = write_json_lines(folder / "p.jsonl", rows)
    assert read_pairs(path, "image", "meta.text") == NAMES[:2]
    assert read_pairs(path, "image", "a.b") == ["dot"] * 2
    assert read_pairs(path, "image", "a,b") == ["comma"] * 2
    assert read_pairs(path, "image", "gone,meta.text") == NAMES[:2]


def test_local_data_are_not_counted_as_downloads(folder):
    """`datasets` would tell an outside host of each local parquet that it opens."""
    load_table(str(write(folder / "p.csv", ["a"])))
    assert datasets.config.HF_UPDATE_DOWNLOAD_COUNTS is False
