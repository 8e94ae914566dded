"""Recall against cost: what a judge adds to a dual encoder, for more and more candidates. `hf-cots evaluate --rerank`.

Protocol. The first step's cost is one matrix product over the gallery and the choice of the best, for a query that is
encoded already. The second step's is the judge's passes over the pairs, the candidates of many queries in common
batches; a picture's keys and values are made once, count per picture and not per query, and are reported beside.
Candidates of a smaller k are among those of a larger one and are judged once: the time of k is the sum up to k.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from ...data.hashes import weights_fingerprint
from ...data.sources import PairDataset
from ...search.encoders import EncodedPairs, Encoder, encode_pairs
from ...search.fusion import CandidateBudget, Fusion, depth_within
from ...search.rerank import Cost, Reranker, image_bytes, load_reranker
from ..rendering.tables import with_interval
from .directions import DIRECTIONS, DirectionResult
from .ranking import nearest
from .report import RetrievalResult
from .significance import RESAMPLES, bootstrap_samples, compare, intervals
from .two_stage import Candidates, correct_candidates, rank_two_step


logger = logging.getLogger(__name__)

KS = (0, 16, 64, 256)
BAR = 20  # characters for 100 percent


@dataclass
class Judged:
    """The candidates of one direction of one gallery, with the judge's logits.

    Args:
        queries, gallery: embeddings and ids of both sides.
        candidates: (n, K), the most that any k asks for.
        logits: (n, K) float32.
        search_seconds: of the first step, all queries together.
        pair_seconds: of the judge for each k, all queries together.
    """

    queries: tuple[torch.Tensor, torch.Tensor]
    gallery: tuple[torch.Tensor, torch.Tensor]
    candidates: Candidates
    logits: torch.Tensor
    search_seconds: float
    pair_seconds: dict[int, float]

    def correct(self) -> torch.Tensor:
        """(n, K) bool."""
        return correct_candidates(self.candidates, self.queries[1], self.gallery[1])

    def ranked(self, fusion: Fusion, depth: torch.Tensor) -> DirectionResult:
        """With (n,) candidates of each query reordered."""
        fused = fusion(self.candidates.similarities, self.logits)
        (query_embeds, query_ids), (gallery_embeds, gallery_ids) = self.queries, self.gallery
        return rank_two_step(query_embeds, gallery_embeds, query_ids, gallery_ids, self.candidates, fused, depth)


def judge_direction(
    encoded: EncodedPairs, pairs: PairDataset, direction: str, reranker: Reranker, ks: Sequence[int]
) -> Judged:
    """Propose and judge the candidates of every query.

    Args:
        encoded: by the first step's encoder.
        pairs: the data.
        direction: "text_to_image" or "image_to_text".
        reranker: with the rows of `pairs` as its gallery.
        ks: ascending numbers of candidates; those beyond the gallery's size mean all of it.
    """
    texts, images = (encoded.text_embeds, encoded.text_ids), (encoded.image_embeds, encoded.image_ids)
    queries, gallery = (texts, images) if direction == "text_to_image" else (images, texts)
    most = min(max(ks), len(gallery[0]))
    clock = time.perf_counter()
    similarities, index = nearest(queries[0], gallery[0], most)
    search_seconds = time.perf_counter() - clock
    captions = [pairs.caption(caption) for caption in encoded.captions]
    rows = torch.tensor(encoded.rows)
    logits = torch.empty(index.shape)
    spent: dict[int, float] = {}
    before, start = reranker.cost.pair_seconds, 0
    for k in ks:
        stop = min(k, most)
        found = index[:, start:stop].flatten()
        asking = torch.arange(len(index)).repeat_interleave(stop - start)
        text_rows, image_rows = (asking, found) if direction == "text_to_image" else (found, asking)
        logits[:, start:stop] = reranker.score(captions, text_rows, rows[image_rows]).view(len(index), stop - start)
        spent[k] = reranker.cost.pair_seconds - before
        start = stop
    return Judged(queries, gallery, Candidates(similarities, index), logits, search_seconds, spent)


class RerankEvaluation:
    """What `hf-cots evaluate --rerank` adds to an evaluation.

    Args:
        judge: Hub id or folder of a SIMLA.
        k: candidates of the operating point that is compared with the first step alone.
        validation: pairs to fit the weight of the first step on; without them the judge alone decides.
        budget: pairs a query on average, for a further row in which k varies with the query.
        latency: milliseconds a query at most, for the same row.
        batch_size: pairs in a pass.
        resamples, seed: of intervals and test.
        ks: candidates of the other rows.

    Raises:
        OSError, ValueError: as [`load_reranker`], or if a number is out of range.
    """

    def __init__(
        self,
        judge: str,
        k: int = 64,
        validation: PairDataset | None = None,
        budget: float | None = None,
        latency: float | None = None,
        batch_size: int = 64,
        resamples: int = RESAMPLES,
        seed: int = 0,
        ks: Sequence[int] = KS,
    ):
        if k < 2:
            raise ValueError(f"--k {k}: of fewer than 2 candidates there is no order")
        if (budget is not None and budget < 0) or (latency is not None and latency <= 0):
            raise ValueError("--budget must not be negative, and --latency must be positive")
        self.name, (self.model, self.processor) = judge, load_reranker(judge)
        self.ks = sorted({*ks, k})
        self.k, self.validation, self.budget, self.latency = k, validation, budget, latency
        self.batch_size, self.resamples, self.seed = batch_size, resamples, seed

    def reranker(self, pairs: PairDataset) -> Reranker:
        """A judge of the rows of a data set."""
        return Reranker(self.model, self.processor, pairs.read_row, batch_size=self.batch_size)

    def __call__(self, encoder: Encoder, evaluated: RetrievalResult, pairs: PairDataset) -> dict[str, Any]:
        """The report of both steps, for JSON.

        Args:
            encoder: the first step.
            evaluated: its results, with the encoded data.
            pairs: the data.

        Returns:
            `rows`, of each k cost and metrics with intervals in both directions; `comparison` of `k` with the first
            step alone; `judge_alone`, metrics at `k` without the first step's word; `fusion`; `judge`; `pictures`,
            what their keys and values cost; `protocol`.
        """
        fusions = self._fitted(encoder)
        reranker = self.reranker(pairs)
        judged = {
            name: [judge_direction(part, pairs, name, reranker, self.ks) for part in evaluated.parts]
            for name in DIRECTIONS
        }
        directions = {
            k: {name: self._ranked(judged[name], fusions[name], CandidateBudget(k)) for name in DIRECTIONS}
            for k in self.ks
        }
        rows = [self._row(k, directions[k], judged) for k in self.ks]
        if self.budget is not None or self.latency is not None:
            rows.append(self._varying(judged, fusions))
        return {
            "judge": {"name": self.name, "fingerprint": weights_fingerprint(self.model)},
            "k": self.k,
            "rows": rows,
            "comparison": compare(directions[self.k], directions[0], self.resamples, seed=self.seed),
            "judge_alone": self._metrics(
                {name: self._ranked(judged[name], Fusion(), CandidateBudget(self.k)) for name in DIRECTIONS}
            ),
            "fusion": {name: asdict(fusion) for name, fusion in fusions.items()},
            "fitted_on": None if self.validation is None else self.validation.name,
            "pictures": self._pictures(reranker.cost),
            "protocol": __doc__.split("Protocol. ")[1].replace("\n", " ").strip(),
        }

    def _fitted(self, encoder: Encoder) -> dict[str, Fusion]:
        """The fusion of each direction."""
        if self.validation is None:
            return dict.fromkeys(DIRECTIONS, Fusion())
        encoded, reranker = encode_pairs(encoder, self.validation), self.reranker(self.validation)
        judged = {name: judge_direction(encoded, self.validation, name, reranker, [self.k]) for name in DIRECTIONS}
        return {
            name: Fusion.fit(part.candidates.similarities, part.logits, part.correct())
            for name, part in judged.items()
        }

    @staticmethod
    def _ranked(parts: list[Judged], fusion: Fusion, depth: CandidateBudget) -> DirectionResult:
        return DirectionResult.joined([part.ranked(fusion, depth.of(part.candidates.similarities)) for part in parts])

    def _metrics(self, directions: dict[str, DirectionResult]) -> dict[str, dict[str, Any]]:
        spreads = intervals(bootstrap_samples(directions, self.resamples, self.seed))
        return {name: direction.metrics() | {"intervals": spreads[name]} for name, direction in directions.items()}

    def _row(self, k: int, directions: dict[str, DirectionResult], judged: dict[str, list[Judged]]) -> dict[str, Any]:
        row: dict[str, Any] = {"k": k} | self._metrics(directions)
        for name, parts in judged.items():
            queries = sum(len(part.logits) for part in parts)
            seconds = sum(part.search_seconds + part.pair_seconds[k] for part in parts)
            judged_pairs = sum(min(k, part.logits.shape[1]) * len(part.logits) for part in parts)
            row[name] |= {
                "pairs_per_query": judged_pairs / queries,
                "milliseconds_per_query": 1000 * seconds / queries,
            }
        return row

    def _varying(self, judged: dict[str, list[Judged]], fusions: dict[str, Fusion]) -> dict[str, Any]:
        """The row in which each query has its own k, by the first step's margins, which know nothing of the answers.
        Its time is that of as many pairs of the rows above."""
        directions, costs = {}, {}
        for name, parts in judged.items():
            queries, longest = sum(len(part.logits) for part in parts), max(self.ks)
            pairs = sum(part.logits.numel() for part in parts)
            seconds_per_pair = sum(part.pair_seconds[longest] for part in parts) / pairs
            most = min(part.logits.shape[1] for part in parts)
            if self.latency is not None:
                most = min(most, depth_within(self.latency / 1000, seconds_per_pair))
            depth = CandidateBudget(most)
            if self.budget is not None:
                similarities = torch.cat([part.candidates.similarities[:, :most] for part in parts])
                depth = CandidateBudget.within_budget(similarities, self.budget, most)
            directions[name] = self._ranked(parts, fusions[name], depth)
            judged_pairs = sum(int(depth.of(part.candidates.similarities).sum()) for part in parts)
            search = sum(part.search_seconds for part in parts)
            costs[name] = {
                "pairs_per_query": judged_pairs / queries,
                "milliseconds_per_query": 1000 * (search + judged_pairs * seconds_per_pair) / queries,
            } | asdict(depth)
        row: dict[str, Any] = {"k": "varying"} | self._metrics(directions)
        for name, cost in costs.items():
            row[name] |= cost
        return row

    def _pictures(self, cost: Cost) -> dict[str, float]:
        return {
            "encoded": cost.images,
            "milliseconds_each": 1000 * cost.image_seconds / max(1, cost.images),
            "bytes_each": image_bytes(self.model),
        }


def reranking_tables(reranking: dict[str, Any]) -> list[Table]:
    """Recall against cost, for the terminal: a table of each direction, with the curve of R@1 as bars."""
    tables = []
    for name in DIRECTIONS:
        title = f"{name.replace('_', ' ')}, re-ranked by {reranking['judge']['name']}: 95% intervals"
        table = Table(title=title, title_justify="left")
        for heading in ("k", "pairs a query", "ms a query", "R@1", "R@5", "R@10", ""):
            table.add_column(heading, justify="right" if heading else "left")
        for row in reranking["rows"]:
            values = row[name]
            recalls = [with_interval(values[f"R@{k}"], values["intervals"][f"R@{k}"]) for k in (1, 5, 10)]
            cost = [f"{values['pairs_per_query']:.1f}", f"{values['milliseconds_per_query']:.2f}"]
            table.add_row(str(row["k"]), *cost, *recalls, "▇" * round(BAR * values["R@1"] / 100))
        tables.append(table)
    gain = {name: reranking["comparison"][name]["R@1"] for name in DIRECTIONS}
    tables[-1].caption = "; ".join(
        f"{name.replace('_', ' ')} R@1 with k={reranking['k']} less without: "
        f"{with_interval(value['difference'], value['interval'])}, p {value['p_value']:.4f}"
        for name, value in gain.items()
    )
    return tables


def draw_recall_cost(reranking: dict[str, Any], path: Path) -> None:
    """The curve as a picture: R@1 with its interval over milliseconds a query, a line for each direction.

    Raises:
        ModuleNotFoundError: naming the extra, if matplotlib is missing.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise ModuleNotFoundError("the curve needs matplotlib: pip install 'hf-cots[demo]'") from None
    matplotlib.use("Agg")  # no display is needed
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4))
    for name in DIRECTIONS:
        values = [row[name] for row in reranking["rows"] if row["k"] != "varying"]
        cost = [value["milliseconds_per_query"] for value in values]
        recall = [value["R@1"] for value in values]
        low, high = zip(*(value["intervals"]["R@1"] for value in values))
        (line,) = axis.plot(cost, recall, marker="o", label=name.replace("_", " "))
        axis.fill_between(cost, low, high, alpha=0.15, color=line.get_color())
        for row in reranking["rows"]:
            label = f"k={row['k']}"
            at = (row[name]["milliseconds_per_query"], row[name]["R@1"])
            below = (4, -10 if row["k"] == "varying" else 5)
            axis.annotate(label, at, textcoords="offset points", xytext=below, fontsize=7, color=line.get_color())
            if row["k"] == "varying":
                axis.plot(*at, marker="*", markersize=10, color=line.get_color())
    axis.set(xscale="log", xlabel="milliseconds a query", ylabel="R@1 in percent")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
