"""The cost of the image tokenizer, as a percentage of a training step of COTS-base, and the accuracy of bf16 codes.

    python -m benchmarks.image_tokenizer_cost --repeats 3
    python -m benchmarks.image_tokenizer_cost --trained runs/dvae-emoji/model runs/demo/data/test

Times: random weights and data of the right shapes, DALL-E's size at 192 pixels beside a ViT-B/16 at 384; one process,
medians; on a CPU in processor seconds, which other load on the machine hardly affects. The step is that of
`COTSTrainer` without the optimizer's update: keys, forward, backward. It is measured with codes computed in the step
and with codes given, as from a cache, in float32 and under bf16 autocast; the tokenizer alone likewise, and compiled.

Codes, with `--trained`: the percentage of bf16 codes that equal those of float32, for a trained image tokenizer on
real images, under autocast, where the model keeps its last layer in float32, and with everything in bf16. Both results
are kept in `benchmarks/results/image_tokenizer_cost.json`.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device

from hf_cots import COTSConfig, COTSForPreTraining, COTSImageTokenizer
from hf_cots.data.augmentation import RandomCropFlip
from hf_cots.data.collator import ImageCollator
from hf_cots.data.sources import load_pairs

from .machine import machine
from .momentum_cost import random_batch


@torch.no_grad()
def equal_codes(tokenizer: COTSImageTokenizer, pixels: torch.Tensor) -> dict[str, float]:
    """Compute the percentage of bf16 codes that equal float32's: under autocast, and with everything in bf16."""
    wanted = tokenizer.get_codebook_indices(pixels)
    with torch.autocast(pixels.device.type, torch.bfloat16):
        mixed = tokenizer.get_codebook_indices(pixels)
    halved = tokenizer.to(torch.bfloat16).get_codebook_indices(pixels)
    return {
        "bf16_autocast_percent": 100 * (mixed == wanted).float().mean().item(),
        "bf16_logits_too_percent": 100 * (halved == wanted).float().mean().item(),
        "images": len(pixels),
    }


def compare_codes(trained: str, images: str, device: str) -> dict[str, float]:
    """[`equal_codes`] of an image tokenizer's folder on crops of up to 256 images."""
    tokenizer = COTSImageTokenizer.from_pretrained(trained).eval().to(device)
    pairs = load_pairs(images, caption_column=None)
    collate = ImageCollator(RandomCropFlip(tokenizer.config.image_size))
    pixels = collate([pairs[index] for index in range(min(256, len(pairs)))])["pixel_values"]
    return equal_codes(tokenizer, pixels.to(device))


def measure_times(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure medians of the step and of the tokenizer alone, and percentages."""
    seconds: dict[str, list[float]] = defaultdict(list)

    def clock() -> float:
        if arguments.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def timed(name, call):
        start = clock()
        call()
        seconds[name].append(clock() - start)

    torch.manual_seed(0)
    model = COTSForPreTraining(COTSConfig()).to(arguments.device).train()
    batch = random_batch(model.config, arguments.batch_size, arguments.text_length)
    batch = send_to_device(batch, arguments.device)
    codes = model.image_codes(batch["pixel_values"])
    compiled = torch.compile(model.image_codes)

    def train_step(**given):
        (begun,) = model.begin_step([batch])
        model(**batch, **given, step=begun).loss.backward()
        model.zero_grad()

    for repeat in range(arguments.repeats + 1):
        for precision in ("float32", "bf16"):
            with torch.autocast(arguments.device, torch.bfloat16, enabled=precision == "bf16"):
                timed(f"step_{precision}", train_step)
                timed(f"step_{precision}_with_codes_given", lambda: train_step(codebook_indices=codes))
                timed(f"codes_{precision}", lambda: model.image_codes(batch["pixel_values"]))
                timed(f"codes_{precision}_compiled", lambda: compiled(batch["pixel_values"]))
        print(repeat, {name: round(values[-1], 2) for name, values in seconds.items()}, flush=True)
        if repeat == 0:
            seconds.clear()  # the first round pays for allocations and compilation

    medians = {name: statistics.median(values) for name, values in seconds.items()}
    result: dict[str, Any] = {
        "what": "COTS-base, seconds (of the processor on a CPU), medians",
        "batch_size": arguments.batch_size,
        "repeats": arguments.repeats,
        "seconds": medians,
    }
    for precision in ("float32", "bf16"):
        step, given = medians[f"step_{precision}"], medians[f"step_{precision}_with_codes_given"]
        result[f"share_of_the_{precision}_step_percent"] = 100 * medians[f"codes_{precision}"] / step
        result[f"saved_by_a_cache_{precision}_percent"] = 100 * (1 - given / step)
    return result | {"machine": machine(arguments.device)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--text_length", type=int, default=32)
    parser.add_argument("--trained", nargs=2, metavar=("TOKENIZER", "IMAGES"), help="compare codes, take no times")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "image_tokenizer_cost.json")
    arguments = parser.parse_args()
    if arguments.trained:
        tokenizer, images = arguments.trained
        result = {"codes_equal_to_float32": compare_codes(tokenizer, images, arguments.device)}
    else:
        result = measure_times(arguments)
    written = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(written | result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
