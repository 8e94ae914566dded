"""Hybrid search: against slow sums of BM25 and of ranks, and with texts of all kinds."""

import itertools
import json
import math
import os
import random
import re
import unicodedata
from collections import Counter

import pytest

from hf_cots import ImageIndex
from hf_cots.search import disk_index
from hf_cots.search.keywords import KeywordTable, to_text
from tests.support.cli import call, error_of, succeed
from tests.support.pixel_encoder import PixelEncoder, write_folder, write_image
from tests.support.simla_world import simla_folder
from tests.support.worlds import write_broken_images, write_json_lines


# "the" is in more than half of the rows of each test.
VOCABULARY = ("arrow", "left", "Café", "O'Neil", "right-click", "猫", "x_y", "CART", "sign", "2024")
TEXTS = ("arrow", "a red ARROW, left", "cafe sign", "the arrow", "the", "nothing at all", "right-click x_y 猫", "🙂")

OPERATORS = """" | "" | a"b | AND | arrow AND | OR OR | NOT | NEAR(a b, 3) | * | arro* | ^arrow | ( | ) | ((a)
- arrow | {name} : arrow | name:arrow | + | c0 | words | rank | ; | -- | '"""
LETTERS = "🙂 | 👍🏽 👩‍👩‍👧 | é | e\u0301 | 猫が好き | مرحبا | नमस्ते | ﬁ | İ | \ufeff | \u202e"
ODD_TEXTS = [*re.split(r" \| |\n", f"{OPERATORS} | {LETTERS}"), "a\0b", "\0", "\t\n arrow", "x" * 5000]
ODD_TEXTS += [" ".join(f"w{i}" for i in range(3000))]


def describe(random_numbers):
    """The columns of one image."""
    words = [random_numbers.choice(VOCABULARY) for _ in range(random_numbers.randrange(4))]
    return {
        "name": " ".join(["the"] * (random_numbers.random() < 0.8) + words[:2]),
        "tags": words[2:] + (["the end"] if random_numbers.random() < 0.2 else []),
        "size": random_numbers.randrange(100),
    }


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """80 images with random words, of which one is broken and two are equal."""
    folder = write_folder(tmp_path_factory.mktemp("keywords") / "photos", 80)
    write_broken_images(folder)
    (folder / "twin.png").write_bytes((folder / "000.png").read_bytes())
    numbers = random.Random(1)
    write_rows(folder, {path.name: describe(numbers) for path in sorted(folder.glob("*.png"))})
    return folder


def write_rows(folder, rows):
    write_json_lines(folder / "metadata.jsonl", [{"file_name": name, **row} for name, row in rows.items()])


@pytest.fixture(scope="module")
def index(photos):
    return ImageIndex.build(PixelEncoder(), photos, photos.parent / "index")


# ---------------------------------------------------------------------- the slow way


def tokens(text):
    letters = unicodedata.normalize("NFKD", text.lower())
    return re.findall(r"[^\W_]+", "".join(letter for letter in letters if not unicodedata.combining(letter)))


def phrases(text):
    """The words of a query: each is its tokens one after another."""
    return [words for word in dict.fromkeys(text.split()) if (words := tokens(word))]


def occurrences(phrase, cells):
    count = 0
    for cell in cells:
        count += sum(cell[i : i + len(phrase)] == phrase for i in range(len(cell)))
    return count


def bm25(text, documents):
    """{id: score} of the documents, each a list of cells, that have a word of a text."""
    total = len(documents)
    cells = {each: [tokens(cell) for cell in document] for each, document in documents.items()}
    length = {each: sum(map(len, document)) for each, document in cells.items()}
    mean = sum(length.values()) / total
    counts = [{each: occurrences(phrase, document) for each, document in cells.items()} for phrase in phrases(text)]
    having = [sum(count > 0 for count in count_of.values()) for count_of in counts]
    rare = [i for i in range(len(counts)) if having[i] <= total // 2]
    used = rare if any(having[i] for i in rare) else range(len(counts))
    scores = Counter()
    for i, each in itertools.product(used, documents):
        count = counts[i][each]
        if count:
            weight = max(math.log((total - having[i] + 0.5) / (having[i] + 0.5)), 1e-6)
            scores[each] += weight * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * length[each] / mean))
    return scores


def rank(scores, each):
    """The place of an image in a ranking; equal scores, up to rounding, share the best of theirs."""
    return 1 + sum(other > scores[each] + 1e-9 for other in scores.values())


def slow_search(index, query, columns, k, window, allowed=lambda row: True, **options):
    every = {match.id: match for match in index.search(query, 1000, **options)}
    cells = {
        each: [match.path.name if name == "path" else to_text(match.columns[name]) for name in columns]
        for each, match in every.items()
    }
    words = bm25(query, cells)
    kept = {each: match for each, match in every.items() if allowed(match.columns)}
    similarities = {each: match.score for each, match in kept.items()}
    words = {each: score for each, score in words.items() if each in kept}
    found = []
    for each, match in kept.items():
        ranks = [rank(scores, each) for scores in (similarities, words) if each in scores]
        score = sum(1 / (60 + place) for place in ranks if place <= window)
        found.append((-round(score, 12), -match.score, str(match.path)))
    window_of = [each for each in sorted(found) if each[0]]
    return [(os.path.basename(path), pytest.approx(-score)) for score, _, path in window_of[:k]]


def answers(index, query, k, **options):
    return [(match.path.name, match.score) for match in index.search(query, k, **options)]


@pytest.mark.parametrize("window", [1000, 20, 3])
@pytest.mark.parametrize("columns", [["name"], ["tags", "name"], ["path", "size"]])
def test_the_ranking_is_that_of_the_slow_way(index, monkeypatch, window, columns):
    monkeypatch.setattr(disk_index, "WINDOW", window)
    texts = (*TEXTS, "00 017 png", "42 7")
    for text, k in itertools.product(texts, (1, 3, 100)):
        expected = slow_search(index, text, columns, k, max(window, k))
        assert answers(index, text, k, hybrid=columns) == expected, (text, k)
    where = {"where": "size < 30"}
    for text in texts:
        expected = slow_search(index, text, columns, 5, max(window, 5), lambda row: row["size"] < 30)
        assert answers(index, text, 5, hybrid=columns, **where) == expected, text


def test_words_and_parts_of_other_kinds_go_together(index, photos):
    options = {"image": photos / "005.png", "minus": "blue"}
    expected = slow_search(index, "arrow left", ["name"], 20, 1000, **options)
    assert answers(index, "arrow left", 20, hybrid="name", **options) == expected
    found = index.search("arrow left", 20, hybrid="name", **options)
    plain = {match.path: match.score for match in index.search("arrow left", 100, **options)}
    assert [match.similarity for match in found] == [plain[match.path] for match in found]
    assert plain.keys() >= {match.path for match in found}
    assert index.search("arrow left", 1)[0].similarity is None


def test_images_of_one_name_are_in_the_order_of_the_model(tmp_path):
    photos = write_folder(tmp_path / "photos", 30)
    names = {f"{i:03d}.png": {"name": "arrow" if i < 20 else "cart", "number": str(i)} for i in range(30)}
    write_rows(photos, names)
    index = ImageIndex.build(PixelEncoder(), photos, tmp_path / "index")
    carts = [match.path for match in index.search("cart", 30) if match.columns["name"] == "cart"]
    assert [match.path for match in index.search("cart", 10, hybrid=["name"])] == carts


# ---------------------------------------------------------------------- texts


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_no_text_is_an_error(index, text):
    plain, found = index.search(text, 100), index.search(text, 100, hybrid=["name", "tags"])
    assert {match.path for match in plain} == {match.path for match in found}


def test_random_texts_are_no_errors_and_no_operators(index):
    numbers = random.Random(2)
    parts = [*"\"'()*:^+-{}€ é", "AND", "OR", "NOT", "NEAR", "arrow"]
    for _ in range(150):
        text = "".join(numbers.choices(parts, k=numbers.randrange(1, 8))) + "."
        expected = slow_search(index, text, ["name"], 5, 1000)
        assert answers(index, text, 5, hybrid=["name"]) == expected, text


def test_a_lone_surrogate_is_no_word():
    table = KeywordTable([(1, 0, "arrow"), (2, 1, "cart"), (3, 2, "sign")], 1)
    ids, _, _ = table.scores("arrow \udcff cart\ud800")
    assert sorted(ids) == [1, 2]


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, ""),
        ("a text", "a text"),
        (3, "3"),
        ('["left\\nright", "a \\"b\\""]', 'left\nright\na "b"'),
        ('{"kind": "arrow", "more": [1, null, {"x": "y"}]}', "arrow\n1\ny"),
        ("[]", ""),
        ("[not JSON", "[not JSON"),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_lists_are_searched_by_what_they_hold(cell, text):
    assert to_text(cell) == text


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("query", "hybrid", "message"),
    [
        ("arrow", ["nam"], "--hybrid: no column 'nam'; the index has name, tags, size, path"),
        ("arrow", "tag", "--hybrid: no column 'tag'; the index has"),
        ("arrow", [], "--hybrid: names no column; the index has name"),
        ("arrow", ['name") OR 1'], "--hybrid: no column"),
        (None, ["name"], "--hybrid needs a text"),
    ],
)
def test_a_mistake_is_named_before_anything_is_encoded(index, photos, monkeypatch, query, hybrid, message):
    monkeypatch.setattr(index.encoder, "encode_texts", None)
    with pytest.raises(ValueError, match=re.escape(message)):
        index.search(query, image=photos / "000.png", hybrid=hybrid)


def test_columns_of_all_names(tmp_path):
    """Those that FTS5 keeps for itself, and those that SQL must quote."""
    photos = write_folder(tmp_path / "photos", 4)
    names = ["rank", "rowid", "words", "c0", 'a "b"', "x;y", "select", "Ünï"]
    write_rows(photos, {f"00{i}.png": {name: f"word{i} {name}" for name in names} for i in range(4)})
    index = ImageIndex.build(PixelEncoder(), photos, tmp_path / "index")
    for name in [*names, "path"]:
        assert index.search("00 word2 002", 1, hybrid=[name])[0].score > 1 / 61, name


# ---------------------------------------------------------------------- up to date


def test_updates_renames_and_deletions_are_followed(tmp_path):
    photos = write_folder(tmp_path / "photos", 20)
    rows = {f"{i:03d}.png": {"name": f"arrow {i}", "tags": ["old"]} for i in range(20)}
    write_rows(photos, rows)
    index = ImageIndex.build(PixelEncoder(), photos, tmp_path / "index")

    def check():
        fresh = ImageIndex.build(PixelEncoder(), photos, tmp_path / f"fresh{len(list(tmp_path.iterdir()))}")
        for text, hybrid in itertools.product(("old", "new", "arrow 3", "renamed 003"), ("name", "tags", "path")):
            assert answers(index, text, 30, hybrid=hybrid) == answers(fresh, text, 30, hybrid=hybrid)

    check()
    rows["003.png"] = {"name": "arrow 3", "tags": ["new"]}
    write_rows(photos, rows)
    index.update()
    check()
    assert index.search("new", 1, hybrid="tags")[0].path.name == "003.png"
    os.rename(photos / "004.png", photos / "renamed.png")
    rows["renamed.png"] = rows.pop("004.png")
    (photos / "005.png").unlink()
    write_image(photos / "new.png", 99)
    write_rows(photos, rows)
    assert index.update().counts()["moved"] == 1
    check()
    assert index.search("renamed", 1, hybrid="path")[0].path.name == "renamed.png"
    (photos / "003.png").unlink()
    index.update()
    check()


def test_few_tables_are_kept(index):
    for columns in itertools.permutations(["name", "tags", "size", "path"], 2):
        index.search("arrow", 3, hybrid=columns)
    assert len(index._keywords._tables) == 4


# ---------------------------------------------------------------------- the command line


def test_the_command_line(world, tmp_path):
    images = sorted(world.imagefolder.glob("*.png"))
    rows = [
        {"image": str(path), "name": f"name {i}", "tags": ["even", "odd"][i % 2 :]} for i, path in enumerate(images)
    ]
    table, to = write_json_lines(tmp_path / "rows.jsonl", rows), tmp_path / "index"
    succeed("index", world.model, table, "--to", to)
    hybrid = ("search", to, "name 7 odd", "--hybrid", "name, tags")
    found = json.loads(succeed(*hybrid, "-k", 3, "--json").stdout)
    expected = ImageIndex.open(to).search("name 7 odd", 3, hybrid=["name", "tags"])
    assert [(row["path"], row["score"]) for row in found] == [(str(match.path), match.score) for match in expected]
    assert [row["similarity"] for row in found] == [match.similarity for match in expected]
    assert found[0]["name"] == "name 7"
    more = ("--image", images[3], "--minus", "black", "--where", "name <> 'name 7'", "--sheet", tmp_path / "sheet.png")
    lines = succeed(*hybrid, *more, "-k", 40).stdout.splitlines()
    assert len(lines) == 39
    assert (tmp_path / "sheet.png").is_file()
    reranked = succeed(*hybrid, "-k", 2, "--rerank", simla_folder(world)).stdout.splitlines()
    assert len(reranked) == 2
    assert "no column 'nam'; the index has name, tags, path" in error_of(call("search", to, "red", "--hybrid", "nam"))
    assert "names no column" in error_of(call("search", to, "red", "--hybrid", " , "))
    line = error_of(call("search", world.model, world.imagefolder, "red", "--hybrid", "path"))
    assert "--hybrid needs an index" in line
