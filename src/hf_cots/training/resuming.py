"""What a checkpoint records about its run, and checks whether another run can resume from it.

Resuming restores weights, optimizer, schedule, random state and the position in the data. Any other difference would
change the run silently: it is an error if it cannot be intended, and is otherwise listed in one warning.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import Trainer, TrainingArguments

from ..data.batches import PairBatches
from ..data.frozen_features import StoredFeaturePairs
from ..data.hashes import hex_digest
from ..data.sources import PairDataset
from ..data.streams import PairStream, StreamBatches
from ..data.translations import TranslationPairs
from ..models.renamed_fields import RENAMED_BUFFERS
from .checkpoints import read_state


logger = logging.getLogger(__name__)

RUN = "run.json"
POSITION, STREAM_POSITION = "position.json", "stream_position.json"
ADAPTERS = "adapter_model.safetensors"

# Another value would change the order of the data or the augmentation, or could not take effect.
SEEDS = ("seed", "data_seed")
FROM_OPTIMIZER = (
    *("optim", "learning_rate", "vision_learning_rate", "text_learning_rate", "layer_decay", "weight_decay"),
    "embedding_learning_rate",
    *("adam_beta1", "adam_beta2", "adam_epsilon"),
)
# Another value takes effect from here on.
MAY_DIFFER = (
    *("max_steps", "num_train_epochs", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_grad_norm"),
    *("world_size", "gradient_cache", "dataloader_drop_last", "ema_decay", "early_stopping_patience"),
)
SAMPLED = 64  # pairs that are compared to tell one data set from another
NOT_COMPARED = ("transformers_version", "_name_or_path", "architectures", "dtype")


# ---------------------------------------------------------------------- describing a run


def describe_run(trainer: Trainer) -> dict[str, Any]:
    """Describe what must agree for a run to resume from a checkpoint, as plain JSON types."""
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    pairs_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    settings = {name: getattr(args, name, None) for name in (*SEEDS, *FROM_OPTIMIZER, *MAY_DIFFER)}
    settings["pairs per step"] = pairs_per_step
    settings["precision"] = "bf16" if args.bf16 else "fp16" if args.fp16 else "float32"
    augmentation = getattr(trainer.data_collator, "augmentation", None)
    for name in ("min_scale", "flip"):
        settings[name] = getattr(augmentation, name, None)
    settings["recolor"] = getattr(augmentation, "recolor", None) or None  # as in older runs, which do not have it
    adapters = getattr(model, "peft_config", None) or {}
    run = {
        "settings": settings,
        "data": describe_data(trainer.train_dataset),
        "model_type": model.config.model_type,
        "lora_rank": next((config.r for config in adapters.values()), 0),
        "trained": [name for name, parameter in model.named_parameters() if parameter.requires_grad],
        "config": dict(flatten(model.config.to_dict())),
    }
    return json.loads(json.dumps(run, default=str))  # tuples become lists and enumerations texts, as when read


def flatten(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten a config and its sub-configs to dotted names."""
    for name, value in fields.items():
        if name in NOT_COMPARED:
            continue
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def describe_data(data: Any) -> dict[str, Any]:
    """The number of pairs and a digest of some of them; for a stream, of the first row. Folders can be moved."""
    if isinstance(data, StoredFeaturePairs):
        data = data.pairs
    if isinstance(data, PairStream):
        data.table.load_state_dict(data.start)
        rows = [pair for row in first_of(data.table) for pair in data.split_row(row, 0, 0)]
        return {"streaming": True, "pairs": None, "digest": digest((pair.caption, pair.cell) for pair in rows)}
    if isinstance(data, TranslationPairs):
        return {"streaming": False, "pairs": len(data), "digest": data.fingerprint()}
    if not isinstance(data, PairDataset):
        return {"streaming": False, "pairs": len(data), "digest": None}
    chosen = sorted({index * len(data) // SAMPLED for index in range(SAMPLED)})
    cells = ((data.caption(i), data.table[int(data.pair_rows[i])][data.image_column]) for i in chosen)
    return {"streaming": False, "pairs": len(data), "digest": digest(cells)}


def first_of(table) -> list[dict[str, Any]]:
    """The first row of a stream, if it has one."""
    for row in table:
        return [row]
    return []


def digest(pairs) -> str:
    """Of captions and images, each image by its file's name or, without one, its bytes."""
    return hex_digest((f"{caption}\0{image_key(cell)}\0".encode() for caption, cell in pairs), digest_size=8)


def image_key(cell: Any) -> str:
    """The name of an image's file, or a digest of its bytes."""
    path, data = (cell.get("path"), cell.get("bytes")) if isinstance(cell, dict) else (cell, None)
    if isinstance(path, str):
        return Path(path).name
    data = data if isinstance(data, bytes) else path if isinstance(path, bytes) else b""
    return hex_digest([data])


# ---------------------------------------------------------------------- what a checkpoint holds


def write_run(folder: Path, run: dict[str, Any]) -> None:
    """Write what [`describe_run`] found."""
    (folder / RUN).write_text(json.dumps(run) + "\n")


def write_position(folder: Path, batches: PairBatches | StreamBatches, drawn: int) -> None:
    """Write the position after `drawn` batches since this epoch was begun or entered."""
    name = STREAM_POSITION if isinstance(batches, StreamBatches) else POSITION
    (folder / name).write_text(json.dumps(batches.state_dict(drawn)) + "\n")


def read_position(folder: Path, batches: PairBatches | StreamBatches, args: TrainingArguments) -> dict[str, Any]:
    """Read a checkpoint's position in the data.

    Raises:
        ValueError: if the checkpoint is of a stream and this run is not, or the other way round.
    """
    stream = (folder / STREAM_POSITION).is_file()
    if stream != isinstance(batches, StreamBatches):
        raise ValueError(f"cannot resume {folder}: its run used {'' if stream else 'no '}--streaming")
    path = folder / (STREAM_POSITION if stream else POSITION)
    if path.is_file():
        return json.loads(path.read_text())
    state = read_state(folder)
    if state.get("train_batch_size") not in (None, args.train_batch_size):
        logger.warning(
            "%s has no position in the data: assuming that its steps had %d pairs, as in this run",
            *(folder, batches.global_size * args.gradient_accumulation_steps),
        )
    assert isinstance(batches, PairBatches)  # of a stream, `state` would be its position
    steps_per_epoch = max(1, -(-len(batches) // args.gradient_accumulation_steps))
    epoch, steps = divmod(state["global_step"], steps_per_epoch)
    return {"epoch": epoch, "offset": steps * args.gradient_accumulation_steps * batches.global_size}


# ---------------------------------------------------------------------- may this run go on from it?


def check_checkpoint(folder: Path, run: dict[str, Any], model: torch.nn.Module) -> str | None:
    """Check that this run can resume from a complete checkpoint.

    Args:
        folder: the checkpoint.
        run: from [`describe_run`].
        model: the model without wrappers.

    Returns:
        A warning that lists the settings that differ but are allowed to; None if there are none.

    Raises:
        ValueError: naming a difference that is not allowed.
    """
    before = json.loads((folder / RUN).read_text()) if (folder / RUN).is_file() else None
    for problem in (
        find_other_model(folder, run, before),
        find_other_run(run, before) if before else None,
        find_other_weights(folder, run, model),
    ):
        if problem:
            raise ValueError(f"cannot resume {folder}: {problem}")
    changes = list(list_changes(run, before)) if before else []
    if not changes:
        return None
    more = f" and {len(changes) - 8} more" if len(changes) > 8 else ""
    return f"resuming {folder} with other settings than its run: {', '.join(changes[:8])}{more}"


def find_other_model(folder: Path, run: dict[str, Any], before: dict[str, Any] | None) -> str | None:
    """Say how a checkpoint's model differs in kind from this run's, or None."""
    kind = (before or {}).get("model_type")
    if kind is None and (folder / "config.json").is_file():
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
    if kind is not None and kind != run["model_type"]:
        return f"it is of a model of type '{kind}', and this run trains one of type '{run['model_type']}'"
    if (folder / ADAPTERS).is_file() and not run["lora_rank"]:
        return "it holds LoRA adapters; pass the --lora_rank of its run"
    if run["lora_rank"] and not (folder / ADAPTERS).is_file():
        return "it contains no LoRA adapters; leave out --lora_rank"
    return None


def find_other_run(run: dict[str, Any], before: dict[str, Any]) -> str | None:
    """Say how a checkpoint's run differs from this one, or None."""
    now, then = run["settings"], before["settings"]
    for name in SEEDS:
        if now[name] != then.get(name):
            return f"--{name} is {now[name]} and was {then[name]}, which would change the order of the data"
    data, other = run["data"], before["data"]
    if data["streaming"] != other["streaming"]:
        return f"its run {'used' if other['streaming'] else 'did not use'} --streaming"
    if data != other:
        counts = f" ({data['pairs']} pairs and {other['pairs']})" if data["pairs"] != other["pairs"] else ""
        return f"--train_data is other data than that of its run{counts}; a new run can start from --model"
    if run["lora_rank"] != before["lora_rank"]:
        return f"--lora_rank is {run['lora_rank']} and was {before['lora_rank']}"
    for name in FROM_OPTIMIZER:
        if now[name] != then.get(name):
            return (
                f"--{name} is {now[name]} and was {then.get(name)}, but a resumed run has the optimizer of its "
                "checkpoint; leave it as it was, or start a new run with --model"
            )
    added, missing = set(run["trained"]) - set(before["trained"]), set(before["trained"]) - set(run["trained"])
    if added or missing:
        return (
            f"{len(missing)} parameters that its run trained are not trained by this one, and {len(added)} the other "
            f"way round, such as {min(added or missing)}: --freeze must be as it was"
        )
    return None


def list_changes(run: dict[str, Any], before: dict[str, Any]) -> Iterator[str]:
    """List the settings that differ and take effect from the checkpoint on."""
    for kind in ("settings", "config"):
        for name in sorted(run[kind].keys() | before[kind].keys()):
            now, then = run[kind].get(name), before[kind].get(name)
            if now != then:
                yield f"{name} {now} (was {then})"


def find_other_weights(folder: Path, run: dict[str, Any], model: torch.nn.Module) -> str | None:
    """Say how a checkpoint's tensors differ from the model's, or None: Trainer would load those with matching
    names."""
    files = [path for path in sorted(folder.glob("model*.safetensors")) if path.is_file()]
    if not files or run["lora_rank"]:
        return None
    shapes: dict[str, list[int]] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            shapes |= {present_name(name): file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    state = model.state_dict()
    for name, shape in shapes.items():
        if name not in state:
            return f"its tensor {name} is none of this run's model"
        if shape != list(state[name].shape):
            return f"its tensor {name} has shape {shape}, and this run's {list(state[name].shape)}"
    # Of tensors that share memory one is saved.
    saved = {state[name].data_ptr() for name in shapes}
    missing = [name for name, tensor in state.items() if name not in shapes and tensor.data_ptr() not in saved]
    return f"it has no tensor {missing[0]}, which this run's model has" if missing else None


def present_name(tensor: str) -> str:
    """The current name of a checkpoint's tensor, which older versions may have named differently."""
    prefix, dot, name = tensor.rpartition(".")
    return f"{prefix}{dot}{RENAMED_BUFFERS.get(name, name)}"


def find_other_moments(optimizer: torch.optim.Optimizer) -> str | None:
    """Say how a loaded optimizer state does not match the optimizer's parameters, or None."""
    for parameter, state in optimizer.state.items():
        for name in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
            if state.get(name) is not None and state[name].shape != parameter.shape:
                shapes = f"{list(state[name].shape)} for a parameter of shape {list(parameter.shape)}"
                return f"its optimizer has a state of shape {shapes}: its run trained other parameters"
    return None
