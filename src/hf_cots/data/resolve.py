"""Resolve what a user names (a file, a folder, a pattern, a Hub id) to the files of one split.

    a path that exists         is that file or folder, whatever signs are in its name
    a pattern                  `*`, `?`, `[0-9]` and `{00000..00099}` or `{a,b}`
    else                       a Hub id

The words train, training; validation, valid, val, dev; test, testing, eval, evaluation in the names of data files or
of folders mean splits, as on the Hub: `data/train-00000-of-00001.parquet`. In a folder of images only folders count,
since an image may be called `toy_train_02.png`. Data without any such word are one split, which every name stands
for. Beside a file `test.parquet`, one called `test_new_styles.parquet` is the split "test_new_styles".
"""

import glob
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .clips import ANIMATION_SUFFIXES, VIDEO_SUFFIXES
from .folders import SIDECARS, is_image, is_metadata, looks_like_metadata, walk_files
from .tables import TABLE_SUFFIXES, data_suffix


logger = logging.getLogger(__name__)

Kind = Literal["parquet", "tar", "table", "images", "clips", "arrow", "hub"]
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
MOST_FILES = 1_000_000  # of one range
CANONICAL = {word: split for split, words in SPLIT_WORDS.items() for word in words}
SHARD = re.compile(r"[-_.]?\d+([-_]of[-_]\d+)?$")  # the number of a part of a split
WORD = re.compile(rf"(?<![a-zA-Z])({'|'.join(sorted(CANONICAL, key=len, reverse=True))})(?![a-zA-Z])", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """The files of one split.

    Attributes:
        name: what the user called the data.
        kind: how the files are read.
        files: in sorted order; none for a Hub id.
        root: the folder that relative image paths start from.
        hint: for a folder of images or clips without captions, the tables beside them that may be meant.
    """

    name: str
    kind: Kind
    files: tuple[Path, ...]
    root: Path
    hint: str = ""


def may_be_clip(path: Path) -> bool:
    """Whether a file is a clip by its name: what a gif or webp holds is seen where it is read."""
    return path.suffix.lower() in (*VIDEO_SUFFIXES, *ANIMATION_SUFFIXES)


def resolve(data: str | Path, split: str = "train", clips: bool = False) -> Source:
    """Find the files of a split.

    Args:
        clips: a folder of files is one of clips, not of images.

    Raises:
        FileNotFoundError: if a path or pattern matches nothing.
        ValueError: if there is no such split, or the kind of a file is unknown or not the others'.
    """
    data = str(data)
    if not data.strip():
        raise ValueError("the name of the data is empty: give a file, a folder, a pattern or a Hub id")
    path = Path(data).expanduser()
    if path.is_dir():
        return _resolve_folder(data, path, split, clips)
    if path.is_file():
        return _source_from_files(data, [path], path.parent)
    if is_pattern(data):
        files = []
        for pattern in expand_braces(str(path)):
            found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True)) if Path(name).is_file()]
            if not found:
                raise FileNotFoundError(f"no file matches {pattern}" + (f", of {data}" if "{" in data else ""))
            files += found
        files = list(dict.fromkeys(files))
        return _source_from_files(data, files, files[0].parent)
    if kind_of(path) or data.startswith((".", "/", "~")) or data.count("/") > 1:
        raise FileNotFoundError(f"no such file or folder: {data}")
    return Source(data, "hub", (), Path())


def is_pattern(data: str) -> bool:
    """Whether a name that is no path of a file has the signs of a pattern."""
    return any(sign in data for sign in "*?[{")


def expand_braces(pattern: str) -> Iterator[str]:
    """`a-{00..02}.tar` and `{a,b}.tar` as the patterns that they stand for."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    choices: Sequence[str]
    if numbers:
        first, last = numbers.groups()
        if not 0 <= int(last) - int(first) < MOST_FILES:
            raise ValueError(
                f"{pattern}: the range {match[0]} must be ascending and name at most {MOST_FILES:,} files"
            )
        choices = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    else:
        choices = match[1].split(",")
    for choice in choices:
        yield from expand_braces(pattern[: match.start()] + choice + pattern[match.end() :])


def kind_of(path: Path) -> Kind | None:
    """How a data file is read, by its suffix."""
    suffix = data_suffix(path)
    if suffix in TABLE_SUFFIXES:
        return "table"
    return {".parquet": "parquet", ".pq": "parquet", ".tar": "tar"}.get(suffix)  # type: ignore[return-value]


def find_split(path: Path) -> str | None:
    """The split that the words of a relative path name; of several the last."""
    words = WORD.findall(str(path))
    return CANONICAL[words[-1].lower()] if words else None


def _part_longer_names(splits: dict[str | None, list[Path]]) -> None:
    """Where one file of a split has its plain name, as `test.parquet`, files with further words in their names, as
    `test_new_styles.parquet`, are splits of their own."""
    for split in [name for name in splits if name is not None]:
        stems = {path: SHARD.sub("", path.name.split(".")[0]) for path in splits[split]}
        longer = [path for path, stem in stems.items() if stem.lower() not in CANONICAL]
        if len(longer) < len(stems):
            splits[split] = [path for path in stems if path not in longer]
            for path in longer:
                splits.setdefault(stems[path], []).append(path)


def _source_from_files(data: str, files: Sequence[Path], root: Path) -> Source:
    unknown = next((file for file in files if kind_of(file) is None), None)
    if unknown is not None:
        raise ValueError(
            f"{unknown}: cannot read '{unknown.suffix}' files; supported are {', '.join(TABLE_SUFFIXES)}, .parquet, "
            ".tar, all but parquet also compressed (.gz, .bz2, .xz), and folders of images"
        )
    suffixes = sorted({data_suffix(file) for file in files})
    if len(suffixes) > 1:
        raise ValueError(
            f"{data} contains files of several kinds: {', '.join(suffixes)}; select one kind with a pattern"
        )
    return Source(data, kind_of(files[0]), tuple(files), root)  # type: ignore[arg-type]


def _resolve_folder(data: str, folder: Path, split: str, clips: bool) -> Source:
    saved = (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    if saved or (folder / "dataset_dict.json").is_file():
        return Source(data, "arrow", (folder,), folder)  # of Dataset.save_to_disk
    files = walk_files(folder)
    is_wanted = may_be_clip if clips else is_image
    images = [path for path in files if is_wanted(path)]
    tars = [path for path in files if kind_of(path) == "tar"]
    parquet = [path for path in files if kind_of(path) == "parquet" and not (images and is_metadata(path))]
    parquet = _without_indexes(parquet, tars, images)
    tables = [path for path in files if kind_of(path) == "table" and _may_hold_rows(path)]
    if parquet and tars:
        raise ValueError(
            f"{data} contains parquet files and tars ({parquet[0].name}, {tars[0].name}): select one kind with a "
            f"pattern, such as {data}/**/*.tar"
        )
    named = [path for path in tables if path.name.split(".")[0].lower() in CANONICAL]
    if images and named and not parquet and not tars and not any(map(is_metadata, files)):
        images, tables = [], named  # train.csv and test.csv beside a folder of the images that they name
    if images and not parquet and not tars:
        return _resolve_images(data, folder, files, split, "clips" if clips else "images")
    chosen = _pick_split(data, folder, parquet or tars or tables, split, by_file=True)
    if not chosen:
        medium = "clip" if clips else "image"
        raise FileNotFoundError(
            f"{data} contains no data: none of its {len(files)} files is a table, parquet, tar or {medium}"
        )
    unread = tables + images if parquet or tars else images
    if unread:
        logger.info("%s: ignoring %d tables and images next to the data, such as %s", data, len(unread), unread[0])
    return _source_from_files(data, chosen, chosen[0].parent)


def _without_indexes(parquet: list[Path], tars: list[Path], images: list[Path]) -> list[Path]:
    """Parquet files but those in which img2dataset lists what is in the tar, or folder of images, of the same name."""
    shards = {path.with_suffix("") for path in tars} | {path.parent for path in images}
    return [path for path in parquet if path.with_suffix("") not in shards]


def _may_hold_rows(path: Path) -> bool:
    """Whether a table is neither imagefolder's metadata nor what tools write beside data."""
    return not is_metadata(path) and not path.name.endswith(("dataset_infos.json", "dataset_info.json", "_stats.json"))


def _resolve_images(
    data: str, folder: Path, files: list[Path], split: str, kind: Literal["images", "clips"]
) -> Source:
    is_wanted = may_be_clip if kind == "clips" else is_image
    relevant = [path for path in files if is_wanted(path) or is_metadata(path) or path.suffix.lower() in SIDECARS]
    chosen = _pick_split(data, folder, relevant, split, by_file=False)
    tops = {path.relative_to(folder).parts[0] for path in chosen}
    top = next(iter(tops))
    root = folder / top if len(tops) == 1 and top.lower() in CANONICAL else folder  # the split's name is no label
    candidates = looks_like_metadata(files)
    hint = ""
    if candidates and not any(map(is_metadata, chosen)):
        names = ", ".join(str(path.relative_to(folder)) for path in candidates[:3])
        hint = (
            f"; {names} may hold the captions: name that file as the data, or call it metadata.jsonl or metadata.csv"
        )
    return Source(data, kind, tuple(chosen), root, hint)


def _pick_split(data: str, folder: Path, files: list[Path], split: str, by_file: bool) -> list[Path]:
    """The files of a split; all of them if none names a split. Of images, the sub-folders must all be splits.

    Raises:
        ValueError: if others are named, but not this one.
    """
    splits: dict[str | None, list[Path]] = {}
    for path in files:
        relative = path.relative_to(folder)
        name = find_split(relative) if by_file else CANONICAL.get(relative.parts[0].lower())
        splits.setdefault(name, []).append(path)
    if by_file:
        _part_longer_names(splits)
    folders = {path.relative_to(folder).parts[0] for path in files if path.parent != folder}
    if not by_file and not all(name.lower() in CANONICAL for name in folders):
        return files  # a folder `train` among others is a class of images
    named = sorted(name for name in splits if name is not None)
    if not named:
        return files  # one split, which every name stands for
    wanted = CANONICAL.get(split.lower(), split)
    if wanted not in splits:
        raise ValueError(f"{data} has no split '{split}'; it has {', '.join(named)}")
    if None in splits:
        others = [path for path in splits[None] if by_file or is_image(path)]
        if others:
            logger.warning(
                "%s: ignoring %d files that belong to no split, such as %s", data, len(others), others[0].name
            )
    return splits[wanted]
