"""The steps of `hf-cots demo-video`: make clips, evaluate the image model zero-shot and fine-tuned, and search."""

import json
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..data.sets.clips import write_clip_set
from ..data.sets.packages import EMOJIBASE, FLUENT_ANIMATED, fetch_package
from ..data.sources import PairDataset
from ..evaluation.rendering.panels import pick_frames
from ..evaluation.rendering.tables import with_interval
from ..evaluation.retrieval.report import RetrievalResult
from ..search.encoders import encode_pairs
from ..search.torch_encoders import DualEncoder
from ..training.publish import save_for_inference
from .clips import SETTINGS, ZERO_SHOT, Setting, load_clips, measure, write_rows
from .figures import GREEN, INK, PALE, Canvas


BEST = Setting(8, "mean")  # the model that is saved
SMOKE_SETTINGS = (Setting(4, ZERO_SHOT), Setting(8, "attention"), BEST)
SMOKE = {"max_steps": 2, "per_device_train_batch_size": 8}
SHOWN = 3  # clips per query
FRAMES_SHOWN = 4  # frames per clip
# Text queries, and for each the parts of names by which a held-out clip counts as right.
QUERIES = {
    "applause": ("clapping hands",),
    "someone jogging": ("running",),
    "cheers!": ("clinking beer mugs",),
    "a fast ride in an amusement park": ("roller coaster",),
    "the sea is rough": ("water wave",),
    "it is snowing": ("cloud with snow",),
    "walking barefoot": ("footprints",),
    "a wheelchair": ("wheelchair",),
    "a bird on a farm": ("rooster",),
    "decorated for Christmas": ("Christmas tree",),
}


def run_clip_demo(model: str, output: Path, seed: int = 0, smoke: bool = False) -> dict[str, Any]:
    """Write the clip set, evaluate the image model on clips of unseen concepts with several numbers of frames,
    fine-tune it on other clips, and search.

    Writes `data/`, `clips/` (the test clips as files), `model/`, `results.json` and `results.png` into `output`.

    Args:
        model: the image model of `hf-cots demo`; it must not have seen the concepts that the emoji sets hold out.
        output: the folder.
        seed: random seed of the fine-tuning.
        smoke: only a few steps and three settings.

    Returns:
        The content of `results.json`.

    Raises:
        FileNotFoundError: if the package of the clips is missing and cannot be downloaded.
    """
    console, start = Console(), time.perf_counter()
    console.rule("1/3  Clips and their names, split by the concepts of the emoji set", align="left")
    train, test = prepare_clips(output)
    pairs = load_clips(test, BEST.num_frames)
    moving = np.array(pairs.table["motion"])
    console.print(f"{pq.read_metadata(train).num_rows} clips to train on, {len(pairs)} of unseen concepts to test on")
    console.rule("2/3  The image model as it is, and fine-tuned on clips", align="left")
    settings = SMOKE_SETTINGS if smoke else SETTINGS
    results: dict[Setting, RetrievalResult] = {}
    encoder = None
    for setting in settings:
        results[setting], trainer = measure(
            model, train, test, output / "runs", setting, seed, **(SMOKE if smoke else {})
        )
        recalls = results[setting].metrics()["text_to_image"]
        console.print(f"{setting}: R@1 {recalls['R@1']:.1f}, R@5 {recalls['R@5']:.1f}", highlight=False)
        if setting == BEST and trainer is not None:
            trainer.args.output_dir = str(output)
            save_for_inference(trainer, results[setting], pairs, "the clip set", "clips of unseen concepts")
            encoder = DualEncoder(trainer.model.eval().encoder, trainer.processing_class)
    assert encoder is not None  # the best one is among the settings
    console.print(results_table(results, moving))
    console.rule("3/3  Searching clips of unseen concepts", align="left")
    draw_searches(encoder, pairs, output / "results.png")
    summary = {
        "model": model,
        "seed": seed,
        "clips": {"train": pq.read_metadata(train).num_rows, "test": len(pairs), "motion": int(moving.sum())},
        "settings": {str(setting): result.to_dict() for setting, result in results.items()},
        "seconds": round(time.perf_counter() - start, 1),
    }
    (output / "results.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    console.print(
        f"queries and what they find -> {output / 'results.png'}; {summary['seconds']:.0f} s", highlight=False
    )
    console.print(f'hf-cots search {output / "model"} {output / "clips"} "someone jogging"', highlight=False)
    return summary


def prepare_clips(output: Path) -> tuple[Path, Path]:
    """Write the clip set, its training clips in the default skin tone only, and the test clips as files.

    Returns:
        The parquet files of the training and of the test clips.
    """
    data, train = output / "data", output / "runs" / "train.parquet"
    write_clip_set(data, fetch_package(FLUENT_ANIMATED), fetch_package(EMOJIBASE))
    table = pq.read_table(data / "train.parquet")
    write_rows(train, table.filter(pc.equal(table["skin_tone"], "")))
    folder = output / "clips"
    folder.mkdir(exist_ok=True)
    rows = pq.read_table(data / "test.parquet").to_pylist()
    for row in rows:
        (folder / row["video"]["path"]).write_bytes(row["video"]["bytes"])
    lines = [{"file_name": row["video"]["path"], "text": row["text"], "motion": row["motion"]} for row in rows]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")
    return train, data / "test.parquet"


def results_table(results: dict[Setting, RetrievalResult], moving: np.ndarray) -> Table:
    """Build a table of text-to-video recall in percent with 95% intervals, and R@1 of the captions that need motion.

    Args:
        results: by setting.
        moving: (clips,) bool, the clips whose captions need motion.
    """
    first = next(iter(results.values())).chance()["text_to_image"]
    title = f"text to video, {first['queries']} clips of unseen concepts: percent, 95% intervals"
    table = Table(title=title, title_justify="left", title_style="none", box=SIMPLE_HEAD)
    for heading in ("", "R@1", "R@5", f"R@1 of {int(moving.sum())} in motion"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for setting, result in results.items():
        values = result.to_dict()["text_to_image"]
        cells = [with_interval(values[name], values["intervals"][name]) for name in ("R@1", "R@5")]
        hits = result.directions["text_to_image"].columns["R@1"]
        table.add_row(str(setting), *cells, f"{hits[moving].mean():.0f}")
    table.add_row("chance", *(f"{first[name]:.1f}" for name in ("R@1", "R@5")), "")
    return table


def draw_searches(encoder: DualEncoder, pairs: PairDataset, path: Path) -> None:
    """Draw text queries, each with some frames of its best clips.

    Args:
        encoder: embeds clips and texts.
        pairs: the clips.
        path: the file to write.
    """
    clips = encode_pairs(encoder, pairs).image_embeds
    scores = encoder.encode_texts(list(QUERIES)) @ clips.T
    side, names = 0.62, [pairs.caption(row) for row in range(len(pairs))]
    page = Canvas(13.3, 1.5 + 0.98 * len(QUERIES))
    page.text(0.5, 0.35, "Searching clips of concepts that the model has never seen", 19, INK)
    page.text(
        0.5, 0.86, "Four frames of each clip. Framed: right by its name. Small: name, cosine similarity.", 10, PALE
    )
    for number, (query, right) in enumerate(QUERIES.items()):
        top = 1.3 + 0.98 * number
        page.text(2.5, top + side / 2, textwrap.fill(query, 22), 11.5, INK, ha="right", va="center")
        for place, row in enumerate(np.argsort(-scores[number], kind="stable")[:SHOWN].tolist()):
            left, is_right = 2.75 + 3.5 * place, any(part in names[row] for part in right)
            frames = pick_frames(pairs.read_row(row).frames, FRAMES_SHOWN)
            draw_frames(page, left, top, side, frames, GREEN if is_right else None)
            page.text(left, top + side + 0.04, f"{names[row]}  {scores[number, row]:.2f}", 8, PALE)
    page.save(path)


def draw_frames(
    page: Canvas, left: float, top: float, side: float, frames: list[Image.Image], color: str | None
) -> None:
    """Draw frames side by side, each with a border in a color if it is given."""
    for i, image in enumerate(frames):
        page.image(left + (side + 0.08) * i, top, side, image, color)
