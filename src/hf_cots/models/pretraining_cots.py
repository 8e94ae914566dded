"""COTS pre-training (Lu et al. 2022): three levels of alignment and the adaptive momentum filter.

One optimizer step, one order:

    begin_step   momentum keys of all its micro-batches -> gather over ranks -> filter -> centre -> enqueue
    forward      per micro-batch: clean and masked passes, losses; then backward
    (optimizer step)
    end_step     momentum update

Given the queue, the loss of a pair does not depend on its micro-batch or rank, so that gradient accumulation and data
parallelism are exact. `COTSTrainer` keeps this order. Under a plain `Trainer`, forward begins and ends a step of its
own, which is the same as long as nothing accumulates.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_cots import COTSConfig
from .distributed import fill_image_ids, global_pair_index, row_counts
from .instance_level import ContrastRows, instance_losses, queue_rows, rows_of_all_ranks, with_gradients
from .losses import center_keys, key_mean, l2_normalize, masked_token_loss, pair_scores, task_loss
from .modeling_cots import COTSModel
from .modeling_dvae import COTSImageTokenizer
from .pretraining import PreTrainingModel, rows_of
from .queues import KeyCenter, KeyQueue, ScoreQueue
from .token_level import draw_masks_by_index, tower_head
from .towers import feature_size, is_frozen


@dataclass
class COTSForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor`, scalar): the weighted sum of the four terms.
        loss_instance, loss_mvm, loss_mlm, loss_task (`torch.FloatTensor`, scalars): the terms before their weights;
            0 where a level has weight 0.
        kept (`torch.BoolTensor` of shape `(batch,)`): which pairs the filter kept.
        image_embeds, text_embeds (`torch.FloatTensor` of shape `(batch, projection_dim)`): L2-normalised.
    """

    loss: torch.FloatTensor | None = None
    loss_instance: torch.FloatTensor | None = None
    loss_mvm: torch.FloatTensor | None = None
    loss_mlm: torch.FloatTensor | None = None
    loss_task: torch.FloatTensor | None = None
    kept: torch.BoolTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None


class COTSForPreTraining(PreTrainingModel):
    """[`COTSModel`] with momentum twin, queues, token heads and image tokenizer.

    Its files load as [`COTSModel`] (the rest is left out), and a [`COTSModel`] file loads as this class, with the
    momentum encoder equal to the online one and empty queues.

    Args:
        config ([`COTSConfig`]): levels of weight 0 have no parameters here.
    """

    encoder_class = COTSModel
    loss_terms = ("loss_instance", "loss_mvm", "loss_mlm", "loss_task")

    def __init__(self, config: COTSConfig):
        super().__init__(config)
        self.check_mask_token(config)
        image_size = feature_size(config.vision_config, config.image_pooling)
        text_size = feature_size(config.text_config, config.text_pooling)
        self.cots = COTSModel(config, use_mask_token=config.mvm_weight > 0)
        self.momentum_encoder = COTSModel(config) if config.uses_momentum_encoder else None
        if config.contrast == "momentum":
            self.key_queue = KeyQueue(config.queue_size, config.projection_dim)
        self.key_center = KeyCenter(config.projection_dim, config.center_momentum) if config.keeps_center else None
        if config.filter_lambda is not None:
            self.score_queue = ScoreQueue(config.similarity_queue_size)
        self.logit_bias = None
        if config.contrast == "sigmoid":
            self.logit_bias = nn.Parameter(torch.tensor([float(config.initial_logit_bias)]))  # FSDP shards no scalars
        self.mvm_head: Any = None
        self.mlm_head: Any = None
        if config.mvm_weight > 0:
            self.image_tokenizer = COTSImageTokenizer(config.image_tokenizer_config)  # type: ignore[arg-type]
            self.mvm_head = tower_head(config.vision_config, text_size)
            self.mvm_classifier = nn.Linear(
                config.vision_config.hidden_size, config.image_tokenizer_config.codebook_size
            )
        if config.mlm_weight > 0:
            self.mlm_head = tower_head(config.text_config, image_size)
            # The weight is the word embeddings' own.
            self.mlm_bias = nn.Parameter(torch.zeros(config.text_config.vocab_size))
        self.post_init()
        self.train(self.training)  # freezes what is never trained

    @property
    def ema_pairs(self) -> tuple[tuple[nn.Module, nn.Module], ...]:
        return () if self.momentum_encoder is None else ((self.momentum_encoder, self.cots),)

    @property
    def skip_in_ema(self) -> tuple[str, ...]:
        """A frozen tower is its own twin."""
        return tuple(name for name in ("vision_model", "text_model") if is_frozen(getattr(self.cots, name)))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, COTSForPreTraining):
            if module.logit_bias is not None:
                init.constant_(module.logit_bias, self.config.initial_logit_bias)
            if module.mlm_head is not None:
                init.zeros_(module.mlm_bias)

    @torch.no_grad()
    def resize_token_embeddings(self, *args, **kwargs) -> nn.Module:
        """As in transformers; the momentum encoder's words and the bias of the word classifier follow."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        if self.momentum_encoder is not None:
            twin = self.momentum_encoder.get_input_embeddings()
            old, size = twin.num_embeddings, embeddings.num_embeddings
            self.momentum_encoder.resize_token_embeddings(size)
            self.momentum_encoder.get_input_embeddings().weight[old:] = embeddings.weight[old:]
        if self.mlm_head is not None:
            added = max(0, embeddings.num_embeddings - len(self.mlm_bias))
            bias = nn.functional.pad(self.mlm_bias, (0, added))[: embeddings.num_embeddings]
            self.mlm_bias = nn.Parameter(bias.clone())
        self.train(self.training)  # the new embeddings of the momentum encoder are frozen, too
        return embeddings

    # ------------------------------------------------------------------ the step: keys, filter, queues, momentum

    def momentum_now(self) -> float:
        """m, warmed up."""
        return self.config.momentum * self._ramp("momentum_warmup_steps")

    def _ramp(self, field: str) -> float:
        """How much of a value that warms up over `config.<field>` steps is due: linear in the steps before this."""
        steps = getattr(self.config, field)
        return min(1.0, max(0, int(self.steps_seen) - 1) / steps) if steps else 1.0

    def new_queues(self, queue_size: int, similarity_queue_size: int) -> None:
        """Start with empty queues of these sizes: what training on new data wants.

        Raises:
            ValueError: if a size is not positive.
        """
        self.config.queue_size, self.config.similarity_queue_size = queue_size, similarity_queue_size
        self.config.validate_ranges()
        if self.key_queue is not None:
            self.key_queue = KeyQueue(queue_size, self.config.projection_dim).to(self.device)
        if self.key_center is not None:
            self.key_center.reset_buffers()
        if self.score_queue is not None:
            self.score_queue = ScoreQueue(similarity_queue_size).to(self.device)
        self.reset_counters()

    def filter_threshold(self) -> torch.Tensor:
        """The score below which the step about to begin drops a pair: `mu - lambda * sigma`, or minus infinity while
        the filter is off, warming up, or its queue is not yet full. Scalar float32."""
        never = torch.full((), -torch.inf, device=self.steps_seen.device)
        if self.score_queue is None or self.config.filter_lambda is None:
            return never
        warm = self.steps_seen >= self.config.filter_warmup_steps
        return torch.where(warm, self.score_queue.threshold(self.config.filter_lambda), never)

    @torch.no_grad()
    def begin_step(self, micro_batches: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        """Compute the momentum keys of a whole optimizer step, filter its pairs, and fill the queues.

        Args:
            micro_batches: this rank's micro-batches, each with `pixel_values`, `input_ids`, and if there are any
                `attention_mask` and `image_ids` (n,) int64, at least 0, equal for the captions of one picture; or with
                `image_features` and `text_features` of frozen towers in place of pixels and words.

        Returns:
            For each micro-batch what forward takes beside it: `image_keys`, `text_keys` (n, D), `image_ids` and
            `pair_index` (n,) int64, `kept` (n,) bool, and `pair_weights` (n,): 0 for a dropped pair; for the others
            such that the sum over the step, after Trainer's division by micro-batches and ranks, is the mean over all
            its pairs; and `image_features` or `text_features` (n, [`feature_size`]) of a tower that is frozen.
        """
        threshold = self.filter_threshold()
        steps = [self._frozen_features(batch) for batch in micro_batches]
        for batch, step in zip(micro_batches, steps, strict=True):
            step["image_keys"], step["text_keys"] = self._momentum_keys(batch, step)
        wanted = ("image_keys", "text_keys", "image_ids", "pair_index")
        image_keys, text_keys, image_ids, pair_index = self.assign_pair_index(micro_batches, steps, *wanted)
        for step in steps:
            step["kept"] = pair_scores(step["image_keys"], step["text_keys"]) >= threshold
            step["pair_weights"] = step["pair_weights"] * step["kept"]
        if self.score_queue is not None:
            self.score_queue.enqueue(pair_scores(image_keys, text_keys))
        if self.key_queue is not None:
            if self.config.center_keys:
                image_mean, text_mean = self._center(image_keys, text_keys)
                image_keys, text_keys = center_keys(image_keys, image_mean), center_keys(text_keys, text_mean)
                for step in steps:
                    step["image_keys"] = center_keys(step["image_keys"], image_mean)
                    step["text_keys"] = center_keys(step["text_keys"], text_mean)
            self._pending = (image_keys, text_keys, image_ids, pair_index)
            if self.config.enqueue_before_loss:
                self._enqueue_pending()
        return steps

    def _center(self, image_keys: torch.Tensor, text_keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is subtracted from the keys of a whole step: their own mean, or the running one with it taken in."""
        image_mean, text_mean = key_mean(image_keys), key_mean(text_keys)
        if self.key_center is None:
            return image_mean, text_mean
        self.key_center.update(image_mean, text_mean)
        return self.key_center.means[0].clone(), self.key_center.means[1].clone()

    def _momentum_keys(
        self, batch: dict[str, torch.Tensor], frozen: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised (n, D) image and text keys; zeros where neither contrast nor filter needs any."""
        twin = self.momentum_encoder
        if twin is None:
            dtype = torch.promote_types(self.dtype, torch.float32)
            zeros = torch.zeros(rows_of(batch), self.config.projection_dim, dtype=dtype, device=self.device)
            return zeros, zeros
        image, text = frozen.get("image_features"), frozen.get("text_features")
        if image is None:
            image = twin.encode_image(batch["pixel_values"]).pooler_output
        if text is None:
            text = twin.encode_text(batch["input_ids"], batch.get("attention_mask")).pooler_output
        return l2_normalize(twin.visual_projection(image)), l2_normalize(twin.text_projection(text))

    @torch.no_grad()
    def _frozen_features(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Global features of the towers that are not trained. Such a tower is its own momentum twin, and one pass
        through it serves keys and losses alike; or none, if the batch brings them."""
        stored = ("image_features", "text_features")
        features = {name: batch[name].to(self.dtype) for name in stored if batch.get(name) is not None}
        if "image_features" not in features and is_frozen(self.cots.vision_model):
            features["image_features"] = self.cots.encode_image(batch["pixel_values"]).pooler_output
        if "text_features" not in features and is_frozen(self.cots.text_model):
            output = self.cots.encode_text(batch["input_ids"], batch.get("attention_mask"))
            features["text_features"] = output.pooler_output
        return features

    # ------------------------------------------------------------------ forward

    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_ids: torch.LongTensor | None = None,
        bool_masked_pos: torch.BoolTensor | None = None,
        masked_input_ids: torch.LongTensor | None = None,
        bool_masked_words: torch.BoolTensor | None = None,
        codebook_indices: torch.LongTensor | None = None,
        image_keys: torch.FloatTensor | None = None,
        text_keys: torch.FloatTensor | None = None,
        pair_index: torch.LongTensor | None = None,
        kept: torch.BoolTensor | None = None,
        pair_weights: torch.FloatTensor | None = None,
        image_features: torch.FloatTensor | None = None,
        text_features: torch.FloatTensor | None = None,
        cached: dict[str, dict[str, torch.Tensor]] | None = None,
        token_type_ids: torch.LongTensor | None = None,
    ) -> COTSForPreTrainingOutput:
        """The losses of one micro-batch of n pairs.

        Args:
            pixel_values: (n, 3, image_size, image_size), normalised with the config's mean and deviation.
            input_ids, attention_mask: (n, length).
            image_ids: (n,) int64, equal for the captions of one picture.
            bool_masked_pos: (n, patches); masked_input_ids, bool_masked_words: (n, length). Of [`masking.draw_masks`];
                drawn here if not given. A row without masked positions takes no masked pass.
            codebook_indices: (n, patches) int64 codes of the patches; computed here if not given.
            image_keys, text_keys, pair_index, kept, pair_weights: of [`begin_step`]. In training without them
                forward is a step of its own; in evaluation the queues stay as they are.
            image_features, text_features: (n, [`feature_size`]) global features of frozen towers, of [`begin_step`] or
                computed before training; `pixel_values` and `input_ids` may then be left out.
            cached: of [`cache_gradients`]; stands for the contrast of a whole step.
            token_type_ids: ignored, see [`COTSModel.get_text_features`].

        Raises:
            ValueError: if pixels or words are needed and not there.
        """
        batch = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}
        batch |= {"image_features": image_features, "text_features": text_features}
        self._check_inputs(batch)
        own_step = self.training and pair_weights is None
        if own_step:
            self.cots.clamp_temperature()
            self.update_momentum()
            (step,) = self.begin_step([batch | {"image_ids": image_ids}])
            image_keys, text_keys, image_ids = step["image_keys"], step["text_keys"], step["image_ids"]
            pair_index, kept, pair_weights = step["pair_index"], step["kept"], step["pair_weights"]
            image_features, text_features = step.get("image_features"), step.get("text_features")
        elif pair_weights is None:
            pair_index = global_pair_index(self.pairs_seen, row_counts(rows_of(batch), self.device))
            image_ids = fill_image_ids(image_ids, pair_index)
            image_keys, text_keys, kept, pair_weights = self._evaluation_keys(batch)

        if self.config.uses_masks and bool_masked_pos is None:
            masks = draw_masks_by_index(self.config, input_ids, attention_mask, pair_index)
            bool_masked_pos, masked_input_ids = masks["bool_masked_pos"], masks["masked_input_ids"]
            bool_masked_words = masks["bool_masked_words"]
        masked_image = None
        if image_features is None and self.config.contrast_on_masked_images:
            masked_image = self.cots.encode_image(pixel_values, bool_masked_pos=bool_masked_pos)
            image_features = masked_image.pooler_output
        if image_features is None:
            image_features = self.cots.encode_image(pixel_values).pooler_output
        if text_features is None:
            text_features = self.cots.encode_text(input_ids, attention_mask).pooler_output
        embeds = self._embeds(image_features, text_features)
        image_embeds, text_embeds = embeds["image_embeds"], embeds["text_embeds"]

        terms = {}
        if cached is not None:
            terms = dict(cached["terms"])
        elif self.config.instance_weight > 0:
            rows = self._contrast(image_embeds, text_embeds, image_keys, text_keys, image_ids, pair_index)
            terms = self._terms(rows, pair_weights, self.logit_bias)
        if self.config.uses_masks:
            token_weights = pair_weights / self.config.masked_fraction
            masked = self._rows_with_masks(bool_masked_pos)
        if self.config.mvm_weight > 0:
            losses = self._mvm(pixel_values, codebook_indices, bool_masked_pos, text_features, masked, masked_image)
            terms["mvm"] = (token_weights[masked] * losses).sum()
        if self.config.mlm_weight > 0:
            losses = self._mlm(batch, masked_input_ids, bool_masked_words, image_features, masked)
            terms["mlm"] = (token_weights[masked] * losses).sum()
        if own_step:
            self._enqueue_pending()
        weights = self.config.loss_weights
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        if cached is not None:
            loss = with_gradients(loss, embeds | self.contrast_parameters(), cached["gradients"])
        return COTSForPreTrainingOutput(
            loss=loss,
            **{f"loss_{name}": terms.get(name, loss.new_zeros(())).detach() for name in weights},
            kept=kept,
            image_embeds=image_embeds,
            text_embeds=text_embeds,
        )

    def _check_inputs(self, batch: dict) -> None:
        """Features of a tower stand for its input where nothing is masked."""
        for name, features in (("pixel_values", "image_features"), ("input_ids", "text_features")):
            if batch[name] is None and (batch[features] is None or self.config.uses_masks):
                raise ValueError(f"{type(self).__name__} needs {name}: {features} serve where nothing is masked")

    @torch.no_grad()
    def _evaluation_keys(self, batch: dict) -> tuple[torch.Tensor, ...]:
        """What begin_step would give, without a trace in the model's state: plain means, every pair kept."""
        image_keys, text_keys = self._momentum_keys(batch, batch if batch["pixel_values"] is None else {})
        if self.config.center_keys:
            means = (key_mean(image_keys), key_mean(text_keys)) if self.key_center is None else self.key_center.means
            image_keys, text_keys = center_keys(image_keys, means[0]), center_keys(text_keys, means[1])
        kept = torch.ones(len(image_keys), dtype=torch.bool, device=image_keys.device)
        return image_keys, text_keys, kept, torch.full_like(kept, 1 / len(kept), dtype=torch.float32)

    def _contrast(
        self,
        image_embeds: torch.Tensor,
        text_embeds: torch.Tensor,
        image_keys: torch.Tensor,
        text_keys: torch.Tensor,
        image_ids: torch.Tensor,
        pair_index: torch.Tensor,
    ) -> ContrastRows:
        """What this rank's pairs are compared with: the queue, or the batches of all ranks."""
        temperature = self.cots.temperature
        if self.key_queue is None:
            return rows_of_all_ranks(image_embeds, text_embeds, image_ids, temperature, self.config.same_image)
        keys = (image_keys, text_keys, image_ids, pair_index)
        return queue_rows(image_embeds, text_embeds, *keys, self.key_queue, temperature, self.config)

    def _terms(
        self, rows: ContrastRows, pair_weights: torch.Tensor, logit_bias: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """The instance and the task term, scalars."""
        alpha = self.config.soft_target_alpha * self._ramp("soft_target_warmup_steps")
        terms = {"instance": (pair_weights * instance_losses(rows, self.config, alpha, logit_bias)).sum()}
        if self.config.task_weight > 0:
            direction, detach = self.config.task_direction, self.config.detach_task_target
            per_pair = task_loss(rows.image_to_text, rows.text_to_image, direction, detach)
            terms["task"] = (pair_weights * per_pair).sum()
        return terms

    # ------------------------------------------------------------------ gradient caching

    @property
    def caches_gradients(self) -> bool:
        """Whether the contrast is one within the batch."""
        return self.config.contrast != "momentum" and self.config.instance_weight > 0

    def contrast_embeds(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The normalised embeddings (n, projection_dim) that the contrast compares; `batch` is what forward takes."""
        image, text = batch.get("image_features"), batch.get("text_features")
        if image is None:
            masks = {"bool_masked_pos": batch["bool_masked_pos"]} if self.config.contrast_on_masked_images else {}
            image = self.cots.encode_image(batch["pixel_values"], **masks).pooler_output
        if text is None:
            text = self.cots.encode_text(batch["input_ids"], batch.get("attention_mask")).pooler_output
        return self._embeds(image, text)

    def _embeds(self, image_features: torch.Tensor, text_features: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "image_embeds": l2_normalize(self.cots.visual_projection(image_features)),
            "text_embeds": l2_normalize(self.cots.text_projection(text_features)),
        }

    def contrast_parameters(self) -> dict[str, torch.Tensor]:
        """What is learned of the contrast itself."""
        learned = {"temperature": self.cots.temperature, "logit_bias": self.logit_bias}
        return {name: value for name, value in learned.items() if isinstance(value, torch.Tensor)}

    def contrast_terms(
        self, compared: dict[str, torch.Tensor], image_ids: torch.Tensor, pair_weights: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Instance and task term of this rank's pairs against the batches of all ranks.

        Args:
            compared: of [`contrast_embeds`] and [`contrast_parameters`].
            image_ids, pair_weights: (n,).
        """
        temperature = compared.get("temperature", self.cots.temperature)
        embeds = compared["image_embeds"], compared["text_embeds"]
        rows = rows_of_all_ranks(*embeds, image_ids, temperature, self.config.same_image)
        return self._terms(rows, pair_weights, compared.get("logit_bias"))

    # ------------------------------------------------------------------ token level

    def _rows_with_masks(self, bool_masked_pos: torch.Tensor) -> torch.Tensor:
        """Indices of the pairs that take the masked passes. If none does, the first pair goes through them with a
        loss of 0."""
        rows = bool_masked_pos.any(dim=1).nonzero().squeeze(1)
        return rows if len(rows) else rows.new_zeros(min(1, len(bool_masked_pos)))

    def predict_codes(
        self, masked_hidden: torch.Tensor, bool_masked_pos: torch.Tensor, text_features: torch.Tensor
    ) -> torch.Tensor:
        """Logits (masked, codebook_size) of the codes of all masked patches, row by row.

        Args:
            masked_hidden: (n, 1 + patches, hidden) last hidden state of the masked images.
            bool_masked_pos: (n, patches).
            text_features: (n, hidden) global features of the texts before projection.
        """
        hidden = masked_hidden[:, -bool_masked_pos.shape[1] :]  # patches come last
        features = text_features.repeat_interleave(bool_masked_pos.sum(dim=1), dim=0)
        return self.mvm_classifier(self.mvm_head(hidden[bool_masked_pos], features))

    def _mvm(
        self,
        pixel_values: torch.Tensor,
        codebook_indices: torch.Tensor | None,
        bool_masked_pos: torch.Tensor,
        text_features: torch.Tensor,
        rows: torch.Tensor,
        masked_image: Any = None,
    ) -> torch.Tensor:
        """L_MVM of each of `rows`: the codes of masked patches from the masked image and the clean text's feature.

        `masked_image` is the masked pass of all pairs, if the contrast has made it."""
        masked, pixels = bool_masked_pos[rows], pixel_values[rows]
        codes = self.image_codes(pixels) if codebook_indices is None else codebook_indices[rows]
        if masked_image is None:
            hidden = self.cots.encode_image(pixels, bool_masked_pos=masked).last_hidden_state
        else:
            hidden = masked_image.last_hidden_state[rows]
        features = text_features.detach() if self.config.detach_global_features else text_features
        return masked_token_loss(self.predict_codes(hidden, masked, features[rows]), codes[masked], masked)

    def _mlm(
        self,
        batch: dict[str, torch.Tensor],
        masked_input_ids: torch.Tensor,
        bool_masked_words: torch.Tensor,
        image_features: torch.Tensor,
        rows: torch.Tensor,
    ) -> torch.Tensor:
        """L_MLM of each of `rows`: masked words from the masked text and the clean image's feature."""
        masked, targets = bool_masked_words[rows], batch["input_ids"][rows]
        attention_mask = None if batch["attention_mask"] is None else batch["attention_mask"][rows]
        output = self.cots.encode_text(masked_input_ids[rows], attention_mask)
        features = image_features.detach() if self.config.detach_global_features else image_features
        informed = self.mlm_head(
            output.last_hidden_state[masked], features[rows].repeat_interleave(masked.sum(dim=1), dim=0)
        )
        words = self.get_input_embeddings()
        if isinstance(words, FSDPModule):
            words.unshard()  # a sharded module gathers its weight for its own forward only
        logits = nn.functional.linear(informed, words.weight, self.mlm_bias)
        return masked_token_loss(logits, targets[masked], masked)


__all__ = ["COTSForPreTraining", "COTSForPreTrainingOutput"]
