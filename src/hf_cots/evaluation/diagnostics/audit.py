"""Which pairs of a data set may be wrong: the score of the adaptive momentum filter, for anyone's data.

Training drops a pair whose momentum similarity lies more than lambda deviations below the mean (Lu et al. 2022). Here
the similarity is the trained model's own cosine. A low score is a suspicion, not a verdict: what the model never
learned scores low too. Hence the page of pictures, to be looked at before anything is left out.
"""

import csv
import html
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...data.keep_mask import write_keep_mask
from ...data.sources import PairDataset
from ...search.encoders import Encoder, encode_pairs
from ..rendering.pages import page, thumbnail


logger = logging.getLogger(__name__)

COLUMNS = ("rank", "pair", "row", "score", "deviations", "kept", "caption", "closest_caption")
THUMBNAIL = 160  # pixels
BLOCK = 1024

STYLE = """
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: 1.2rem .9rem; }
figure { margin: 0; } figcaption { font-size: .85em; } .note { color: #888; }
"""


@dataclass(frozen=True)
class Audit:
    """Every pair's score.

    Args:
        scores: (pairs,) float32 cosine of picture and caption; NaN where the picture cannot be read.
        threshold: mean less lambda deviations of the scores.
        closest: (pairs,) int64, the pair whose caption fits the picture best; -1 where it cannot be read.
    """

    scores: np.ndarray
    threshold: float
    closest: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """(pairs,) bool: pairs that the filter would keep; pictures that cannot be read are left out too."""
        return self.scores >= self.threshold

    @property
    def order(self) -> np.ndarray:
        """(readable pairs,) int64: the most suspect first."""
        readable = np.flatnonzero(~np.isnan(self.scores))
        return readable[np.argsort(self.scores[readable], kind="stable")]

    @property
    def deviations(self) -> np.ndarray:
        """(pairs,) how many standard deviations each score lies from the mean."""
        return (self.scores - np.nanmean(self.scores)) / max(float(np.nanstd(self.scores)), 1e-12)


def audit_pairs(
    encoder: Encoder, pairs: PairDataset, filter_lambda: float = 2.0, batch_size: int = 64, progress: bool = False
) -> Audit:
    """Score every pair with a trained model.

    Args:
        encoder: any dual encoder, as [`load_encoder`] gives it.
        pairs: the data.
        filter_lambda: pairs more than this many standard deviations below the mean are suspect.
        batch_size: pictures in a forward pass.
        progress: show a progress bar.

    Raises:
        ValueError: if lambda is negative or no picture can be read.
    """
    if filter_lambda < 0:
        raise ValueError(f"lambda must not be negative, got {filter_lambda}")
    encoded = encode_pairs(encoder, pairs, batch_size, progress)
    for picture in encoded.broken:
        logger.warning("left out: %s", picture)
    if not encoded.rows:
        raise ValueError(f"{pairs.name}: no picture can be read")
    images, texts, captions = encoded.image_embeds, encoded.text_embeds, np.array(encoded.captions)
    place = {row: number for number, row in enumerate(encoded.rows)}
    picture = torch.tensor([place[row] for row in pairs.first_rows()[pairs.row_of_pair[captions]].tolist()])
    nearest = torch.cat([(block @ texts.t()).argmax(dim=1) for block in images.split(BLOCK)])  # of each picture
    scores, closest = np.full(len(pairs), np.nan, dtype=np.float32), np.full(len(pairs), -1)
    scores[captions] = (images[picture] * texts).sum(dim=1).numpy()
    closest[captions] = captions[nearest[picture].numpy()]
    threshold = float(np.nanmean(scores, dtype=np.float64) - filter_lambda * np.nanstd(scores, dtype=np.float64))
    return Audit(scores, threshold, closest)


def write_audit(audit: Audit, pairs: PairDataset, folder: Path, shown: int = 100) -> dict[str, Path]:
    """Write `suspects.csv` and `suspects.jsonl` (all readable pairs, the most suspect first), `keep_mask.json`, and
    `suspects.html` with the first `shown` pictures inside it.

    Returns:
        The four files by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / name for name in ("suspects.csv", "suspects.jsonl", "keep_mask.json", "suspects.html")}
    lines = suspects(audit, pairs)
    with open(files["suspects.csv"], "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(lines)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    files["suspects.jsonl"].write_text(text, encoding="utf-8")
    write_keep_mask(files["keep_mask.json"], pairs, audit.kept)
    files["suspects.html"].write_text(suspects_page(audit, pairs, lines[:shown]), encoding="utf-8")
    return files


def suspects(audit: Audit, pairs: PairDataset) -> list[dict]:
    """One line per readable pair with the fields of `COLUMNS`, the most suspect first; ranks count from 1."""
    deviations, kept = audit.deviations, audit.kept
    return [
        {
            "rank": rank,
            "pair": pair,
            "row": int(pairs.row_of_pair[pair]),
            "score": round(float(audit.scores[pair]), 5),
            "deviations": round(float(deviations[pair]), 3),
            "kept": bool(kept[pair]),
            "caption": pairs.caption(pair),
            "closest_caption": pairs.caption(int(audit.closest[pair])),
        }
        for rank, pair in enumerate(audit.order.tolist(), start=1)
    ]


def suspects_page(audit: Audit, pairs: PairDataset, lines: list[dict]) -> str:
    """The page of pictures."""
    figures = []
    for line in lines:
        caption, closest = html.escape(line["caption"]), html.escape(line["closest_caption"])
        mark = "" if line["kept"] else " · left out"
        figures.append(
            f"<figure>{thumbnail(pairs, line['row'], THUMBNAIL)}<figcaption><b>{caption}</b><br>"
            f'<span class="note">pair {line["pair"]} · {line["score"]:.3f} '
            f"({line['deviations']:+.1f} deviations){mark}<br>closest caption: {closest}</span></figcaption></figure>"
        )
    left_out = int((~audit.kept).sum())
    summary = (
        f"{len(audit.scores)} pairs, {left_out} of them below {audit.threshold:.3f} or without a readable picture"
    )
    body = (
        f"<p>{summary}. The most suspect {len(lines)} are shown. A low score is a suspicion: what the model never "
        f"learned scores low too.</p><main>{''.join(figures)}</main>"
    )
    return page(f"Suspect pairs of {pairs.name}", STYLE, body)
