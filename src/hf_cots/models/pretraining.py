"""What the models for pre-training share: an encoder to deploy, what follows or feeds it, and the order of a step.

One optimizer step, one order, which `PairTrainer` keeps:

    begin_step   with all micro-batches of the step: pairs are numbered and weighed, momentum encoders encode them
    forward      per micro-batch: losses; then backward
    (optimizer step)
    end_step     queues and momentum encoders
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from .distributed import fill_image_ids, gather_rows, global_pair_index, row_counts, world_size
from .ema import update_momentum
from .modeling_cots import COTSPreTrainedModel
from .modeling_dvae import COTSImageTokenizer
from .queues import KeyCenter, KeyQueue, ScoreQueue
from .token_level import codebook_pixels
from .towers import is_frozen


def rows_of(batch: dict[str, torch.Tensor]) -> int:
    """How many pairs a batch holds."""
    return len(next(rows for rows in batch.values() if rows is not None))


class PreTrainingModel(COTSPreTrainedModel):
    """An encoder, under the attribute that `base_model_prefix` names, and what only training needs.

    A file of the encoder alone loads as this class, with momentum encoders equal to it and empty queues; a file of this
    class loads as the encoder.
    """

    encoder_class: type[COTSPreTrainedModel]
    loss_terms: tuple[str, ...]

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.image_tokenizer: Any = None
        self.key_queue: Any = None
        self.score_queue: Any = None
        self.register_buffer("steps_seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("pairs_seen", torch.zeros((), dtype=torch.long))
        # Keys, ids and numbers of the step under way that are not queued yet; never outlive a step.
        self._pending: tuple[torch.Tensor, ...] | None = None

    @property
    def encoder(self) -> Any:
        """What is deployed."""
        return self.base_model

    @property
    def ema_pairs(self) -> tuple[tuple[nn.Module, nn.Module], ...]:
        """Momentum ema_pairs, each with the online module that it follows."""
        return ()

    @property
    def skip_in_ema(self) -> tuple[str, ...]:
        """Names of parts that are never asked of the momentum encoders, and need not follow from step to step."""
        return ()

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision: str | PreTrainedModel,
        text: str | PreTrainedModel,
        image_tokenizer: str | COTSImageTokenizer | None = None,
        **config_fields,
    ) -> Any:
        """Start pre-training from two pretrained towers, and from a pretrained image tokenizer if one is given.

        Args:
            vision, text, config_fields: as in the encoder's own `from_vision_text_pretrained`.
            image_tokenizer: Hub id, folder or model.

        Raises:
            ValueError: if a tower does not fit, or the tokenizer's grid cannot be made to fit the patches.
        """
        if isinstance(image_tokenizer, str):
            image_tokenizer = COTSImageTokenizer.from_pretrained(image_tokenizer)
        if image_tokenizer is not None:
            config_fields["image_tokenizer_config"] = image_tokenizer.config
        start = cls.encoder_class.from_vision_text_pretrained(vision, text, **config_fields)  # type: ignore[attr-defined]
        model = cls(start.config)
        model.encoder.load_state_dict(start.state_dict(), strict=False)  # a mask token is new
        model.reset_momentum()
        if image_tokenizer is not None:
            model.set_image_tokenizer(image_tokenizer)
        return model

    def set_image_tokenizer(self, image_tokenizer: Any) -> None:
        """Take the weights of a trained image tokenizer of the configured sizes.

        Raises:
            ValueError: if sizes differ from `config.image_tokenizer_config`.
        """
        self.config.image_tokenizer_config.check_same_sizes(image_tokenizer.config)
        if self.image_tokenizer is not None:
            self.image_tokenizer.load_state_dict(image_tokenizer.state_dict())

    @staticmethod
    def check_mask_token(config: PreTrainedConfig) -> None:
        """Words can only be masked with a token of the vocabulary.

        Raises:
            ValueError: if `config.mask_token_id` is none.
        """
        if config.mlm_weight > 0 and config.mask_token_id >= config.text_config.vocab_size:
            raise ValueError(
                f"mask_token_id={config.mask_token_id} is outside the text tower's vocabulary of "
                f"{config.text_config.vocab_size}; set mask_token_id and special_token_ids to the tokenizer's"
            )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, (KeyCenter, KeyQueue, ScoreQueue)):
            module.reset_buffers()
        elif isinstance(module, PreTrainingModel):
            init.zeros_(module.steps_seen)
            init.zeros_(module.pairs_seen)
            for twin, online in module.ema_pairs:
                trained = dict(online.named_parameters())
                for name, parameter in twin.named_parameters():
                    init.copy_(parameter, trained[name])

    def train(self, mode: bool = True) -> Any:
        """Keeps momentum encoders and image tokenizer frozen and free of dropout (`from_pretrained` unfreezes them); a
        tower that is not trained is kept free of dropout too."""
        super().train(mode)
        for tower in (self.encoder.vision_model, self.encoder.text_model):
            if is_frozen(tower):
                tower.eval()
        for frozen in (*(twin for twin, _ in self.ema_pairs), self.image_tokenizer):
            if frozen is not None:
                frozen.requires_grad_(False)
                frozen.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.encoder.set_input_embeddings(value)

    # ------------------------------------------------------------------ the step

    def reset_momentum(self) -> None:
        """Make the momentum encoders equal to what they follow, as at the start of training."""
        self.update_momentum(momentum=0.0)

    def update_momentum(self, momentum: float | None = None) -> None:
        """`theta_m <- m * theta_m + (1 - m) * theta`, with the m that is due now unless another is given."""
        for twin, online in self.ema_pairs:
            if momentum is None:
                update_momentum(twin, online, self.momentum_now(), self.skip_in_ema)
            else:
                update_momentum(twin, online, momentum)

    def momentum_now(self) -> float:
        """m."""
        return self.config.momentum

    def reset_counters(self) -> None:
        """Forget how many steps and pairs there were."""
        self.steps_seen.zero_()
        self.pairs_seen.zero_()

    def assign_pair_index(
        self, micro_batches: list[dict[str, torch.Tensor]], steps: list[dict[str, torch.Tensor]], *shared: str
    ) -> tuple[torch.Tensor, ...]:
        """Count the pairs of a whole optimizer step.

        Args:
            micro_batches: this rank's.
            steps: what begin_step is about to return for each. Written into them are `pair_index` and `image_ids`
                (n,) int64, and `pair_weights` (n,), such that the sum over the step, after Trainer's division by
                micro-batches and ranks, is the mean over all its pairs.
            shared: names in `steps` of what is wanted of the whole step.

        Returns:
            `shared`, each (pairs of all micro-batches and ranks, ...), in the order of the pairs' numbers.
        """
        seen, total = self.pairs_seen.clone(), 0
        gathered = []
        for batch, step in zip(micro_batches, steps, strict=True):
            counts = row_counts(rows_of(batch), seen.device)
            step["pair_index"] = global_pair_index(seen, counts)
            step["image_ids"] = fill_image_ids(batch.get("image_ids"), step["pair_index"])
            gathered.append([gather_rows(step[name], counts) for name in shared])
            seen, total = seen + sum(counts), total + sum(counts)
        # A rank or a micro-batch of a ragged last step may hold fewer pairs than the others, or none.
        share = len(micro_batches) * world_size() / max(1, total)
        for step in steps:
            step["pair_weights"] = self.uniform_weights(step["image_ids"], share)
        self.pairs_seen.copy_(seen)
        self.steps_seen.add_(1)
        return tuple(torch.cat(parts) for parts in zip(*gathered))

    def uniform_weights(self, rows: torch.Tensor, weight: float) -> torch.Tensor:
        """(n,) the weight for each of n rows, in full precision."""
        return torch.full_like(rows, weight, dtype=torch.promote_types(self.dtype, torch.float32))

    def end_step(self) -> None:
        """After the optimizer step: queue what was held back, and update the momentum encoders."""
        self._enqueue_pending()
        self.encoder.clamp_temperature()
        self.update_momentum()

    def _enqueue_pending(self) -> None:
        if self._pending is not None:
            self.key_queue.enqueue(*self._pending)
        self._pending = None

    # ------------------------------------------------------------------ codes of patches

    def codebook_pixels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[`codebook_pixels`] with the mean, the deviation and the side of this model's config."""
        side = self.config.image_tokenizer_config.image_size
        return codebook_pixels(pixel_values, self.config.image_mean, self.config.image_std, side)

    @torch.no_grad()
    def image_codes(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(n, patches) int64 codes of normalised pictures, in the order of their patches."""
        return self.image_tokenizer.get_codebook_indices(self.codebook_pixels(pixel_values)).flatten(1)


__all__ = ["PreTrainingModel", "rows_of"]
