"""Lower the precision of exported towers, with the tools that ONNX Runtime and OpenVINO ship."""

import logging
from math import prod
from pathlib import Path
from typing import Any

from ..search.exported import import_package, tower_path


# int8 in OpenVINO is made by nncf, a large package of its own.
PRECISIONS = {"onnx": ("fp32", "fp16", "int8"), "openvino": ("fp32", "fp16")}
# Of any component of an embedding of length 1; int8 is checked by its top-10 overlap.
LARGEST_DIFFERENCE = {"fp32": 1e-4, "fp16": 1e-2, "int8": 1.0}
# 8-bit weights in blocks of 32 with a scale each, by which activations are quantized too, row by row. With one scale
# for a whole batch of activations, as in `quantize_dynamic`, a text's embedding depends on the others of its batch,
# and the demo's top-10 overlap is 0.93 in place of 0.99 (texts), 0.94 in place of 0.99 (images).
BLOCK_SIZE, INT8_ACTIVATIONS = 32, 4
SMALLEST_SHARE = 0.5  # of a tower's matrices that int8 must reach


def lower_precision(folder: Path, kind: str, format: str, precision: str) -> None:
    """Rewrite a tower's file, which is in fp32, in another precision.

    Raises:
        ModuleNotFoundError: naming the extra to install.
        ValueError: if int8 would leave most of the weights as they are.
    """
    path = tower_path(folder, kind, format)
    if precision == "fp32":
        return
    if format == "openvino":
        _compress_openvino(path)
    elif precision == "fp16":
        _to_half(path)
    else:
        _quantize(path, kind)


def _compress_openvino(path: Path) -> None:
    openvino = import_package("openvino", "openvino")
    model, draft = openvino.Core().read_model(str(path)).clone(), path.with_name(f"draft_{path.name}")
    openvino.save_model(model, str(draft), compress_to_fp16=True)
    del model
    for suffix in (".xml", ".bin"):
        draft.with_suffix(suffix).replace(path.with_suffix(suffix))


def _to_half(path: Path) -> None:
    onnx, float16 = import_package("onnx", "onnx"), import_package("onnxruntime.transformers.float16", "onnx")
    onnx.save(float16.convert_float_to_float16(onnx.load(str(path)), keep_io_types=True), str(path))


def _quantize(path: Path, kind: str) -> None:
    onnx = import_package("onnx", "onnx")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    tools = import_package("onnxruntime.quantization.matmul_nbits_quantizer", "onnx")
    root.handlers[:] = handlers  # importing it makes the whole program print what any library logs
    root.setLevel(level)
    tools.logger.setLevel(logging.ERROR)
    model = onnx.load(str(path))
    before = weight_bytes(model)
    settings = tools.DefaultWeightOnlyQuantConfig(  # the quantizer itself takes the bits since onnxruntime 1.24 only
        bits=8, block_size=BLOCK_SIZE, is_symmetric=True, accuracy_level=INT8_ACTIVATIONS
    )
    quantizer = tools.MatMulNBitsQuantizer(model, algo_config=settings)
    quantizer.process()
    share = 1 - weight_bytes(quantizer.model.model) / before
    if share < SMALLEST_SHARE:
        raise ValueError(
            f"int8 only covers {share:.0%} of the {kind} tower's weights outside embeddings (those of linear layers): "
            "export it in fp32 (for an image tower: --precision fp32 --text-precision int8)"
        )
    quantizer.model.save_model_to_file(str(path))


def weight_bytes(model: Any) -> int:
    """Bytes of a graph's float32 weights that are multiplied, in linear layers and convolutions."""
    floats = {each.name: 4 * prod(each.dims) for each in model.graph.initializer if each.data_type == 1}
    used = {name for node in model.graph.node if node.op_type in ("MatMul", "Gemm", "Conv") for name in node.input}
    return sum(floats[name] for name in used & floats.keys())
