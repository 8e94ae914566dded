"""Names of icons as captions, and the words that are held out."""

import random

import pytest

from hf_cots.data.sets.icon_words import (
    ALWAYS_STYLE,
    Vocabulary,
    choose_held_out,
    clean_name,
    is_caption,
    list_style_words,
    split_words,
    stem,
)


@pytest.mark.parametrize(
    ("icon", "name", "style"),
    [
        ("home", "home", ""),
        ("home-3-fill", "home", "fill"),
        ("access-time-20-filled", "access time", "filled"),
        ("crown5", "crown", ""),
        ("file-mp3", "file mp3", ""),
        ("arrow_left_two-tone", "arrow left", "twotone"),
        ("square-number-1", "square number 1", ""),
        ("fill", "fill", ""),
        ("chart-line", "chart line", ""),
        ("heart-broken", "heart broken", ""),
        ("clock-two", "clock two", ""),
        ("microscope2x", "microscope", ""),
    ],
)
def test_names_lose_style_and_number(icon, name, style):
    assert clean_name(icon) == (name, style)


def test_a_sets_own_suffixes_and_prefixes_go_first():
    suffixes = ["", "outline", "outline-rounded"]
    assert clean_name("dinner-dining-outline-rounded", suffixes) == ("dinner dining", "outline-rounded")
    assert clean_name("baseline-wine-bar", (), ["baseline"]) == ("wine bar", "baseline")
    assert clean_name("museum-two", counted=True) == ("museum", "")


def test_words_that_may_be_styles_are_styles_where_they_are_frequent():
    rare = [f"icon-{i}" for i in range(99)] + ["chart-line"]
    often = [f"icon-{i}-line" for i in range(50)] + [f"icon-{i}" for i in range(50)]
    assert list_style_words(rare) == ALWAYS_STYLE
    assert list_style_words(often) == ALWAYS_STYLE | {"line"}
    assert clean_name("chart-line", style_words=list_style_words(often)) == ("chart", "line")


def test_what_is_a_caption():
    assert [is_caption(text) for text in ("tv", "a b", "5 k", "", "3d")] == [True, False, False, False, False]


@pytest.mark.parametrize(
    "words",
    [
        ("charge", "charges", "charged", "charging", "charger", "chargers"),
        ("battery", "batteries"),
        ("run", "running", "runner"),
        ("bus", "bus"),
        ("glass", "glass"),
        ("box", "boxed"),
        ("message", "messages", "messaging", "messaged"),
    ],
)
def test_forms_of_a_word_have_one_stem(words):
    assert len(set(map(stem, words))) == 1


def test_different_words_have_different_stems():
    words = ["heart", "hat", "house", "horse", "bus", "bush", "glass", "gas", "ring", "king", "bed", "bad", "sing"]
    assert len(set(map(stem, words))) == len(words)


def test_compounds_are_their_parts_too_and_neighbors_their_compound():
    names = [(prefix, text) for prefix in "ab" for text in ("tooth", "brush", "light", "house")] + [("a", "fall")]
    vocabulary = Vocabulary.from_names(names)
    assert vocabulary.find_stems("Toothbrush") == {stem("toothbrush"), "tooth", "brush"}
    assert vocabulary.find_stems("light house") == {"light", stem("house"), stem("lighthouse")}
    assert vocabulary.find_stems("lightfall") == {stem("lightfall")}  # "fall" is of one set only
    assert vocabulary.find_stems("lightly") == {stem("lightly")}


def make_names(count=4000):
    """Names of one to three made-up words in twelve sets."""
    draw = random.Random(0)
    words = [
        "".join(draw.choices("bcdfgklmnprt", k=3)) + draw.choice("aiou") + draw.choice("kmnpt") for _ in range(2000)
    ]
    return [
        (f"set{draw.randrange(12)}", " ".join(draw.choices(words, k=draw.randint(1, 3)))) for _ in range(count)
    ] + [(f"set{i % 12}", f"common word{'s' * (i % 2)} {words[i]}") for i in range(300)]


def test_held_out_words_are_a_pure_function_of_names_and_seed():
    names = make_names()
    shuffled = names[::-1] + names[:100]
    assert choose_held_out(names, 0) == choose_held_out(shuffled, 0)
    assert choose_held_out(names, 0) != choose_held_out(names, 1)


def test_held_out_words_are_neither_rare_nor_frequent():
    names = make_names()
    everything = sorted({stem(word) for _, name in names for word in split_words(name)})
    held_out = choose_held_out(names, 0)
    assert 0.04 < len(held_out) / len(everything) < 0.12
    chosen = choose_held_out(names, 0, fraction=1)
    assert held_out < chosen
    stems = {name: set(map(stem, split_words(name))) for _, name in names}
    for each in [*everything[::9], "common"]:  # slowly, from the definition
        users = {prefix for prefix, name in names if each in stems[name]}
        uses = sum(each in found for found in stems.values())
        assert (each in chosen) == (len(users) >= 2 and uses <= 0.0025 * len(stems) and len(each) >= 3), each
    assert "common" not in chosen
