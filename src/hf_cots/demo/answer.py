"""`python -m hf_cots.demo.answer runs/demo`: load the demo's model in a fresh process and answer queries with it."""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..data.images import read_image
from ..data.sources import load_pairs
from ..search.index import ImageIndex, Match
from .figures import draw_answers
from .recipe import TEST_STYLE, TEXT_QUERIES


IMAGE_QUERIES = 2
SHOWN = 6


def answer(output: Path) -> list[tuple[str | Path, list[Match]]]:
    """Answer five text queries and two image queries with the images of unseen concepts; draws `results.png`.

    Args:
        output: the demo's folder, with `model/` and `data/`.
    """
    test = load_pairs(str(output / "data" / "test"), caption_column="text")
    names = {Path(test.image_name(row)).name: test.caption(row) for row in range(len(test))}
    index = ImageIndex.from_folder(str(output / "model"), output / "data" / "test")
    answers: list[tuple[str | Path, list[Match]]] = [(text, index.search(text, SHOWN)) for text in TEXT_QUERIES]
    own_style = [path for path in index.paths if path.name.startswith(TEST_STYLE)]
    for number in range(IMAGE_QUERIES):
        path = own_style[(number + 1) * len(own_style) // (IMAGE_QUERIES + 1)]
        with_itself = index.search(read_image(path), SHOWN + 1)
        answers.append((path, [match for match in with_itself if match.path != path][:SHOWN]))

    table = Table(title="best images of unseen concepts")
    for heading in ("query", *map(str, range(1, 4))):
        table.add_column(heading)
    for query, matches in answers:
        shown = [f"{names[match.path.name]} ({match.score:.2f})" for match in matches[:3]]
        table.add_row(f"image: {names[query.name]}" if isinstance(query, Path) else query, *shown)
    Console().print(table)
    draw_answers(answers, output / "results.png")
    return answers


if __name__ == "__main__":
    answer(Path(sys.argv[1]))
