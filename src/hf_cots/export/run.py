"""`hf-cots export` as a class: export a model to a folder that every search verb accepts."""

import json
import os
import tempfile
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from .._errors import check_output_folder
from ..data.sources import PairDataset
from ..evaluation.retrieval.report import installed_versions
from ..search.exported import (
    EXPORT_FILE,
    PACKAGES,
    VERSION,
    ExportedEncoder,
    import_package,
    is_exported,
    load_exported,
    tower_files,
)
from ..search.fingerprint import describe_model
from ..search.loading import load_encoder
from ..search.torch_encoders import DualEncoder, text_options
from .cost import measure_cost
from .precision import LARGEST_DIFFERENCE, PRECISIONS, lower_precision
from .towers import KINDS, example_inputs, write_tower


VERSIONS = ("hf-cots", "torch", "transformers", "numpy", "tokenizers", "onnx", "onnxscript", "onnxruntime", "openvino")
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}
MIN_OVERLAP = 0.97


class ExportRefused(ValueError):
    """An export changes what is found by more than is allowed; nothing was written."""


@dataclass(frozen=True)
class Export:
    """An export of a dual encoder.

    Args:
        model: Hub id or folder.
        output: the folder to write.
        format: "onnx" or "openvino".
        precision: "fp32", "fp16" or "int8".
        text_precision: another one for the text tower.
        pairs: image-text pairs on which to compare the export with the model.
        pairs_name: what export.json calls them.
        min_overlap: what its top-10 overlap must be at least, in the worse direction.
        batch_size: images in a forward pass.
        revision: of the model on the Hub.
    """

    model: str
    output: Path
    format: str = "onnx"
    precision: str = "fp32"
    text_precision: str | None = None
    pairs: PairDataset | None = None
    pairs_name: str = ""
    min_overlap: float = MIN_OVERLAP
    batch_size: int = 64
    revision: str | None = None

    def run(self) -> dict[str, Any]:
        """Write towers, processor and export.json, or nothing at all.

        Returns:
            What export.json says.

        Raises:
            OSError, ValueError: naming what is wrong with the model, the output or an option.
            ExportRefused: if the overlap is below `min_overlap`.
            ModuleNotFoundError: naming the extra to install.
        """
        self.check()
        encoder = load_encoder(self.model, "cpu", self.revision)
        if not isinstance(encoder, DualEncoder):
            raise ValueError(f"{self.model} is not a dual encoder of transformers, and only those can be exported")
        self.output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.output.parent, prefix=f".{self.output.name}.") as draft:
            about = self._write(encoder, Path(draft))
            self._remove_earlier()
            self.output.mkdir(exist_ok=True)
            for path in sorted(Path(draft).iterdir(), key=lambda path: path.name == EXPORT_FILE):  # that one last
                os.replace(path, self.output / path.name)
        return about

    def _remove_earlier(self) -> None:
        """Remove the towers of an earlier export, which may be of another format."""
        if is_exported(self.output):
            (self.output / EXPORT_FILE).unlink()
            for path in [path for kind in KINDS for path in tower_files(self.output, kind)]:
                path.unlink()

    def check(self) -> None:
        """Check the options and that the runtime is there, before the work.

        Raises:
            OSError, ValueError: naming the flag or the folder.
            ModuleNotFoundError: naming the extra to install.
        """
        if self.format not in PACKAGES:
            raise ValueError(f"--format must be {' or '.join(PACKAGES)}, not {self.format!r}")
        for flag, precision in (("--precision", self.precision), ("--text-precision", self.text_precision)):
            if precision is not None and precision not in PRECISIONS[self.format]:
                known = ", ".join(PRECISIONS[self.format])
                raise ValueError(f"{flag} must be one of {known} for --format {self.format}, not {precision!r}")
        if not 0 <= self.min_overlap <= 1:
            raise ValueError(f"--min-overlap must be from 0 to 1, got {self.min_overlap}")
        if "int8" in self.precisions().values() and self.pairs is None and self.min_overlap > 0:
            raise ValueError(
                "int8 changes search results: give pairs with --eval-data to measure by how much, or accept any "
                "change with --min-overlap 0"
            )
        check_output_folder(self.output)
        if self.output.is_dir() and any(self.output.iterdir()) and not is_exported(self.output):
            raise ValueError(
                f"--output {self.output} contains other files: choose a new folder, or that of an earlier export"
            )
        for package in NEEDED[self.format]:
            import_package(package, self.format)

    def precisions(self) -> dict[str, str]:
        """The precision of each tower."""
        return {"image": self.precision, "text": self.text_precision or self.precision}

    def _write(self, encoder: DualEncoder, folder: Path) -> dict[str, Any]:
        """Write all files and check them."""
        encoder.processor.save_pretrained(folder)
        precisions = self.precisions()
        about: dict[str, Any] = {
            "version": VERSION,
            "format": self.format,
            "dim": encoder.dim,
            "text_options": {
                name: text_options(encoder.model, encoder.processor.tokenizer)[name]
                for name in ("padding", "max_length")
            },
            "towers": {},
            "source": {"name": self.model, "revision": self.revision, "fingerprint": describe_model(encoder)},
            "versions": installed_versions(VERSIONS),
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "bytes_of_source": sum(tensor.nbytes for tensor in encoder.model.state_dict().values()),
            "evaluation": None,
        }
        for kind in KINDS:
            inputs = write_tower(encoder, kind, folder, self.format)
            lower_precision(folder, kind, self.format, precisions[kind])
            size = sum(path.stat().st_size for path in tower_files(folder, kind))
            about["towers"][kind] = {"precision": precisions[kind], "inputs": inputs, "bytes": size}
        _write_json(folder / EXPORT_FILE, about)
        exported = load_exported(folder)
        about["largest_difference"] = self._check_examples(encoder, exported)
        if self.pairs is not None:
            about["evaluation"] = measure_cost(encoder, exported, self.pairs, self.pairs_name, self.batch_size)
            self._check_overlap(about["evaluation"]["overlap"])
        _write_json(folder / EXPORT_FILE, about)
        return about

    def _check_examples(self, encoder: DualEncoder, exported: ExportedEncoder) -> dict[str, float]:
        """The largest difference of any component of the embeddings of some images and texts, by tower.

        Raises:
            ValueError: if it is more than the precision explains.
        """
        found = {}
        for kind in KINDS:
            inputs = example_inputs(encoder, kind)
            with torch.no_grad():
                features = getattr(encoder.model, f"get_{kind}_features")(**inputs).pooler_output
            expected = torch.nn.functional.normalize(features.float(), dim=1)
            ours = exported.towers[kind]({name: tensor.numpy() for name, tensor in inputs.items()})
            found[kind] = float((expected - torch.from_numpy(ours)).abs().max())
            precision = self.precisions()[kind]
            if not found[kind] <= LARGEST_DIFFERENCE[precision]:  # NaN neither
                raise ValueError(
                    f"{self.model}: the {kind} tower in {self.format} and {precision} gives different embeddings, by "
                    f"up to {found[kind]:.2g}, and was not written"
                )
        return found

    def _check_overlap(self, overlap: dict[str, Any]) -> None:
        if overlap["lowest"] >= self.min_overlap:
            return
        alone = overlap["top_10"]
        raise ExportRefused(
            f"the top-10 overlap with {self.model} on {self.pairs_name} is {overlap['lowest']:.3f}, below "
            f"--min-overlap {self.min_overlap:g} (image tower alone {alone['image_encoder']:.3f}, text tower alone "
            f"{alone['text_encoder']:.3f}); nothing was written: choose a higher --precision or --text-precision, or "
            "accept it with a lower --min-overlap"
        )


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
