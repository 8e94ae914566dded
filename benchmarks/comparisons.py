"""This package beside the libraries that do the same: encoding, evaluation, search of an index, re-ranking.

    python -m benchmarks.comparisons

One process and one thread. All sides of a row do the same work on the same data and run in turn; a figure is CPU
time, the least of the rounds, and `ratio` is theirs over ours: above 1, ours is faster. Models have random weights:
times do not depend on them. What the sides return is compared first.

    encode_images   a CLIP on JPEG files, with transformers' own processor and model, and with sentence-transformers
    encode_texts    the same on captions of different lengths, in batches of 256
    evaluate        both directions of 1,000 images with 5 captions, with ranx (scores sorted by numpy before, which is
                    not counted), and with sentence-transformers' evaluator on embeddings that are given
    search          one query over an index in memory, with faiss.IndexFlatIP
    rerank          16 candidates with SIMLA and keys and values in memory; against all of a gallery with them, and
                    against all of it with the full model for each pair
"""

import argparse
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

from hf_cots import COTSImageProcessor, COTSProcessor, SimlaConfig, SimlaModel
from hf_cots.evaluation.retrieval.ranking import rank_queries
from hf_cots.search.loading import load_encoder
from hf_cots.search.rerank import Reranker
from hf_cots.search.vectors import nearest, pack

from .data_loading import WORDS, make_jpegs, processor_of
from .machine import machine


IMAGES, CAPTIONS, DIM = 1_000, 5, 256
TOWER = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768}


def least_seconds(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """CPU seconds of each side, which take turns; the least of the rounds."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    return {name: min(values) for name, values in times.items()}


def compare(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """Seconds of all sides, and how many times ours each of the others takes."""
    seconds = least_seconds(sides, rounds)
    ratios = {name: round(value / seconds["ours"], 2) for name, value in seconds.items() if name != "ours"}
    return {"cpu_seconds": {name: round(value, 5) for name, value in seconds.items()}, "ratio": ratios}


# ---------------------------------------------------------------------- encoding


def write_clip(folder: Path) -> CLIPModel:
    """A small CLIP of random weights with its processor; returns it."""
    torch.manual_seed(0)
    words = {"vocab_size": len(WORDS) + 5, "max_position_embeddings": 77, "eos_token_id": 3, "bos_token_id": 2}
    vision = TOWER | {"image_size": 224, "patch_size": 16}
    model = CLIPModel(CLIPConfig(text_config=TOWER | words, vision_config=vision, projection_dim=DIM)).eval()
    model.save_pretrained(folder)
    backend = processor_of(224).tokenizer.backend_tokenizer
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=77, **special)
    CLIPProcessor(CLIPImageProcessor(), tokenizer).save_pretrained(folder)
    return model


@torch.no_grad()
def encode_plainly(model: CLIPModel, processor: CLIPProcessor, items: list, size: int) -> torch.Tensor:
    """Batches in their order, as transformers' documentation shows it."""
    embeds = []
    for start in range(0, len(items), size):
        part = items[start : start + size]
        if isinstance(part[0], str):
            inputs = processor(text=part, padding=True, truncation=True, return_tensors="pt")
            found = model.get_text_features(**inputs).pooler_output
        else:
            images = [Image.open(path).convert("RGB") for path in part]
            found = model.get_image_features(**processor(images=images, return_tensors="pt")).pooler_output
        embeds.append(torch.nn.functional.normalize(found, dim=1))
    return torch.cat(embeds)


def compare_encoding(folder: Path, images: int, texts: int, rounds: int) -> dict[str, Any]:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer

    model = write_clip(folder / "clip")
    processor = CLIPProcessor.from_pretrained(folder / "clip")
    encoder: Any = load_encoder(str(folder / "clip"), device="cpu")
    sentences = SentenceTransformer(modules=[Transformer(str(folder / "clip"))], device="cpu")
    paths = [folder / f"{i}.jpg" for i in range(images)]
    for path, data in zip(paths, make_jpegs(images)):
        path.write_bytes(data)
    rng = np.random.default_rng(0)
    captions = [" ".join(rng.choice(WORDS, length)) for length in rng.integers(3, 40, texts)]
    sides = {
        "encode_images": {
            "ours": lambda: encoder.encode_images(paths),
            "transformers": lambda: encode_plainly(model, processor, paths, 64),
            "sentence-transformers": lambda: sentences.encode(
                [Image.open(path).convert("RGB") for path in paths], batch_size=64, normalize_embeddings=True
            ),
        },
        "encode_texts": {
            "ours": lambda: encoder.encode_texts(captions),
            "transformers": lambda: encode_plainly(model, processor, captions, 256),
            "sentence-transformers": lambda: sentences.encode(captions, batch_size=256, normalize_embeddings=True),
        },
    }
    report: dict[str, Any] = {}
    for name, each in sides.items():
        ours, plain = (torch.as_tensor(each[side]()) for side in ("ours", "transformers"))
        least = float((ours * plain).sum(dim=1).min())
        report[name] = compare(each, rounds) | {"items": len(ours), "least_cosine_with_transformers": round(least, 6)}
    return report


# ---------------------------------------------------------------------- evaluation


class Given:
    """A model whose embeddings are known."""

    class model_card_data:
        @staticmethod
        def set_evaluation_metrics(*args: Any, **kwargs: Any) -> None:
            """The evaluator writes to the model's card; there is none."""


def compare_evaluation(rounds: int) -> dict[str, Any]:
    from ranx import Qrels, Run, evaluate
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    rng = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(IMAGES, DIM, generator=rng), dim=1)
    ids = torch.arange(IMAGES)
    text_ids = ids.repeat_interleave(CAPTIONS)
    noise = 0.2 * torch.randn(len(text_ids), DIM, generator=rng)
    texts = torch.nn.functional.normalize(images[text_ids] + noise, dim=1)
    directions = ((texts, images, text_ids, ids), (images, texts, ids, text_ids))

    def ours() -> list[float]:
        return [100 * float(rank_queries(*direction)["R@1"].mean()) / 100 for direction in directions]

    runs = []
    for queries, gallery, query_ids, gallery_ids in directions:
        scores, order = (queries @ gallery.T).topk(10, dim=1)
        relevant = {
            f"q{i}": {f"d{j}": 1 for j in (gallery_ids == own).nonzero().flatten().tolist()}
            for i, own in enumerate(query_ids)
        }
        found = {
            f"q{i}": {f"d{j}": s for j, s in zip(*row)} for i, row in enumerate(zip(order.tolist(), scores.tolist()))
        }
        runs.append((relevant, found, queries, gallery))
    names = ["hit_rate@1", "hit_rate@5", "hit_rate@10", "mrr"]

    def with_ranx() -> list[float]:
        return [float(evaluate(Qrels(wanted), Run(found), names)["hit_rate@1"]) for wanted, found, *_ in runs]

    def with_sentence_transformers() -> list[float]:
        results = []
        for wanted, _, queries, gallery in runs:
            options = {"accuracy_at_k": [1, 5, 10], "precision_recall_at_k": [10], "map_at_k": [10], "ndcg_at_k": [10]}
            evaluator = InformationRetrievalEvaluator(
                {f"q{i}": "" for i in range(len(queries))},
                {f"d{i}": "" for i in range(len(gallery))},
                {query: set(documents) for query, documents in wanted.items()},
                score_functions={"dot": lambda a, b: a @ b.T},
                **options,
            )
            evaluator.embed_inputs = lambda *args, known=queries, **kwargs: known  # type: ignore[method-assign]
            scores = evaluator.compute_all_metrics(Given(), corpus_embeddings=gallery)
            results.append(float(scores["dot"]["accuracy@k"][1]))
        return results

    sides = {"ours": ours, "ranx": with_ranx, "sentence-transformers": with_sentence_transformers}
    recalls = {name: [round(value, 4) for value in run()] for name, run in sides.items()}
    return {"evaluate": compare(sides, rounds) | {"R@1_of_both_directions": recalls}}


# ---------------------------------------------------------------------- search and re-ranking


def compare_search(vectors: int, rounds: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((vectors, DIM), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    kept, queries = pack(rows, "float32"), rows[:20] + 0.01
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    index = faiss.IndexFlatIP(DIM)
    index.add(rows)
    sides = {
        "ours": lambda: [nearest(kept, query, 10)[0][:10] for query in queries],
        "faiss": lambda: [index.search(query[None], 10)[1][0] for query in queries],
    }
    equal = [list(a) == list(b) for a, b in zip(sides["ours"](), sides["faiss"]())]
    return {"search": compare(sides, rounds) | {"vectors": vectors, "queries": 20, "equal_answers": sum(equal)}}


def compare_reranking(gallery: int, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    vision = {"model_type": "vit", "image_size": 64, "patch_size": 16, **TOWER}
    text = {"model_type": "bert", "vocab_size": len(WORDS) + 5, **TOWER}
    fields = {"mlm_weight": 0, "mim_weight": 0, "mask_token_id": 4, "special_token_ids": [0, 1, 2, 3, 4]}
    model = SimlaModel(SimlaConfig(vision_config=vision, text_config=text, **fields)).eval()
    processor = COTSProcessor(COTSImageProcessor(size={"height": 64, "width": 64}), processor_of(64).tokenizer)
    images = [
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)) for i in range(gallery)
    ]
    reranker = Reranker(model, processor, lambda index: images[index])
    query, every, few = " ".join(WORDS[:8]), np.arange(gallery), np.arange(16)
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    tokens = processor.tokenizer([query], return_tensors="pt")

    @torch.no_grad()
    def full() -> np.ndarray:
        parts = [model.match(tokens["input_ids"], tokens["attention_mask"], part) for part in pixels.split(64)]
        return torch.cat(parts)[:, 1].numpy()

    sides = {
        "ours": lambda: reranker.score(query, np.zeros_like(few), few),
        "the gallery, cached": lambda: reranker.score(query, np.zeros_like(every), every),
        "the gallery, full model": full,
    }
    difference = float(np.abs(sides["the gallery, cached"]() - sides["the gallery, full model"]()).max())
    return {"rerank": compare(sides, rounds) | {"gallery": gallery, "largest_difference": round(difference, 7)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128, help="that are encoded")
    parser.add_argument("--texts", type=int, default=500, help="that are encoded")
    parser.add_argument("--vectors", type=int, default=100_000, help="of the index")
    parser.add_argument("--gallery", type=int, default=1_000, help="that SIMLA reads")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "comparisons.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for part in (
            lambda: compare_encoding(Path(name), options.images, options.texts, options.rounds),
            lambda: compare_evaluation(options.rounds),
            lambda: compare_search(options.vectors, options.rounds),
            lambda: compare_reranking(options.gallery, options.rounds),
        ):
            results |= part()
            print(json.dumps(results, indent=2), flush=True)
    load = round(os.getloadavg()[0], 1)
    report = {"what": __doc__.splitlines()[0], "machine": machine(), "load": load, "results": results}
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
