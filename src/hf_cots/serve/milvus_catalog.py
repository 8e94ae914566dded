"""What a page needs from an index in Milvus, which identifies its images by path and not by number."""

import threading
import time
from collections import Counter, OrderedDict

import numpy as np

from ..data.hashes import stable_id
from ..search.base import Match
from ..search.gallery import place
from ..search.milvus import IMAGES
from ..search.milvus_index import MilvusIndex
from ..search.milvus_where import write
from ..search.vectors import l2_normalize
from .catalog import Location, make_facet, most_values
from .schemas import Facet


CHECK_SECONDS = 2.0  # between two checks whether the index was replaced
MOST_COUNTED = 100_000  # in larger indexes the column values are not counted for filters
KEPT_NUMBERS = 200_000  # the most recent results whose numbers are known


class MilvusCatalog:
    """The counterpart of [`Catalog`] for an index in Milvus.

    Only recent search results have a number, so no other images can be requested.
    """

    def __init__(self, index: MilvusIndex):
        self.index, self.root, self.name = index, index.root, index.collection.name
        self._identity, self._checked = self._identify(), time.monotonic()
        self._lock = threading.Lock()
        self._paths: OrderedDict[int, str] = OrderedDict()  # by number, the most recent result last
        self._described: tuple[tuple[int, int], list[Facet]] | None = None

    def _identify(self) -> tuple[str, str]:
        return self.index.meta["root"], self.index.meta["fingerprint"]

    def is_outdated(self) -> bool:
        """Whether the index was replaced, or its images have moved; checked at most every two seconds."""
        if time.monotonic() - self._checked < CHECK_SECONDS:
            return False
        self._checked = time.monotonic()
        self.index.refresh()
        return self._identify() != self._identity

    def reopen(self) -> MilvusIndex:
        """Open the current index; errors as for [`MilvusIndex`]."""
        return MilvusIndex(self.index.uri, self.index.encoder)

    def number(self, match: Match) -> int:
        """Return the number of a match's image: a hash of its path in 53 bits, the size of JavaScript's integers."""
        inside = self.root is not None and match.path.is_relative_to(self.root)
        path = str(match.path.relative_to(self.root) if inside else match.path)  # type: ignore[arg-type]
        number = stable_id(path) >> 10
        with self._lock:
            self._paths[number] = path
            self._paths.move_to_end(number)
            if len(self._paths) > KEPT_NUMBERS:
                self._paths.popitem(last=False)
        return number

    def _find(self, image: int, field: str) -> tuple[str, dict] | None:
        """Return the path and the entity of a searchable image; may be a few seconds old, as it does not wait for
        consistency."""

        path = self._paths.get(image)
        if path is None:
            return None
        condition = f"path == {write(path)} and {IMAGES}"
        found = self.index.collection.query(condition, [field], consistency="Bounded")
        return (path, found[0]) if found else None

    def locate(self, image: int) -> Location | None:
        """See [`Catalog.locate`]."""
        found = self._find(image, "row")
        if found is None:
            return None
        path, row = found[0], found[1]["row"]
        return Location(place(self.root, path), row["hash"], tuple(row["clip"]["times"]) if row.get("clip") else None)

    def vector(self, image: int) -> np.ndarray | None:
        """See [`Catalog.vector`]."""
        found = self._find(image, "vector")
        return None if found is None else l2_normalize(np.array(found[1]["vector"], dtype=np.float32))

    def describe(self) -> tuple[int, list[str], list[str], list[Facet]]:
        """See [`Catalog.describe`]; without columns for keyword search, which is not supported in Milvus, and without
        values if there are more than [`MOST_COUNTED`] images."""
        count = len(self.index)
        state = self.index.version(), count
        if self._described is None or self._described[0] != state:
            self._described = state, self._find_facets(count) if count <= MOST_COUNTED else []
        return count, self.index.columns, [], self._described[1]

    def _find_facets(self, count: int) -> list[Facet]:
        names, most = self.index.columns, most_values(count)
        counted: dict[str, Counter] = {f"c{i}": Counter() for i in range(len(names))}
        for entity in self.index.collection.scan(["columns"], IMAGES):
            for key in [key for key, values in counted.items() if len(values) > most + 1]:
                del counted[key]
            for key, values in counted.items():
                values[entity["columns"].get(key)] += 1
        facets = [make_facet(names[int(key[1:])], values.items(), most) for key, values in counted.items()]
        return [facet for facet in facets if facet is not None]
