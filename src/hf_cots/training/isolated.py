"""Computes a saved model's outputs as users without this package would; this file imports nothing from it.

Run as a program, `python isolated.py FOLDER OUTPUT.safetensors`, it blocks imports of hf_cots, as if not installed.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image


TEXTS = ("a photo of the dog", "a small cat, sitting on a mat")


class NotInstalled:
    """An import hook that hides the package hf_cots."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "hf_cots":
            raise ModuleNotFoundError("No module named 'hf_cots'", name="hf_cots")


def compute_outputs(folder: Path | str, trust_remote_code: bool) -> dict[str, torch.Tensor]:
    """Compute all output tensors of a folder's model for two images and two texts; of an image tokenizer, for pixels.

    Args:
        folder: of the saved model.
        trust_remote_code: use the code in the folder instead of the package's.
    """
    from transformers import AutoConfig, AutoModel, AutoProcessor

    options = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    config = AutoConfig.from_pretrained(folder, **options)
    model = AutoModel.from_pretrained(folder, **options).eval()
    generator = np.random.default_rng(0)
    if config.model_type == "cots_image_tokenizer":
        side = config.image_size
        inputs = {"pixel_values": torch.from_numpy(generator.random((2, 3, side, side), dtype=np.float32))}
    else:
        images = [Image.fromarray(generator.integers(0, 256, (50, 40, 3), dtype=np.uint8)) for _ in range(2)]
        processor = AutoProcessor.from_pretrained(folder, **options)
        inputs = dict(processor(images=images, text=list(TEXTS), return_tensors="pt"))
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = model(**inputs)
    tensors = {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}
    return {name: value.contiguous().clone() for name, value in (inputs | tensors).items()}


if __name__ == "__main__":
    sys.meta_path.insert(0, NotInstalled)  # type: ignore[arg-type]  # a class with the hook's one method
    from safetensors.torch import save_file

    save_file(compute_outputs(sys.argv[1], trust_remote_code=True), sys.argv[2])
