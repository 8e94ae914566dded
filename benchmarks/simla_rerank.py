"""Is two-step search worth it? COTS proposes, SIMLA judges; R@1 and time of each and of both, on unseen concepts.

    python -m benchmarks.simla_rerank --work runs/rerank --output benchmarks/results/simla_rerank.json

Everything is made in `--work`, each part unless it is there: the emoji and openclipart sets with an eighth of their
training concepts for validation, a COTS over MiniLM, and a SIMLA that starts from the COTS's image encoder and the
lower half of MiniLM (`model_cards/simla-emoji/recipe.yaml`).

Protocol of the times. One process, one run, the threads and the load of the machine as reported. Texts are encoded one
query at a time, as a search is. Pictures are encoded beforehand wherever a method allows it:

    two streams        encode the text, one matrix product over the gallery, choose the best
    both               the same, then judge 16, 64 and 256 candidates from kept keys and values
    judge, kept        judge the whole gallery from kept keys and values, in the same batches
    judge, whole pass  the whole model for each pair, picture included: what single-stream search without any cache is,
                       and what the 10,800 of Lu et al. (2022) was measured against

The gallery is 5,000 of the training pictures, since the test sets have fewer; times do not depend on what is in a
picture. Each time is the median over queries, after one that does not count.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoProcessor, ViTModel

from hf_cots import train
from hf_cots.data.hashes import is_in_fraction
from hf_cots.data.sets.emoji import write_emoji_set
from hf_cots.data.sets.openclipart import write_openclipart_set
from hf_cots.data.sources import load_pairs
from hf_cots.demo.recipe import TEST_STYLE, text_tower_folder
from hf_cots.evaluation.retrieval.recall_cost import RerankEvaluation
from hf_cots.evaluation.retrieval.report import build_report, evaluate_encoder
from hf_cots.search.encoding import encode_images, encode_texts
from hf_cots.search.loading import load_encoder, load_reranker
from hf_cots.search.rerank import Reranker

from .machine import machine


RECIPE = Path(__file__).parents[1] / "model_cards" / "simla-emoji" / "recipe.yaml"
SETS = ("emoji", "openclipart")
GALLERY = 5_000
JUDGED = 3  # queries for which the whole gallery is judged
VISION = {
    "model_type": "vit",
    "image_size": 64,
    "patch_size": 16,
    "hidden_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 12,
    "intermediate_size": 768,
    "layer_norm_eps": 1e-6,
}
# The first step: plain contrast over a frozen MiniLM.
COTS = {
    "text_pooling": "mean",
    "contrast": "in_batch",
    "temperature": 0.07,
    "learn_temperature": True,
    "mvm_weight": 0,
    "mlm_weight": 0,
    "task_weight": 0,
    "filter_lambda": None,
}


def prepare(work: Path, deb: Path | None) -> None:
    """`fit.jsonl` of all sets, and of each set `validation.jsonl` and `test.jsonl`: `image`, `caption`."""
    write_emoji_set(work / "emoji", seed=0)
    write_openclipart_set(work / "openclipart", deb, seed=0)
    fit: list[dict[str, str]] = []
    for name in SETS:
        sides: dict[str, list[dict[str, str]]] = {"fit": [], "validation": [], "test": []}
        for folder in ("train", "test"):
            for line in (work / name / folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                held_out = is_in_fraction(row.get("concept") or row["cluster"], 0.12, 1)
                side = "test" if folder == "test" else "validation" if held_out else "fit"
                if side == "fit" or row.get("style", TEST_STYLE) == TEST_STYLE:
                    pair = {"image": f"{name}/{folder}/{row['file_name']}", "caption": row["text"]}
                    sides[side].append(pair)
        unseen = {pair["caption"].lower() for side in ("validation", "test") for pair in sides[side]}
        fit += [pair for pair in sides["fit"] if pair["caption"].lower() not in unseen]
        for side in ("validation", "test"):
            write_lines(work / f"{name}-{side}.jsonl", sides[side])
    write_lines(work / "fit.jsonl", fit)


def write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def train_cots(work: Path, steps: int) -> None:
    """The first step, in `cots/model`."""
    settings = {
        "vision": json.dumps(VISION),
        "text": text_tower_folder(),
        "freeze": "text",
        "train_data": work / "fit.jsonl",
        "image_id_column": "caption",
        "output_dir": work / "cots",
        "max_steps": steps,
        "per_device_train_batch_size": 64,
        "learning_rate": 7e-4,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "weight_decay": 0.05,
        "min_scale": 0.5,
        "max_text_length": 32,
        "logging_steps": 20,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "config_overrides": json.dumps(COTS),
    }
    train.train([word for name, value in settings.items() for word in (f"--{name}", str(value))])


def write_towers(work: Path) -> tuple[Path, Path]:
    """What SIMLA starts from: the COTS's image encoder, and the lower three layers of MiniLM, without dropout."""
    vision, text = work / "towers" / "vision", work / "towers" / "text"
    cots, processor = (auto.from_pretrained(work / "cots" / "model") for auto in (AutoModel, AutoProcessor))
    tower = ViTModel(cots.config.vision_config, add_pooling_layer=False)
    tower.load_state_dict(cots.vision_model.state_dict())
    tower.save_pretrained(vision)
    processor.image_processor.save_pretrained(vision)
    plain = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    AutoModel.from_pretrained(text_tower_folder(), num_hidden_layers=3, **plain).save_pretrained(text)
    processor.tokenizer.save_pretrained(text)
    return vision, text


def train_simla(work: Path, steps: int | None) -> None:
    """The second step, in `simla/model`."""
    vision, text = write_towers(work)
    flags = ["--vision", vision, "--text", text, "--train_data", work / "fit.jsonl", "--output_dir", work / "simla"]
    train.train([str(RECIPE), *map(str, flags), *(["--max_steps", str(steps)] if steps else [])])


def recall(work: Path, name: str) -> dict[str, Any]:
    """Both directions of a set: COTS alone, SIMLA as a dual encoder alone, and each with SIMLA as the judge."""
    files = [str(work / f"{name}-{side}.jsonl") for side in ("test", "validation")]
    test, validation = (load_pairs(file, "image", "caption", "caption") for file in files)
    cots, simla = (load_encoder(str(work / kind / "model"), "cpu") for kind in ("cots", "simla"))
    first, dual = evaluate_encoder(cots, test), evaluate_encoder(simla, test)
    rerank = RerankEvaluation(str(work / "simla" / "model"), validation=validation, budget=16, ks=(0, 16))
    return {
        "test": len(test),
        "validation": len(validation),
        "first_step": build_report(first),
        "simla_dual": build_report(dual, first),
        "both": rerank.run(cots, first, test),
        "simla_both": rerank.run(simla, dual, test),
    }


def median_seconds(call: Callable[[int], Any], repeats: int) -> float:
    """Of `call(0)`, `call(1)` and so on."""
    seconds = []
    for repeat in range(repeats):
        start = time.perf_counter()
        call(repeat)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


@torch.inference_mode()
def times(work: Path, queries: int) -> dict[str, Any]:
    """Seconds a query over a gallery of 5,000, for each method of the protocol."""
    pairs = load_pairs(str(work / "fit.jsonl"), "image", "caption", "caption")
    pictures = [pairs.read_row(row) for row in range(GALLERY)]
    texts = [pairs.caption(row * len(pairs) // queries) for row in range(queries)]
    cots, processor = (auto.from_pretrained(work / "cots" / "model") for auto in (AutoModel, AutoProcessor))
    cots.eval()
    judge, judge_processor = load_reranker(str(work / "simla" / "model"), "cpu")
    gallery = encode_images(cots, processor, pictures)

    def two_streams(query: int, k: int = 10) -> torch.Tensor:
        embed = encode_texts(cots, processor, [texts[query]])
        return torch.topk((gallery @ embed.t()).squeeze(1), k).indices

    reranker = Reranker(judge, judge_processor, pictures.__getitem__, cache_bytes=8 << 30)
    everything = torch.arange(GALLERY)
    reranker.score(texts[:1], torch.zeros_like(everything), everything)  # keys and values of all pictures

    def both(query: int, k: int) -> torch.Tensor:
        found = two_streams(query, k)
        return reranker.score([texts[query]], torch.zeros_like(found), found)

    def judge_kept(query: int) -> torch.Tensor:
        return reranker.score([texts[query]], torch.zeros_like(everything), everything)

    pixels = judge_processor(images=pictures, return_tensors="pt")["pixel_values"]

    def judge_whole(query: int, pictures: int = GALLERY) -> torch.Tensor:
        words = judge_processor(text=[texts[query]], return_tensors="pt")
        ids, mask = words["input_ids"], words["attention_mask"]
        return torch.cat([judge.match(ids, mask, pixel_values=part)[:, 1] for part in pixels[:pictures].split(64)])

    # Each method has run once before it is timed, and judges the same.
    two_streams(0)
    torch.testing.assert_close(judge_whole(0, 64), judge_kept(0)[:64], rtol=0, atol=1e-4)
    seconds = {
        "two_streams": median_seconds(two_streams, queries),
        **{f"both_{k}": median_seconds(lambda query, k=k: both(query, k), queries) for k in (16, 64, 256)},
        "judge_kept": median_seconds(judge_kept, JUDGED),
        "judge_whole_pass": median_seconds(judge_whole, JUDGED),
    }
    return {
        "gallery": GALLERY,
        "queries": {"two_streams": queries, "both": queries, "judge": JUDGED},
        "seconds": seconds,
        "factor_of_the_whole_pass": seconds["judge_whole_pass"] / seconds["two_streams"],
        "factor_of_kept_keys": seconds["judge_kept"] / seconds["two_streams"],
        "picture_milliseconds": 1000 * reranker.cost.image_seconds / reranker.cost.images,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/rerank"))
    parser.add_argument("--deb", type=Path, help="the package openclipart-svg; else apt downloads it")
    parser.add_argument("--cots_steps", type=int, default=500)
    parser.add_argument("--simla_steps", type=int, help="of the recipe if not given")
    parser.add_argument("--queries", type=int, default=20, help="that are timed in two-step search")
    parser.add_argument("--output", type=Path, required=True, help="written after each part")
    arguments = parser.parse_args()
    work = arguments.work
    if not (work / "fit.jsonl").is_file():
        prepare(work, arguments.deb)
    if not (work / "cots" / "model").is_dir():
        train_cots(work, arguments.cots_steps)
    if not (work / "simla" / "model").is_dir():
        train_simla(work, arguments.simla_steps)
    result: dict[str, Any] = {"machine": machine(), "load_before": os.getloadavg()[0]}
    measures = {"times": lambda: times(work, arguments.queries), **{s: lambda s=s: recall(work, s) for s in SETS}}
    for name, measure in measures.items():
        result[name] = measure()
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
