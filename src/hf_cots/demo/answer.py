"""`python -m hf_cots.demo.answer runs/demo`: load the demo's model in a fresh process and answer queries with it."""

import json
import sys
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from ..data.images import read_image
from ..data.sources import load_pairs
from ..search.index import ImageIndex
from .figures import Answer, draw_answers
from .recipe import IMAGE_QUERIES, TEST_STYLE, TEXT_QUERIES


SHOWN = 5


def answer(output: Path) -> list[Answer]:
    """Search the held-out concepts: images in one style for text queries, and in all styles for image queries. Writes
    the index `index/`, `results.png` and `answers.json`.

    Args:
        output: the demo's folder, with `model/` and `images/`.
    """
    pairs = load_pairs(str(output / "images"), caption_column="text")
    names = {Path(pairs.image_name(row)).name: pairs.caption(row) for row in range(len(pairs))}
    index = ImageIndex.build(str(output / "model"), str(output / "images"), output / "index")
    answers = []
    for text, right_names in TEXT_QUERIES.items():
        matches = [m for m in index.search(text, len(index)) if m.path.name.endswith(f".{TEST_STYLE}.png")][:SHOWN]
        right = [any(name in names[match.path.name] for name in right_names) for match in matches]
        answers.append(Answer(text, matches, right))
    for name in IMAGE_QUERIES:
        path = output / "images" / f"{name.replace(' ', '-')}.{TEST_STYLE}.png"
        matches = [m for m in index.search(read_image(path), SHOWN + 1) if m.path.name != path.name][:SHOWN]
        answers.append(Answer(path, matches, [names[match.path.name] == name for match in matches]))

    table = Table(title="best images of unseen concepts", title_justify="left", title_style="none", box=SIMPLE_HEAD)
    table.add_column("query")
    table.add_column("best three (✓ right by name)")
    for each in answers:
        found = [
            f"{names[match.path.name]} {match.score:.2f}{' ✓' if right else ''}"
            for match, right in zip(each.matches[:3], each.right)
        ]
        table.add_row(each.title(names), ", ".join(found))
    Console().print(table)
    draw_answers(answers, output / "results.png")
    lines = {
        each.title(names): [
            {"image": match.path.name, "score": round(match.score, 4), "right": right}
            for match, right in zip(each.matches, each.right)
        ]
        for each in answers
    }
    (output / "answers.json").write_text(json.dumps(lines, indent=2) + "\n", encoding="utf-8")
    return answers


if __name__ == "__main__":
    disable_progress_bar()
    answer(Path(sys.argv[1]))
