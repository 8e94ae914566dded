"""Memory and time of a step of 1,024 pairs: in one batch, and with cached gradients in micro-batches of 64.

    python -m benchmarks.gradient_cache_memory

The towers of model_cards/cookie-emoji, random weights and data, float32, no dropout so that gradients can be compared.
Each case runs in its own process: peak resident memory above model, data and gradients, the most bytes that autograd
kept for the backward pass, and seconds. The result is written to `benchmarks/results/gradient_cache_memory.json`.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from hf_cots import CookieConfig, CookieForPreTraining
from hf_cots.training.gradient_cache import cache_gradients

from .machine import machine


SIZES = {"num_hidden_layers": 6, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
VISION = {"model_type": "vit", "image_size": 64, "patch_size": 16, "hidden_size": 192, "num_attention_heads": 6}
TEXT = {"model_type": "bert", "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
CASES = ("at once", "cached", "one micro-batch")
PART, LENGTH = 64, 12


class Kept:
    """Counts the bytes of tensors kept for the backward pass, as long as they live."""

    now = peak = 0

    def __init__(self, tensor: torch.Tensor):
        self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
        Kept.now += self.size
        Kept.peak = max(Kept.peak, Kept.now)

    def __del__(self):
        Kept.now -= self.size


def peak_rss() -> int:
    """Read the peak resident memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def build_model() -> CookieForPreTraining:
    torch.manual_seed(0)
    towers = {"vision_config": VISION | SIZES | {"intermediate_size": 768}, "text_config": TEXT | SIZES}
    shared = {"projection_dim": 384, "shared_intermediate_size": 768, "shared_dropout": 0.0}
    return CookieForPreTraining(CookieConfig(**towers, **shared)).train()


def random_batch(pairs: int) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(1)
    batch = {"image_ids": torch.arange(pairs)}
    for view in ("", "view_"):
        ids = torch.randint(1000, 20_000, (pairs, LENGTH), generator=source)
        batch |= {f"{view}input_ids": ids, f"{view}attention_mask": torch.ones_like(ids)}
        batch[f"{view}pixel_values"] = torch.rand(pairs, 3, 64, 64, generator=source) * 2 - 1
    return batch


def step(model: CookieForPreTraining, parts: list[dict], cached: bool) -> None:
    steps = model.begin_step(parts)
    if cached:
        steps = cache_gradients(model, parts, steps)
    for part, begun in zip(parts, steps):
        (model(**part, step=begun).loss / len(parts)).backward()


def run_case(way: str, pairs: int, folder: Path) -> None:
    """Run a step of one case; writes its gradients and its measurements."""
    cached = way == "cached"
    pairs = PART if way == "one micro-batch" else pairs
    model, batch = build_model(), random_batch(pairs)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    size = PART if cached else pairs
    parts = [dict(zip(batch, rows)) for rows in zip(*(tensor.split(size) for tensor in batch.values()))]
    before, start = peak_rss(), time.perf_counter()
    step(model, parts, cached)
    seconds, resident = time.perf_counter() - start, peak_rss() - before
    save_file({name: p.grad for name, p in model.named_parameters()}, folder / f"{way}.safetensors")
    for parameter in model.parameters():
        parameter.grad = None
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        step(model, parts, cached)
    facts = {"resident_mb": resident / 1e6, "kept_for_backward_mb": Kept.peak / 1e6, "seconds": seconds}
    (folder / f"{way}.json").write_text(json.dumps({name: round(value, 1) for name, value in facts.items()}))


def differences(folder: Path) -> dict[str, float]:
    """Compare the cached with the plain gradient: the norm of the difference relative to the norm of the gradient, and
    the largest difference of an entry relative to the largest entry of its tensor."""
    plain, cached = (load_file(folder / f"{way}.safetensors") for way in ("at once", "cached"))
    gaps = {name: plain[name] - cached[name] for name in plain}
    norms = [torch.cat([rows.flatten() for rows in each.values()]).norm() for each in (gaps, plain)]
    # Softmax is invariant to shifts: the gradient of the keys' bias is rounding error only.
    compared = [name for name in plain if not name.endswith(("key.bias", "k_proj.bias"))]
    largest = max(float(gaps[name].abs().max() / plain[name].abs().max().clamp(min=1e-12)) for name in compared)
    return {"full_gradient": float(norms[0] / norms[1]), "largest_entry": largest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", choices=CASES)
    parser.add_argument("--pairs", type=int, default=1024)
    parser.add_argument("--folder", type=Path, default=Path("runs/gradient_cache"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results/gradient_cache_memory.json")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.way:
        run_case(arguments.way, arguments.pairs, arguments.folder)
        return
    for way in CASES:
        flags = ["--way", way, "--pairs", str(arguments.pairs), "--folder", str(arguments.folder)]
        subprocess.run([sys.executable, "-m", "benchmarks.gradient_cache_memory", *flags], check=True)
    ways = f"at once, the same in cached micro-batches of {PART}, and {PART} pairs alone"
    result = {
        "what": f"a step of {arguments.pairs} pairs {ways}",
        "ways": {way: json.loads((arguments.folder / f"{way}.json").read_text()) for way in CASES},
        "relative_difference_of_gradients": differences(arguments.folder),
        "machine": machine(),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
