"""The search of the panel "Search"."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._errors import check_output_file, print_note
from .app import app, note_skipped
from .options import Revision, Token


if TYPE_CHECKING:
    from ..search.base import BaseIndex, Match


@app.command(rich_help_panel="Search")
def search(
    source: Annotated[str, typer.Argument(metavar="INDEX | MODEL FOLDER", help="Index, or a model and a folder.")],
    words: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]", help="Text to search for.")] = None,
    image: Annotated[Path | None, typer.Option(help="Image or clip to search for, alone or with the text.")] = None,
    minus: Annotated[str | None, typer.Option(help="Text of what the images should not show.")] = None,
    where: Annotated[str | None, typer.Option(help="Filter over the columns, such as \"license = 'MIT'\".")] = None,
    hybrid: Annotated[
        str | None, typer.Option(help="Columns whose words are searched for the text, too, such as name,tags.")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", help="How many images to print.")] = 10,
    exact: Annotated[
        bool, typer.Option("--exact", help="Search all of an index with approximate search, too.")
    ] = False,
    rerank: Annotated[str | None, typer.Option(help="SIMLA model that re-ranks the best 64 images.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list with all columns.")] = False,
    sheet: Annotated[Path | None, typer.Option(help="Draw the images found into this file.")] = None,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Print the images and clips that match a text, an image, or both best, with their scores; of a clip, the moment.

    Of an index, or of a folder of images and clips, whose index is kept in the cache and brought up to date first.
    """
    from ..search.base import check_k
    from ..search.disk_index import DiskIndex
    from ..search.milvus import is_milvus
    from ..search.store import is_index

    of_index, words = is_index(source) or is_milvus(source), words or []
    _check_words(source, words, of_index, image)
    _check_columns(of_index, is_milvus(source), where, hybrid)
    check_k(k)
    check_output_file(sheet)
    index = _open_index(source, None if of_index else Path(words.pop(0)), revision)
    columns = None if hybrid is None else [name.strip() for name in hybrid.split(",") if name.strip()]
    every = exact and isinstance(index, DiskIndex)  # others are searched exactly anyway
    given: dict[str, Any] = {"image": image, "minus": minus, "where": where, "hybrid": columns, "exact": every or None}
    options = {name: value for name, value in given.items() if value is not None}
    searched: Any = index
    if rerank:
        from ..search.reranked import RerankedIndex

        searched = RerankedIndex.from_index(index, rerank)
    matches = searched.search(words[0] if words else None, k, **options)
    if isinstance(index, DiskIndex) and (measured := index.approximation(k, where, exact or bool(columns))):
        print_note(f"{measured}; --exact searches all", "dim")
    if sheet is not None:
        _draw(matches, index, sheet)
    for line in [_as_json(matches)] if as_json else map(_as_line, matches):
        typer.echo(line)


def _open_index(source: str, folder: Path | None, revision: str | None) -> "BaseIndex":
    """The index, or that of a model and a folder."""
    from ..search.index import ImageIndex, open_folder

    if folder is None:
        return ImageIndex.open(source)
    index, broken = open_folder(source, folder, revision, progress=True)
    note_skipped(broken)
    return index


def _draw(matches: list["Match"], index: "BaseIndex", sheet: Path) -> None:
    """Draw the images found into a file."""
    from ..evaluation.rendering.panels import draw_sheet

    found = [
        (f"{match.score:.3f}  {match.path.name}", index.read_image(match.path, match.moment)) for match in matches
    ]
    draw_sheet(found).save(sheet)


def _as_line(match: "Match") -> str:
    """Score and path of a match, and the moment of a clip."""
    at = "" if match.moment is None else f"  at {match.moment:.2f} s"
    return f"{match.score:.4f}  {match.path}{at}"


def _as_json(matches: list["Match"]) -> str:
    """The matches with their columns as a JSON list."""
    rows: list[dict[str, Any]] = []
    for match in matches:
        rows.append(match.columns | {"path": str(match.path), "score": match.score})
        if match.similarity is not None:
            rows[-1]["similarity"] = match.similarity
        if match.moment is not None:
            rows[-1] |= {"moment": match.moment, "duration": match.duration}
    return json.dumps(rows, indent=2, ensure_ascii=False)


def _check_words(source: str, words: list[str], of_index: bool, image: Path | None) -> None:
    """Check for an index and a text, or a model, a folder and a text; an image may stand in for the text.

    Raises:
        ValueError: saying what is missing, or too much.
    """
    if of_index and len(words) > 1:
        raise ValueError(f"{source} is an index: name it and one text, in quotes")
    if not of_index and len(words) not in (1, 2):
        raise ValueError(f"{source} is no index: name an index and a text, or a model, a folder and a text")
    if not of_index and len(words) == 1 and image is None:
        raise ValueError(
            f"{source} is no index (`hf-cots index` makes one), or the text after model and folder is missing"
        )


def _check_columns(of_index: bool, in_milvus: bool, where: str | None, hybrid: str | None) -> None:
    """Check that columns are asked for only of an index.

    Raises:
        ValueError: naming the option.
    """
    if where is not None and not of_index:
        raise ValueError("--where filters an index: make one with `hf-cots index`, and name it")
    if hybrid is not None and in_milvus:
        raise ValueError("--hybrid searches the columns of an index on disk, not of one in Milvus")
    if hybrid is not None and not of_index:
        raise ValueError("--hybrid searches the columns of an index: make one with `hf-cots index`, and name it")
