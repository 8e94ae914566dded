"""Searches emoji and icons by names in seventeen languages, with MiniLM and with towers distilled from it.

    python -m benchmarks.multilingual runs/multilingual/seed-0/model --emoji runs/multilingual/emoji/model
    python -m benchmarks.multilingual --emoji runs/multilingual/e5-emoji/model --output runs/e5_multilingual.json

Needs the set of `hf-cots data translations`, and models whose text tower is MiniLM as it was: that of
`model_cards/minilm-multilingual/emoji.yaml`, and with `--icons` that of `make cots-icons`. Where no distilled tower is
named, models are measured with their own, such as those of `model_cards/e5-multilingual`. The gallery has one image,
Twemoji's, of each emoji whose concept never trains: neither in the emoji model nor, by name, in the tower. The icons
model has seen no emoji at all, but icons with some of these names. A query is an emoji's name in one language, and
right if an image with the same English name is among the first k. With `--icons`, there is a second gallery, the icons
of unseen sets with known names, which are searched by those names that an emoji or a character has as well, and so
translations; most of these were among the pairs of the distilled tower. Intervals come from drawing concepts with
replacement; where several towers are given, as of several seeds, a query counts by its mean over them.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from transformers import AutoTokenizer

from hf_cots import load_encoder
from hf_cots.conversion.text_tower import fit_tokenizer, replace_text_tower
from hf_cots.data.images import read_image
from hf_cots.demo.recipe import TEST_STYLE
from hf_cots.search.torch_encoders import DualEncoder

from .ablation.icons import ICONS
from .icon_search import rank_best
from .machine import machine


# Those of the Python package emoji. The tower trains on neither Italian nor Korean.
LANGUAGES = ("en", "es", "pt", "fr", "it", "de", "ru", "tr", "id", "fa", "ar", "zh", "ja", "ko")
# Not among those, and not in training either.
FURTHER = ("nl", "uk", "hi")
KS = (1, 5, 10)
RESAMPLES = 2000
RESULTS = Path("benchmarks/results/multilingual.json")


def read_gallery(data: Path) -> list[dict[str, Any]]:
    """One image of each emoji whose concept never trains: `image`, `text`, `concept` and more."""
    found: dict[str, dict[str, Any]] = {}
    for row in pq.read_table(data / "test.parquet").to_pylist():
        if row["style"] == TEST_STYLE:
            found.setdefault(row["text"], row)
    return list(found.values())


def read_icons(icons: Path) -> list[dict[str, Any]]:
    """The icons of unseen sets whose names occur in training, as a gallery like that of [`read_gallery`]."""
    trained = pq.read_table(icons / "train.parquet", columns=["name"])["name"]
    table = pq.read_table(icons / "test_new_styles.parquet", columns=["image", "name"])
    rows = table.filter(pc.is_in(table["name"], trained)).to_pylist()
    return [{"image": row["image"], "text": row["name"], "concept": row["name"]} for row in rows]


def read_queries(
    translations: Path, gallery: list[dict[str, Any]], sides: tuple[str, ...] = ("test",)
) -> dict[str, list[tuple[int, str]]]:
    """Of each language, the gallery's rows that have a name in it, and the name.

    Args:
        sides: the files of the translations, `"train"` and `"test"`. English names are those that occur there.
    """
    rows = [row for side in sides for row in pq.read_table(translations / f"{side}.parquet").to_pylist()]
    names = {(row["language"], row["english"]): row["translation"] for row in rows if row["kind"] == "name"}
    translated = {english for _, english in names}
    found = {"en": [(index, row["text"]) for index, row in enumerate(gallery) if row["text"] in translated]}
    for language in (*LANGUAGES[1:], *FURTHER):
        named = ((index, names.get((language, row["text"]))) for index, row in enumerate(gallery))
        found[language] = [(index, name) for index, name in named if name]
    return found


def replace(encoder: DualEncoder, tower: Path) -> DualEncoder:
    """The same model with a distilled text tower."""
    model = replace_text_tower(encoder.model, tower)
    processor = type(encoder.processor)(
        encoder.processor.image_processor,
        fit_tokenizer(AutoTokenizer.from_pretrained(tower), encoder.processor.tokenizer),
    )
    return DualEncoder(model, processor, tower.parent.name)


def recalls(ranks: np.ndarray, concepts: list[str]) -> dict[str, Any]:
    """Recall at 1, 5 and 10 in percent, with 95% intervals when concepts are drawn with replacement.

    Args:
        ranks: (towers, queries) from 1.
    """
    _, groups = np.unique(concepts, return_inverse=True)
    count = groups.max() + 1
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    weights = drawn[:, groups]  # (resamples, queries)
    result: dict[str, Any] = {"queries": ranks.shape[1], "intervals": {}}
    for k in KS:
        found = (ranks <= k).mean(axis=0)
        samples = 100 * (weights @ found) / weights.sum(axis=1)
        result[f"R@{k}"] = 100 * float(found.mean())
        result["intervals"][f"R@{k}"] = np.quantile(samples, [0.025, 0.975]).tolist()
    return result


def measure(
    name: str,
    encoder: DualEncoder,
    towers: list[Path],
    gallery: list[dict[str, Any]],
    queries: dict[str, list[tuple[int, str]]],
) -> dict[str, Any]:
    """Recalls of every language, with the model's own text tower and with the distilled ones, if there are any."""
    images = encoder.encode_images([read_image(row["image"]["bytes"]) for row in gallery])
    texts = np.array([row["text"] for row in gallery])
    report: dict[str, Any] = {
        "images": len(gallery),
        "concepts": len({row["concept"] for row in gallery}),
        "chance": {f"R@{k}": 100 * k / len(gallery) for k in KS},
    }
    for label, models in (("own", [encoder]), ("distilled", [replace(encoder, tower) for tower in towers])):
        if not models:
            continue
        report[label] = {}
        for language, asked in queries.items():
            rows = [index for index, _ in asked]
            same = texts[rows][:, None] == texts[None]
            ranks = [rank_best(each.encode_texts([text for _, text in asked]) @ images.T, same) for each in models]
            report[label][language] = recalls(np.stack(ranks), [gallery[index]["concept"] for index in rows])
        line = ", ".join(f"{language} {found['R@10']:.1f}" for language, found in report[label].items())
        print(f"{name}, {label}, R@10: {line}", flush=True)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("towers", type=Path, nargs="*", help="folders of hf-cots distill-text, one a seed")
    parser.add_argument("--emoji", type=Path, default=Path("runs/multilingual/emoji/model"))
    parser.add_argument("--icons", type=Path, help="the model of make cots-icons")
    parser.add_argument("--data", type=Path, default=Path("runs/demo/data"), help="the emoji set of make demo")
    parser.add_argument("--translations", type=Path, default=Path("runs/translations"))
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(), "models": {}}
    if arguments.towers:
        record = json.loads((arguments.towers[0] / "distillation.json").read_text(encoding="utf-8"))
        report |= {"seeds": len(arguments.towers), "trained_on": record["languages"]}
    emoji = read_gallery(arguments.data)
    wanted: list[tuple[str, Path, list[dict[str, Any]], tuple[str, ...]]] = [
        ("emoji", arguments.emoji, emoji, ("test",))
    ]
    if arguments.icons is not None:
        wanted += [("icons", arguments.icons, emoji, ("test",))]
        wanted += [("icons, unseen styles", arguments.icons, read_icons(ICONS), ("train", "test"))]
    for name, model, gallery, sides in wanted:
        encoder = load_encoder(str(model))
        assert isinstance(encoder, DualEncoder)
        queries = read_queries(arguments.translations, gallery, sides)
        report["models"][name] = measure(name, encoder, arguments.towers, gallery, queries)
    arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
