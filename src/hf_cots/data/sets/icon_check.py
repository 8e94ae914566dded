"""A slow and simple check of the finished icon set, independent of the code that splits it."""

import itertools
from pathlib import Path

import pyarrow.parquet as pq

from .icon_words import split_words, stem


def check_files(folder: Path, held_out: set[str]) -> dict[str, int]:
    """Check the files row by row and word by word.

    Args:
        folder: contains train.parquet, test.parquet and test_new_styles.parquet.
        held_out: stems that must not occur in training.

    Returns:
        The number of captions in each file.

    Raises:
        RuntimeError: naming the first training row with a held-out word or name, or the first test image that is in
            training or has no held-out word.
    """
    texts_of_words: dict[str, str] = {}
    train_texts: set[str] = set()
    images: set[bytes] = set()
    captions = {}
    for side in ("train", "test", "test_new_styles"):
        captions[side] = 0
        for batch in pq.ParquetFile(folder / f"{side}.parquet").iter_batches(2000):
            for row in batch.to_pylist():
                captions[side] += len(row["captions"])
                where = f"{folder / side}.parquet, {row['set']}:{row['icon']}"
                if side == "train":
                    texts = [*row["captions"], row["name"], *row["other_names"], *row["keywords"]]
                    for text in {part for each in texts for part in each.split(", ")}:  # a text or a keyword
                        words = split_words(text)
                        for word in (*words, *(a + b for a, b in itertools.pairwise(words))):
                            texts_of_words.setdefault(stem(word), f"'{text}' in {where}")
                    train_texts.update(texts)
                    images.add(row["image"]["bytes"])
                    continue
                if row["image"]["bytes"] in images:
                    raise RuntimeError(f"{where} is a training image")
                if side == "test" and row["name"] in train_texts:
                    raise RuntimeError(f"{where}: '{row['name']}' is a training caption")
                unseen = [word for word in split_words(row["name"]) if stem(word) not in texts_of_words]
                if side == "test" and not set(unseen) & set(row["unseen_words"]):
                    raise RuntimeError(f"{where}: every word of '{row['name']}' is in training")
    for each in sorted(held_out & texts_of_words.keys()):
        raise RuntimeError(f"the held-out word '{each}' is in training: {texts_of_words[each]}")
    return captions
