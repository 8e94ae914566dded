"""COTSTrainer: transformers' Trainer with COTS's order of a step, its named losses, and evaluation by retrieval."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import PreTrainedModel, TrainerCallback

from ..data.sources import PairDataset
from ..evaluation.retrieval.directions import rank_both
from ..evaluation.retrieval.metrics import chance_level
from ..evaluation.retrieval.report import RetrievalResult
from ..models.model_files import give_default_mode
from ..search.encoders import DIRECTIONS, encode_pairs
from ..search.torch_encoders import DualEncoder
from .data_report import DataReport, check_step
from .diagnostics import batch_accuracy, embedding_variance, similarity_to_queue
from .full_masks import FullMasks
from .gradient_cache import cache_gradients
from .pair_trainer import PairTrainer
from .parameter_groups import group_parameters
from .resuming import present_name
from .throughput import Throughput
from .weight_averaging import AverageWeights, WeightAverage


# Parts that a LoRA checkpoint leaves out: the adapters have peft's own file, the rest is as it was loaded.
FROM_TOWERS = ("lora_", "vision_model.", "text_model.", "image_tokenizer.")
BESIDE_ADAPTERS = "cots_state.safetensors"
QUEUE_QUERIES = 16  # of a micro-batch, whose similarity to the queue is logged: enough for a mean over all its keys


def to_channels_last(batch: dict[str, Any]) -> dict[str, Any]:
    """Convert a batch's pixels (n, 3, height, width) to the channels-last memory format: the values stay the same, and
    convolutions keep the format from layer to layer."""
    pixels = {name: batch[name] for name in ("pixel_values", "view_pixel_values") if name in batch}
    return batch | {name: rows.contiguous(memory_format=torch.channels_last) for name, rows in pixels.items()}


class StepCallback(TrainerCallback):
    """Ends COTS's step after the optimizer step."""

    def __init__(self, trainer: "COTSTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.throughput.restart()

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.model.end_step()
        self.trainer.throughput.end_step(self.trainer.model.step_pairs, self.trainer._own_pairs)


class COTSTrainer(PairTrainer):
    """Trains [`COTSForPreTraining`], [`SimlaForPreTraining`] or [`CookieForPreTraining`] on a [`PairDataset`] with a
    [`COTSCollator`].

    The momentum keys of a whole optimizer step are computed before its first forward, so that gradient accumulation
    and data parallelism give the gradients of one large batch. Each loss term and statistics about the filter, the
    queue and the health of the run are logged by name. `evaluate` reports retrieval metrics on `eval_dataset`.

    Args:
        args: with `gradient_cache`, in-batch contrasts use all pairs of the optimizer step.
        processing_class ([`COTSProcessor`]): saved with every checkpoint.
        Everything else is as for `transformers.Trainer`.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} GPUs in one process are not supported, because DataParallel splits each batch: "
                "start one process per GPU with torchrun, or select one GPU with CUDA_VISIBLE_DEVICES"
            )
        self.caches_gradients = getattr(self.args, "gradient_cache", False)
        if self.caches_gradients and not self.model.caches_gradients:
            raise ValueError("--gradient_cache is only for in-batch contrasts: the momentum contrast does not need it")
        self.add_callback(StepCallback(self))
        self.add_callback(DataReport(self))
        # Of the deployed weights, while training under --ema_decay.
        self.average: WeightAverage | None = None
        decay = getattr(self.args, "ema_decay", None)
        if decay is not None:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise ValueError(
                    "--ema_decay averages whole parameters and does not support --fsdp and --deepspeed, which shard "
                    "them"
                )
            self.add_callback(AverageWeights(self, decay))
        self._sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=self.args.device))
        self._counts: dict[str, torch.Tensor | int] = defaultdict(int)
        self.throughput = Throughput(getattr(self.args, "peak_tflops", None), self.args.world_size)
        self._own_pairs, self._step_batches = 0, 0
        if self.args.device.type != "cpu":
            self.add_callback(FullMasks())

    # ------------------------------------------------------------------ optimizer

    def get_decay_parameter_names(self, model) -> list[str]:
        """transformers' choice except for the temperature, which weight decay would pull towards 1."""
        return [name for name in super().get_decay_parameter_names(model) if not name.endswith("temperature")]

    def create_optimizer(self, model=None):
        """Create Trainer's optimizer, or one with the groups of `training/parameter_groups.py` if separate rates are
        set."""
        model = self.model if model is None else model
        groups = None
        if self.optimizer is None:
            groups = group_parameters(model, self.model.encoder, self.args, self.get_decay_parameter_names(model))
        if groups is None:
            return super().create_optimizer(model)
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
        self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    # ------------------------------------------------------------------ sharded parameters (FSDP2)

    def _prepare_for_training(self, *args, **kwargs):
        """FSDP gathers shards around `forward`; the beginning of a step uses the model's parameters too."""
        prepared = super()._prepare_for_training(*args, **kwargs)
        if self.is_fsdp_enabled:
            register_fsdp_forward_method(self.model, "begin_step")
        return prepared

    @contextmanager
    def unsharded_parameters(self) -> Iterator[None]:
        """A context in which parts of the model can be called; transformer layers still gather their own shards."""
        sharded = isinstance(self.model, FSDPModule)
        if sharded:
            self.model.unshard()
        yield
        if sharded:
            self.model.reshard()

    def full_state_dict(self) -> dict[str, torch.Tensor] | None:
        """The unsharded state dict if the parameters are sharded, else None. Every rank must call this."""
        return self.accelerator.get_state_dict(self.model) if isinstance(self.model, FSDPModule) else None

    # ------------------------------------------------------------------ the step

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Collect the micro-batches of an optimizer step and begin the step with all of them."""
        with self.throughput.waiting():
            batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, num_items
        batches = [self._prepare_inputs(batch) for batch in batches]
        if getattr(self.args, "channels_last", False):
            batches = [to_channels_last(batch) for batch in batches]
        threshold = self.model.filter_threshold() if self.model.score_queue is not None else None
        # transformers' compute_loss_context_manager leaves autocast to accelerate, which has it around forward only:
        # without it here, momentum keys would be computed in float32 beside a forward pass in bfloat16.
        with self.accelerator.autocast(), self.throughput.counting():
            steps = self.model.begin_step(batches)
            if self.caches_gradients:
                self.model.train()  # Trainer does so only later, at the first forward
                with self.unsharded_parameters():
                    steps = cache_gradients(self.model, batches, steps)
        batches = [batch | {"step": step} for batch, step in zip(batches, steps)]
        check_step(self.model.step_pairs, self.train_dataset, self.state.global_step)
        self._own_pairs = sum(len(step.weights) for step in steps)
        self._step_batches = len(batches) * self.args.world_size
        if threshold is not None:  # minus infinity while the filter does not work yet
            works = threshold.isfinite()
            self._record("filter_threshold", threshold.masked_fill(~works, 0.0), works)
        return batches, num_items

    def _prepare_input(self, data):
        """Like Trainer's, but without waiting until pinned memory is copied to the device."""
        if isinstance(data, torch.Tensor) and not self.is_deepspeed_enabled:
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def training_step(self, *args, **kwargs):
        with self.throughput.counting():
            return super().training_step(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        cached = inputs["step"].cached if "step" in inputs else None
        with nullcontext() if cached is None else cached.random_state.replayed():
            outputs = model(**inputs)
        if model.training:
            self._record_outputs(outputs, inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    # ------------------------------------------------------------------ averaged weights

    def averaged_weights(self) -> AbstractContextManager[None]:
        """A context in which the model has the weights that will be deployed: the averaged ones with `--ema_decay`."""
        return nullcontext() if self.average is None else self.average.in_use()

    def save_beside(self, folder: Path) -> None:
        if self.average is not None:
            self.average.save(folder)

    # ------------------------------------------------------------------ checkpoints of adapters

    def _save(self, output_dir: str | None = None, state_dict=None):
        """Save what peft does not: it saves only the adapters, but not projections, token heads and queues."""
        super()._save(output_dir, state_dict)
        if self.args.should_save and not isinstance(self.model, PreTrainedModel):
            folder = Path(output_dir or self.args.output_dir)
            save_file(self._beside_adapters(), folder / BESIDE_ADAPTERS)
            give_default_mode(*folder.glob("*.safetensors"))

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_beside_adapters(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_beside_adapters(Path(self.state.best_model_checkpoint))
        if self.average is not None:
            self.average.load(Path(self.state.best_model_checkpoint))

    def _load_beside_adapters(self, folder: Path) -> None:
        """Load what peft does not save or load, whenever a checkpoint is loaded.

        Raises:
            ValueError: if the checkpoint lacks some of it or has other shapes.
        """
        if isinstance(self.model, PreTrainedModel):
            return
        path = folder / BESIDE_ADAPTERS
        if not path.is_file():
            raise ValueError(
                f"{folder} has no {BESIDE_ADAPTERS}, which contains everything that is trained besides the adapters"
            )
        base, saved = self.model.get_base_model(), {present_name(n): tensor for n, tensor in load_file(path).items()}
        for name, tensor in self._beside_adapters().items():
            if name not in saved or saved[name].shape != tensor.shape:
                raise ValueError(
                    f"{path} has no tensor {name} of shape {list(tensor.shape)}: it belongs to another model"
                )
        base.load_state_dict(saved, strict=False)

    def _beside_adapters(self) -> dict[str, torch.Tensor]:
        """Projections, token heads, queues, counters and mask tokens of a model with adapters."""
        return {
            name: tensor.contiguous()
            for name, tensor in self.model.get_base_model().state_dict().items()
            if name.endswith("mask_token") or not any(part in name for part in FROM_TOWERS)
        }

    # ------------------------------------------------------------------ logging

    def _record(self, name: str, value: torch.Tensor, count: torch.Tensor | int = 1) -> None:
        self._sums[name] += count * value.detach().float()
        self._counts[name] += count

    @torch.no_grad()
    def _record_outputs(self, outputs, inputs) -> None:
        """Add one micro-batch to the means that the next log shows."""
        for term in self.model.config.loss_weights:
            self._record(f"loss_{term}", outputs[f"loss_{term}"])
        images, texts = outputs.image_embeds.float(), outputs.text_embeds.float()
        ids = inputs["step"].image_ids
        if "kept" in outputs:
            # Weighted so that the mean over micro-batches of unequal size is the fraction of the step's pairs.
            dropped = (~outputs.kept).sum()
            self._record("filter_drop_rate", dropped * self._step_batches / max(1, self.model.step_pairs))
        some = int(len(images) > 0)  # a rank may have no pair of a ragged last batch
        self._record("batch_accuracy", batch_accuracy(images, texts, ids), some)
        self._record("image_embedding_variance", embedding_variance(images), some)
        self._record("text_embedding_variance", embedding_variance(texts), some)
        # With enqueue_before_loss=False the step's own keys are not in the queue yet.
        if self.model.key_queue is not None and self.model.config.enqueue_before_loss:
            images, ids = images[:QUEUE_QUERIES], ids[:QUEUE_QUERIES]
            for name, value in similarity_to_queue(self.model, images, ids, self.model.step_pairs).items():
                self._record(name, value, some)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as Trainer does, with the means since the last log over all ranks."""
        if "loss" in logs and self._counts:
            names = sorted(self._counts)
            sums = torch.stack([self._sums[name] for name in names])
            counts = torch.stack([torch.as_tensor(self._counts[name], device=sums.device) for name in names])
            sums, counts = self.accelerator.reduce(sums), self.accelerator.reduce(counts)
            logs |= {n: round(float(mean), 5) for n, mean, count in zip(names, sums / counts, counts) if count}
            if self.model.key_queue is not None:
                logs["queue_filled"] = round(float(self.model.key_queue.filled) / len(self.model.key_queue), 4)
            with self.unsharded_parameters():
                logs["temperature"] = round(float(torch.as_tensor(self.model.encoder.temperature).detach()), 5)
            logs |= self.throughput.log()
            report = getattr(self.train_dataset, "report", None)
            if report is not None:
                logs["broken_images"] = report.skipped()
            self._sums.clear()
            self._counts.clear()
        super().log(logs, start_time)

    # ------------------------------------------------------------------ evaluation

    def metric_names(self) -> set[str] | None:
        """`text_to_image_R@1` and so on, prefixed with the name of the data set if there are several."""
        sets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
        if not all(isinstance(pairs, PairDataset | None) for pairs in sets.values()):
            return None
        names = {f"{direction}_{name}" for direction in DIRECTIONS for name in chance_level(1, 1)}
        return {f"{prefix}_{name}".lstrip("_") for prefix in sets for name in names}

    def rank(self, pairs: PairDataset) -> RetrievalResult:
        """Rank both directions of a data set, query by query, with the model as it would be deployed now.

        Every rank computes the same: data small enough to evaluate during training is not worth splitting.
        """
        was_training = self.model.training
        self.model.eval()
        with self.unsharded_parameters(), self.averaged_weights():
            encoder = DualEncoder(self.model.encoder, self.processing_class)
            encoded = encode_pairs(encoder, pairs, self.args.per_device_eval_batch_size)
        self.model.train(was_training)
        return RetrievalResult(encoder.name, "", rank_both(encoded), [encoded])

    def retrieval(self, pairs: PairDataset) -> dict[str, dict[str, float]]:
        """Compute the metrics of [`rank`] by direction."""
        return self.rank(pairs).metrics()

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Evaluate retrieval in both directions on a [`PairDataset`]: `eval_text_to_image_R@1` and so on.

        For other data sets, `transformers.Trainer` reports the loss.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):  # one of several, as Trainer asks for it
            dataset = self.eval_dataset[dataset]
        if not isinstance(dataset, PairDataset):
            with self.averaged_weights():
                return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        metrics = {
            f"{metric_key_prefix}_{direction}_{name}": value
            for direction, values in self.retrieval(dataset).items()
            for name, value in values.items()
        }
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
