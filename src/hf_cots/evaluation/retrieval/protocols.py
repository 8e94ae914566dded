"""The standard test sets of image-text and video-text retrieval, read from their published files.

- **COCO and Flickr30K**: the splits of Karpathy and Fei-Fei (2015, "Deep visual-semantic alignments for generating
  image descriptions"), `dataset_coco.json` and `dataset_flickr30k.json`: `{"dataset", "images": [{"filename",
  "filepath", "split", "cocoid" or "imgid", "sentences": [{"raw", "sentid"}]}]}`. COCO's test split has 5,000 images
  and 25,010 captions, of which the first five of each image count, 25,000; Flickr30K's has 1,000 and 5,000. "1K" on
  COCO is the mean over five folds of 1,000 images in the order of the file.
- **MSR-VTT** (Xu et al. 2016). 1k-A: the 1,000 video-sentence pairs of Yu et al. (2018, JSFusion), the CSV
  `MSRVTT_JSFUSION_test.csv` with `video_id` and `sentence`. Full: the test split of `MSRVTT_data.json` or
  `test_videodatainfo.json`, 2,990 videos with 20 sentences each.

Counts that differ from the published ones are an error. Each result also reports a checksum of the ids of images and
captions, since the authors published none to verify against: equal checksums mean equal test sets, and an expected
checksum can be given.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ...data.clips import VIDEO_SUFFIXES
from ...data.hashes import stable_id
from ...data.sources import NUM_FRAMES, PairDataset
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
MSRVTT_1KA, MSRVTT_FULL = "msrvtt-1k-a", "msrvtt-full"
VIDEO_PROTOCOLS = {
    MSRVTT_1KA: ProtocolSpec("msrvtt", "1k-A", 1_000, 1_000),
    MSRVTT_FULL: ProtocolSpec("msrvtt", "test", 2_990, 59_800),
}


@dataclass(frozen=True)
class ProtocolData:
    """A test set that is ready to be evaluated.

    Attributes:
        name: name of the protocol.
        pairs: the images, each with the captions that count.
        folds: number of parts that are evaluated separately and averaged; see [`split_folds`].
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
    """Load a published test set from the authors' file and a folder of images or clips.

    Args:
        protocol: "coco-5k", "coco-1k" or "flickr30k"; "karpathy" for any data set in their layout; "msrvtt-1k-a" or
            "msrvtt-full" for clips.
        annotations: `dataset_coco.json`, `dataset_flickr30k.json` or another file in their layout; for MSR-VTT
            `MSRVTT_JSFUSION_test.csv` (1k-A), and `MSRVTT_data.json` or `test_videodatainfo.json` (full).
        image_root: folder of the images. An image is `image_root / filepath / filename`: COCO's are in `val2014/`,
            Flickr30K's have no `filepath`. A clip of MSR-VTT is `image_root / video7020.mp4`.
        split: for "karpathy", a split or several joined by "+": COCO's training split is usually "train+restval".
        checksum: the expected checksum of the ids, if it is known.

    Raises:
        FileNotFoundError: if the file or the folder does not exist.
        ValueError: if the protocol is unknown, the file has another layout, another data set or other counts than the
            published ones, the checksum differs, or no image can be read.
    """
    if protocol not in (*PROTOCOLS, KARPATHY, *VIDEO_PROTOCOLS):
        known_names = ", ".join([*PROTOCOLS, KARPATHY, *VIDEO_PROTOCOLS])
        raise ValueError(f"unknown protocol '{protocol}'; choose from {known_names}")
    if protocol in VIDEO_PROTOCOLS:
        load = load_msrvtt_1ka if protocol == MSRVTT_1KA else load_msrvtt_full
        return _build_clips(protocol, load(annotations), image_root, checksum, annotations)
    data = _read_json(annotations)
    if protocol == KARPATHY:
        entries = _select_split(data, split, annotations)
        return _build_protocol_data(f"karpathy {split}", entries, image_root, 1, checksum, annotations)
    known = PROTOCOLS[protocol]
    if data.get("dataset") != known.dataset:
        raise ValueError(
            f"{annotations}: protocol {protocol} needs the data set '{known.dataset}', but this file is for "
            f"'{data.get('dataset')}'"
        )
    entries = _select_split(data, known.split, annotations)
    captions = sum(len(entry["sentences"]) for entry in entries)
    if (len(entries), captions) != (known.images, known.captions):
        raise ValueError(
            f"{annotations}: split '{known.split}' has {len(entries):,} images and {captions:,} captions, but the "
            f"published one has {known.images:,} and {known.captions:,}"
        )
    return _build_protocol_data(protocol, entries, image_root, known.folds, checksum, annotations)


def id_checksum(ids: Iterable[tuple[str, Sequence[int]]]) -> str:
    """Compute the SHA-256 of the sorted lines "image caption caption ...", in hexadecimal; the order of the file does
    not matter.

    Args:
        ids: for each image its id and the ids of the captions that count.
    """
    lines = sorted(" ".join([image, *map(str, captions)]) for image, captions in ids)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def split_folds(encoded: EncodedPairs, folds: int) -> list[EncodedPairs]:
    """Split into contiguous parts of equal size in the order of the data, each image with its captions.

    This is the definition of COCO-1K in Faghri et al. (2018, VSE++) and later papers. An unreadable image is missing
    from its fold; the others keep their folds.

    Args:
        encoded: images with distinct ids.
        folds: number of parts.

    Raises:
        ValueError: if the images do not divide into equal parts.
    """
    total = len(encoded.rows) + len(encoded.broken)
    if total % folds:
        raise ValueError(f"{total} images cannot be divided into {folds} folds of equal size")
    fold_of_image = np.array(encoded.rows) // (total // folds)
    fold_of_id = dict(zip(encoded.image_ids.tolist(), fold_of_image.tolist()))
    fold_of_text = np.array([fold_of_id[image_id] for image_id in encoded.text_ids.tolist()])
    parts = []
    for fold in range(folds):
        images, texts = np.flatnonzero(fold_of_image == fold), np.flatnonzero(fold_of_text == fold)
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
    """Average each metric over the folds."""
    return {name: sum(result[name] for result in results) / len(results) for name in results[0]}


def _read_json(path: Path | str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected an object with the published fields, got {type(data).__name__}")
    return data


def _select_split(data: dict[str, Any], split: str, annotations: Path | str) -> list[dict[str, Any]]:
    """Select the entries of a split and check that each has all required fields and at least five captions."""
    images = data.get("images")
    if not isinstance(images, list):
        raise ValueError(
            f"{annotations}: the list 'images' of dataset_coco.json and dataset_flickr30k.json is missing"
        )
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
        raise ValueError(f"{annotations}: no split '{sorted(absent)[0]}'; it has {known}")
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
    # COCO images have an id of their own; Flickr images are identified by file, as their imgid is only the position.
    ids = [str(entry.get("cocoid", entry["filename"])) for entry in entries]
    if len(set(ids)) < len(ids):
        twice = next(image for number, image in enumerate(ids) if image in ids[:number])
        raise ValueError(f"{annotations}: image {twice} occurs twice in {name}")
    used = [entry["sentences"][:CAPTIONS_PER_IMAGE] for entry in entries]
    found = id_checksum((image, [s["sentid"] for s in sentences]) for image, sentences in zip(ids, used))
    _check_checksum(name, found, checksum, annotations)
    table = datasets.Dataset.from_dict(
        {
            "image": [str(Path(entry.get("filepath", "")) / entry["filename"]) for entry in entries],
            "caption": [[sentence["raw"] for sentence in sentences] for sentences in used],
            "image_id": ids,
        }
    )
    pairs = PairDataset(table, image_id_column="image_id", root=image_root, name=str(annotations))
    return ProtocolData(name, pairs, folds, found)


def _check_checksum(name: str, found: str, checksum: str | None, annotations: Path | str) -> None:
    if checksum is not None and checksum != found:
        raise ValueError(f"{annotations}: the ids of {name} have the checksum {found}, but {checksum} is expected")


@dataclass(frozen=True)
class VideoCaption:
    """One test pair of MSR-VTT."""

    video_id: str
    sentence: str


def load_msrvtt_1ka(test_csv: Path | str, annotations: Path | str | None = None) -> list[VideoCaption]:
    """Load the 1k-A test pairs of MSR-VTT, in the order of the file.

    Args:
        test_csv: `MSRVTT_JSFUSION_test.csv`, which has the columns `video_id` and `sentence`, among others.
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
            raise ValueError(f"{test_csv}: {pair.video_id} occurs twice, but 1k-A has one sentence per video")
        seen.add(pair.video_id)
    published = VIDEO_PROTOCOLS[MSRVTT_1KA].captions
    if len(pairs) != published:
        raise ValueError(f"{test_csv} has {len(pairs):,} pairs, but the published 1k-A has {published:,}")
    if annotations is not None:
        videos = _read_json(annotations).get("videos")
        if not isinstance(videos, list):
            raise ValueError(f"{annotations}: the list 'videos' of MSRVTT_data.json is missing")
        absent = seen - {video.get("video_id") for video in videos}
        if absent:
            raise ValueError(f"{annotations}: {len(absent)} videos of {test_csv} are missing, such as {min(absent)}")
    return pairs


def load_msrvtt_full(annotations: Path | str) -> list[VideoCaption]:
    """Load the sentences of MSR-VTT's full test split, video by video in the order of the file.

    Args:
        annotations: `MSRVTT_data.json`, or `test_videodatainfo.json`, which has only the test split.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it has another layout, or other counts than the published ones.
    """
    data, spec = _read_json(annotations), VIDEO_PROTOCOLS[MSRVTT_FULL]
    for name, fields in (("videos", ("video_id", "split")), ("sentences", ("video_id", "caption"))):
        entries = data.get(name)
        if not isinstance(entries, list):
            raise ValueError(f"{annotations}: the list '{name}' of MSRVTT_data.json is missing")
        for number, entry in enumerate(entries):
            missing = [field for field in fields if not str(entry.get(field) or "").strip()]
            if missing:
                raise ValueError(f"{annotations}: {name}[{number}] has no '{missing[0]}'")
    found: dict[str, list[str]] = {v["video_id"]: [] for v in data["videos"] if v["split"] == spec.split}
    for sentence in data["sentences"]:
        if sentence["video_id"] in found:
            found[sentence["video_id"]].append(sentence["caption"])
    pairs = [VideoCaption(video, sentence) for video, sentences in found.items() for sentence in sentences]
    if (len(found), len(pairs)) != (spec.images, spec.captions):
        raise ValueError(
            f"{annotations}: split '{spec.split}' has {len(found):,} videos and {len(pairs):,} sentences, but the "
            f"published one has {spec.images:,} and {spec.captions:,}"
        )
    return pairs


def _build_clips(
    name: str, pairs: list[VideoCaption], root: Path | str, checksum: str | None, annotations: Path | str
) -> ProtocolData:
    """Build the data of a protocol from clips and their sentences. MSR-VTT's sentences have no ids, so the checksum
    uses hashes of them instead."""
    if not Path(root).is_dir():
        raise FileNotFoundError(f"no such folder: {root}")
    sentences: dict[str, list[str]] = {}
    for pair in pairs:
        sentences.setdefault(pair.video_id, []).append(pair.sentence)
    found = id_checksum((video, list(map(stable_id, texts))) for video, texts in sentences.items())
    _check_checksum(name, found, checksum, annotations)
    table = datasets.Dataset.from_dict(
        {
            "video": [_find_clip(Path(root), video) for video in sentences],
            "caption": list(sentences.values()),
            "video_id": list(sentences),
        }
    )
    clips = PairDataset(table, "video", "caption", "video_id", root, name=str(annotations), num_frames=NUM_FRAMES)
    return ProtocolData(name, clips, 1, found)


def _find_clip(root: Path, video: str) -> str:
    """Return the file name of a video in any format; if there is none, the usual name, to report it as missing."""
    names = [f"{video}{suffix}" for suffix in VIDEO_SUFFIXES]
    return next((name for name in names if (root / name).is_file()), names[0])
