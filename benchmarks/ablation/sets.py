"""The data sets of the ablation: training captions, some of them shuffled, and galleries of unseen concepts."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_cots.data.loading import load_table
from hf_cots.data.sets.emoji import write_emoji_set
from hf_cots.data.sets.openclipart import write_openclipart_set
from hf_cots.data.sources import PairDataset
from hf_cots.demo.recipe import SMOKE_TOKENIZER, TEST_STYLE
from hf_cots.demo.training import train_image_tokenizer

from .icons import icon_galleries, icons_file, write_icons


def shuffle_fraction(texts: list[str], fraction: float, seed: int) -> list[str]:
    """Exchange a fraction of the texts among each other: a pure function of its arguments.

    Args:
        texts: of all pairs.
        fraction: of the pairs that get another text; at least two pairs where it is not 0.
        seed: chooses the pairs.
    """
    if fraction == 0:
        return list(texts)
    generator = np.random.Generator(np.random.Philox(key=[seed, 0x6E6F]))
    chosen = generator.permutation(len(texts))[: max(2, round(fraction * len(texts)))]
    mixed, taken = list(texts), chosen
    for _ in range(len(chosen)):
        taken = np.roll(taken, 1)
        if all(texts[i].casefold() != texts[j].casefold() for i, j in zip(chosen, taken)):
            break
    else:  # every rotation puts a text beside its equal: those few pairs stay as they were
        taken = np.roll(chosen, 1)
    for i, j in zip(chosen, taken):
        mixed[i] = texts[j]
    return mixed


@dataclass(frozen=True)
class AblationSet:
    """One data set below `folder`, prepared once.

    Args:
        name: "emoji", "openclipart" or "icons".
        folder: with `train/` and `test/`.
        train_pairs: number of training pairs used, drawn once for all runs; None for all.
    """

    name: str
    folder: Path
    train_pairs: int | None = None

    @classmethod
    def prepare(cls, name: str, work: Path, deb: Path | None = None) -> "AblationSet":
        """Write the set unless it exists.

        Args:
            name: of the set; "emoji_1000" is 1,000 of its training pairs and all of its test.
            work: folder of all sets.
            deb: the package openclipart-svg.

        "icons", "icons_30000" and so on are made of the set that `make icons` has made, of all or of the first ones.

        Raises:
            ModuleNotFoundError, FileNotFoundError: as the sets' own functions say.
        """
        name, _, train_pairs = name.partition("_")
        folder = work / name
        if name == "emoji":
            write_emoji_set(folder, seed=0)
        elif name == "icons":
            write_icons(folder, int(train_pairs) if train_pairs else None)
        else:
            write_openclipart_set(folder, deb, seed=0)
        return cls(name, folder, int(train_pairs) if train_pairs else None)

    def train_file(self, noise: float, seed: int) -> Path:
        """Write JSON lines of training pairs: `image`, `text`, and the image's true `name`. Rows with equal names are
        never negatives of each other, even after shuffling. Icons lie in parquet with these columns.

        Raises:
            ValueError: if icons are to be shuffled.
        """
        if self.name == "icons":
            if noise:
                raise ValueError("the names of icons are not shuffled: there are no noises on icons")
            return icons_file(self.folder, self.train_pairs)
        kind = ([f"{self.train_pairs}"] if self.train_pairs else []) + ([f"{noise}-{seed}"] if noise else [])
        path = self.folder / f"{'-'.join(['train', *kind])}.jsonl"
        lines = (self.folder / "train" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        if self.train_pairs:
            order = np.random.Generator(np.random.Philox(key=[0, 0x7061])).permutation(len(rows))
            rows = [rows[index] for index in sorted(order[: self.train_pairs])]
        texts = shuffle_fraction([row["text"] for row in rows], noise, seed)
        pairs = [
            {"image": f"train/{row['file_name']}", "text": text, "name": row["text"]} for row, text in zip(rows, texts)
        ]
        path.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs), encoding="utf-8")
        return path

    def galleries(self) -> dict[str, PairDataset]:
        """Load the images of unseen concepts, under ""; one drawing per emoji. For icons also other galleries, by
        what is unseen in them."""
        if self.name == "icons":
            return icon_galleries(self.folder)
        table = load_table(str(self.folder / "test"))
        if self.name == "emoji":
            table = table.filter(lambda row: row["style"] == TEST_STYLE)
        return {"": PairDataset(table, "image", "text", "text", name=f"{self.name}, unseen concepts")}

    def image_tokenizer(self, smoke: bool = False) -> Path:
        """Train the image tokenizer that every row uses, unless it exists; returns its folder."""
        folder, draft = self.folder / "image_tokenizer", self.folder / "image_tokenizer.draft"
        if not folder.is_dir():
            everything = replace(self, train_pairs=None).train_file(0, 0)
            changes: dict[str, Any] = {"train_data": str(everything), "output_dir": str(draft)}
            changes |= SMOKE_TOKENIZER if smoke else {}
            train_image_tokenizer(self.folder, **changes).rename(folder)
            shutil.rmtree(draft)
        return folder
