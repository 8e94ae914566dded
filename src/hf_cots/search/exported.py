"""Run exported models: two towers in ONNX Runtime or OpenVINO, and the processor saved beside them.

[`hf_cots.export`] writes such folders. The towers take and return numpy arrays; nothing here needs torch.
"""

import importlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from transformers import AutoProcessor, ProcessorMixin

from ..data.hashes import hex_digest
from ..models import as_texts, load_image
from .encoders import EncodingSteps, LoadedEncoder, TextLimit
from .encoding import AnyImage, as_items, embed_ahead, embed_by_length
from .fingerprint import describe_processor, hash_json
from .vectors import l2_normalize


EXPORT_FILE = "export.json"
VERSION = 1  # version of this file's fields
PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}  # by format, which is also the name of the pip extra
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}
Tower: TypeAlias = Callable[[Mapping[str, np.ndarray]], np.ndarray]


def import_package(name: str, extra: str) -> Any:
    """Import a package that runs or writes exported models.

    Raises:
        ModuleNotFoundError: naming the extra to install.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{name.partition('.')[0]} is not installed, which exported models need: pip install 'hf-cots[{extra}]'"
        ) from None


def tower_path(folder: Path, kind: str, format: str) -> Path:
    """Return the file of the "image" or "text" tower; its weights may be in other files with the same stem."""
    return folder / f"{kind}_encoder{SUFFIXES[format]}"


def tower_files(folder: Path, kind: str) -> list[Path]:
    """List all files of a tower."""
    return sorted(folder.glob(f"{kind}_encoder.*"))


def open_tower(path: Path, format: str) -> Tower:
    """Open a tower on the CPU, with OMP_NUM_THREADS threads (as torch) or else the runtime's default.

    Raises:
        ModuleNotFoundError: naming the extra to install.
        ValueError: if the runtime cannot read the file.
    """
    package, threads = import_package(PACKAGES[format], format), int(os.environ.get("OMP_NUM_THREADS", "0"))
    try:
        return (_open_onnx if format == "onnx" else _open_openvino)(package, path, threads)
    except Exception as error:  # the runtimes have their own errors, some of them plain RuntimeErrors
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"{path}: {PACKAGES[format]} cannot open this file ({reason[0]}): export the model again"
        ) from error


def _open_onnx(onnxruntime: Any, path: Path, threads: int) -> Tower:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, dict(inputs))[0]


def _open_openvino(openvino: Any, path: Path, threads: int) -> Tower:
    # By default OpenVINO computes in bfloat16 on CPUs that support it.
    options = {"INFERENCE_PRECISION_HINT": "f32"} | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
    compiled = openvino.Core().compile_model(str(path), "CPU", options)
    return lambda inputs: compiled.create_infer_request().infer(dict(inputs))[0]


@dataclass(frozen=True)
class ExportedEncoder(LoadedEncoder):
    """An [`Encoder`] written by `hf-cots export`. It runs on the CPU.

    Attributes:
        folder: the exported folder.
        about: content of its export.json.
        towers: the towers by kind, "image" and "text".
        processor: the processor of the source model.
        name: name in reports.
    """

    folder: Path
    about: dict[str, Any]
    towers: dict[str, Tower]
    processor: ProcessorMixin
    name: str

    @property
    def dim(self) -> int:
        return self.about["dim"]

    @property
    def text_options(self) -> dict[str, Any]:
        """Tokenizer options for padding and truncation; see [`hf_cots.search.torch_encoders.text_options`]."""
        return {"truncation": True, **self.about["text_options"]}

    def encode_images(
        self, images: AnyImage | Iterable[AnyImage], batch_size: int = 64, total: int | None = None
    ) -> np.ndarray:
        embeds, problems = embed_ahead(as_items(images), self.prepare_image, self.embed_images, batch_size, total)
        for broken in filter(None, problems):
            raise broken
        return np.concatenate(embeds) if embeds else np.empty((0, self.dim), np.float32)

    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> np.ndarray:
        texts = as_texts(texts)
        return embed_by_length(texts, self.embed_texts, batch_size) if texts else np.empty((0, self.dim), np.float32)

    def prepare_image(self, image: AnyImage) -> Mapping[str, np.ndarray]:
        """Preprocess one image for the image tower."""
        return self.processor(images=[load_image(image)], return_tensors="np")

    def embed_images(self, prepared: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
        """Embed images preprocessed by [`prepare_image`] in one forward pass; returns (n, dim)."""
        names = self.about["towers"]["image"]["inputs"]
        return self._run("image", {name: np.concatenate([each[name] for each in prepared]) for name in names})

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """Embed texts in one forward pass; returns (n, dim)."""
        return self._run("text", self.processor(text=texts, return_tensors="np", **self.text_options))

    def _run(self, kind: str, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        names = self.about["towers"][kind]["inputs"]
        # A float16 tower's outputs have length 1 to three digits only.
        return l2_normalize(self.towers[kind]({name: batch[name] for name in names}))

    def steps(self, batch_size: int) -> EncodingSteps:
        return self.prepare_image, self.embed_images

    def describe(self) -> dict[str, str]:
        return {"config": hash_json(self.text_options)} | describe_processor(self.processor)

    def text_limit(self) -> TextLimit:
        return self.processor.tokenizer, self.text_options["max_length"]

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        files = [path for kind in self.towers for path in tower_files(self.folder, kind)]
        return hex_digest(part for path in files for part in (path.name.encode(), path.read_bytes()))


def is_exported(folder: str | Path) -> bool:
    """Whether a folder was written by `hf-cots export`."""
    return (Path(folder) / EXPORT_FILE).is_file()


def load_exported(folder: str | Path) -> ExportedEncoder:
    """Load a model written by `hf-cots export`.

    Raises:
        OSError, ValueError: naming the file that is missing, truncated or of a later version.
        ModuleNotFoundError: naming the extra to install.
    """
    path = Path(folder)
    about = read_about(path)
    for kind in about["towers"]:
        check_files(path, kind, about["towers"][kind]["bytes"])
    towers = {kind: open_tower(tower_path(path, kind, about["format"]), about["format"]) for kind in about["towers"]}
    processor = AutoProcessor.from_pretrained(str(folder), trust_remote_code=False)
    return ExportedEncoder(path, about, towers, processor, str(folder))


def read_about(folder: Path) -> dict[str, Any]:
    """Read the export.json of a folder.

    Raises:
        ValueError: if it is invalid or of a later version.
    """
    path = folder / EXPORT_FILE
    about = json.loads(path.read_text(encoding="utf-8"))
    version = about.get("version") if isinstance(about, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise ValueError(
            f"{path} has version {version}, but this hf-cots only reads versions up to {VERSION}: upgrade hf-cots"
        )
    missing = {"version", "format", "dim", "text_options", "towers"} - set(about if isinstance(about, dict) else ())
    if missing or about["format"] not in PACKAGES:
        raise ValueError(f"{path} is not a valid file of `hf-cots export`: export the model again")
    return about


def check_files(folder: Path, kind: str, expected: int) -> None:
    """Check that a tower's files have the total size in bytes that export.json states.

    Raises:
        OSError: naming them.
    """
    found = sum(file.stat().st_size for file in tower_files(folder, kind))
    if found != expected:
        raise OSError(
            f"{folder}/{kind}_encoder has {found} bytes, but {EXPORT_FILE} says {expected}: copy it again, or export "
            "the model again"
        )
