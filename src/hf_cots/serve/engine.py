"""Run the searches of a page, one at a time, over an index that other processes may update or replace."""

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

QUEUE = 16  # searches that may wait for the running one; further ones are refused as busy
FILTER_SECONDS = 10.0
STEPS = 10_000  # SQLite instructions between two checks of the time limit


class Busy(Exception):
    """Too many searches are waiting already."""


class NotFound(LookupError):
    """The index has no such image."""


class Gate:
    """Lets one in at a time; up to `waiting` others wait."""

    def __init__(self, waiting: int):
        self._places, self._inside = threading.Semaphore(1 + waiting), threading.Lock()

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Wait for the previous ones to finish.

        Raises:
            Busy: if too many are waiting.
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
        reranker: a re-ranker over that index, if there is one.
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
        """Reopen the index if it was replaced, or its images have moved; updates need no reopening.

        Raises:
            OSError, ValueError: as for [`DiskIndex`] and [`MilvusIndex`].
        """
        with self._opening:
            if self.catalog.is_outdated():
                logger.info("reopening the index %s", self.catalog.name)
                self._adopt(self.catalog.reopen())

    # ------------------------------------------------------------------ answers

    def info(self, max_upload_bytes: int) -> Info:
        """Describe the index that is served."""
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
            request: the fields of the request.
            upload: the encoded image.

        Raises:
            ValueError: if something is wrong with the request.
            Busy: if too many searches are waiting.
        """
        clock = Clock()
        text = request.text if request.text and request.text.strip() else None
        minus = request.minus if request.minus and request.minus.strip() else None
        if text is None and upload is None:
            raise ValueError("give a text or an image to search for")
        reranker, hybrid = self._reranker(request, text), request.hybrid or None
        with self.gate.enter():
            condition = self._condition(request)  # before the query is encoded
            # Building the keyword table of a large index takes a while, but only once.
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
        """Search for images similar to one of the index, which is not returned itself.

        Raises:
            NotFound: if there is no such image.
            ValueError, Busy: as for [`search`].
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
        """Return the location of an image or a clip of the index.

        Raises:
            NotFound: if there is no such image.
        """
        location = self.catalog.locate(image)
        if location is None:
            raise NotFound(f"the index has no image {image}")
        return location

    def read(self, location: Location) -> bytes:
        """Read the bytes of an image; errors as for [`BaseIndex.read_bytes`], also if its source is not on this
        machine."""
        return self._named(location.path, self.index.read_bytes)

    def find_source(self, location: Location) -> Path | bytes:
        """Return the file of a clip, or its bytes if it is inside a data set; errors as for [`read`]."""
        return self._named(location.path, self.index.find_source)

    # ------------------------------------------------------------------ parts

    def _named(self, path: Path, read: Callable[[Path], T]) -> T:
        """Read an image; errors are logged and raised as BrokenImage."""
        try:
            return read(path)
        except (OSError, ValueError) as error:
            logger.warning("%s", error)
            raise BrokenImage(str(path), str(error)) from error

    def _reranker(self, request: SearchRequest, text: str | None) -> "RerankedIndex | None":
        """Return the re-ranker if the request asks for it.

        Raises:
            ValueError: if there is none, or no text.
        """
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
        """Combine the request's filters to one expression, and check it."""

        def write() -> str | None:
            condition = write_condition(request.filters, request.where, self.index.columns)
            self.index.check_where(condition)
            return condition

        return self._filtered(write)

    def _filtered(self, search: Callable[[], T], limited: bool = True) -> T:
        """Run a search, whose filter may take at most [`FILTER_SECONDS`] if `limited`.

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
        """Return the measured recall of a search for k by vectors alone; None if it is exact."""
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
        """Return a path relative to the source, so that the server's folders are not revealed."""
        root = self.index.root
        if root is not None and path.is_relative_to(root):
            return str(path.relative_to(root))
        return path.name if path.is_absolute() else str(path)


class Clock:
    """Measures the time of a request and of its parts."""

    def __init__(self) -> None:
        self._start, self._parts = time.perf_counter(), {"encode": 0.0, "search": 0.0, "rerank": 0.0}

    def time(self, part: str, work: Callable[[], T]) -> T:
        """Run a part of the work and add its time."""
        start = time.perf_counter()
        result = work()
        self._parts[part] += time.perf_counter() - start
        return result

    def timings(self) -> Timings:
        """Return the milliseconds so far."""
        parts = {name: round(1000 * seconds, 2) for name, seconds in self._parts.items()}
        return Timings(total=round(1000 * (time.perf_counter() - self._start), 2), **parts)
