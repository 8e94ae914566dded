"""Where the files of a dual encoder are, which sentence-transformers may keep in a folder of their own."""

import json
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file


# Modules of sentence-transformers that hold a model of transformers, and those that leave a normalized embedding be.
ENCODERS, TRANSPARENT = ("CLIPModel", "Transformer"), ("Normalize",)


def locate_dual_encoder(source: str, **hub: Any) -> tuple[str, str]:
    """Where config, weights and processor of a dual encoder lie: the Hub id or folder, and the subfolder in it.

    sentence-transformers lists modules in `modules.json`, and may keep the model itself in `0_CLIPModel/`.

    Args:
        source: Hub id or folder.
        hub: `revision` and `token`.

    Raises:
        ValueError: if its modules make more of the encoder's output than a normalized embedding.
    """
    options = {f"_raise_exceptions_for_{reason}": False for reason in ("missing_entries", "connection_errors")}
    listed = cached_file(source, "modules.json", **options, **hub)
    if listed is None:
        return source, ""
    try:
        modules = json.loads(Path(listed).read_text(encoding="utf-8"))
        names = [module["type"].rpartition(".")[2] for module in modules]
        subfolder = modules[0]["path"] if modules else ""
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{listed} is not a valid file of sentence-transformers") from None
    if not names or names[0] not in ENCODERS or not set(names[1:]) <= set(TRANSPARENT):
        raise ValueError(
            f"{source} (sentence-transformers) cannot become a COTS: its modules are {', '.join(names) or 'none'}; "
            "take a dual encoder without others, such as sentence-transformers/clip-ViT-B-32"
        )
    return source, subfolder


__all__ = ["locate_dual_encoder"]
