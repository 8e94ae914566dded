"""The icon set of `make icons` for the ablation: its first training pictures, and three galleries."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hf_cots.data.loading import load_table
from hf_cots.data.sources import PairDataset


ICONS = Path("runs/icons")
MOST = 1000  # images of a gallery that is drawn
EMOJI_STYLE = "fluent-emoji-flat"


def icons_file(folder: Path, train_pairs: int | None) -> Path:
    """The parquet file of the training pairs: `image`, `text` and `name`, which are the same here."""
    return folder / f"train-{train_pairs or 'all'}.parquet"


def write_icons(folder: Path, train_pairs: int | None, icons: Path = ICONS) -> None:
    """Write the first training icons, which lie in random order, with their names, and the galleries, unless they
    exist.

    `test.parquet` has the pictures of unseen words; `new_styles.parquet` 1,000 pictures of icon sets that never
    train, whose names do; `emoji.parquet` 1,000 emoji in one style.

    Raises:
        FileNotFoundError: if the icon set is not there.
    """
    if not (icons / "train.parquet").is_file():
        raise FileNotFoundError(f"no {icons / 'train.parquet'}: run `make icons` first")
    folder.mkdir(parents=True, exist_ok=True)
    names = pq.read_table(icons / "train.parquet", columns=["name"])["name"]
    sources = {
        icons_file(folder, train_pairs): lambda: read(icons / "train.parquet", "name").slice(0, train_pairs),
        folder / "test.parquet": lambda: read(icons / "test.parquet", "name"),
        folder / "new_styles.parquet": lambda: draw(
            read(icons / "test_new_styles.parquet", "name", lambda table: pc.is_in(table["name"], names))
        ),
        folder / "emoji.parquet": lambda: draw(
            read(
                icons / "emoji" / "test_new_styles.parquet",
                "text",
                lambda table: pc.equal(table["style"], EMOJI_STYLE),
            )
        ),
    }
    for path, make in sources.items():
        if not path.is_file():
            draft = path.with_name(f"{path.name}.draft")
            pq.write_table(make(), draft)
            draft.rename(path)


def read(path: Path, name: str, is_wanted=None) -> pa.Table:
    """Read the columns `image`, `text` and `name`, the latter two from the column `name`."""
    table = pq.read_table(path)
    if is_wanted is not None:
        table = table.filter(is_wanted(table))
    return pa.table({"image": table["image"], "text": table[name], "name": table[name]})


def draw(table: pa.Table) -> pa.Table:
    """Draw 1,000 rows, once for all runs."""
    order = np.random.Generator(np.random.Philox(key=[0, 0x6963])).permutation(len(table))
    return table.take(np.sort(order[:MOST]))


def icon_galleries(folder: Path) -> dict[str, PairDataset]:
    """Load the three galleries; that of unseen words is the set's own."""
    files = {"": "test", "unseen styles": "new_styles", "emoji": "emoji"}
    return {
        label: PairDataset(load_table(str(folder / f"{file}.parquet")), "image", "text", "text", name=f"icons, {file}")
        for label, file in files.items()
    }
