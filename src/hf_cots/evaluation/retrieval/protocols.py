"""The test sets that papers report on, read from their published files.

- **COCO and Flickr30K**: the splits of Karpathy and Fei-Fei (2015, "Deep visual-semantic alignments for generating
  image descriptions"), `dataset_coco.json` and `dataset_flickr30k.json`: `{"dataset", "images": [{"filename",
  "filepath", "split", "cocoid" or "imgid", "sentences": [{"raw", "sentid"}]}]}`. COCO's test split has 5,000 images
  and 25,010 captions, of which the first five of each image count, 25,000; Flickr30K's has 1,000 and 5,000. "1K" on
  COCO is the mean over five folds of 1,000 images in the order of the file.
- **MSR-VTT 1k-A**: the 1,000 video-sentence pairs of Yu et al. (2018, JSFusion), a CSV with `video_id` and `sentence`.

A count that is not the published one is an error. Each protocol also has a checksum of the ids of its images and
captions. The authors published none to verify against, so it is reported with every result: equal checksums mean equal
test sets, and a checksum that is known can be demanded.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import torch

from ...data.sources import PairDataset
from ...data.tables import read_rows
from ...search.encoders import EncodedPairs


CAPTIONS_PER_IMAGE = 5
KARPATHY = "karpathy"


@dataclass(frozen=True)
class ProtocolSpec:
    """Name and sizes of a published split."""

    dataset: str
    split: str
    images: int
    captions: int
    folds: int = 1


PROTOCOLS = {
    "coco-5k": ProtocolSpec("coco", "test", 5_000, 25_010),
    "coco-1k": ProtocolSpec("coco", "test", 5_000, 25_010, folds=5),
    "flickr30k": ProtocolSpec("flickr30k", "test", 1_000, 5_000),
}


@dataclass(frozen=True)
class ProtocolData:
    """A test set that is ready to be evaluated.

    Attributes:
        name: of the protocol.
        pairs: the images, each with the captions that count.
        folds: parts that are evaluated separately and averaged; see [`split_folds`].
        checksum: SHA-256 over the ids of images and captions, in hexadecimal; see [`id_checksum`].
    """

    name: str
    pairs: PairDataset
    folds: int
    checksum: str


def load_protocol(
    protocol: str,
    annotations: Path | str,
    image_root: Path | str,
    split: str = "test",
    checksum: str | None = None,
) -> ProtocolData:
    """Load a published test set from the authors' JSON file and a folder of images.

    Args:
        protocol: "coco-5k", "coco-1k" or "flickr30k"; or "karpathy", any data set in their layout.
        annotations: `dataset_coco.json`, `dataset_flickr30k.json` or another file like them.
        image_root: folder of the images. An image is `image_root / filepath / filename`: COCO's lie in `val2014/`,
            Flickr30K's have no `filepath`.
        split: for "karpathy", a split or several joined by "+": COCO's training split is usually "train+restval".
        checksum: the expected checksum of the ids, if it is known.

    Raises:
        FileNotFoundError: if the file or the folder does not exist.
        ValueError: if the protocol is unknown, the file has another layout, another data set or other counts than the
            published ones, the checksum is another, or no image can be read.
    """
    if protocol != KARPATHY and protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol '{protocol}'; known are {', '.join([*PROTOCOLS, KARPATHY])}")
    data = _read_json(annotations)
    if protocol == KARPATHY:
        entries = _select_split(data, split, annotations)
        return _build_protocol_data(f"karpathy {split}", entries, image_root, 1, checksum, annotations)
    known = PROTOCOLS[protocol]
    if data.get("dataset") != known.dataset:
        raise ValueError(
            f"{annotations}: protocol {protocol} needs the data set '{known.dataset}', this file is of "
            f"'{data.get('dataset')}'"
        )
    entries = _select_split(data, known.split, annotations)
    captions = sum(len(entry["sentences"]) for entry in entries)
    if (len(entries), captions) != (known.images, known.captions):
        raise ValueError(
            f"{annotations}: split '{known.split}' has {len(entries):,} images and {captions:,} captions, the "
            f"published one has {known.images:,} and {known.captions:,}"
        )
    return _build_protocol_data(protocol, entries, image_root, known.folds, checksum, annotations)


def id_checksum(ids: Iterable[tuple[str, Sequence[int]]]) -> str:
    """SHA-256 over the sorted lines "image caption caption ...", in hexadecimal, whatever the order of the file.

    Args:
        ids: an image's id and the ids of the captions that count, for each image.
    """
    lines = sorted(" ".join([image, *map(str, captions)]) for image, captions in ids)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def split_folds(encoded: EncodedPairs, folds: int) -> list[EncodedPairs]:
    """Split into contiguous parts of equal size in the order of the data, each image with its captions.

    COCO-1K is defined so by Faghri et al. (2018, VSE++) and later papers. An image that could not be read leaves a gap
    in its fold; the others keep their folds.

    Args:
        encoded: images with an id each.
        folds: how many parts.

    Raises:
        ValueError: if the images do not divide into equal parts.
    """
    total = len(encoded.rows) + len(encoded.broken)
    if total % folds:
        raise ValueError(f"{total} images do not divide into {folds} folds of equal size")
    fold_of_image = torch.tensor(encoded.rows) // (total // folds)
    fold_of_id = dict(zip(encoded.image_ids.tolist(), fold_of_image.tolist()))
    fold_of_text = torch.tensor([fold_of_id[image_id] for image_id in encoded.text_ids.tolist()])
    parts = []
    for fold in range(folds):
        images, texts = (fold_of_image == fold).nonzero().flatten(), (fold_of_text == fold).nonzero().flatten()
        part = replace(
            encoded,
            image_embeds=encoded.image_embeds[images],
            text_embeds=encoded.text_embeds[texts],
            image_ids=encoded.image_ids[images],
            text_ids=encoded.text_ids[texts],
            rows=[encoded.rows[i] for i in images.tolist()],
            captions=[encoded.captions[i] for i in texts.tolist()],
        )
        parts.append(part)
    return parts


def mean_of_folds(results: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each metric over the folds."""
    return {name: sum(result[name] for result in results) / len(results) for name in results[0]}


def _read_json(path: Path | str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: holds a {type(data).__name__}, not an object with the published fields")
    return data


def _select_split(data: dict[str, Any], split: str, annotations: Path | str) -> list[dict[str, Any]]:
    """Select the entries of a split and check that each has all required fields and at least five captions."""
    images = data.get("images")
    if not isinstance(images, list):
        raise ValueError(f"{annotations}: no list 'images', as in dataset_coco.json and dataset_flickr30k.json")
    wanted, entries = set(split.split("+")), []
    for number, entry in enumerate(images):
        missing = [field for field in ("filename", "split", "sentences") if field not in entry]
        if missing:
            raise ValueError(f"{annotations}: images[{number}] has no '{missing[0]}'")
        if entry["split"] not in wanted:
            continue
        if len(entry["sentences"]) < CAPTIONS_PER_IMAGE:
            raise ValueError(
                f"{annotations}: images[{number}] ({entry['filename']}) has {len(entry['sentences'])} captions, "
                f"{CAPTIONS_PER_IMAGE} are needed"
            )
        if any("raw" not in sentence or "sentid" not in sentence for sentence in entry["sentences"]):
            raise ValueError(f"{annotations}: images[{number}] has a sentence without 'raw' or 'sentid'")
        entries.append(entry)
    absent = wanted - {entry["split"] for entry in entries}
    if absent:
        known = ", ".join(sorted({str(entry["split"]) for entry in images}))
        raise ValueError(f"{annotations}: no split '{sorted(absent)[0]}'; there are {known}")
    return entries


def _build_protocol_data(
    name: str,
    entries: list[dict[str, Any]],
    image_root: Path | str,
    folds: int,
    checksum: str | None,
    annotations: Path | str,
) -> ProtocolData:
    if not Path(image_root).is_dir():
        raise FileNotFoundError(f"no such folder: {image_root}")
    # COCO's own id where there is one; a Flickr image is identified by its file, and its imgid is only its position.
    ids = [str(entry.get("cocoid", entry["filename"])) for entry in entries]
    if len(set(ids)) < len(ids):
        twice = next(image for number, image in enumerate(ids) if image in ids[:number])
        raise ValueError(f"{annotations}: image {twice} occurs twice in {name}")
    used = [entry["sentences"][:CAPTIONS_PER_IMAGE] for entry in entries]
    found = id_checksum((image, [s["sentid"] for s in sentences]) for image, sentences in zip(ids, used))
    if checksum is not None and checksum != found:
        raise ValueError(f"{annotations}: the ids of {name} have the checksum {found}, not {checksum}")
    table = datasets.Dataset.from_dict(
        {
            "image": [str(Path(entry.get("filepath", "")) / entry["filename"]) for entry in entries],
            "caption": [[sentence["raw"] for sentence in sentences] for sentences in used],
            "image_id": ids,
        }
    )
    pairs = PairDataset(table, image_id_column="image_id", root=image_root, name=str(annotations))
    return ProtocolData(name, pairs, folds, found)


@dataclass(frozen=True)
class VideoCaption:
    """One test pair of MSR-VTT."""

    video_id: str
    sentence: str


def load_msrvtt_1ka(test_csv: Path | str, annotations: Path | str | None = None) -> list[VideoCaption]:
    """Load the 1k-A test pairs of MSR-VTT, in the order of the file.

    Args:
        test_csv: `MSRVTT_JSFUSION_test.csv` with the columns `video_id` and `sentence` among others.
        annotations: `MSRVTT_data.json`; if given, every video must be in it.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if a column is missing, a cell is empty, a video occurs twice or is not in `annotations`, or there
            are not 1,000 pairs.
    """
    if not Path(test_csv).is_file():
        raise FileNotFoundError(f"no such file: {test_csv}")
    rows = list(read_rows(test_csv))
    for column in ("video_id", "sentence"):
        if column not in rows[0]:
            raise ValueError(f"{test_csv} has no column '{column}'; it has {', '.join(rows[0])}")
    pairs = [VideoCaption(row["video_id"] or "", row["sentence"] or "") for row in rows]
    seen: set[str] = set()
    for number, pair in enumerate(pairs):
        if not pair.video_id.strip() or not pair.sentence.strip():
            raise ValueError(f"{test_csv}: pair {number}, counted from 0, has no video id or no sentence")
        if pair.video_id in seen:
            raise ValueError(f"{test_csv}: {pair.video_id} occurs twice; 1k-A has one sentence a video")
        seen.add(pair.video_id)
    if len(pairs) != 1_000:
        raise ValueError(f"{test_csv}: {len(pairs):,} pairs, the published 1k-A has 1,000")
    if annotations is not None:
        videos = _read_json(annotations).get("videos")
        if not isinstance(videos, list):
            raise ValueError(f"{annotations}: no list 'videos', as in MSRVTT_data.json")
        absent = seen - {video.get("video_id") for video in videos}
        if absent:
            raise ValueError(f"{annotations}: {len(absent)} videos of {test_csv} are missing, {min(absent)} for one")
    return pairs
