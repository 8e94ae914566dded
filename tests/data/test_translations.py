"""Tables of translation pairs."""

import pytest

from hf_cots.data.translations import TranslationPairs, load_translations


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("english\ttranslation\tlanguage\ndog\tHund\tde\ncat\tchat\tfr\ndog\tchien\tfr\n")
    return str(path)


def test_pairs(table):
    pairs = load_translations(table)
    assert pairs.sources == ["dog", "cat"]
    assert [pairs[0, i] for i in range(3)] == [
        {"text": "Hund", "source_row": 0},
        {"text": "chat", "source_row": 1},
        {"text": "chien", "source_row": 0},
    ]
    assert pairs.english() == ["dog", "cat", "dog"]


def test_each_english_text_is_added_once(table):
    pairs = load_translations(table).with_sources()
    assert list(zip(pairs.english(), pairs.translations, pairs.languages))[3:] == [
        ("dog", "dog", "en"),
        ("cat", "cat", "en"),
    ]


def test_languages(table):
    assert load_translations(table, languages=["de"]).translations == ["Hund"]
    with pytest.raises(ValueError, match="no rows in it; its languages are de, fr"):
        load_translations(table, languages=["it", "de"])
    with pytest.raises(ValueError, match="--language_column"):
        load_translations(table, language_column=None, languages=["de"])


def test_the_fingerprint_tells_other_pairs_apart():
    one = TranslationPairs(["a", "b"], ["c", "d"], ["x", "x"], "one")
    assert one.fingerprint() == TranslationPairs(["a", "b"], ["c", "d"], ["y", "y"], "two").fingerprint()
    assert one.fingerprint() != TranslationPairs(["a", "b"], ["d", "c"], ["x", "x"], "one").fingerprint()


def test_errors_name_column_and_row(tmp_path, table):
    with pytest.raises(
        ValueError, match=r"no column 'german'; it has english, translation, language.*--translation-column"
    ):
        load_translations(table, translation_column="german")
    path = tmp_path / "empty.tsv"
    path.write_text("english\ttranslation\ndog\t\ncat\tchat\n")
    with pytest.raises(ValueError, match=r"column 'translation' is empty or not a text in 1 row\(s\).*: 0\."):
        load_translations(str(path), language_column=None)
