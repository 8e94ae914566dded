"""The icon set, made of three tiny sets: what is left out, what is held out, and that nothing leaks."""

import json
import os
import subprocess
import sys
import time
from multiprocessing import get_context

import numpy as np
import pyarrow.parquet as pq
import pytest

from hf_cots.data.sets import icon_images, icons
from hf_cots.data.sets.icon_check import check_files
from hf_cots.data.sets.icon_words import choose_held_out, split_words, stem
from hf_cots.data.sets.icons import sort_sets, write_icon_set
from hf_cots.data.sources import load_pairs
from tests.support.icon_packages import draw_body, make_info, write_iconify, write_keyword_packages
from tests.support.paths import ROOT


pytest.importorskip("resvg_py")

SIDES = ("train", "test", "test_new_styles", "flags")
NAMES = [f"{first}{second}{third}" for first in "bdgklmnp" for second in "aiou" for third in ("tt", "nk", "mp")]


def make_sets():
    """Two sets that train and one that does not, with the same names and other drawings, and all that is left out."""
    sets = {
        prefix: {"icons": {name: {"body": draw_body(i + 100 * offset)} for i, name in enumerate(NAMES)}, "aliases": {}}
        for offset, prefix in enumerate(("one", "two", "game-icons"))
    }
    one, two = sets["one"], sets["two"]
    number = iter(range(1000, 2000))
    for icon in ("brand-acme", "batt-2", "batt-filled", "batt-3-outline", "7"):
        one["icons"][icon] = {"body": draw_body(next(number))}
    one["icons"]["secret"] = {"body": draw_body(next(number)), "hidden": True}
    one["icons"]["empty"] = {"body": ""}
    one["icons"]["broken"] = {"body": "<g>"}
    one["aliases"] = {"other-word": {"parent": NAMES[5]}, "turned": {"parent": NAMES[5], "rotate": 1}}
    two["icons"]["copy"] = one["icons"][NAMES[7]]
    two["icons"]["starred"] = {"body": draw_body(next(number))}
    two["categories"] = {"Brands": ["starred"]}
    flags = {"fr": draw_body(500), "zz": draw_body(501), "northern-isle": draw_body(502)}
    return sets | {
        "cif": {"icons": {name: {"body": body} for name, body in flags.items()}},
        "fa": {"icons": {"old": {"body": draw_body(1)}}},
        "line-md": {"icons": {"moving": {"body": draw_body(2)}}},
        "acme-logos": {"icons": {"acme": {"body": draw_body(3)}}},
        "shared": {"icons": {"alike": {"body": draw_body(4)}}},
        "noto": {"icons": {"face": {"body": draw_body(5)}}},
    }


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages")
    infos = {"shared": make_info(spdx="CC-BY-SA-4.0"), "noto": make_info("Emoji"), "cif": make_info("Flags / Maps")}
    iconify = write_iconify(folder / "iconify.tgz", make_sets(), infos)
    tags = {name: [f"tag {NAMES[i - 1]}", f"{name}-like", "shape", "*new*"] for i, name in enumerate(NAMES)}
    emoji = [{"hexcode": "1F1EB-1F1F7", "label": "flag: France"}]
    return iconify, write_keyword_packages(folder, tags, emoji)


@pytest.fixture(scope="module")
def few_words():
    """So few names would have no held-out words by the limits of the real set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_cots.data.sets.icon_words.MOST_NAMES", 0.05)
        yield


@pytest.fixture(scope="module")
def written(packages, few_words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("icons") / "set"
    return folder, write_icon_set(folder, *packages, size=24)


def rows(folder, side):
    return pq.read_table(folder / f"{side}.parquet").to_pylist()


def test_what_becomes_of_a_set():
    infos = {
        "a": make_info(),
        "b": make_info("Logos"),
        "c-brands": make_info(),
        "fa6-solid": make_info(),
        "d": make_info(spdx="GPL-3.0"),
        "fluent-emoji": make_info(None),
        "pixelarticons": make_info(),
        "svg-spinners": make_info(),
        "flagpack": make_info("Flags / Maps"),
        "maki": make_info("Flags / Maps"),
    }
    kinds = [
        "train",
        "logos",
        "logos",
        "old copy",
        "license",
        "emoji",
        "test_new_styles",
        "animated",
        "flags",
        "train",
    ]
    assert list(sort_sets(infos).values()) == kinds


def test_every_drawing_is_in_one_file_or_counted(written):
    folder, counts = written
    report = json.loads((folder / "report.json").read_text())
    assert counts == report["rows"] == {side: len(rows(folder, side)) for side in SIDES}
    drawn = sum(
        len(each["icons"]) for prefix, each in make_sets().items() if prefix in ("one", "two", "game-icons", "cif")
    )
    assert sum(counts.values()) + sum(report["drawings_left_out"].values()) == drawn
    left_out = report["drawings_left_out"]
    reasons = ("hidden", "logo", "blank", "not rendered", "name without a word", "pixels of another drawing")
    assert [left_out[reason] for reason in reasons] == [1, 2, 1, 1, 1, 1]
    assert left_out["more drawings of a name"] == 2  # of four that are called "batt"
    assert left_out["flag of an unknown code"] == 1
    whole_sets = ("animated", "emoji", "license", "logos", "old copy")
    assert report["icons_left_out_with_their_set"] == dict.fromkeys(whole_sets, 1)


def test_unseen_words_are_in_no_training_text(written):
    """From the rows alone, by the slowest way."""
    folder, counts = written
    train, test = rows(folder, "train"), rows(folder, "test")
    assert counts["train"] > 100
    assert counts["test"] >= 3
    read = {stem(word) for row in train for text in (*row["captions"], *row["keywords"]) for word in split_words(text)}
    for row in test:
        assert row["unseen_words"]
        assert not {stem(word) for word in row["unseen_words"]} & read
    assert len({row["name"] for row in test}) == len(test)
    assert all(row["unseen_words"] == [] for row in train)
    pairs = [(row["set"], row["name"]) for row in train + test] + [("two", row["name"]) for row in test]
    held_out = choose_held_out([(p, n) for p in ("one", "two") for _, n in pairs], 0)
    assert held_out >= {stem(word) for row in test for word in row["unseen_words"]}


def test_new_styles_are_whole_sets(written):
    folder, _ = written
    new = rows(folder, "test_new_styles")
    assert {row["set"] for row in new} == {"game-icons"}
    assert {row["set"] for side in ("train", "test") for row in rows(folder, side)} == {"one", "two"}
    unseen = {word for row in rows(folder, "test") for word in row["unseen_words"]}
    assert {row["name"] for row in new if row["unseen_words"]} == unseen
    assert len(new) == len(NAMES)


def test_captions_are_name_other_names_and_keywords(written):
    folder, _ = written
    everything = {(row["set"], row["icon"]): row for side in SIDES for row in rows(folder, side)}
    row = everything["one", NAMES[5]]
    assert row["captions"][:2] == [NAMES[5], "other word"]
    tags = [f"tag {NAMES[4]}", f"{NAMES[5]} like", "shape"]
    assert row["keywords"] == [tag for tag in tags if tag in row["keywords"]]
    assert row["captions"][2:] == [", ".join(row["keywords"])]
    assert any(f"tag {name}" in each["keywords"] for each in everything.values() for name in NAMES)
    merged = everything["one", NAMES[7]]
    assert merged["other_names"] == ["copy"]
    assert (merged["license"], merged["author"], merged["style"]) == ("MIT", "An author", "")
    assert {row["name"] for row in rows(folder, "flags")} == {"flag of France", "flag of northern isle"}
    assert "| game-icons | A set |" in (folder / "LICENSES.md").read_text()
    assert "shared" not in (folder / "LICENSES.md").read_text()


def test_at_most_two_drawings_of_a_name(written):
    folder, _ = written
    of_batt = [row for row in rows(folder, "train") if row["name"] == "batt" and row["set"] == "one"]
    everything = [row for side in SIDES for row in rows(folder, side)]
    assert len(of_batt) <= 2
    assert len({(row["set"], row["icon"]) for row in everything}) == len(everything)


def test_the_files_load_as_pairs(written):
    folder, counts = written
    pairs = load_pairs(str(folder / "train.parquet"), image_id_column="name")
    assert len(pairs) == json.loads((folder / "report.json").read_text())["captions"]["train"]
    assert pairs[0]["image"].size == (24, 24)
    assert len(load_pairs(str(folder / "test.parquet"), caption_column="name")) == counts["test"]


def test_training_images_that_look_like_test_images_are_found():
    """Against a loop over all pairs."""
    draw = np.random.default_rng(0)
    thumbnails = draw.integers(0, 256, (60, 256), dtype=np.uint8)
    thumbnails[40:50] = np.clip(thumbnails[:10].astype(int) + draw.integers(-60, 60, (10, 256)), 0, 255)
    thumbnails[50:] = np.clip(thumbnails[10:20].astype(int) + draw.integers(-9, 9, (10, 256)), 0, 255)
    hashes = draw.integers(0, 2**63, 60, dtype=np.uint64)
    hashes[40:50] = hashes[:10] ^ np.uint64(0b1011)
    hashes[45] ^= np.uint64(0b110000)
    columns = {"thumbnail": [each.tobytes() for each in thumbnails], "hash": hashes}
    table = icons.pa.table(columns)
    queries, others = list(range(30)), list(range(30, 60))
    found = icons.find_near(table, queries, others)
    small = thumbnails.astype(float)
    small /= np.linalg.norm(small, axis=1, keepdims=True)
    expected = [
        any(
            small[i] @ small[j] >= 0.985
            or (bin(int(hashes[i] ^ hashes[j])).count("1") <= 4 and small[i] @ small[j] > 0.9)
            for j in others
        )
        for i in queries
    ]
    assert found.tolist() == expected
    assert 15 < sum(expected) < 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row, other: row["keywords"].append(f"a {other['unseen_words'][0]}"), "is in training"),
        (lambda row, other: row["captions"].append(other["name"]), "is a training caption"),
        (lambda row, other: row["image"].update(other["image"]), "is a training image"),
    ],
)
def test_a_planted_leak_is_found(change, message, written, tmp_path):
    folder, _ = written
    tables = {side: rows(folder, side) for side in SIDES[:3]}
    held_out = {stem(word) for row in tables["test"] for word in row["unseen_words"]}
    assert check_files(folder, held_out)["test"] > 0
    change(tables["train"][3], tables["test"][0])
    for side, content in tables.items():
        with icons.ParquetFile(tmp_path / f"{side}.parquet", icons.FEATURES) as file:
            file.write(content)
    with pytest.raises(RuntimeError, match=message):
        check_files(tmp_path, held_out)


def test_a_complete_set_is_kept_and_another_seed_gives_another_split(written, packages, tmp_path, monkeypatch):
    folder, counts = written
    with monkeypatch.context() as patch:
        patch.setattr(icons, "read_collections", lambda *_: pytest.fail("it was made again"))
        assert write_icon_set(folder, *packages, size=24) == counts
    assert not (folder / ".work").exists()
    write_icon_set(tmp_path, *packages, size=24, seed=1)
    assert {row["name"] for row in rows(tmp_path, "test")} != {row["name"] for row in rows(folder, "test")}


def write_slowly(packages, output):
    """Make the set, with a long pause after the drawings of the first set."""
    render = icon_images.render_set

    def render_and_wait(icon_set, *rest):
        render(icon_set, *rest)
        time.sleep(60)

    icon_images.render_set = render_and_wait
    write_icon_set(output, *packages, size=24)


def start_script(packages, output, workers, hash_seed):
    """Start the making of the set in a fresh process, with a hash seed."""
    iconify, _ = packages
    script = "\n".join(
        [
            "if __name__ == '__main__':",
            "    from pathlib import Path",
            "    from hf_cots.data.sets import icon_words, icons",
            "    from hf_cots.data.sets.icon_keywords import KEYWORD_PACKAGES",
            "    icon_words.MOST_NAMES = 0.05",
            f"    files = {{p: Path({str(iconify.parent)!r}) / p.file_name for p in KEYWORD_PACKAGES}}",
            f"    icons.write_icon_set(Path({str(output)!r}), Path({str(iconify)!r}), files, 24, workers={workers})",
        ]
    )
    file = output.parent / f"{output.name}.py"
    file.write_text(script)
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "PYTHONHASHSEED": str(hash_seed)}
    return subprocess.Popen([sys.executable, file], env=environment)


def read_all(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_kill_changes_no_byte(written, packages, tmp_path, monkeypatch):
    """And what was drawn before is not drawn again."""
    process = get_context("fork").Process(target=write_slowly, args=(packages, tmp_path))
    process.start()
    deadline = time.monotonic() + 120
    while not (done := list(tmp_path.glob(".work/*.parquet"))) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.join()
    assert len(done) == 1
    assert not (tmp_path / "report.json").exists()
    drawn = []
    render = icon_images.render_set
    monkeypatch.setattr(
        icon_images, "render_set", lambda icon_set, *rest: (drawn.append(icon_set.prefix), render(icon_set, *rest))
    )
    write_icon_set(tmp_path, *packages, size=24)
    assert sorted([*drawn, done[0].stem]) == ["cif", "game-icons", "one", "two"]
    assert read_all(tmp_path) == read_all(written[0])


def test_hash_seed_and_processes_change_no_byte(written, packages, tmp_path):
    assert start_script(packages, tmp_path / "other", workers=2, hash_seed=2).wait(timeout=200) == 0
    assert read_all(tmp_path / "other") == read_all(written[0])
