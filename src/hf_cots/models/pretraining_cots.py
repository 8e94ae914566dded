"""COTS pre-training (Lu et al. 2022), in the order of the paper and of an optimizer step:

    begin_step   momentum keys k^I, k^T of all micro-batches -> adaptive momentum filter -> centering -> queues
    forward      per micro-batch: features g^I, g^T and embeddings f^I, f^T;
                 L = L_I2T + L_T2I (instance) + L_task (task) + L_MVM + L_MLM (token), each with its weight
    (optimizer step)
    end_step     theta_m <- m * theta_m + (1 - m) * theta

Given the queue, the loss of a pair does not depend on its micro-batch or rank, so that gradient accumulation and data
parallelism are exact. `COTSTrainer` keeps this order. Under a plain `Trainer`, forward begins and ends a step of its
own, which is the same as long as nothing accumulates.
"""

import functools
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from .configuration_cots import COTSConfig
from .instance_level import ContrastRows, compare_in_batch, compare_with_queue, instance_term, truncate
from .losses import center_keys, key_mean, l2_normalize, pair_scores, true_positions
from .modeling_cots import COTSModel
from .modeling_dvae import COTSImageTokenizer
from .pretraining import PreTrainingModel, batch_size, on_request, resized_bias, takes_output_options
from .queues import KeyCenter, KeyQueue, ScoreQueue
from .step import Batch, Keys, Step
from .task_level import task_term
from .token_level import TokenHead, take_masked, token_term
from .tower_properties import describe_tower
from .towers import feature_size, is_frozen, is_same_in_training, without_dropout


# What a batch may bring of its masks, and forward else draws.
GIVEN_MASKS = ("bool_masked_pos", "masked_input_ids", "bool_masked_words", "masked_positions", "attention_mask")


@dataclass
class COTSForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor`, scalar): the weighted sum of the four terms.
        loss_instance, loss_mvm, loss_mlm, loss_task (`torch.FloatTensor`, scalars): the terms before their weights;
            0 where a level has weight 0.
        kept (`torch.BoolTensor` of shape `(batch,)`): which pairs the filter kept.
        image_embeds, text_embeds (`torch.FloatTensor` of shape `(batch, projection_dim)`): L2-normalized; of clips,
            where the batch has clips, under the same name.
        vision_model_output, text_model_output (`BaseModelOutputWithPooling`): each stream's output, if its hidden
            states or attentions were asked for.
    """

    loss: torch.FloatTensor | None = None
    loss_instance: torch.FloatTensor | None = None
    loss_mvm: torch.FloatTensor | None = None
    loss_mlm: torch.FloatTensor | None = None
    loss_task: torch.FloatTensor | None = None
    kept: torch.BoolTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None
    text_model_output: BaseModelOutputWithPooling | None = None


class COTSForPreTraining(PreTrainingModel):
    """COTS for pre-training: a [`COTSModel`] with momentum encoder, queues, token heads and image tokenizer.

    Its files can be loaded as [`COTSModel`] (the rest is ignored), and files of a [`COTSModel`] as this class, with
    the momentum encoder equal to the online one and empty queues.

    Args:
        config ([`COTSConfig`]): levels with weight 0 have no parameters.
    """

    encoder_class = COTSModel

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
        self.mlm_projection: Any = None
        if config.mvm_weight > 0:
            self.image_tokenizer = COTSImageTokenizer(config.image_tokenizer_config)  # type: ignore[arg-type]
            self.mvm_head = TokenHead(config.vision_config, text_size)
            self.mvm_classifier = nn.Linear(
                config.vision_config.hidden_size, config.image_tokenizer_config.codebook_size
            )
        if config.mlm_weight > 0:
            self.mlm_head = TokenHead(config.text_config, image_size)
            width = self.get_input_embeddings().weight.shape[1]
            if width != describe_tower(config.text_config).hidden_size:  # ALBERT's and ELECTRA's words are narrower
                self.mlm_projection = nn.Linear(describe_tower(config.text_config).hidden_size, width, bias=False)
            # The weight is the word embeddings' own.
            self.mlm_bias = nn.Parameter(torch.zeros(config.text_config.vocab_size))
        self.post_init()
        self.train(self.training)  # freezes what is never trained

    @classmethod
    def from_dual_encoder(
        cls,
        source: str | PreTrainedModel,
        image_tokenizer: str | COTSImageTokenizer | None = None,
        **config_fields,
    ) -> "COTSForPreTraining":
        """Start pre-training from a pretrained dual encoder, and from a pretrained image tokenizer if one is given.

        Args:
            source, config_fields: as in [`COTSModel.from_dual_encoder`]. `contrast` is COTS's unless it is given; with
                `"sigmoid"` SigLIP's bias is taken over.
            image_tokenizer: Hub id, folder or model.

        Raises:
            OSError, ValueError: as there, and if a level needs what the towers lack.
        """
        make = functools.partial(cls.encoder_class.from_dual_encoder, source)
        return cls.from_encoder(make, image_tokenizer, config_fields)

    # ---------------------------------------------------------- the step: momentum keys, filter, centering, queue

    @torch.no_grad()
    def begin_step(self, micro_batches: list[Batch]) -> list[Step]:
        """Compute the momentum keys of a whole optimizer step, filter its pairs, and fill the queues.

        Args:
            micro_batches: this rank's micro-batches, each with `pixel_values`, or `pixel_values_videos` and
                `frame_mask`, `input_ids`, and if there are any `attention_mask` and `image_ids` (n,) int64, at least
                0, equal for the captions of one image; or with `features` of frozen towers in place of pixels and
                texts.
        """
        threshold = self.filter_threshold()  # of the state before this step
        one = len(micro_batches) == 1  # of several, the activations would take the memory of all
        share = one and self._keys_are_online()
        features = [self.momentum_features(self._with_own_features(batch, share), share) for batch in micro_batches]
        steps, keys = self.assign_pair_index(micro_batches, features)
        # Adaptive momentum filter: pair i is kept iff s_i = k^I_i . k^T_i >= mu - lambda * sigma.
        steps = [self._filtered(step, pair_scores(step.image_keys, step.text_keys) >= threshold) for step in steps]
        if self.score_queue is not None:
            self.score_queue.enqueue(pair_scores(keys.image_keys, keys.text_keys))
        if self.key_queue is None or keys is None:
            return steps
        if self.config.center_keys:
            means = self._step_means(keys)
            keys = keys._replace(**_centered(keys, means))
            steps = [replace(step, **_centered(step, means)) for step in steps]
        self._pending = keys
        if self.config.enqueue_before_loss:
            self._enqueue_pending()
        return steps

    @torch.no_grad()
    def evaluation_step(self, batch: Batch) -> Step:
        """As for every model; keys are centered as in training, and every pair is kept."""
        step = super().evaluation_step(batch)
        if self.config.center_keys:
            means = (key_mean(step.image_keys), key_mean(step.text_keys))
            step = replace(step, **_centered(step, means if self.key_center is None else self.key_center.means))
        return self._filtered(step, torch.ones_like(step.image_ids, dtype=torch.bool))

    @torch.no_grad()
    def momentum_features(self, batch: Batch, share: bool = False) -> dict[str, torch.Tensor]:
        """`image_keys` and `text_keys` k^I, k^T (n, D), zeros where neither contrast nor filter needs any; and the
        `features` (n, [`feature_size`]) of frozen towers that the batch brings.

        Args:
            share: compute the `embeds`, whose values are the keys, if the features are at hand.

        Raises:
            ValueError: if pixels or texts are needed and not given, or if clips are to be masked.
        """
        features = {name: rows.to(self.dtype) for name, rows in (batch.get("features") or {}).items()}
        clips = batch.get("pixel_values_videos") is not None or "frame_features" in features
        if clips and self.config.uses_masks:
            raise ValueError(
                "the token level masks images and their texts and does not support clips: set mvm_weight and "
                "mlm_weight to 0"
            )
        for name, feature in (("pixel_values", "image_features"), ("input_ids", "text_features")):
            given = batch.get(name) is not None or (clips and name == "pixel_values")
            if not given and (feature not in features or self.config.uses_masks):
                raise ValueError(
                    f"{type(self).__name__} needs {name}: {feature} can only replace it if nothing is masked"
                )
        if not self.config.uses_keys:
            shape, full_precision = (batch_size(batch), self.config.projection_dim), self.full_precision
            zeros = torch.zeros(shape, dtype=full_precision, device=self.device)
            return features | {"image_keys": zeros, "text_keys": zeros}
        if share and {"image_features", "text_features"} <= features.keys():
            with torch.enable_grad():
                embeds = self.embed(features["image_features"], features["text_features"])
            keys = {"image_keys": embeds["image_embeds"].detach(), "text_keys": embeds["text_embeds"].detach()}
            return features | keys | {"embeds": embeds}
        encoder = self.momentum_encoder or self.cots
        with nullcontext() if encoder is self.momentum_encoder else without_dropout(encoder):
            image = self._image_features(encoder, batch | {"features": features})
            text = features["text_features"] if "text_features" in features else self._text_features(encoder, batch)
            return features | {
                "image_keys": l2_normalize(encoder.visual_projection(image)),
                "text_keys": l2_normalize(encoder.text_projection(text)),
            }

    def _with_own_features(self, batch: Batch, share: bool) -> Batch:
        """Add the features of towers that are their own momentum encoders to the batch, so that one pass serves both
        keys and losses: frozen towers and, if keys and losses can use the same pass, towers with a momentum of 0."""
        features = dict(batch.get("features") or {})
        missing = {"image_features", "text_features"} - features.keys()
        images, texts = batch.get("pixel_values"), batch.get("input_ids")
        vision, text = self.cots.vision_model, self.cots.text_model
        if "image_features" in missing and images is not None and is_frozen(vision):
            features["image_features"] = self._image_features(self.cots, batch)
        clips = batch.get("pixel_values_videos")
        if clips is not None and "frame_features" not in features and is_frozen(vision):
            features["frame_features"] = self.cots.encode_frames(clips, batch.get("frame_mask"))
        if "text_features" in missing and texts is not None and is_frozen(text):
            features["text_features"] = self._text_features(self.cots, batch)
        if share:
            with torch.enable_grad():
                if images is not None and "image_features" not in features and is_same_in_training(vision):
                    features["image_features"] = self._image_features(self.cots, batch).to(self.dtype)
                if texts is not None and "text_features" not in features and is_same_in_training(text):
                    features["text_features"] = self._text_features(self.cots, batch).to(self.dtype)
        return batch | {"features": features}

    def _keys_are_online(self) -> bool:
        """Whether the keys come from the online encoder, in a step whose passes see what its keys do."""
        if not self.config.uses_keys or self.config.uses_momentum_encoder or not self.training:
            return False
        masked = self.config.single_pass and self.masks_in(self.host_steps() + 1)
        sharded = isinstance(self, FSDPModule)  # gathers its shards for its own forward
        return not masked and not sharded

    def filter_threshold(self) -> torch.Tensor:
        """The score below which the step about to begin drops a pair: `mu - lambda * sigma`, or minus infinity while
        the filter is off, warming up, or its queue is not yet full. Scalar float32."""
        never = torch.full((), -torch.inf, device=self.steps_seen.device)
        if self.score_queue is None or self.config.filter_lambda is None:
            return never
        warm = self.steps_seen >= self.config.filter_warmup_steps
        return torch.where(warm, self.score_queue.threshold(self.config.filter_lambda), never)

    @staticmethod
    def _filtered(step: Step, kept: torch.Tensor) -> Step:
        """A pair that is not kept (n,) has weight 0 in every loss; its keys and score are queued all the same."""
        return replace(step, kept=kept, weights=step.weights * kept)

    def _step_means(self, keys: Keys) -> tuple[torch.Tensor, torch.Tensor]:
        """What is subtracted from the keys of a whole step: their own mean, or the running one that takes it in."""
        image_mean, text_mean = key_mean(keys.image_keys), key_mean(keys.text_keys)  # (D,)
        if self.key_center is None:
            return image_mean, text_mean
        self.key_center.update(image_mean, text_mean)
        return self.key_center.means[0].clone(), self.key_center.means[1].clone()

    # ------------------------------------------------------------------ forward: features, losses, their sum

    @takes_output_options
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_ids: torch.LongTensor | None = None,
        bool_masked_pos: torch.BoolTensor | None = None,
        masked_input_ids: torch.LongTensor | None = None,
        bool_masked_words: torch.BoolTensor | None = None,
        masked_positions: dict[str, torch.Tensor] | None = None,
        codebook_indices: torch.LongTensor | None = None,
        features: dict[str, torch.Tensor] | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        frame_mask: torch.BoolTensor | None = None,
        step: Step | None = None,
    ) -> COTSForPreTrainingOutput:
        """Compute the losses of one micro-batch of n pairs.

        Args:
            pixel_values: (n, 3, image_size, image_size), normalized with the config's mean and deviation.
            input_ids, attention_mask: (n, length).
            image_ids: (n,) int64, equal for the captions of one image.
            bool_masked_pos: (n, patches); masked_input_ids, bool_masked_words: (n, length). Of [`masking.draw_masks`];
                drawn here if not given. A row without masked positions takes no masked pass.
            masked_positions: of [`find_masked`], which finds them here if they are not given.
            codebook_indices: (n, patches) int64 codes of the patches; computed here if not given.
            features: `image_features` and `text_features` (n, [`feature_size`]), global features of frozen towers that
                were computed before training; `pixel_values` and `input_ids` may then be left out. Of clips,
                `frame_features` (n, frames, [`feature_size`]) in place of `image_features`.
            pixel_values_videos: (n, frames, 3, image_size, image_size), clips in place of images, where nothing is
                masked; frame_mask: (n, frames), false where a clip has no frame.
            step: of [`begin_step`]. In training without one forward is a step of its own; in evaluation the queues
                stay as they are.

        Raises:
            ValueError: if pixels or texts are needed and not given, or if clips are to be masked.
        """
        batch = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}
        batch |= {"pixel_values_videos": pixel_values_videos, "frame_mask": frame_mask}
        batch |= {"image_ids": image_ids, "features": features, "codebook_indices": codebook_indices}
        batch |= {"bool_masked_pos": bool_masked_pos, "masked_input_ids": masked_input_ids}
        batch |= {"bool_masked_words": bool_masked_words, "masked_positions": masked_positions}
        step = self.step_for(batch, step)
        batch = self.with_masks(batch, step)
        image, text = self.tower_outputs(batch, step)
        image_features, text_features = image.pooler_output, text.pooler_output  # (n, hidden) g^I, g^T
        embeds = step.embeds or self.embed(image_features, text_features)  # (n, D) f^I, f^T
        contrasted = embeds | self.contrast_parameters()

        terms: dict[str, torch.Tensor] = {}
        if step.cached is not None:
            terms |= step.cached.terms
        elif self.config.instance_weight > 0:
            terms |= self.contrast_terms(contrasted, step)  # L_I2T + L_T2I, and L_task
        terms |= self.token_terms(batch, image, text, step)  # L_MVM, and L_MLM
        return COTSForPreTrainingOutput(
            **self.loss_and_terms(terms, step, contrasted),  # L
            kept=step.kept,
            image_embeds=contrasted["image_embeds"],
            text_embeds=contrasted["text_embeds"],
            vision_model_output=on_request(image),
            text_model_output=on_request(text),
        )

    def tower_outputs(self, batch: Batch, step: Step) -> tuple[BaseModelOutputWithPooling, BaseModelOutputWithPooling]:
        """The streams' outputs for the unmasked image and text, of which `pooler_output` is g^I and g^T,
        (n, [`feature_size`]) before projection; of a frozen tower there may be nothing else. With
        `config.single_pass`, for images and texts as they are masked."""
        image = BaseModelOutputWithPooling(pooler_output=step.image_features)
        text = BaseModelOutputWithPooling(pooler_output=step.text_features)
        options = self.output_options
        if step.frame_features is not None:
            image.pooler_output = self.cots.pool_frames(step.frame_features, batch.get("frame_mask"))
        elif batch.get("pixel_values_videos") is not None:
            image = self.cots.encode_video(batch["pixel_values_videos"], batch.get("frame_mask"))
        elif step.image_features is None or (options and batch["pixel_values"] is not None):
            masked = batch["bool_masked_pos"] if self._masks_pass("mvm", step.image_features) else None
            image = self.cots.encode_image(batch["pixel_values"], masked, **options)
        if step.text_features is None or (options and batch["input_ids"] is not None):
            words = "masked_input_ids" if self._masks_pass("mlm", step.text_features) else "input_ids"
            text = self.cots.encode_text(batch[words], batch.get("attention_mask"), **options)
        return image, text

    def _masks_pass(self, level: str, frozen_features: torch.Tensor | None) -> bool:
        """Whether the one pass of a stream (`"mvm"`: of images, `"mlm"`: of texts) is that of its masked inputs; a
        frozen tower has features of the unmasked ones already."""
        masked = self.config.single_pass and self.masks_now and self.config.loss_weights[level] > 0
        return masked and frozen_features is None

    def embed(self, image_features: torch.Tensor, text_features: torch.Tensor) -> dict[str, torch.Tensor]:
        """f^I and f^T, (n, projection_dim) each, normalized."""
        return {
            "image_embeds": l2_normalize(self.cots.visual_projection(image_features)),
            "text_embeds": l2_normalize(self.cots.text_projection(text_features)),
        }

    # ------------------------------------------------------------------ instance and task level

    def contrast_terms(self, contrasted: dict[str, torch.Tensor], step: Step) -> dict[str, torch.Tensor]:
        """Instance and task term, scalars, of this rank's pairs against the queue or the batches of all ranks. Takes
        what [`contrast_embeds`] and [`contrast_parameters`] give."""
        images, texts = contrasted["image_embeds"], contrasted["text_embeds"]
        temperature = contrasted.get("temperature", self.config.temperature)
        rows = self._compare(images, texts, step, temperature)
        alpha = self._warmed_up(self.config.soft_target_alpha, self.config.soft_target_warmup_steps)
        # L_I2T = -1/N_B sum_i log( exp(f^I_i.k^T_i / tau) / (exp(f^I_i.k^T_i / tau) + sum_j exp(f^I_i.q^T_j / tau)) )
        instance = partial(
            instance_term, step=step, config=self.config, alpha=alpha, logit_bias=contrasted.get("logit_bias")
        )
        terms = {"instance": instance(rows)}
        if self.config.nested_dims:
            # Matryoshka (Kusupati et al. 2022, eq. 1): the mean of the loss in all D dimensions and in the first d.
            nested = [instance(self._compare(images, texts, step, temperature, d)) for d in self.config.nested_dims]
            terms["instance"] = torch.stack([terms["instance"], *nested]).mean()
        if self.config.task_weight > 0:
            # L_task = 1/N_B sum_i 1/2 ( KL(D_T2I(i) || D_I2T(i)) + KL(D_I2T(i) || D_T2I(i)) )
            terms["task"] = task_term(rows, step)
        return terms

    def _compare(
        self,
        images: torch.Tensor,
        texts: torch.Tensor,
        step: Step,
        temperature: torch.Tensor | float,
        dim: int | None = None,
    ) -> ContrastRows:
        """Comparisons in all dimensions of the embeddings, or in the first `dim`."""
        if self.key_queue is None:
            images, texts = truncate(images, dim), truncate(texts, dim)
            return compare_in_batch(images, texts, step.image_ids, temperature, self.config.same_image)
        return compare_with_queue(images, texts, step, self.key_queue, temperature, self.config, dim)

    def contrast_parameters(self) -> dict[str, torch.Tensor]:
        """The learned parameters of the contrast itself."""
        learned = {"temperature": self.cots.temperature, "logit_bias": self.logit_bias}
        return {name: value for name, value in learned.items() if isinstance(value, torch.Tensor)}

    def contrast_embeds(self, batch: Batch, step: Step) -> dict[str, torch.Tensor]:
        """The normalized embeddings (n, projection_dim) that the contrast compares, for gradient caching."""
        if self.config.single_pass:
            batch = self.with_masks(dict.fromkeys(GIVEN_MASKS) | batch, step)
        image, text = self.tower_outputs(batch, step)
        return self.embed(image.pooler_output, text.pooler_output)

    @property
    def caches_gradients(self) -> bool:
        return self.config.contrast != "momentum" and self.config.instance_weight > 0

    # ------------------------------------------------------------------ token level

    def masks_in(self, number: int) -> bool:
        """Whether the token level is part of a training step, counted from 1."""
        return self.config.uses_masks and number % self.config.token_every == 0

    @property
    def masks_now(self) -> bool:
        """Whether the token level is part of the step under way; in evaluation it always is."""
        if self.config.token_every == 1 or not self.training:
            return self.config.uses_masks
        return self.masks_in(self.host_steps())

    @property
    def masked_fraction(self) -> float:
        """Which fraction of all pairs takes the masked passes, by which its losses are scaled up."""
        return self.config.masked_fraction / (self.config.token_every if self.training else 1)

    def token_terms(
        self, batch: Batch, image: BaseModelOutputWithPooling, text: BaseModelOutputWithPooling, step: Step
    ) -> dict[str, torch.Tensor]:
        """`L_MVM` and `L_MLM` of a micro-batch, scalars, with the streams' outputs of [`tower_outputs`]."""
        levels = [level for level in ("mvm", "mlm") if self.config.loss_weights[level] > 0]
        if not self.masks_now:
            return {level: self._no_term(level) for level in levels}
        terms = {}
        if "mvm" in levels:
            states = image.last_hidden_state if self._masks_pass("mvm", step.image_features) else None
            terms["mvm"] = self.mvm_term(batch, text.pooler_output, step, states)
        if "mlm" in levels:
            states = text.last_hidden_state if self._masks_pass("mlm", step.text_features) else None
            terms["mlm"] = self.mlm_term(batch, image.pooler_output, step, states)
        return terms

    def _no_term(self, level: str) -> torch.Tensor:
        """0, with a gradient of 0 for what this level alone trains: in every rank's backward pass every parameter must
        take part."""
        patches = level == "mvm"
        own = [
            parameter
            for name, parameter in self.named_parameters()
            if name.startswith(f"{level}_") or (patches and name.endswith("mask_token"))
        ]
        return torch.stack([0 * parameter.sum() for parameter in own]).sum()

    def mvm_term(
        self, batch: Batch, text_features: torch.Tensor, step: Step, states: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`L_MVM = -1/N_B sum_i 1/|M_i| sum_{j in M_i} log p(c_ij | image_i masked, g^T_i)`: the codes of masked
        patches. `states` (n, 1 + patches, hidden) are those of the masked images, if there was a pass for them."""
        rows, positions = batch["masked_positions"]["rows"], batch["masked_positions"]["patches"]
        masked, pixels = batch["bool_masked_pos"][rows], batch["pixel_values"][rows]  # (rows, patches), (rows, 3, ...)
        codes = batch["codebook_indices"]
        codes = self.image_codes(pixels) if codes is None else codes[rows]  # (rows, patches)
        if states is None:
            hidden = self.cots.encode_image(pixels, bool_masked_pos=masked).last_hidden_state
        else:
            hidden = states[rows]
        logits = self.predict_codes(hidden, masked, text_features[rows], positions)  # (total masked, codes)
        return token_term(logits, codes, masked, positions, rows, step, self.masked_fraction)

    def mlm_term(
        self, batch: Batch, image_features: torch.Tensor, step: Step, states: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`L_MLM = -1/N_B sum_i 1/|W_i| sum_{j in W_i} log p(w_ij | text_i masked, g^I_i)`: masked words. `states`
        (n, length, hidden) are those of the masked texts, if there was a pass for them."""
        rows, positions = batch["masked_positions"]["rows"], batch["masked_positions"]["words"]
        masked, targets = batch["bool_masked_words"][rows], batch["input_ids"][rows]  # (rows, length)
        if states is None:
            attention_mask = None if batch["attention_mask"] is None else batch["attention_mask"][rows]
            hidden = self.cots.encode_text(batch["masked_input_ids"][rows], attention_mask).last_hidden_state
        else:
            hidden = states[rows]
        logits = self.predict_words(hidden, masked, image_features[rows], positions)  # (total masked, vocabulary)
        return token_term(logits, targets, masked, positions, rows, step, self.masked_fraction)

    def predict_codes(
        self,
        hidden: torch.Tensor,
        masked: torch.Tensor,
        text_features: torch.Tensor,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits (total masked, codebook_size) of the codes of all masked patches, row by row.

        Args:
            hidden: (n, 1 + patches, hidden) last hidden state of the masked images.
            masked: (n, patches) bool.
            text_features: (n, [`feature_size`]) global features of the texts before projection.
            positions: [`true_positions`] of `masked`, if known.
        """
        positions = true_positions(masked) if positions is None else positions
        patches, rows = take_masked(hidden[:, -masked.shape[1] :], positions)  # patches come last
        return self.mvm_classifier(self.mvm_head(patches, text_features.index_select(0, rows)))

    def predict_words(
        self,
        hidden: torch.Tensor,
        masked: torch.Tensor,
        image_features: torch.Tensor,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits (total masked, vocabulary) of all masked words, row by row.

        Args:
            hidden: (n, length, hidden) last hidden state of the masked texts.
            masked: (n, length) bool.
            image_features: (n, [`feature_size`]) global features of the images before projection.
            positions: [`true_positions`] of `masked`, if they are known.
        """
        states, rows = take_masked(hidden, true_positions(masked) if positions is None else positions)
        informed = self.mlm_head(states, image_features.index_select(0, rows))
        if self.mlm_projection is not None:
            informed = self.mlm_projection(informed)
        words = self.get_input_embeddings()
        if isinstance(words, FSDPModule):
            words.unshard()  # a sharded module gathers its weight for its own forward only
        return nn.functional.linear(informed, words.weight, self.mlm_bias)

    # ------------------------------------------------------------------ towers, momentum, initialization

    @staticmethod
    def _image_features(encoder: COTSModel, batch: Batch) -> torch.Tensor:
        features, frame_mask = batch.get("features") or {}, batch.get("frame_mask")
        if "image_features" in features:
            return features["image_features"]
        if "frame_features" in features:
            return encoder.pool_frames(features["frame_features"], frame_mask)
        if batch.get("pixel_values_videos") is not None:
            return encoder.encode_video(batch["pixel_values_videos"], frame_mask).pooler_output
        return encoder.encode_image(batch["pixel_values"]).pooler_output

    @staticmethod
    def _text_features(encoder: COTSModel, batch: Batch) -> torch.Tensor:
        return encoder.encode_text(batch["input_ids"], batch.get("attention_mask")).pooler_output

    @property
    def ema_pairs(self) -> tuple[tuple[nn.Module, nn.Module], ...]:
        return () if self.momentum_encoder is None else ((self.momentum_encoder, self.cots),)

    @property
    def skip_in_ema(self) -> tuple[str, ...]:
        """A frozen tower is its own momentum encoder."""
        return tuple(name for name in ("vision_model", "text_model") if is_frozen(getattr(self.cots, name)))

    def momentum_now(self) -> float:
        return self._warmed_up(self.config.momentum, self.config.momentum_warmup_steps)

    def _warmed_up(self, value: float, warmup_steps: int) -> float:
        """The [`warmup_fraction`] of the steps that the host has counted, in float64."""
        return value * min(1.0, max(0, self.host_steps() - 1) / warmup_steps) if warmup_steps else value

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, COTSForPreTraining):
            if module.logit_bias is not None:
                init.constant_(module.logit_bias, self.config.initial_logit_bias)
            if module.mlm_head is not None:
                init.zeros_(module.mlm_bias)

    def resize_heads(self, words: int) -> None:
        if self.mlm_head is not None:
            self.mlm_bias = resized_bias(self.mlm_bias, words)


def _centered(keys: Keys | Step, means: Any) -> dict[str, torch.Tensor]:
    """The keys (n, D) of images and texts with the mean (D,) of each subtracted."""
    image_mean, text_mean = means
    return {
        "image_keys": center_keys(keys.image_keys, image_mean),  # type: ignore[arg-type]
        "text_keys": center_keys(keys.text_keys, text_mean),  # type: ignore[arg-type]
    }
