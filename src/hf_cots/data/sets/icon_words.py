"""Names of icons as captions, and the choice of held-out words.

Icons cannot be split by concept, because grouping names that share words would join nearly all of them. The split is
by *word*: some words are held out, and an icon with one of them in a name, an alias or a compound is not in training.
"""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache

from ..hashes import is_in_fraction


# Words at the end of a name that describe its style; the second group does so only in sets that use them often
# ("heart-broken" is a broken heart in one set, and a heart of broken lines in another).
ALWAYS_STYLE = {
    *("outline", "outlined", "filled", "fill", "duotone", "twotone", "linear", "rounded", "solid", "regular", "alt"),
}
OFTEN_STYLE = {
    *("line", "light", "bold", "thin", "round", "sharp", "flat", "broken", "remix", "duo", "color", "stroke"),
    *("negative", "small", "large", "mini", "micro", "variant", "border", "ltr", "rtl", "o", "f", "b", "s", "fi"),
}
OFTEN = 0.03  # the fraction of a set's icons that must end with such a word
# Prefixes of styles and headings that the sets do not declare.
PREFIXES = {"bx": ("bx", "bxs"), "medical-icon": ("i",), "streamline-pixel": ("interface-essential",)}
COUNTED_SETS = ("icon-park", "uis", "uim", "uit", "uil")  # sets that number drawings in words: "clock-two"
NUMBERS = {"one", "two", "three", "four", "five", "six"}
NUMBERED = {"number", "numeric", "digit"}  # after these words a number is not the number of a drawing
# Words that say nothing about the image and are never held out.
FUNCTION_WORDS = {"and", "the", "for", "with", "without", "from", "out", "off", "not", "non"}

HELD_OUT = 0.08  # fraction of the words that is held out
MOST_NAMES = 0.0025  # maximum fraction of all names that contain a held-out word
FEWEST_SETS = 2  # minimum number of sets that use it
SHORTEST = 3  # minimum number of letters of a held-out word, and of a part of a compound


def list_style_words(icons: Iterable[str]) -> frozenset[str]:
    """Return the style words of a set: those that always are style words, and those that often end its names."""
    names = list(icons)
    ends = Counter(name.rpartition("-")[2] for name in names)
    return frozenset(ALWAYS_STYLE | {word for word in OFTEN_STYLE if ends[word] >= OFTEN * len(names)})


def clean_name(
    icon: str,
    suffixes: Sequence[str] = (),
    prefixes: Sequence[str] = (),
    style_words: frozenset[str] = frozenset(ALWAYS_STYLE),
    counted: bool = False,
) -> tuple[str, str]:
    """Split an icon's name into a caption and its style: "home-3-fill" -> ("home", "fill").

    Args:
        icon: the name in its set.
        suffixes, prefixes: suffixes and prefixes of the set's styles.
        style_words: from [`list_style_words`].
        counted: whether the set numbers its drawings in words.

    Returns:
        Caption and style. The caption is never empty, but may have no letters.
    """
    rest, style = icon.replace("_", "-").strip("-"), []
    for suffix in sorted(filter(None, suffixes), key=len, reverse=True):
        if rest.endswith(f"-{suffix}"):
            rest, style = rest[: -len(suffix) - 1], [suffix]
            break
    for prefix in sorted(filter(None, prefixes), key=len, reverse=True):
        if rest.startswith(f"{prefix}-"):
            rest, style = rest[len(prefix) + 1 :], [*style, prefix]
            break
    words = [word for word in rest.split("-") if word]
    while len(words) > 1:
        last = words[-1]
        if last in style_words:
            style.append(words.pop())
        elif last == "tone" and words[-2] == "two":
            style.append("twotone")
            del words[-2:]
        elif words[-2] not in NUMBERED and (re.fullmatch(r"\d+(px|x\d+)?", last) or (counted and last in NUMBERS)):
            words.pop()
        else:
            break
    if words:  # "crown5", but neither "mp3" nor "html5-a"
        words[-1] = re.sub(r"(?<=[a-z]{4})\d{1,2}x?$", "", words[-1])
    return " ".join(words), " ".join(dict.fromkeys(style))


def is_caption(text: str) -> bool:
    """Whether a name contains a word: two letters in a row."""
    return re.search(r"[a-z]{2}", text) is not None


def split_words(text: str) -> list[str]:
    """Split a text into lower-case words and numbers."""
    return re.findall(r"[a-z0-9]+", text.lower())


@cache
def stem(word: str) -> str:
    """Stem a word, rather too much than too little: "charger", "charging" and "charges" become "charg".

    Words that wrongly share a stem are held out together or not at all, which does no harm."""
    if len(word) > 4 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending, shortest in (("ing", 6), ("ed", 5), ("er", 5), ("or", 5), ("ly", 5)):
        if len(word) >= shortest and word.endswith(ending):
            word = word[: -len(ending)]
            if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "ls":
                word = word[:-1]
            break
    return word[:-1] if len(word) > 3 and word.endswith("e") else word


@dataclass
class Vocabulary:
    """The words of all names, with which compounds are split into stems.

    Attributes:
        words: words of at least three letters that at least two sets use; the possible parts of compounds.
        parts: cache of [`find_parts`].
    """

    words: set[str]
    parts: dict[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def from_names(cls, names: Iterable[tuple[str, str]]) -> "Vocabulary":
        """Collect the words of (set, name) pairs."""
        sets = defaultdict(set)
        for prefix, name in names:
            for word in split_words(name):
                sets[word].add(prefix)
        return cls(
            {word for word, of in sets.items() if len(of) >= FEWEST_SETS and len(word) >= SHORTEST and word.isalpha()}
        )

    def find_parts(self, word: str) -> frozenset[str]:
        """Return the stem of a word and, if it is a compound of two known words, their stems: "toothbrush" ->
        toothbrush, tooth, brush."""
        if word not in self.parts:
            found = {stem(word)}
            for i in range(SHORTEST, len(word) - SHORTEST + 1):
                if word[:i] in self.words and word[i:] in self.words:
                    found |= {stem(word[:i]), stem(word[i:])}
            self.parts[word] = frozenset(found)
        return self.parts[word]

    def find_stems(self, text: str) -> set[str]:
        """Return all stems in a text, including those of parts of compounds and of adjacent words written as one."""
        words = split_words(text)
        found = {stem(first + second) for first, second in itertools.pairwise(words)}
        return found.union(*map(self.find_parts, words))


def choose_held_out(names: Iterable[tuple[str, str]], seed: int, fraction: float = HELD_OUT) -> set[str]:
    """Choose the held-out stems: a pure function of the names, in any order, and the seed.

    Args:
        names: (set, name) pairs that can be used for training.
        seed: random seed of the choice.
        fraction: fraction of the eligible words that is held out.

    Returns:
        Stems of words in at least two sets and in at most [`MOST_NAMES`] of the distinct names.
    """
    sets, uses = defaultdict(set), defaultdict(set)
    distinct = set()
    for prefix, name in names:
        distinct.add(name)
        for word in split_words(name):
            if word.isalpha() and len(word) >= SHORTEST and word not in FUNCTION_WORDS:
                sets[stem(word)].add(prefix)
                uses[stem(word)].add(name)
    most = MOST_NAMES * len(distinct)
    return {
        each
        for each, of in sets.items()
        if len(of) >= FEWEST_SETS
        and len(each) >= SHORTEST
        and len(uses[each]) <= max(most, 1)
        and is_in_fraction(each, fraction, seed)
    }
