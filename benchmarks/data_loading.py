"""What one core does for training data: pairs a second of decode, crop, normalize, tokenize and mask.

    python -m benchmarks.data_loading

JPEGs of 640 x 480 pixels and about 100 KB are made from smooth noise, with captions of 12 words. Each stage runs over
all pairs in turn, several times; the figure is the CPU time of a pair, the least of the rounds. Beside the stages of
`COTSCollator` two alternatives are measured:

    uint8     the collator hands over 8-bit pixels, and the device normalizes: what the workers would save
    draft     the JPEG decoder gives a half or less of each side where that is enough for the whole image (not a crop)

`eats` is what a GPU takes in, computed: utilization 0.35 of its dense bf16 peak over the operations of a training step
of COTS-base, counted without computing them; `cores` that keep it busy follow from the pairs of one core.
"""

import argparse
import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertTokenizer
from transformers.initialization import no_init_weights

from hf_cots import COTSConfig, COTSForPreTraining, COTSImageProcessor, COTSProcessor, RandomCropFlip
from hf_cots.data.collator import COTSCollator
from hf_cots.data.images import read_image
from hf_cots.models.masking import draw_masks, mix
from hf_cots.models.token_level import find_masked, mask_settings

from .machine import machine


UTILIZATION = 0.35
PEAKS = {"L4": 121, "A100": 312, "H100": 989}  # the makers' dense bf16 TFLOPS
WORDS = [a + b for a in ("red", "big", "old", "far", "sea") for b in ("bird", "tree", "road", "hat", "moon", "cup")]


def make_jpegs(count: int) -> list[bytes]:
    """Smooth noise with grain, about as large as photographs are."""
    files = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        smooth = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((640, 480))
        grain = np.asarray(smooth, dtype=np.int16) + rng.integers(-12, 13, (480, 640, 3))
        buffer = io.BytesIO()
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=87)
        files.append(buffer.getvalue())
    return files


def draft(data: bytes, side: int) -> Image.Image:
    """Decode at the smallest scale of the JPEG decoder that has at least `side` pixels on each side."""
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (side, side))
    return image.convert("RGB")


def least_milliseconds(run: Callable[[], Any], pairs: int, rounds: int) -> float:
    """CPU milliseconds of one of `pairs`, the least of the rounds."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        times.append((time.process_time() - start) / pairs * 1000)
    return round(min(times), 3)


def processor_of(side: int) -> COTSProcessor:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = BertTokenizer(vocab={word: i for i, word in enumerate([*special, *WORDS])}, model_max_length=64)
    return COTSProcessor(COTSImageProcessor(size={"height": side, "width": side}), words)


def measure(side: int, count: int, rounds: int) -> dict[str, Any]:
    """The stages at one image size."""
    files, rng = make_jpegs(count), np.random.default_rng(0)
    captions = [" ".join(rng.choice(WORDS, 12)) for _ in files]
    config, processor, crop = COTSConfig(), processor_of(side), RandomCropFlip(side)
    config = config.at_image_size(side)
    config.mask_token_id, config.special_token_ids = 4, [0, 1, 2, 3, 4]
    collate = COTSCollator(processor, config, crop)
    images = [read_image(data) for data in files]
    seeds = [mix(i) for i in range(count)]
    crops = [crop(image, np.random.default_rng(i)) for i, image in enumerate(images)]
    pixels = np.stack([np.asarray(image) for image in crops])
    tokens = processor.tokenizer(captions, padding=True, return_tensors="np")["input_ids"]
    items = [{"caption": c, "image_id": i, "seed": s} for i, (c, s) in enumerate(zip(captions, seeds))]

    def whole() -> None:
        collate([item | {"image": read_image(data)} for item, data in zip(items, files)])

    stages = {
        "decode": lambda: [read_image(data) for data in files],
        "crop": lambda: [crop(image, np.random.default_rng(i)) for i, image in enumerate(images)],
        "normalize": lambda: processor.image_processor(crops, do_resize=False, return_tensors="pt"),
        "tokenize": lambda: processor.tokenizer(captions, padding=True, return_tensors="pt"),
        "mask": lambda: draw_masks(seeds, tokens, None, **mask_settings(config)),
        "whole": whole,
        "uint8": lambda: torch.from_numpy(np.stack([np.asarray(image) for image in crops])).permute(0, 3, 1, 2),
        "normalize_uint8_here": lambda: normalize(torch.from_numpy(pixels), config),
        "decode_draft": lambda: [draft(data, side) for data in files],
    }
    times = {name: least_milliseconds(run, count, rounds) for name, run in stages.items()}
    rate = 1000 / times["whole"]
    saved = times["normalize"] - times["uint8"]
    flops = count_operations(config)
    return {
        "image_size": side,
        "jpeg_kilobytes": round(sum(map(len, files)) / count / 1000),
        "cpu_milliseconds_of_a_pair": times,
        "pairs_per_second_and_core": round(rate),
        "uint8_saves_percent": round(100 * saved / times["whole"], 1),
        "draft_saves_percent_of_decode": round(100 * (1 - times["decode_draft"] / times["decode"]), 1),
        "gigaflop_of_a_pair": round(flops / 1e9),
        "eats": {
            gpu: {"pairs_per_second": round(eaten), "cores": round(eaten / rate, 1)}
            for gpu, peak in PEAKS.items()
            for eaten in [UTILIZATION * peak * 1e12 / flops]
        },
    }


def normalize(pixels: torch.Tensor, config: COTSConfig) -> torch.Tensor:
    """8-bit pixels (n, height, width, 3) as the model takes them; the work that a device would take over."""
    mean, std = torch.tensor(config.image_mean), torch.tensor(config.image_std)
    return ((pixels.permute(0, 3, 1, 2) * (1 / 255) - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)).contiguous()


def count_operations(config: COTSConfig, pairs: int = 8, length: int = 16) -> float:
    """Operations of a pair in a training step with all levels: keys, losses, and their gradients."""
    masks = draw_masks(list(range(pairs)), np.full((pairs, length), 999), None, **mask_settings(config))
    drawn = {name: torch.from_numpy(mask) for name, mask in masks.items()}
    found, side = find_masked(config, drawn), config.vision_config.image_size
    # PyTorch counts no operations of the attention that it has for CPUs.
    with FakeTensorMode(allow_non_fake_inputs=True), no_init_weights(), sdpa_kernel(SDPBackend.MATH):
        model = COTSForPreTraining(config).train()
        batch = drawn | {"pixel_values": torch.empty(pairs, 3, side, side), "masked_positions": found}
        batch |= {"input_ids": drawn["masked_input_ids"], "image_ids": torch.arange(pairs)}
        with FlopCounterMode(display=False) as counter:
            (step,) = model.begin_step([batch])
            model(**batch, step=step).loss.backward()
    return counter.get_total_flops() / pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--image_sizes", type=int, nargs="+", default=[224, 384])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "data_loading.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for side in options.image_sizes:
        results.append(measure(side, options.pairs, options.rounds) | {"load_before": round(os.getloadavg()[0], 1)})
        print(json.dumps(results[-1], indent=2), flush=True)
    report = {"what": __doc__.splitlines()[0], "machine": machine(), "results": results}
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
