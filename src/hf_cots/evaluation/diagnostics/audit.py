"""Find pairs whose image and caption may not belong together, by the score of the adaptive momentum filter.

Training drops a pair whose momentum similarity is more than lambda standard deviations below the mean (Lu et al.
2022). Here the similarity is the trained model's own cosine. A low score is only a suspicion: what the model never
learned scores low too. So look at the page of images before leaving anything out.
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data.keep_mask import write_keep_mask
from ...data.sources import PairDataset
from ...search.encoders import Encoder, encode_pairs
from ..rendering.pages import render_page, thumbnail
from ..retrieval.ranking import slices


THUMBNAIL = 160  # pixels
BLOCK = 1024


@dataclass(frozen=True)
class Audit:
    """The score of every pair.

    Args:
        scores: (pairs,) float32 cosine of image and caption; NaN where the image cannot be read.
        threshold: mean minus lambda standard deviations of the scores.
        closest: (pairs,) int64, the pair whose caption is most similar to the image; -1 where it cannot be read.
    """

    scores: np.ndarray
    threshold: float
    closest: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """(pairs,) bool, the pairs that the filter would keep; false if the image cannot be read."""
        return self.scores >= self.threshold

    @property
    def order(self) -> np.ndarray:
        """(readable pairs,) int64, the pairs with the most suspect first."""
        readable = np.flatnonzero(~np.isnan(self.scores))
        return readable[np.argsort(self.scores[readable], kind="stable")]

    @property
    def deviations(self) -> np.ndarray:
        """(pairs,) the distance of each score from the mean in standard deviations."""
        return (self.scores - np.nanmean(self.scores)) / max(float(np.nanstd(self.scores)), 1e-12)


def audit_pairs(
    encoder: Encoder, pairs: PairDataset, filter_lambda: float = 2.0, batch_size: int = 64, progress: bool = False
) -> Audit:
    """Score every pair with a trained model.

    Args:
        encoder: any dual encoder, from [`load_encoder`].
        pairs: the data.
        filter_lambda: pairs more than this many standard deviations below the mean are suspect.
        batch_size: images per forward pass.
        progress: show a progress bar.

    Raises:
        ValueError: if lambda is negative or no image can be read.
    """
    if filter_lambda < 0:
        raise ValueError(f"filter_lambda must not be negative, got {filter_lambda}")
    encoded = encode_pairs(encoder, pairs, batch_size, progress)
    if not encoded.rows:
        raise ValueError(f"{pairs.name}: none of its images can be read")
    images, texts, captions = encoded.image_embeds, encoded.text_embeds, np.array(encoded.captions)
    index = {row: i for i, row in enumerate(encoded.rows)}
    own = np.array([index[row] for row in pairs.first_rows()[pairs.pair_rows[captions]].tolist()])  # (texts,)
    nearest = np.concatenate(
        [(images[part] @ texts.T).argmax(axis=1) for part in slices(len(images), BLOCK)]
    )  # (images,) text
    scores, closest = np.full(len(pairs), np.nan, dtype=np.float32), np.full(len(pairs), -1)
    scores[captions] = (images[own].astype(np.float64) * texts).sum(axis=1)
    closest[captions] = captions[nearest[own]]
    threshold = float(np.nanmean(scores, dtype=np.float64) - filter_lambda * np.nanstd(scores, dtype=np.float64))
    return Audit(scores, threshold, closest)


def write_audit(audit: Audit, pairs: PairDataset, folder: Path, shown: int = 100) -> dict[str, Path]:
    """Write `suspects.csv` and `suspects.jsonl` (all readable pairs, the most suspect first), `keep_mask.json`, and
    `suspects.html` with the images of the first `shown` pairs embedded.

    Returns:
        The four files by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / name for name in ("suspects.csv", "suspects.jsonl", "keep_mask.json", "suspects.html")}
    lines = suspects(audit, pairs)
    with open(files["suspects.csv"], "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(lines[0]))
        table.writeheader()
        table.writerows(lines)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    files["suspects.jsonl"].write_text(text, encoding="utf-8")
    write_keep_mask(files["keep_mask.json"], pairs, audit.kept)
    files["suspects.html"].write_text(render_suspects(audit, pairs, lines[:shown]), encoding="utf-8")
    return files


def suspects(audit: Audit, pairs: PairDataset) -> list[dict]:
    """List the readable pairs, the most suspect first; ranks count from 1."""
    deviations, kept = audit.deviations, audit.kept
    return [
        {
            "rank": rank,
            "pair": pair,
            "row": int(pairs.pair_rows[pair]),
            "score": round(float(audit.scores[pair]), 5),
            "deviations": round(float(deviations[pair]), 3),
            "kept": bool(kept[pair]),
            "caption": pairs.caption(pair),
            "closest_caption": pairs.caption(int(audit.closest[pair])),
        }
        for rank, pair in enumerate(audit.order.tolist(), start=1)
    ]


def render_suspects(audit: Audit, pairs: PairDataset, lines: list[dict]) -> str:
    """Render the page that shows the images of some of the [`suspects`]."""
    return render_page(
        "audit.html",
        title=f"Suspect pairs of {pairs.name}",
        num_pairs=len(audit.scores),
        num_suspect=int((~audit.kept).sum()),
        threshold=audit.threshold,
        suspects=[line | {"image": thumbnail(pairs, line["row"], THUMBNAIL)} for line in lines],
    )
