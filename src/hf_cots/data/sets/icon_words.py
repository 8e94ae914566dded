"""Names of icons as captions, and which words are held out.

Icons cannot be split by concept: closing over shared words would join nearly all of them. The split is by *word*: some
words are held out, and whatever has one in a name, an alias or a compound never trains.
"""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache

from ..hashes import is_in_fraction


# Words at the end of a name that say how it is drawn; those of the second kind do so only in sets that use them often
# ("heart-broken" in one set is a broken heart, in another a heart of broken lines).
ALWAYS_STYLE = {
    *("outline", "outlined", "filled", "fill", "duotone", "twotone", "linear", "rounded", "solid", "regular", "alt"),
}
OFTEN_STYLE = {
    *("line", "light", "bold", "thin", "round", "sharp", "flat", "broken", "remix", "duo", "color", "stroke"),
    *("negative", "small", "large", "mini", "micro", "variant", "border", "ltr", "rtl", "o", "f", "b", "s", "fi"),
}
OFTEN = 0.03  # of a set's icons end with it
# Of styles and headings, which the sets do not tell of.
PREFIXES = {"bx": ("bx", "bxs"), "medical-icon": ("i",), "streamline-pixel": ("interface-essential",)}
COUNTED_SETS = ("icon-park", "uis", "uim", "uit", "uil")  # that number in words: "clock-two"
NUMBERS = {"one", "two", "three", "four", "five", "six"}
NUMBERED = {"number", "numeric", "digit"}  # after which a number is no number of a drawing
# Words that say nothing of what is shown, and so are never held out.
FUNCTION_WORDS = {"and", "the", "for", "with", "without", "from", "out", "off", "not", "non"}

HELD_OUT = 0.08  # of the words
MOST_NAMES = 0.0025  # of all names that may have a held-out word
FEWEST_SETS = 2  # that use it
SHORTEST = 3  # letters of a held-out word, and of a part of a compound


def list_style_words(icons: Iterable[str]) -> frozenset[str]:
    """Style words of a set: those that always are, and those that often end its names."""
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
        suffixes, prefixes: of the set's styles.
        style_words: of [`list_style_words`].
        counted: whether the set numbers its drawings in words.

    Returns:
        Caption and style. The caption is never empty, but may be without a letter.
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
    """Whether a name says anything: two letters in a row."""
    return re.search(r"[a-z]{2}", text) is not None


def split_words(text: str) -> list[str]:
    """Lower-case words and numbers of a text."""
    return re.findall(r"[a-z0-9]+", text.lower())


@cache
def stem(word: str) -> str:
    """Cut a word's ending, rather too much than too little: "charger", "charging" and "charges" are "charg".

    Two words that are wrongly one are both held out or both not, which does no harm."""
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
    """Words of all names, and the stems that a text is made of.

    Attributes:
        words: those that are used in at least two sets, of at least three letters; compounds are made of them.
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
        """The stem of a word and, if it is a compound of two known words, theirs: "toothbrush" -> toothbrush, tooth,
        brush."""
        if word not in self.parts:
            found = {stem(word)}
            for i in range(SHORTEST, len(word) - SHORTEST + 1):
                if word[:i] in self.words and word[i:] in self.words:
                    found |= {stem(word[:i]), stem(word[i:])}
            self.parts[word] = frozenset(found)
        return self.parts[word]

    def find_stems(self, text: str) -> set[str]:
        """All stems in a text, of compounds' parts and of neighbors written as one word, too."""
        words = split_words(text)
        found = {stem(first + second) for first, second in itertools.pairwise(words)}
        return found.union(*map(self.find_parts, words))


def choose_held_out(names: Iterable[tuple[str, str]], seed: int, fraction: float = HELD_OUT) -> set[str]:
    """Choose the stems that are held out: a pure function of the names, in whatever order, and the seed.

    Args:
        names: (set, name) pairs that may train.
        seed: chooses the words.
        fraction: of the words that may be held out.

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
