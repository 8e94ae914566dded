"""What an export costs against the model that it comes from: R@1, top-10 overlap and latency on pairs."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from ..data.images import BrokenImage
from ..data.sources import PairDataset
from ..evaluation.retrieval.directions import rank_both
from ..evaluation.retrieval.ranking import nearest
from ..search.encoders import DIRECTIONS, EncodedPairs, Encoder, encode_pairs, encoding_steps


TOP = 10
BATCH_SIZES = (1, 32, 64)
SECONDS = 4.0  # of timing, for each batch size of images or texts
REPEATS = (5, 50)  # at least and at most
CLOCK = time.process_time  # seconds of CPU, of all threads: other programs on the machine hardly change it


@dataclass(frozen=True)
class Overlap:
    """The mean fraction of a query's ten best that two models share, for distinct texts.

    Attributes:
        text_to_image, image_to_text: of both towers exported.
        image_encoder, text_encoder: text to image, of this one exported beside the other as it was.
    """

    text_to_image: float
    image_to_text: float
    image_encoder: float
    text_encoder: float

    @property
    def lowest(self) -> float:
        """That of the worse direction."""
        return min(self.text_to_image, self.image_to_text)


def share_of_best(before: tuple[np.ndarray, np.ndarray], after: tuple[np.ndarray, np.ndarray]) -> float:
    """The mean fraction of each query's [`TOP`] best that is the same for two pairs of queries (n, D) and gallery
    (m, D)."""
    (_, one), (_, other) = (nearest(queries, gallery, TOP) for queries, gallery in (before, after))
    shared = (one[:, :, None] == other[:, None, :]).any(axis=2)  # (n, TOP)
    return float(shared.mean())


def measure_overlap(before: EncodedPairs, after: EncodedPairs, texts: Sequence[str]) -> Overlap:
    """Compare what two models find.

    Args:
        before, after: the same data, encoded by either.
        texts: of the data, in order: of equal ones only the first counts, since ties have no order.
    """
    first = np.array(sorted({text: i for i, text in reversed(list(enumerate(texts)))}.values()))
    images, words = (before.image_embeds, after.image_embeds), (before.text_embeds[first], after.text_embeds[first])
    old = (words[0], images[0])
    return Overlap(
        text_to_image=share_of_best(old, (words[1], images[1])),
        image_to_text=share_of_best(old[::-1], (images[1], words[1])),
        image_encoder=share_of_best(old, (words[0], images[1])),
        text_encoder=share_of_best(old, (words[1], images[0])),
    )


def measure_recall(encoded: EncodedPairs) -> dict[str, float]:
    """R@1 in percent, by direction."""
    ranked = rank_both(encoded)
    return {name: ranked[name].metrics()["R@1"] for name in DIRECTIONS}


def time_both(before: Callable[[], Any], after: Callable[[], Any]) -> dict[str, float]:
    """Median milliseconds of two functions that are called in turn, after one call of each, and their ratio."""
    functions, seconds = (before, after), ([], [])  # type: ignore[var-annotated]
    for function in functions:
        function()
    end = time.perf_counter() + SECONDS
    while len(seconds[0]) < REPEATS[0] or (len(seconds[0]) < REPEATS[1] and time.perf_counter() < end):
        for function, times in zip(functions, seconds):
            start = CLOCK()
            function()
            times.append(CLOCK() - start)
    old, new = (1e3 * median(times) for times in seconds)
    return {"source_ms": round(old, 3), "exported_ms": round(new, 3), "speedup": round(old / new, 2)}


def measure_latency(
    source: Encoder, exported: Encoder, images: Sequence[Image.Image], texts: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """CPU time of both models at each of [`BATCH_SIZES`]: of images that are prepared already, and of texts with
    their tokenizer.

    Returns:
        `{"image": {"1": {"source_ms", "exported_ms", "speedup"}, "32": ..., "64": ...}, "text": ...}`.
    """
    found: dict[str, dict[str, dict[str, float]]] = {"image": {}, "text": {}}
    steps = [encoding_steps(encoder, max(BATCH_SIZES)) for encoder in (source, exported)]
    prepared = [[prepare(image) for image in images] for prepare, _ in steps]
    for size in BATCH_SIZES:
        words = fill(texts, size)
        of_images = [partial(embed, fill(batch, size)) for (_, embed), batch in zip(steps, prepared)]
        of_texts = [partial(encoder.encode_texts, words, size) for encoder in (source, exported)]
        found["image"][str(size)] = time_both(*of_images)
        found["text"][str(size)] = time_both(*of_texts)
    return found


def fill(items: Sequence[Any], size: int) -> list[Any]:
    """This many items, again from the first where they end."""
    return [items[i % len(items)] for i in range(size)]


def measure_cost(source: Encoder, exported: Encoder, pairs: PairDataset, name: str, batch_size: int) -> dict[str, Any]:
    """Compare an exported model with its source on pairs.

    Args:
        source, exported: the models, both on the CPU.
        pairs: the data.
        name: what the report calls the data.
        batch_size: images in a forward pass.

    Returns:
        For JSON: the data, `R@1` of both, `overlap` and `latency`.

    Raises:
        ValueError: if there are no pairs, or an embedding is not finite.
    """
    before, after = (encode_pairs(encoder, pairs, batch_size, progress=True) for encoder in (source, exported))
    texts = [str(text) for text in pairs.captions(np.array(before.captions))]
    overlap = measure_overlap(before, after, texts)
    images = list(islice(_readable(pairs, before.rows), max(BATCH_SIZES)))
    return {
        "data": {"name": name, "images": len(before.rows), "texts": len(set(texts)), "skipped": len(before.broken)},
        "R@1": {"source": measure_recall(before), "exported": measure_recall(after)},
        "overlap": {
            f"top_{TOP}": {key: round(value, 4) for key, value in vars(overlap).items()},
            "lowest": round(overlap.lowest, 4),
        },
        "latency": measure_latency(source, exported, images, list(dict.fromkeys(texts))),
    }


def _readable(pairs: PairDataset, rows: Sequence[int]) -> Any:
    for row in rows:
        try:
            yield pairs.read_row(row)
        except BrokenImage:  # it was readable a moment ago
            continue
