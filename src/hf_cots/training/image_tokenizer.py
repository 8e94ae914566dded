"""Training the image tokenizer: DALL-E's schedules, and what shows a codebook collapsing."""

import logging
import math
from pathlib import Path

import torch

from ..data.augmentation import RandomCropFlip
from ..data.collator import ImageCollator
from ..data.sources import PairDataset
from ..evaluation.diagnostics.image_tokenizer import CodeUsage, evaluate_image_tokenizer
from ..models import COTSImageTokenizer, COTSImageTokenizerConfig
from .arguments import DVAETrainingArguments
from .pair_trainer import PairTrainer


logger = logging.getLogger(__name__)


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine wave from `start` at progress 0 to `end` at progress 1, and `end` from there on."""
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


class DVAETrainer(PairTrainer):
    """Trains [`COTSImageTokenizer`] on the pictures of a [`PairDataset`] or [`PairStream`].

    Temperature and KL weight follow DALL-E's schedules (Ramesh et al. 2021, appendix A.2), as pure functions of the
    step, so that a resumed run goes on exactly. The log has each term of the loss, and how many codes were used since
    the last one. `evaluate` reports the error of reconstructions on `eval_dataset` and leaves them as a picture in
    `output_dir`. A codebook of which less than a tenth is used is told in a warning.

    Args:
        args ([`DVAETrainingArguments`]): the schedules.
        Everything else is as for `transformers.Trainer`; `data_collator` is a [`ImageCollator`].
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._clear()
        self._warned = False

    def _clear(self) -> None:
        """Forget what was counted since the last log."""
        self._terms = torch.zeros(2, device=self.args.device)
        self._batches = 0
        self._usage = CodeUsage(self.model.config.codebook_size)

    def _passed(self, share: float) -> float:
        """How far the first `share` of all steps is behind us, from 0 to 1."""
        done = self.state.global_step
        return 1.0 if share * self.state.max_steps <= done else done / (share * self.state.max_steps)

    def temperature(self) -> float:
        """Of the Gumbel-softmax, at this step."""
        start = self.model.config.gumbel_temperature
        return cosine(start, self.args.final_temperature, self._passed(self.args.temperature_share))

    def kl_weight(self) -> float:
        """Of the KL term, at this step."""
        return cosine(0.0, self.model.config.kl_weight, self._passed(self.args.kl_share))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs, temperature=self.temperature(), kl_weight=self.kl_weight())
        if model.training:
            self._terms += torch.stack([outputs.reconstruction_loss.detach(), outputs.kl.detach()])
            self._batches += 1
            self._usage.add(outputs.logits.detach().argmax(dim=1))
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's log with the means and code usage since the last one, over all ranks."""
        if "loss" in logs and self._batches:
            terms = self.accelerator.reduce(self._terms / self._batches, "mean").tolist()
            usage = CodeUsage(0, self.accelerator.reduce(self._usage.counts.to(self.args.device)))
            logs |= {"reconstruction_loss": terms[0], "kl": terms[1]}
            logs |= {"perplexity": usage.perplexity, "used_codes": usage.used}
            logs |= {"temperature": self.temperature(), "kl_weight": self.kl_weight()}
            if usage.collapsed and not self._warned:
                logger.warning("the codebook has collapsed at step %d: %s", self.state.global_step, usage)
            self._warned = usage.collapsed
            self._clear()
        super().log(logs, start_time)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """[`evaluate_image_tokenizer`] on a [`PairDataset`]; `eval_mse` and so on, and `reconstructions-STEP.png`."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        was_training = self.model.training
        self.model.eval()
        found, sheet = evaluate_image_tokenizer(self.model, dataset, self.args.per_device_eval_batch_size)
        self.model.train(was_training)
        if self.is_world_process_zero():
            sheet.save(Path(self.args.output_dir) / f"reconstructions-{self.state.global_step:06d}.png")
        if found["collapsed"]:
            logger.warning(
                "the codebook has collapsed: %d of %d codes are in use on %d pictures of %s",
                *(found["used_codes"], self.model.config.codebook_size, len(dataset), dataset.name),
            )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def train_image_tokenizer(
    config: COTSImageTokenizerConfig,
    pairs: PairDataset,
    output_dir: Path | str,
    steps: int,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    min_scale: float = 0.5,
    flip: float = 0.5,
    seed: int = 0,
) -> COTSImageTokenizer:
    """The short way, for small models and some hundred steps: constant temperature and KL weight, and a learning rate
    that rises for a twentieth of the steps. Saves the model in `output_dir`.

    Args:
        config: its sizes; `image_size` is the size of the crops.
        pairs: the pictures; captions are not used.
        steps, batch_size, learning_rate, min_scale, flip, seed: of the training.

    Returns:
        The trained model in evaluation mode.
    """
    torch.manual_seed(seed)
    model = COTSImageTokenizer(config)
    arguments = DVAETrainingArguments(
        output_dir=str(output_dir),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        lr_scheduler_kwargs=None,
        warmup_steps=0.05,
        weight_decay=0.0,
        final_temperature=config.gumbel_temperature,
        kl_share=0.0,
        dataloader_drop_last=False,
        logging_steps=max(1, steps // 10),
        save_strategy="no",
        report_to="none",
        seed=seed,
    )
    collator = ImageCollator(RandomCropFlip(config.image_size, min_scale, flip))
    DVAETrainer(model=model, args=arguments, train_dataset=pairs, data_collator=collator).train()
    model.eval().save_pretrained(output_dir)
    return model
