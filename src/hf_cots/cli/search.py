"""The verb `hf-cots search`."""

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
    source: Annotated[
        str, typer.Argument(metavar="INDEX | MODEL FOLDER", help="Index; or a model followed by a folder.")
    ],
    words: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]", help="Text to search for.")] = None,
    image: Annotated[
        Path | None, typer.Option(help="Image or clip to search for, alone or together with the text.")
    ] = None,
    minus: Annotated[str | None, typer.Option(help="Text describing what the results should not show.")] = None,
    where: Annotated[str | None, typer.Option(help="SQL filter on the columns, such as \"license = 'MIT'\".")] = None,
    hybrid: Annotated[str | None, typer.Option(help="Columns to also search by keyword, such as name,tags.")] = None,
    k: Annotated[int, typer.Option("-k", "--k", help="Number of results.")] = 10,
    exact: Annotated[
        bool, typer.Option("--exact", help="Search exactly, even if the index has approximate search.")
    ] = False,
    rerank: Annotated[str | None, typer.Option(help="SIMLA model to re-rank the best 64 results with.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list with all columns.")] = False,
    sheet: Annotated[Path | None, typer.Option(help="Draw the results into this image file.")] = None,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Search images and clips for a text, an image, or both. Prints scores and paths, and the best moment of each
    clip.

    Searches an index, or a folder of images and clips, whose index is kept in the cache and updated first.
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
    """Open an index, or the cached index of a model and a folder."""
    from ..search.index import ImageIndex, open_folder

    if folder is None:
        return ImageIndex.open(source)
    index, broken = open_folder(source, folder, revision, progress=True)
    note_skipped(broken)
    return index


def _draw(matches: list["Match"], index: "BaseIndex", sheet: Path) -> None:
    """Draw the matches into an image file."""
    from ..evaluation.rendering.panels import draw_sheet

    found = [
        (f"{match.score:.3f}  {match.path.name}", index.read_image(match.path, match.moment)) for match in matches
    ]
    draw_sheet(found).save(sheet)


def _as_line(match: "Match") -> str:
    """Format a match as one line: score, path, and the moment of a clip."""
    at = "" if match.moment is None else f"  at {match.moment:.2f} s"
    return f"{match.score:.4f}  {match.path}{at}"


def _as_json(matches: list["Match"]) -> str:
    """Format the matches with their columns as a JSON list."""
    rows: list[dict[str, Any]] = []
    for match in matches:
        rows.append(match.columns | {"path": str(match.path), "score": match.score})
        if match.similarity is not None:
            rows[-1]["similarity"] = match.similarity
        if match.moment is not None:
            rows[-1] |= {"moment": match.moment, "duration": match.duration}
    return json.dumps(rows, indent=2, ensure_ascii=False)


def _check_words(source: str, words: list[str], of_index: bool, image: Path | None) -> None:
    """Check that the arguments are an index and a text, or a model, a folder and a text; an image can replace the
    text.

    Raises:
        ValueError: if an argument is missing or superfluous.
    """
    if of_index and len(words) > 1:
        raise ValueError(f"{source} is an index: give one text after it, in quotes")
    if not of_index and len(words) not in (1, 2):
        raise ValueError(f"{source} is not an index: give an index and a text, or a model, a folder and a text")
    if not of_index and len(words) == 1 and image is None:
        raise ValueError(
            f"{source} is not an index (create one with `hf-cots index`); or give a text after the model and the "
            "folder"
        )


def _check_columns(of_index: bool, in_milvus: bool, where: str | None, hybrid: str | None) -> None:
    """Check that options for columns are only used with an index that supports them.

    Raises:
        ValueError: naming the option.
    """
    if where is not None and not of_index:
        raise ValueError(
            "--where needs an index: create one with `hf-cots index` and pass it instead of a model and a folder"
        )
    if hybrid is not None and in_milvus:
        raise ValueError("--hybrid is not supported for an index in Milvus: use an index on disk")
    if hybrid is not None and not of_index:
        raise ValueError(
            "--hybrid needs an index: create one with `hf-cots index` and pass it instead of a model and a folder"
        )
