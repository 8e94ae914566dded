"""Embeddings that lie in files and are read block by block, for galleries that memory does not hold."""

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open


def open_embeddings(path: Path | str, name: str | None = None) -> torch.Tensor:
    """Map a file of embeddings into memory; nothing is read before it is used.

    Args:
        path: `.npy`, or `.safetensors`.
        name: of the tensor in a safetensors file; not needed if it is the only one.

    Returns:
        (n, D) of the file's floating type, for [`hf_cots.evaluation.retrieval.ranking.rank_queries`].

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is of another kind or holds no such matrix.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if path.suffix == ".npy":
        # Copy on write: PyTorch knows no tensors that must not be written to, and the file stays as it is.
        embeds = torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
    elif path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                if name is None and len(names) != 1:
                    raise ValueError(f"{path} holds {', '.join(names) or 'nothing'}: name one of them")
                embeds = file.get_tensor(name or names[0])
        except SafetensorError as error:
            raise ValueError(f"{path}: {error}") from None
    else:
        raise ValueError(f"{path}: embeddings are read from .npy or .safetensors files")
    if embeds.ndim != 2 or not embeds.is_floating_point():
        raise ValueError(f"{path}: holds {embeds.dtype} of shape {tuple(embeds.shape)}, not one vector a row")
    return embeds
