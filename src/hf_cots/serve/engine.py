"""Searches of a page, one after another, over an index that other processes may update or replace."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ..data.images import BrokenImage
from ..search.base import Match
from ..search.disk_index import DiskIndex
from ..search.encoders import frames_per_clip
from ..search.milvus_index import MilvusIndex
from .catalog import Catalog, Location, write_condition
from .clips import media_type_of
from .images import decode_upload
from .milvus_catalog import MilvusCatalog
from .schemas import (
    Approximation,
    Clip,
    Filtered,
    Info,
    Result,
    SearchRequest,
    SearchResponse,
    SimilarRequest,
    Timings,
)


if TYPE_CHECKING:
    from ..search.reranked import RerankedIndex

logger = logging.getLogger(__name__)
T = TypeVar("T")

QUEUE = 16  # searches that wait for the one at work; beyond them the server is busy
FILTER_SECONDS = 10.0
STEPS = 10_000  # of SQLite between two looks at the clock


class Busy(Exception):
    """Too many searches wait already."""


class NotFound(LookupError):
    """The index has no such image."""


class Gate:
    """Lets one in at a time; up to `waiting` others wait."""

    def __init__(self, waiting: int):
        self._places, self._inside = threading.Semaphore(1 + waiting), threading.Lock()

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Wait for one's turn.

        Raises:
            Busy: if too many wait.
        """
        if not self._places.acquire(blocking=False):
            raise Busy("the server is busy: try again in a moment")
        try:
            with self._inside:
                yield
        finally:
            self._places.release()


class Engine:
    """Answers the requests of a page.

    Args:
        index: opened for searching.
        reranker: over that index, if there is one.
    """

    def __init__(self, index: DiskIndex | MilvusIndex, reranker: "RerankedIndex | None" = None):
        self.index, self.reranker = index, reranker
        self.gate = Gate(QUEUE)
        self._opening = threading.Lock()
        self._deadline = math.inf
        self._adopt(index)

    def _adopt(self, index: DiskIndex | MilvusIndex) -> None:
        catalog = Catalog(index) if isinstance(index, DiskIndex) else MilvusCatalog(index)
        if isinstance(index, DiskIndex):
            index.store.database.set_progress_handler(lambda: int(time.monotonic() > self._deadline), STEPS)
        if self.reranker is not None:
            self.reranker.index = index
        self.index, self.catalog = index, catalog

    def refresh(self) -> None:
        """Open the index again if it was replaced, or its images have moved; updates are seen without that.

        Raises:
            OSError, ValueError: as [`DiskIndex`] and [`MilvusIndex`].
        """
        with self._opening:
            if self.catalog.is_outdated():
                logger.info("reopening the index %s", self.catalog.name)
                self._adopt(self.catalog.reopen())

    # ------------------------------------------------------------------ answers

    def info(self, max_upload_bytes: int) -> Info:
        """What is served."""
        count, columns, keywords, facets = self.catalog.describe()
        return Info(
            name=self.catalog.name,
            model=PurePath(self.index.encoder.name).name,
            images=count,
            clips=self.index.count_clips(),
            columns=columns,
            keywords=keywords,
            facets=facets,
            rerank=self.reranker is not None,
            max_upload_mb=max_upload_bytes / 2**20,
        )

    def search(self, request: SearchRequest, upload: bytes | None = None) -> SearchResponse:
        """Search for a text, an image, or both.

        Args:
            upload: the encoded image.

        Raises:
            ValueError: if something is wrong with the request.
            Busy: if too many searches wait.
        """
        clock = Clock()
        text = request.text if request.text and request.text.strip() else None
        minus = request.minus if request.minus and request.minus.strip() else None
        if text is None and upload is None:
            raise ValueError("give a text or an image to search for")
        reranker, hybrid = self._reranker(request, text), request.hybrid or None
        with self.gate.enter():
            condition = self._condition(request)  # a mistake costs no encoding
            # Reading the words of a large index takes its time, but only once.
            if hybrid and isinstance(self.index, DiskIndex):
                read_words = partial(self.index.prepare_hybrid, hybrid, text)
                clock.time("search", partial(self._filtered, read_words, limited=False))
            elif hybrid:
                raise ValueError("hybrid: keyword search is not supported for an index in Milvus: leave it out")
            image = None if upload is None else decode_upload(upload, frames_per_clip(self.index.encoder))
            vector = clock.time("encode", lambda: self.index.embed_query(text, image, minus))
            count = max(request.k, reranker.budget.max_candidates if reranker else 0)
            found = self._nearest(vector, count, condition, clock, hybrid, text)
            if reranker is not None and text is not None and found:
                found = clock.time("rerank", partial(reranker.rerank, text, found, request.k))
            measured = None if hybrid else self._measured(count, condition)
        return self._answer(found[: request.k], clock, measured)

    def similar(self, request: SimilarRequest) -> SearchResponse:
        """Search for images like one of the index, which is left out.

        Raises:
            NotFound: if there is no such image.
            ValueError, Busy: as [`search`].
        """
        clock = Clock()
        vector = self.catalog.vector(request.id)
        if vector is None:
            raise NotFound(f"the index has no image {request.id}")
        with self.gate.enter():
            condition = self._condition(request)
            found = self._nearest(vector, request.k + 1, condition, clock)
            measured = self._measured(request.k + 1, condition)
        others = [match for match in found if self.catalog.number(match) != request.id]
        return self._answer(others[: request.k], clock, measured)

    def locate(self, image: int) -> Location:
        """Where an image or a clip of the index is.

        Raises:
            NotFound: if there is no such image.
        """
        location = self.catalog.locate(image)
        if location is None:
            raise NotFound(f"the index has no image {image}")
        return location

    def read(self, location: Location) -> bytes:
        """The bytes of an image; errors as [`BaseIndex.read_bytes`], also where its source is not on this machine."""
        return self._named(location.path, self.index.read_bytes)

    def find_source(self, location: Location) -> Path | bytes:
        """The file of a clip, or its bytes where it is within a data set; errors as of [`read`]."""
        return self._named(location.path, self.index.find_source)

    # ------------------------------------------------------------------ parts

    def _named(self, path: Path, read: Callable[[Path], T]) -> T:
        """Read an image, whose errors are told in the log."""
        try:
            return read(path)
        except (OSError, ValueError) as error:
            logger.warning("%s", error)
            raise BrokenImage(str(path), str(error)) from error

    def _reranker(self, request: SearchRequest, text: str | None) -> "RerankedIndex | None":
        """The re-ranker, if the request asks for it."""
        if not request.rerank:
            return None
        if self.reranker is None:
            raise ValueError("rerank: the server was started without --rerank")
        if text is None:
            raise ValueError("rerank: re-ranking needs a text")
        return self.reranker

    def _nearest(
        self,
        vector: np.ndarray,
        k: int,
        condition: str | None,
        clock: "Clock",
        hybrid: list[str] | None = None,
        text: str | None = None,
    ) -> list[Match]:
        keywords = {"hybrid": hybrid, "text": text} if hybrid else {}
        search = partial(self.index.search_vector, vector, k, condition, **keywords)
        return clock.time("search", partial(self._filtered, search))

    def _condition(self, request: Filtered) -> str | None:
        """The request's filters as one expression that the index understands."""

        def write() -> str | None:
            condition = write_condition(request.filters, request.where, self.index.columns)
            self.index.check_where(condition)
            return condition

        return self._filtered(write)

    def _filtered(self, search: Callable[[], T], limited: bool = True) -> T:
        """Run a search whose filter may take so long and no longer, unless it is not limited.

        Raises:
            ValueError: naming what is wrong with the filter.
        """
        self._deadline = time.monotonic() + FILTER_SECONDS if limited else math.inf
        try:
            return search()
        except (ValueError, OSError) as error:
            if str(error).endswith(": interrupted"):
                raise ValueError(f"where: the filter takes longer than {FILTER_SECONDS:g} seconds") from None
            if isinstance(error, OSError):
                raise
            raise ValueError(str(error).removeprefix("--")) from None
        finally:
            self._deadline = math.inf

    def _measured(self, k: int, condition: str | None) -> Approximation | None:
        """The recall of a search for k by vectors alone, if it is approximate."""
        approximation = self.index.approximation(k, condition)
        if approximation is None:
            return None
        results, recall = approximation.recall_at(k)
        return Approximation(results=results, recall=recall)

    def _answer(self, found: list[Match], clock: "Clock", measured: Approximation | None) -> SearchResponse:
        results = [
            Result(
                id=number,
                path=self._name(match.path),
                score=match.score,
                similarity=match.similarity,
                columns=match.columns,
                image=f"/image/{number}",
                thumbnail=f"/thumbnail/{number}{'' if match.moment is None else f'?at={match.moment:.3f}'}",
                clip=self._describe_clip(match, number),
            )
            for match in found
            for number in [self.catalog.number(match)]
        ]
        return SearchResponse(results=results, timings=clock.timings(), approximate=measured)

    def _describe_clip(self, match: Match, number: int) -> Clip | None:
        if match.moment is None or match.duration is None or match.times is None:
            return None
        return Clip(
            moment=match.moment,
            duration=match.duration,
            times=list(match.times),
            sheet=f"/sheet/{number}",
            media_type=media_type_of(match.path),
        )

    def _name(self, path: Path) -> str:
        """A path within the source: where that is on the server's disk is nobody's business."""
        root = self.index.root
        if root is not None and path.is_relative_to(root):
            return str(path.relative_to(root))
        return path.name if path.is_absolute() else str(path)


class Clock:
    """Takes the time of a request and of its parts."""

    def __init__(self) -> None:
        self._start, self._parts = time.perf_counter(), {"encode": 0.0, "search": 0.0, "rerank": 0.0}

    def time(self, part: str, work: Callable[[], T]) -> T:
        """Do a part of the work."""
        start = time.perf_counter()
        result = work()
        self._parts[part] += time.perf_counter() - start
        return result

    def timings(self) -> Timings:
        """Milliseconds so far."""
        parts = {name: round(1000 * seconds, 2) for name, seconds in self._parts.items()}
        return Timings(total=round(1000 * (time.perf_counter() - self._start), 2), **parts)
