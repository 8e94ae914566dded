"""Render the drawings of the icon sets, with one file of intermediate results per set, so that work can be resumed."""

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ..hashes import hash_pixels, perceptual_hash
from .icon_words import COUNTED_SETS, PREFIXES, clean_name, is_caption, list_style_words
from .iconify import IconSet, make_svg, render_svg
from .parquet import encode_png


MOST_DRAWINGS = 2  # drawings of one name in one set
MOST_OTHER_NAMES = 8  # other names of one drawing
THUMBNAIL = 16  # pixels per side
# Categories of brand logos. "Social" means logos in one set; in others it means people and greetings.
LOGO_CATEGORY = re.compile(r"\b(brands?|logos?|crypto\w*|social media)\b", re.IGNORECASE)
LOGO_SOCIAL_SETS = {"iconoir"}
LOGO_NAME = re.compile(r"^(brand|logo|social|logos)-|-(brand|logo)(-|$)")
CODED_ALIASES = {"wi"}  # sets whose aliases are codes of weather services
SCHEMA = pa.schema(
    {
        "set": pa.string(),
        "icon": pa.string(),
        "name": pa.string(),
        "other_names": pa.list_(pa.string()),
        "style": pa.string(),
        "png": pa.binary(),
        "pixels": pa.int64(),
        "hash": pa.uint64(),
        "thumbnail": pa.binary(),
    }
)


def list_logos(icon_set: IconSet) -> set[str]:
    """Return the icons that are brand logos, by their category or their name."""
    logos = {name for name in icon_set.icons if LOGO_NAME.search(name)}
    for category, icons in icon_set.data.get("categories", {}).items():
        if LOGO_CATEGORY.search(category) or (category == "Social" and icon_set.prefix in LOGO_SOCIAL_SETS):
            logos |= set(icons)
    return logos


def choose_drawings(icon_set: IconSet, counts: Counter[str]) -> Iterator[tuple[str, str, str, list[str]]]:
    """Choose the drawings of a set: at most [`MOST_DRAWINGS`] per name, first the one with the shortest icon name,
    then others in the order of a hash.

    Args:
        icon_set: the set.
        counts: numbers of icons that are left out, by reason; updated in place.

    Yields:
        Icon, name, style and other names, in the order of the icons' names.
    """
    data = icon_set.data
    style_words = list_style_words(icon_set.icons)
    suffixes = list(data.get("suffixes") or ())
    prefixes = [*(data.get("prefixes") or ()), *PREFIXES.get(icon_set.prefix, ())]
    counted = icon_set.prefix.startswith(COUNTED_SETS)

    def clean(icon: str) -> tuple[str, str]:
        return clean_name(icon, suffixes, prefixes, style_words, counted)

    others = defaultdict(list)
    for alias, parent in icon_set.other_names() if icon_set.prefix not in CODED_ALIASES else ():
        others[parent].append(clean(alias)[0])
    logos = list_logos(icon_set)
    by_name = defaultdict(list)
    for icon, fields in icon_set.icons.items():
        name, style = clean(icon)
        if fields.get("hidden"):
            counts["hidden"] += 1
        elif icon in logos:
            counts["logo"] += 1
        elif not is_caption(name):
            counts["name without a word"] += 1
        else:
            by_name[name].append((icon, style))
    chosen = []
    for name, drawings in by_name.items():
        drawings.sort(key=lambda each: (len(each[0]), each[0]))
        rest = sorted(drawings[1:], key=lambda each: hashlib.sha256(f"{icon_set.prefix}:{each[0]}".encode()).digest())
        kept = drawings[:1] + rest[: MOST_DRAWINGS - 1]
        counts["more drawings of a name"] += len(drawings) - len(kept)
        chosen += [(icon, name, style) for icon, style in kept]
    for icon, name, style in sorted(chosen):
        other_names = [other for other in dict.fromkeys(others[icon]) if other != name and is_caption(other)]
        yield icon, name, style, other_names[:MOST_OTHER_NAMES]


def make_thumbnail(image: Image.Image) -> bytes:
    """Return a small gray version of an image, as bytes of differences from white."""
    small = image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return (255 - np.asarray(small)).tobytes()


def render_set(icon_set: IconSet, size: int, path: Path) -> None:
    """Render a set's drawings to a parquet file, which is renamed into place when complete. Its metadata counts what
    is left out."""
    counts: Counter[str] = Counter()
    rows: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for icon, name, style, other_names in choose_drawings(icon_set, counts):
        resolved = icon_set.resolve(icon)
        assert resolved is not None  # choose_drawings yields only existing icons
        try:
            image = render_svg(make_svg(resolved[1], size), size)
        except ValueError:  # what resvg raises
            counts["not rendered"] += 1
            continue
        if image.getcolors(1) is not None:
            counts["blank"] += 1
            continue
        values = (icon_set.prefix, icon, name, other_names, style, encode_png(image), hash_pixels(image))
        for column, value in zip(SCHEMA.names, (*values, perceptual_hash(image), make_thumbnail(image))):
            rows[column].append(value)
    metadata = {f"count:{reason}": str(count) for reason, count in counts.items()}
    table = pa.table(rows, schema=SCHEMA).replace_schema_metadata(metadata)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(table, draft, compression="zstd")
    os.replace(draft, path)


def render_sets(icon_sets: Iterable[IconSet], folder: Path, size: int, workers: int) -> Iterator[str]:
    """Render sets to `folder`/SET.parquet, one after another or in several processes.

    Args:
        icon_sets: the sets, read lazily.
        folder: folder of the intermediate results.
        size: side of the images in pixels.
        workers: number of processes; 1 for this process only.

    Yields:
        The name of each finished set.
    """
    if workers == 1:
        for icon_set in icon_sets:
            render_set(icon_set, size, folder / f"{icon_set.prefix}.parquet")
            yield icon_set.prefix
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        running: dict[Future[None], str] = {}

        def collect() -> Iterator[str]:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                future.result()
                yield running.pop(future)

        for icon_set in icon_sets:
            while len(running) > workers:  # sets are large, so at most one waits for a free process
                yield from collect()
            path = folder / f"{icon_set.prefix}.parquet"
            running[pool.submit(render_set, icon_set, size, path)] = icon_set.prefix
        while running:
            yield from collect()


def read_rendered(folder: Path, prefixes: Iterable[str]) -> tuple[pa.Table, dict[str, Counter[str]]]:
    """Read the intermediate results of sets, in the order of their names.

    Returns:
        All rows; and for each set the numbers of icons that were left out, by reason.
    """
    tables, counts = [], {}
    for prefix in sorted(prefixes):
        table = pq.read_table(folder / f"{prefix}.parquet")
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        counts[prefix] = Counter(
            {key.removeprefix("count:"): int(n) for key, n in metadata.items() if key.startswith("count:")}
        )
        tables.append(table.replace_schema_metadata(None))
    return pa.concat_tables(tables), counts
