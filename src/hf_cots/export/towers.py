"""Write the two towers of a dual encoder as files of ONNX or OpenVINO: the exporters are torch's and OpenVINO's."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from ..models.losses import l2_normalize
from ..search.exported import import_package, tower_path
from ..search.torch_encoders import DualEncoder, prepare_image, text_options


KINDS = ("image", "text")
EXAMPLES = ("a red circle on the left", "a dog", "two people at a table in the sun")  # of different lengths
LARGEST_FILE = 2**31 - 2**27  # protobuf's limit; beyond it weights lie in a file of their own


class Tower(nn.Module):
    """One tower with plain tensors in and out: normalized embeddings (n, D) float32."""

    def __init__(self, model: nn.Module, kind: str, names: list[str]):
        super().__init__()
        self.model, self.kind, self.names = model, kind, names

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        features = getattr(self.model, f"get_{self.kind}_features")
        return l2_normalize(features(**dict(zip(self.names, given))).pooler_output).float()


def example_inputs(encoder: DualEncoder, kind: str) -> dict[str, torch.Tensor]:
    """What a tower takes of three images or texts."""
    if kind == "text":
        options = text_options(encoder.model, encoder.processor.tokenizer)
        return dict(encoder.processor(text=list(EXAMPLES), return_tensors="pt", **options))
    images = [Image.linear_gradient("L").convert("RGB").resize(size) for size in ((64, 48), (40, 64), (50, 50))]
    prepared = [prepare_image(encoder.processor, image) for image in images]
    return {name: torch.cat([each[name] for each in prepared]) for name in prepared[0]}


def open_sizes(encoder: DualEncoder, kind: str, inputs: dict[str, torch.Tensor]) -> tuple[dict[int, Any], ...]:
    """Which sizes of a tower's inputs are open: the batch's, and the length of texts that are not padded to full
    length."""
    sizes: dict[int, Any] = {0: torch.export.Dim("batch")}
    if kind == "text":
        options = text_options(encoder.model, encoder.processor.tokenizer)
        full = encoder.processor(text=["a"], return_tensors="pt", **options)["input_ids"].shape[1]
        if full < next(iter(inputs.values())).shape[1]:
            sizes[1] = torch.export.Dim("length", max=options["max_length"])
    return (sizes,) * len(inputs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' own remarks, on packages that they do without and on names of axes."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def write_tower(encoder: DualEncoder, kind: str, folder: Path, format: str) -> list[str]:
    """Write a tower in the precision of its weights, with open sizes.

    Args:
        encoder: on the CPU.
        kind: "image" or "text".
        folder: for the file `image_encoder.onnx` (or `.xml`), with further files of the same stem.
        format: "onnx" or "openvino".

    Returns:
        The names of its inputs, in their order; its output is `embeds`.

    Raises:
        ModuleNotFoundError: naming the extra to install.
        ValueError: naming the tower that cannot be exported.
    """
    inputs = example_inputs(encoder, kind)
    tower, path = Tower(encoder.model, kind, list(inputs)).eval(), tower_path(folder, kind, format)
    write = _write_onnx if format == "onnx" else _write_openvino
    try:
        with _quiet(), torch.no_grad():
            write(tower, inputs, open_sizes(encoder, kind, inputs), path)
    except (RuntimeError, ValueError, NotImplementedError) as error:  # of torch.export, torch.onnx and OpenVINO
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{encoder.name}: the {kind} tower cannot be exported to {format}: {reason}") from error
    return list(inputs)


def _write_onnx(tower: Tower, inputs: dict[str, torch.Tensor], sizes: tuple[dict[int, Any], ...], path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        import_package(package, "onnx")
    weights = sum(tensor.nbytes for tensor in tower.state_dict().values())
    torch.onnx.export(
        tower,
        tuple(inputs.values()),
        str(path),
        input_names=list(inputs),
        output_names=["embeds"],
        dynamic_shapes={"given": sizes},
        dynamo=True,
        external_data=weights > LARGEST_FILE,
        verbose=False,
    )


def _write_openvino(
    tower: Tower, inputs: dict[str, torch.Tensor], sizes: tuple[dict[int, Any], ...], path: Path
) -> None:
    openvino = import_package("openvino", "openvino")
    program = torch.export.export(tower, tuple(inputs.values()), dynamic_shapes={"given": sizes})
    converted = openvino.convert_model(program)
    for given, name in zip(converted.inputs, inputs):
        given.get_tensor().set_names({name})
    converted.outputs[0].get_tensor().set_names({"embeds"})
    openvino.save_model(converted, str(path), compress_to_fp16=False)
