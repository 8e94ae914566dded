"""Create or update an index from its source, for any kind of store."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from .base import BaseIndex
from .encoders import Encoder, precision_of, set_precision
from .encoding import check_batch_size
from .fingerprint import describe_model, different_parts
from .gallery import Gallery
from .processes import in_first_process, processes
from .reading import help_to_update
from .store import IndexStore
from .update import IndexUpdate, UpdateSummary


def check_model(name: str, meta: dict[str, str], encoder: Encoder) -> None:
    """Check that a model is the one that an index was built with.

    Raises:
        ValueError: naming both, and the parts in which they differ.
    """
    different = different_parts(json.loads(meta["fingerprint"]), describe_model(encoder))
    if different:
        raise ValueError(
            f"the index {name} was built with {meta['model']}, but {encoder.name} differs in its "
            f"{' and '.join(different)}: their embeddings cannot be compared. Use that model, or another "
            "index"
        )


def check_source(store: IndexStore, source: str, dtype: str | None) -> None:
    """Check that an index was built from a source and stores vectors of a dtype. A source that no longer exists is
    not compared, since it may have been moved.

    Raises:
        ValueError: naming the index's source or dtype.
    """
    before = store.meta["source"]
    if source != before and Path(before).exists():
        raise ValueError(
            f"the index {store.name} was built from {before}, not from {source}: choose another index with --to"
        )
    if dtype is not None and dtype != store.dtype:
        raise ValueError(
            f"the index {store.name} stores {store.dtype} vectors, not {dtype}: choose another index with --to"
        )


def check_precision(store: IndexStore, encoder: Encoder, precision: str | None) -> None:
    """Check that an index was encoded in a precision, if one is requested.

    Raises:
        ValueError: naming both.
    """
    asked = precision_of(set_precision(encoder, precision or store.precision))
    if asked != store.precision:
        raise ValueError(
            f"the index {store.name} was encoded in {store.precision}, not in {asked}: choose another index with --to"
        )


def name_model(model: str | Path | Encoder, revision: str | None) -> dict[str, str]:
    """Return the metadata with which an index loads its model again."""
    name = str(model) if isinstance(model, (str, Path)) else model.name
    path = str(Path(name).resolve()) if Path(name).exists() else name
    return {"model": path} | ({"revision": revision} if revision else {})


def bring_up_to_date(
    open_store: Callable[..., IndexStore],
    encoder: Encoder,
    gallery: Gallery,
    dtype: str | None,
    precision: str | None,
    batch_size: int,
    progress: bool,
    also: Callable[[IndexStore, Encoder], object] = lambda store, encoder: None,
    **asked: str,
) -> UpdateSummary:
    """Create an index or bring it up to date. Under torchrun all processes must call; the first one writes.

    Args:
        open_store: opens the index for writing; creates it if needed, given the dimension and the metadata.
        encoder, gallery: its model and source.
        dtype, precision, batch_size, progress: as for [`DiskIndex.build`], whose errors are raised too.
        also: updates what is derived from the vectors, before the index is closed.
        asked: further metadata to set, in an existing index too.
    """
    check_batch_size(batch_size)
    settings = {"source": gallery.name, "options": json.dumps(asdict(gallery.options))}
    settings["with_columns"] = str(int(gallery.with_columns))
    settings["root"] = "" if gallery.root is None else str(gallery.root.resolve())
    settings |= asked

    def begin() -> tuple[IndexUpdate, list[int]]:
        named = {"fingerprint": json.dumps(describe_model(encoder))}
        named["precision"] = precision_of(set_precision(encoder, precision or "float32"))
        store = open_store(encoder.dim, **named, **settings)
        try:
            check_model(store.name, store.meta, encoder)
            check_source(store, settings["source"], dtype)
            check_precision(store, encoder, precision)
            with store.transaction():
                store.set_meta(**settings)
            update = IndexUpdate(store, set_precision(encoder, store.precision), gallery, batch_size)
            return update, update.compare()
        except BaseException:
            store.close()
            raise

    begun = in_first_process(begin)
    if begun is None:
        help_to_update(encoder, gallery, batch_size)
        processes().wait_for_everyone()
        return UpdateSummary()
    update, to_read = begun
    try:
        summary = update.run(to_read, progress)
        also(update.store, update.encoder)
    finally:
        update.store.close()
    processes().wait_for_everyone()
    return summary


def check_not_empty(index: BaseIndex, gallery: Gallery, summary: UpdateSummary) -> None:
    """Check that an index has an image.

    Raises:
        ValueError: if it has none, with reasons.
    """
    if len(index) == 0:
        reasons = "".join(f"; {broken}" for broken in summary.broken[:3])
        raise ValueError(f"none of {len(gallery.paths)} image files can be read{reasons}")
