"""Base of the pre-training models: the encoder to deploy, the order of an optimizer step, the sum of the loss.

One optimizer step, one order, which `PairTrainer` keeps:

    begin_step   with all micro-batches of the step: pairs get index and weight, momentum encoders encode them
    forward      per micro-batch: losses; then backward
    (optimizer step)
    end_step     queues and momentum encoders
"""

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_two_tower import TwoTowerConfig
from .distributed import gather_rows, own_index, row_counts, world_size
from .ema import follow_sizes, running_statistics, update_momentum
from .modeling_cots import COTSPreTrainedModel
from .modeling_dvae import COTSImageTokenizer
from .queues import KeyCenter, KeyQueue, ScoreQueue
from .step import Batch, Keys, Step
from .token_level import codebook_pixels, draw_masks_by_index, find_masked
from .tower_layers import frozen_modules
from .towers import every_parameter, is_frozen


def batch_size(batch: Batch) -> int:
    """The number of pairs in a batch."""
    rows = next(value for value in batch.values() if value is not None)
    return batch_size(rows) if isinstance(rows, dict) else len(rows)


def warmup_fraction(steps_seen: torch.Tensor, warmup_steps: int) -> torch.Tensor:
    """The fraction of a warmed-up value to use: it rises linearly from 0 in the first step to 1 after `warmup_steps`.

    Args:
        steps_seen: scalar, the number of the step under way, counted from 1.
    """
    fraction = (steps_seen - 1).clamp(min=0) / max(1, warmup_steps)
    return fraction.clamp(max=1) if warmup_steps else torch.ones_like(fraction)


def takes_output_options(forward: Callable[..., ModelOutput]) -> Callable[..., ModelOutput]:
    """Let a forward take what every forward of transformers does beside its own arguments: `return_dict`, and
    `output_hidden_states` and `output_attentions`, which it finds in `self.output_options` for its clean inputs."""

    @can_return_tuple
    @functools.wraps(forward)
    def wrapped(
        self: "PreTrainingModel",
        *args: Any,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        options = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        self.output_options = {name: value for name, value in options.items() if value is not None}
        try:
            return forward(self, *args, **kwargs)
        finally:
            self.output_options = {}

    return wrapped


def on_request(output: BaseModelOutputWithPooling) -> BaseModelOutputWithPooling | None:
    """A stream's output, if it holds hidden states or attentions that were asked for."""
    return None if output.hidden_states is None and output.attentions is None else output


def resized_bias(bias: nn.Parameter, words: int) -> nn.Parameter:
    """The bias of a classifier over another number of words; 0 for new ones."""
    grown = nn.functional.pad(bias.detach(), (0, max(0, words - len(bias))))
    return nn.Parameter(grown[:words].clone(), requires_grad=bias.requires_grad)


def forget_steps(module: "PreTrainingModel", _: Any) -> None:
    """After a state dict was loaded: how many steps it had seen is in the buffer alone."""
    module._host_steps = None


class PreTrainingModel(COTSPreTrainedModel, ABC):
    """An encoder, under the attribute that `base_model_prefix` names, and what only training needs.

    A file of the encoder alone loads as this class, with momentum encoders equal to it and empty queues; a file of
    this class loads as the encoder. A subclass computes what a step needs of a batch ([`momentum_features`]) and the
    losses (`forward`), from the collator's batch and one [`Step`].
    """

    encoder_class: type[COTSPreTrainedModel]
    main_input_name = "pixel_values"

    def __init__(self, config: TwoTowerConfig):
        super().__init__(config)
        self.image_tokenizer: Any = None
        self.key_queue: Any = None
        self.key_center: Any = None
        self.score_queue: Any = None
        self.register_buffer("steps_seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("pairs_seen", torch.zeros((), dtype=torch.long))
        # Pairs of the step under way, of all micro-batches and ranks; `steps_seen` as the host knows it, or None where
        # it has to ask the device.
        self.step_pairs = 0
        self._host_steps: int | None = None
        self.register_load_state_dict_post_hook(forget_steps)
        # Keys of the step under way that are not queued yet; never outlive a step.
        self._pending: Keys | None = None
        # What the forward under way was asked for, of `takes_output_options`.
        self.output_options: dict[str, bool] = {}

    # ------------------------------------------------------------------ the contract

    @abstractmethod
    def momentum_features(self, batch: Batch) -> dict[str, torch.Tensor]:
        """What a [`Step`] holds of a micro-batch beside index, ids and weights: keys and features without gradient."""

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> ModelOutput:
        """The losses of one micro-batch: `loss`, and each term as `loss_<name>`.

        Takes the collator's batch and `step`, of [`begin_step`]. Without a step, forward is a step of its own in
        training, and leaves the model's state as it is in evaluation.
        """

    @torch.no_grad()
    def begin_step(self, micro_batches: list[Batch]) -> list[Step]:
        """Begin an optimizer step with all of this rank's micro-batches; one [`Step`] for each.

        Args:
            micro_batches: each with `pixel_values`, `input_ids`, and if there are any `attention_mask` and `image_ids`
                (n,) int64, at least 0, equal for the captions of one image.
        """
        features = [self.momentum_features(batch) for batch in micro_batches]
        steps, self._pending = self.assign_pair_index(micro_batches, features)
        return steps

    def step_for(self, batch: Batch, step: Step | None) -> Step:
        """The step that a micro-batch belongs to: the one given; without one, in training a step of its own, and in
        evaluation one that leaves no trace in the model's state."""
        if step is not None:
            return step
        if not self.training:
            return self.evaluation_step(batch)
        # Under a plain Trainer nothing calls end_step, so its work is done before the next step.
        self.encoder.clamp_temperature()
        self.update_momentum()
        (step,) = self.begin_step([batch])
        return replace(step, standalone=True)

    @torch.no_grad()
    def evaluation_step(self, batch: Batch) -> Step:
        """What [`begin_step`] would give for a batch alone, without a trace in the model's state: plain means."""
        counts = row_counts(batch_size(batch))
        return self._step(batch, counts, 1 / max(1, batch_size(batch)), self.momentum_features(batch))

    def end_step(self) -> None:
        """End an optimizer step: enqueue what was held back, and update the momentum encoders."""
        self._enqueue_pending()
        self.encoder.clamp_temperature()
        self.update_momentum()

    def reset_queues(self, **sizes: int) -> None:
        """Empty the queues and reset the counters, for training on new data.

        Args:
            sizes: `queue_size` and `similarity_queue_size`, where the config has them.

        Raises:
            ValueError: if a size is not positive.
        """
        for name, size in sizes.items():
            setattr(self.config, name, size)
        self.config.validate_ranges()
        if self.key_queue is not None:
            self.key_queue = KeyQueue(self.config.queue_size, self.config.projection_dim).to(self.device)
        if self.key_center is not None:
            self.key_center.reset_buffers()
        if self.score_queue is not None:
            self.score_queue = ScoreQueue(self.config.similarity_queue_size).to(self.device)
        self.steps_seen.zero_()
        self.pairs_seen.zero_()
        self._host_steps = None

    # ------------------------------------------------------------------ pairs of a step, and the sum of its loss

    def assign_pair_index(
        self, micro_batches: list[Batch], features: list[dict[str, torch.Tensor]]
    ) -> tuple[list[Step], Keys | None]:
        """Assign indices and weights to the pairs of a whole optimizer step.

        Args:
            micro_batches: this rank's.
            features: for each of them, of [`momentum_features`].

        Returns:
            The steps of the micro-batches, and the keys of all micro-batches and ranks in the order of their pairs'
            index, if there are keys.
        """
        counts = [row_counts(batch_size(batch)) for batch in micro_batches]
        self.step_pairs = sum(map(sum, counts))
        # A rank or a micro-batch of a ragged last step may hold fewer pairs than the others, or none.
        weight = len(micro_batches) * world_size() / max(1, self.step_pairs)
        steps, gathered = [], []
        for batch, held, found in zip(micro_batches, counts, features, strict=True):
            steps.append(self._step(batch, held, weight, found))
            if "image_keys" in found:
                gathered.append([gather_rows(rows, held) for rows in steps[-1].keys])
            self.pairs_seen.add_(sum(held))
        self.steps_seen.add_(1)
        if self._host_steps is not None:
            self._host_steps += 1
        return steps, Keys(*(torch.cat(parts) for parts in zip(*gathered))) if gathered else None

    def _step(self, batch: Batch, counts: list[int], weight: float, features: dict[str, torch.Tensor]) -> Step:
        """The next pairs of the run, all of one weight; the ranks hold `counts` of them."""
        pair_index = self.pairs_seen + own_index(counts, self.pairs_seen.device)
        image_ids = batch.get("image_ids")
        if image_ids is None:  # a negative one for each pair, that no other pair of the run has
            image_ids = -1 - pair_index
        weights = torch.full_like(pair_index, weight, dtype=self.full_precision)
        return Step(image_ids, pair_index, weights, **features)  # type: ignore[arg-type]

    @property
    def full_precision(self) -> torch.dtype:
        """float32, or the wider type of the parameters."""
        return torch.promote_types(self.dtype, torch.float32)

    def host_steps(self) -> int:
        """`steps_seen`, for which the host waits for the device at most once after it was loaded or reset."""
        if self._host_steps is None:
            self._host_steps = int(self.steps_seen)
        return self._host_steps

    def with_masks(self, batch: Batch, step: Step) -> Batch:
        """The batch, with masks drawn from each pair's index in the run if the collator brought none, and where they
        are true."""
        if not self.config.uses_masks:
            return batch
        if batch["masked_input_ids"] is None:
            texts = (batch["input_ids"], batch["attention_mask"])
            batch = batch | draw_masks_by_index(self.config, *texts, step.pair_index)
        return batch | {"masked_positions": batch["masked_positions"] or find_masked(self.config, batch)}

    def weighted_sum(self, terms: dict[str, torch.Tensor]) -> torch.Tensor:
        """`L = sum_t w_t L_t`, with the weights of the config."""
        weights = self.config.loss_weights
        return torch.stack([weights[name] * term for name, term in terms.items()]).sum()

    def loss_and_terms(
        self, terms: dict[str, torch.Tensor], step: Step, contrasted: dict[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """`loss`, and each term as `loss_<name>`, without gradient and 0 where it has weight 0. Ends a step that
        forward began.

        Args:
            terms: scalars.
            contrasted: what the contrast takes, by the names of `step.cached.gradients`.
        """
        if step.standalone:
            self._enqueue_pending()
        loss = self.weighted_sum(terms)
        if step.cached is not None and contrasted is not None:
            # Adds 0, with the gradient by each contrasted tensor that was computed for the whole step.
            products = [(contrasted[name] * gradient).sum() for name, gradient in step.cached.gradients.items()]
            product = torch.stack(products).sum()
            loss = loss + (product - product.detach())
        named = {f"loss_{name}": terms.get(name, loss.new_zeros(())).detach() for name in self.config.loss_weights}
        return {"loss": loss} | named

    @property
    def caches_gradients(self) -> bool:
        """Whether the contrast is one within the batch, whose gradient by a whole step can be cached."""
        return False

    # ------------------------------------------------------------------ momentum encoders and queues

    @property
    def encoder(self) -> Any:
        """What is deployed."""
        return self.base_model

    @property
    def ema_pairs(self) -> tuple[tuple[nn.Module, nn.Module], ...]:
        """Each momentum encoder with the trained module that it follows."""
        return ()

    @property
    def skip_in_ema(self) -> tuple[str, ...]:
        """Names of direct parts of the momentum encoders that need not follow from step to step."""
        return ()

    def reset_momentum(self) -> None:
        """Make the momentum encoders equal to what they follow, as at the start of training."""
        for momentum_encoder, online in self.ema_pairs:
            update_momentum(momentum_encoder, online, 0.0)

    def update_momentum(self) -> None:
        """`theta_m <- m * theta_m + (1 - m) * theta`."""
        for momentum_encoder, online in self.ema_pairs:
            update_momentum(momentum_encoder, online, self.momentum_now(), self.skip_in_ema)

    def momentum_now(self) -> float:
        """m of the step under way."""
        return self.config.momentum

    def _enqueue_pending(self) -> None:
        if self._pending is not None:
            self.key_queue.enqueue(*self._pending)
        self._pending = None

    # ------------------------------------------------------------------ codes of patches

    def codebook_pixels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[`codebook_pixels`] with the mean, the deviation and the image tokenizer's side of this model's config."""
        side = self.config.image_tokenizer_config.image_size
        return codebook_pixels(pixel_values, self.config.image_mean, self.config.image_std, side)

    @torch.no_grad()
    def image_codes(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(n, patches) int64 codes of normalized images, in the order of their patches."""
        return self.image_tokenizer.get_codebook_indices(self.codebook_pixels(pixel_values)).flatten(1)

    def set_image_tokenizer(self, image_tokenizer: Any) -> None:
        """Take the weights of a trained image tokenizer of the configured sizes.

        Raises:
            ValueError: if sizes differ from `config.image_tokenizer_config`.
        """
        self.config.image_tokenizer_config.check_same_sizes(image_tokenizer.config)
        if self.image_tokenizer is not None:
            self.image_tokenizer.load_state_dict(image_tokenizer.state_dict())

    # ------------------------------------------------------------------ making, loading, freezing

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
        make = functools.partial(cls.encoder_class.from_vision_text_pretrained, vision, text)  # type: ignore[attr-defined]
        return cls.from_encoder(make, image_tokenizer, config_fields)

    @classmethod
    def from_encoder(
        cls,
        make_encoder: Callable[..., COTSPreTrainedModel],
        image_tokenizer: str | COTSImageTokenizer | None,
        config_fields: dict[str, Any],
    ) -> Any:
        """Start pre-training from an encoder, and from a pretrained image tokenizer if one is given.

        Args:
            make_encoder: makes the encoder of config fields.
            image_tokenizer: Hub id, folder or model.
        """
        if isinstance(image_tokenizer, str):
            image_tokenizer = COTSImageTokenizer.from_pretrained(image_tokenizer)
        if image_tokenizer is not None:
            config_fields["image_tokenizer_config"] = image_tokenizer.config
        start = make_encoder(**config_fields)
        model = cls(start.config)
        model.encoder.load_state_dict(start.state_dict(), strict=False)  # a mask token is new
        model.reset_momentum()
        if image_tokenizer is not None:
            model.set_image_tokenizer(image_tokenizer)
        return model

    @staticmethod
    def check_mask_token(config: TwoTowerConfig) -> None:
        """Check that the mask token is in the vocabulary.

        Raises:
            ValueError: if `config.mask_token_id` is not in it.
        """
        if config.loss_weights["mlm"] > 0 and not 0 <= config.mask_token_id < config.text_config.vocab_size:
            raise ValueError(
                f"mask_token_id={config.mask_token_id} is outside the text tower's vocabulary of size "
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

    @torch.no_grad()
    def initialize_weights(self):
        """What a file lacks of the momentum encoders becomes a copy of the online ones. `_init_weights` cannot do it:
        transformers does not call it for classes of others whose own buffers were in the file."""
        super().initialize_weights()
        for momentum_encoder, online in self.ema_pairs:
            trained = dict(itertools.chain(online.named_parameters(), online.named_buffers()))
            own = itertools.chain(momentum_encoder.named_parameters(), running_statistics(momentum_encoder))
            for name, tensor in own:
                init.copy_(tensor, trained[name])

    def train(self, mode: bool = True) -> Any:
        """Keeps momentum encoders and image tokenizer frozen and free of dropout (`from_pretrained` unfreezes them); a
        tower, or the first layers of one, that are not trained are kept free of dropout too.

        Trainer calls it in every step; where it has nothing to do it walks through no modules, which takes longer than
        many a step on stored features."""
        if self._is_in_mode(mode):
            return self
        super().train(mode)
        for tower in (self.encoder.vision_model, self.encoder.text_model):
            for module in frozen_modules(tower):
                module.eval()
        for frozen in (*(momentum_encoder for momentum_encoder, _ in self.ema_pairs), self.image_tokenizer):
            if frozen is not None:
                frozen.requires_grad_(False)
                frozen.eval()
        return self

    def _is_in_mode(self, mode: bool) -> bool:
        """Whether the model and its parts are in training or evaluation mode as [`train`] would leave them."""
        if not self.training == self.encoder.training == mode:
            return False
        for tower in (self.encoder.vision_model, self.encoder.text_model):
            frozen = frozen_modules(tower)
            if any(module.training for module in frozen) or tower.training != (mode and tower not in frozen):
                return False
        followers = [momentum_encoder for momentum_encoder, _ in self.ema_pairs]
        untrained = [part for part in (*followers, self.image_tokenizer) if part is not None]
        return not any(part.training or not is_frozen(part) for part in untrained)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Those of every module, found faster: Trainer asks for them twice in a step."""
        return every_parameter(self) if recurse else super().parameters(recurse=False)

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.encoder.set_input_embeddings(value)

    def _set_gradient_checkpointing(self, enable: bool = True, **kwargs):
        """transformers does the rest for models whose main input is `input_ids`: where adapters are all that is
        trained, their gradient passes recomputed layers of frozen weights only if the embeddings have one."""
        super()._set_gradient_checkpointing(enable, **kwargs)
        if enable:
            self.enable_input_require_grads()

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Module:
        """As in transformers; the momentum encoders and the classifiers over words follow."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        self.resize_heads(embeddings.num_embeddings)
        for momentum_encoder, online in self.ema_pairs:
            follow_sizes(momentum_encoder, online)
        self.train(self.training)  # what is new in the momentum encoders is frozen, too
        return embeddings

    def resize_heads(self, words: int) -> None:
        """Make the trained classifiers over words classifiers over so many."""
