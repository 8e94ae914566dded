"""Train the image tokenizer with DALL-E's schedules, and watch its codebook for collapse."""

import logging
import math
from pathlib import Path

import torch

from ..data.streams import PairStream
from ..evaluation.diagnostics.image_tokenizer import CodeUsage, evaluate_image_tokenizer
from .data_report import DataReport, check_step
from .pair_trainer import PairTrainer


logger = logging.getLogger(__name__)

# What `evaluate` reports.
METRICS = {"mse", "mae", "psnr", "perplexity", "used_codes", "used_share", "collapsed", "pictures"}


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine wave from `start` at progress 0 to `end` at progress 1, and `end` from there on."""
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


class DVAETrainer(PairTrainer):
    """Trains [`COTSImageTokenizer`] on the images of a [`PairDataset`] or [`PairStream`].

    Temperature and KL weight follow DALL-E's schedules (Ramesh et al. 2021, appendix A.2). They are pure functions of
    the step, so that a resumed run continues exactly. Each term of the loss is logged, and the number of codes used
    since the last log. `evaluate` reports the reconstruction error on `eval_dataset` and saves an image of
    reconstructions in `output_dir`. A warning is logged if less than a tenth of the codebook is used.

    Args:
        args ([`DVAETrainingArguments`]): the schedules.
        Everything else is as for `transformers.Trainer`; `data_collator` is an [`ImageCollator`].
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(DataReport(self))
        self._reset_statistics()
        self._warned = False

    def _reset_statistics(self) -> None:
        """Start new means and code counts for the next log."""
        self._terms = torch.zeros(2, device=self.args.device)
        self._batches = 0
        self._usage = CodeUsage(self.model.config.codebook_size)

    def _progress(self, fraction: float) -> float:
        """Progress through the first `fraction` of all steps, from 0 to 1."""
        step = self.state.global_step
        return 1.0 if fraction * self.state.max_steps <= step else step / (fraction * self.state.max_steps)

    def temperature(self) -> float:
        """The temperature of the Gumbel-softmax at the current step."""
        start = self.model.config.gumbel_temperature
        return cosine(start, self.args.final_temperature, self._progress(self.args.temperature_anneal_fraction))

    def kl_weight(self) -> float:
        """The weight of the KL term at the current step."""
        return cosine(0.0, self.model.config.kl_weight, self._progress(self.args.kl_warmup_fraction))

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Get the micro-batches of an optimizer step, and check that at least one image can be read."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches and isinstance(self.train_dataset, PairStream) and self._train_batch_size > 1:
            # In the place of a batch of no image the collator gives one black image.
            pixels = [batch["pixel_values"] for batch in batches]
            images = sum(len(rows) for rows in pixels if len(rows) > 1 or rows.any())
            total = self.accelerator.reduce(torch.tensor(images, device=self.args.device))
            check_step(int(total), self.train_dataset, self.state.global_step)
        return batches, num_items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs, temperature=self.temperature(), kl_weight=self.kl_weight())
        if model.training:
            self._terms += torch.stack([outputs.reconstruction_loss.detach(), outputs.kl.detach()])
            self._batches += 1
            self._usage.add(outputs.logits.detach().argmax(dim=1))
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as Trainer does, with means and code usage since the last log, over all processes."""
        if "loss" in logs and self._batches:
            terms = self.accelerator.reduce(self._terms / self._batches, "mean").tolist()
            usage = CodeUsage(0, self.accelerator.reduce(self._usage.counts.to(self.args.device)))
            logs |= {"reconstruction_loss": terms[0], "kl": terms[1]}
            logs |= {"perplexity": usage.perplexity, "used_codes": usage.used}
            logs |= {"temperature": self.temperature(), "kl_weight": self.kl_weight()}
            if usage.collapsed and not self._warned:
                logger.warning("the codebook has collapsed at step %d: %s", self.state.global_step, usage)
            self._warned = usage.collapsed
            self._reset_statistics()
        super().log(logs, start_time)

    def metric_names(self) -> set[str]:
        return METRICS

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Metrics of [`evaluate_image_tokenizer`] on a [`PairDataset`] (`eval_mse`, ...), and an image of
        reconstructions in `output_dir/reconstructions-STEP.png`."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        was_training = self.model.training
        self.model.eval()
        found, sheet = evaluate_image_tokenizer(self.model, dataset, self.args.per_device_eval_batch_size)
        self.model.train(was_training)
        if self.is_world_process_zero():
            sheet.save(Path(self.args.output_dir) / f"reconstructions-{self.state.global_step:06d}.png")
        if found["collapsed"]:
            logger.warning(
                "the codebook has collapsed: only %d of %d codes are used on %d images of %s",
                *(found["used_codes"], self.model.config.codebook_size, len(dataset), dataset.name),
            )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
