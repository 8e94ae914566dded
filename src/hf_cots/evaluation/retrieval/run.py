"""`hf-cots evaluate` as a class: from the names of models and data to a file of results."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..._errors import check_output_file
from ...data.fingerprint import data_fingerprint
from ...data.report import DATA_REPORT, report_data
from ...data.sources import PairDataset, load_pairs
from ...search.encoders import Encoder, LoadedEncoder, choose_frames, encode_pairs, precision_of
from ...search.loading import load_encoder
from ...search.processes import processes
from ..rendering.plots import draw_recall_cost
from .failures import write_failures
from .overlap import check_overlap
from .per_query_table import query_table_path, read_query_table, write_query_table
from .protocols import load_protocol
from .report import (
    RetrievalResult,
    build_report,
    compare_results,
    describe_data,
    environment,
    evaluate_encoder,
    rescore,
)
from .significance import RESAMPLES


if TYPE_CHECKING:
    from .recall_cost import RerankEvaluation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationRun:
    """An evaluation of a model on image-text pairs, and its result files.

    Args:
        model: name of the encoder.
        data: name of the pairs, or the published JSON file of a protocol.
        image_column, caption_column, image_id_column, split, separator: as for [`load_pairs`].
        protocol: one of [`load_protocol`]; `image_root` is the folder of its images or clips, and `id_checksum` the
            expected checksum of its ids, if it is known.
        compare: another encoder, or an earlier run's `results.json` or per-query table.
        dual_softmax: also report dual softmax.
        querybank: also report querybank normalization with these pairs as the bank.
        beta: inverse temperature of dual softmax and querybank normalization.
        check_overlap: training pairs in which to look for the test data.
        output: the JSON file; the per-query table, the page of failures and the plot of re-ranking are written beside
            it.
        failures: number of failures per direction on the page; 0 for no page.
        batch_size: images per forward pass.
        resamples, seed: number of bootstrap resamples, and random seed of bootstrap and randomization test.
        rerank: a second stage that re-ranks the encoder's results, for the entry `reranking` of the report.
        revision: revision of the model on the Hub, as for [`load_encoder`].
        precision: precision of this model and the one to compare with, as for [`load_encoder`].
        video_column: column of clips, instead of images.
        num_frames: frames per clip; by default the number in the model's config, or 8.
    """

    model: str
    data: str
    image_column: str = "image"
    caption_column: str = "auto"
    image_id_column: str | None = None
    split: str = "test"
    separator: str | None = None
    protocol: str | None = None
    image_root: Path | None = None
    id_checksum: str | None = None
    compare: str | None = None
    dual_softmax: bool = False
    querybank: str | None = None
    beta: float = 20.0
    check_overlap: str | None = None
    output: Path | None = None
    failures: int = 20
    batch_size: int = 64
    resamples: int = RESAMPLES
    seed: int = 0
    rerank: "RerankEvaluation | None" = None
    revision: str | None = None
    precision: str = "float32"
    video_column: str | None = None
    num_frames: int | None = None

    def run(self, show: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Run the evaluation. Under torchrun or accelerate all processes must call; the first one writes and shows.

        Mistakes in names and files are found before the first image is encoded, and results are written as soon as
        they are computed, so that a later failure (of the other model or the page) loses none of them.

        Args:
            show: called with the complete report.

        Returns:
            The report, as in the JSON file.

        Raises:
            FileNotFoundError, OSError, ValueError: naming what is wrong with a model, the data or a setting.
            ModuleNotFoundError: if matplotlib is missing for the plot of re-ranking; everything else is written.
        """
        self._check_settings()
        state = processes()
        pairs, folds, about_protocol = self._open_data()
        if pairs.num_frames is not None:
            self._check_clips()
        bank_pairs = self._open_pairs(self.querybank, "train") if self.querybank else None
        train_pairs = self._open_pairs(self.check_overlap, "train") if self.check_overlap else None
        encoder = load_encoder(self.model, revision=self.revision, precision=self.precision)
        for each in filter(None, (pairs, bank_pairs)):
            choose_frames(each, encoder, self.num_frames)
        fingerprint = data_fingerprint(pairs)
        other = self._open_other(fingerprint) if self.compare else None
        if state.is_main_process:
            file = None if self.output is None else self.output.with_suffix(f".{DATA_REPORT}")
            tokenizer, limit = encoder.text_limit() if isinstance(encoder, LoadedEncoder) else (None, None)
            report_data(train_pairs or bank_pairs, pairs, tokenizer, file, limit)

        result = self._evaluate(encoder, pairs, folds)
        report = build_report(result, None, self.resamples, self.seed)
        report["data"] = describe_data(pairs, fingerprint, result.parts[0].broken) | about_protocol
        report["environment"] = environment(state.num_processes) | {"precision": precision_of(encoder)}
        self._save_query_table(result, pairs, fingerprint)
        self._save(report)
        if other is not None:
            theirs = other if isinstance(other, RetrievalResult) else self._evaluate(other, pairs, folds)
            report["comparison"] = compare_results(result, theirs, self.resamples, self.seed)
            self._save(report)
        if self.rerank is not None and state.is_main_process:
            report["reranking"] = self.rerank.run(encoder, result, pairs)
            self._save(report)
        if self.dual_softmax or bank_pairs is not None:
            report["transductive"] = self._rescore(encoder, result, bank_pairs)
            self._save(report)
        if train_pairs is not None and state.is_main_process:
            overlap = check_overlap(pairs, train_pairs, progress=True)
            report["overlap"] = {"summary": overlap.summary()} | overlap.to_dict()
            self._save(report)
        if state.is_main_process:
            show(report)
            self._write_page(result, pairs)
            self._draw_reranking(report)
        return report

    def _check_settings(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta must be above 0, got {self.beta}")
        if self.resamples < 1:
            raise ValueError(f"resamples must be at least 1, got {self.resamples}")
        check_output_file(self.output)

    def _check_clips(self) -> None:
        """Refuse options that only support images."""
        for flag, value in (("rerank", self.rerank), ("check-overlap", self.check_overlap)):
            if value is not None:
                raise ValueError(f"--{flag} only supports images, but {self.data} has clips: leave it out")

    def _rescore(
        self, encoder: Encoder, result: RetrievalResult, bank_pairs: PairDataset | None
    ) -> list[dict[str, Any]]:
        rescored = [rescore(result, self.beta, split_queries=True)] if self.dual_softmax else []
        if bank_pairs is not None:
            bank = encode_pairs(encoder, bank_pairs, self.batch_size, processes().is_main_process, split=True)
            rescored.append(rescore(result, self.beta, bank, split_queries=True))
        return rescored

    def _evaluate(self, encoder: Encoder, pairs: PairDataset, folds: int) -> RetrievalResult:
        progress = processes().is_main_process
        return evaluate_encoder(encoder, pairs, folds, self.batch_size, progress, split_queries=True)

    def _open_pairs(self, data: str, split: str) -> PairDataset:
        columns = (self.image_column, self.caption_column, self.image_id_column)
        return load_pairs(data, *columns, split, separator=self.separator, video_column=self.video_column)

    def _open_data(self) -> tuple[PairDataset, int, dict[str, Any]]:
        """Open the data; returns the pairs, the number of folds, and the protocol's entries of the report."""
        if self.protocol is None:
            return self._open_pairs(self.data, self.split), 1, {"split": self.split}
        if self.image_root is None:
            raise ValueError(f"protocol {self.protocol} needs its folder of images or clips: set --image-root")
        published = load_protocol(self.protocol, self.data, self.image_root, self.split, self.id_checksum)
        return published.pairs, published.folds, {"protocol": published.name, "id_checksum": published.checksum}

    def _open_other(self, fingerprint: str) -> Encoder | RetrievalResult:
        """Load the encoder to compare with, or the results of an earlier run on the same data."""
        path = Path(str(self.compare))
        if path.suffix not in (".json", ".parquet"):
            return load_encoder(str(self.compare), precision=self.precision)
        table = query_table_path(path) if path.suffix == ".json" else path
        if table != path and path.is_file() and not table.is_file():
            raise FileNotFoundError(f"cannot compare with {path}: its per-query table {table} is missing")
        directions, about = read_query_table(table)
        if about["data_fingerprint"] != fingerprint:
            raise ValueError(
                f"cannot compare with {path}: it was evaluated on other data than {self.data} (the fingerprints "
                "differ)"
            )
        return RetrievalResult(about["model"], about["fingerprint"], directions, [])

    def _save_query_table(self, result: RetrievalResult, pairs: PairDataset, fingerprint: str) -> None:
        if self.output is None or not processes().is_main_process:
            return
        self.output.parent.mkdir(parents=True, exist_ok=True)
        about = {"model": result.model, "fingerprint": result.fingerprint, "data_fingerprint": fingerprint}
        write_query_table(query_table_path(self.output), result.directions, result.parts, pairs, about)

    def _save(self, report: dict[str, Any]) -> None:
        if self.output is not None and processes().is_main_process:
            self.output.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def _write_page(self, result: RetrievalResult, pairs: PairDataset) -> None:
        if self.output is None or self.failures == 0:
            return
        page = self.output.with_suffix(".failures.html")
        title = f"{result.model} on {pairs.name}: the worst failures"
        try:
            write_failures(page, title, result.directions, result.parts, pairs, self.failures)
        except Exception as error:  # the results are complete and written; a page is not worth an error
            logger.warning("the failure page was not written: %s: %s", type(error).__name__, error)

    def _draw_reranking(self, report: dict[str, Any]) -> None:
        if self.output is not None and "reranking" in report:
            draw_recall_cost(report["reranking"], self.output.with_suffix(".reranking.png"))
