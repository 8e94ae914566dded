"""SIMLA pre-training (Khan et al. 2022): alignment at four levels, each distilled from a momentum twin.

    ITC   image and text features, contrasted with the step's momentum features and the queues
    ITM   does the pair belong together? One hard negative image for each text, one hard negative text for each image
    XMM   masked words from the image (MLM), codes of masked patches from the text (MIM), through the same weights
    PSL   keywords that the momentum twin's attention picks out of the text, predicted from the image's feature

The order of an optimizer step is COTS's: `begin_step` with all its micro-batches, forward and backward for each,
`end_step`. All terms but ITM, whose negatives are of the micro-batch, give a pair the same loss in any micro-batch and
on any rank. Under a plain `Trainer`, forward begins and ends a step of its own.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_simla import SimlaConfig
from .distributed import fill_image_ids, global_pair_index, row_counts
from .losses import contrast_logits, l2_normalize
from .losses_simla import distilled_cross_entropy, in_batch_similarities
from .modeling_dvae import COTSImageTokenizer
from .modeling_simla import SimlaModel, SimlaPreTrainedModel
from .pretraining import PreTrainingModel
from .queues import KeyQueue
from .terms_simla import Batch, Side, SimlaHeads, itm_term, mim_term, mlm_term, psl_term
from .token_level import draw_masks_by_index
from .towers import at_least_one_row


@dataclass
class SimlaForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor`, scalar): the weighted sum of the five terms.
        loss_itc, loss_itm, loss_mlm, loss_mim, loss_psl (`torch.FloatTensor`, scalars): the terms before their
            weights; 0 where a term has weight 0.
        image_embeds, text_embeds (`torch.FloatTensor` of shape `(batch, projection_dim)`): L2-normalised.
    """

    loss: torch.FloatTensor | None = None
    loss_itc: torch.FloatTensor | None = None
    loss_itm: torch.FloatTensor | None = None
    loss_mlm: torch.FloatTensor | None = None
    loss_mim: torch.FloatTensor | None = None
    loss_psl: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None


class SimlaForPreTraining(SimlaPreTrainedModel, PreTrainingModel):
    """[`SimlaModel`] with momentum twin, queues, heads and image tokenizer.

    Its files load as [`SimlaModel`] (the rest is left out), and a [`SimlaModel`] file loads as this class, with the
    momentum twin equal to the online model, new heads and empty queues. `SimlaForPreTraining(SimlaConfig())` has
    238,264,183 trainable parameters, as the authors' has.

    Args:
        config ([`SimlaConfig`]): terms of weight 0 have no parameters here.
    """

    encoder_class = SimlaModel
    loss_terms = ("loss_itc", "loss_itm", "loss_mlm", "loss_mim", "loss_psl")

    def __init__(self, config: SimlaConfig):
        super().__init__(config)
        self.check_mask_token(config)
        masks_patches = config.mim_weight > 0
        self.simla = SimlaModel(config, use_mask_token=masks_patches)
        self.momentum_encoder = SimlaModel(config, use_mask_token=masks_patches)
        self.heads, self.momentum_heads = SimlaHeads(config), SimlaHeads(config)
        self.key_queue = KeyQueue(config.queue_size, config.projection_dim)
        if masks_patches:
            self.image_tokenizer = COTSImageTokenizer(config.image_tokenizer_config)  # type: ignore[arg-type]
        self.post_init()
        self.train(self.training)  # freezes what is never trained

    @property
    def ema_pairs(self) -> tuple[tuple[nn.Module, nn.Module], ...]:
        return (self.momentum_encoder, self.simla), (self.momentum_heads, self.heads)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, SimlaHeads) and module.word_transform is not None:
            init.zeros_(module.word_bias)

    # ------------------------------------------------------------------ the step: keys, queues, momentum

    def new_queues(self, queue_size: int) -> None:
        """Start with empty queues of this size: what training on new data wants.

        Raises:
            ValueError: if the size is not positive.
        """
        self.config.queue_size = queue_size
        self.config.validate_ranges()
        self.key_queue = KeyQueue(queue_size, self.config.projection_dim).to(self.device)
        self.reset_counters()

    def distillation_share(self) -> torch.Tensor:
        """a: the weight of the momentum twin's predictions in the step under way; scalar float32.

        It rises in equal steps from 0 in the first step to the config's weight.
        """
        return self.config.distillation_weight * self._risen(self.config.distillation_warmup_steps)

    def negative_hardness(self) -> torch.Tensor:
        """What ITC's similarities are multiplied with before negatives are drawn by them: 0 draws any, 1 the authors'
        hard ones; scalar float32."""
        return self._risen(self.config.hard_negative_warmup_steps)

    def _risen(self, warmup_steps: int) -> torch.Tensor:
        """How far the step under way is through the warm-up: from 0 in the first step to 1."""
        begun = (self.steps_seen - 1).clamp(min=0) / max(1, warmup_steps)
        return begun.clamp(max=1) if warmup_steps else torch.ones_like(begun)

    @torch.no_grad()
    def begin_step(self, micro_batches: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        """Compute the momentum features of a whole optimizer step.

        Args:
            micro_batches: this rank's micro-batches, each with `pixel_values`, `input_ids`, and if there are any
                `attention_mask` and `image_ids` (n,) int64, at least 0, equal for the captions of one picture.

        Returns:
            For each micro-batch what forward takes beside it: `image_keys`, `text_keys` (n, D), `image_ids` and
            `pair_index` (n,) int64, `momentum_image_states` (n, 1 + patches, hidden), and `pair_weights` (n,), such that the
            sum over the step, after Trainer's division by micro-batches and ranks, is the mean over all its pairs.
        """
        steps = [self._momentum_features(batch) for batch in micro_batches]
        wanted = ("image_keys", "text_keys", "image_ids", "pair_index")
        self._pending = self.assign_pair_index(micro_batches, steps, *wanted)
        return steps

    @torch.no_grad()
    def _momentum_features(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        twin = self.momentum_encoder
        states = twin.encode_image(batch["pixel_values"])
        words = twin.encode_text(batch["input_ids"], batch.get("attention_mask"))
        return {
            "momentum_image_states": states,
            "image_keys": l2_normalize(twin.visual_projection(states[:, 0])),
            "text_keys": l2_normalize(twin.text_projection(words[:, 0])),
        }

    # ------------------------------------------------------------------ forward

    def forward(
        self,
        pixel_values: torch.FloatTensor,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        image_ids: torch.LongTensor | None = None,
        bool_masked_pos: torch.BoolTensor | None = None,
        masked_input_ids: torch.LongTensor | None = None,
        bool_masked_words: torch.BoolTensor | None = None,
        codebook_indices: torch.LongTensor | None = None,
        codebook_pixel_values: torch.FloatTensor | None = None,
        momentum_image_states: torch.FloatTensor | None = None,
        image_keys: torch.FloatTensor | None = None,
        text_keys: torch.FloatTensor | None = None,
        pair_index: torch.LongTensor | None = None,
        pair_weights: torch.FloatTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
    ) -> SimlaForPreTrainingOutput:
        """The losses of one micro-batch of n pairs.

        Args:
            pixel_values: (n, 3, image_size, image_size), normalised with the config's mean and deviation.
            input_ids, attention_mask: (n, length).
            image_ids: (n,) int64, equal for the captions of one picture.
            bool_masked_pos: (n, patches); masked_input_ids, bool_masked_words: (n, length). Of [`masking.draw_masks`];
                drawn here if not given.
            codebook_indices: (n, patches) int64 codes of the patches; computed here if not given,
            codebook_pixel_values: from these pixels, or else from `pixel_values`. Another crop of the picture is what
                `match_original_code` wants here.
            momentum_image_states, image_keys, text_keys, pair_index, pair_weights: of [`begin_step`]. In training without them
                forward is a step of its own; in evaluation the queues stay as they are.
            token_type_ids: ignored; SIMLA has no token types.
        """
        own_step = self.training and pair_weights is None
        inputs = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}
        if own_step:
            self.simla.clamp_temperature()
            self.update_momentum()
            (step,) = self.begin_step([inputs | {"image_ids": image_ids}])
        elif pair_weights is None:
            step = self._evaluation_features(inputs, image_ids)
        else:
            step = {
                "momentum_image_states": momentum_image_states,
                "image_keys": image_keys,
                "text_keys": text_keys,
                "pair_index": pair_index,
                "image_ids": image_ids,
                "pair_weights": pair_weights,
            }
        masks = {
            "bool_masked_pos": bool_masked_pos,
            "masked_input_ids": masked_input_ids,
            "bool_masked_words": bool_masked_words,
        }
        if masked_input_ids is None and self.config.uses_masks:
            masks = draw_masks_by_index(self.config, input_ids, attention_mask, step["pair_index"])
        codes = {"codebook_indices": codebook_indices, "codebook_pixel_values": codebook_pixel_values}
        output = self._losses(len(input_ids), **_never_empty(inputs | step | masks | codes))
        if own_step:
            self._enqueue_pending()
        return output

    @torch.no_grad()
    def _evaluation_features(self, inputs: dict, image_ids: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """What begin_step would give, without a trace in the model's state."""
        step = self._momentum_features(inputs)
        count = len(inputs["input_ids"])
        step["pair_index"] = global_pair_index(self.pairs_seen, row_counts(count, self.pairs_seen.device))
        step["image_ids"] = fill_image_ids(image_ids, step["pair_index"])
        step["pair_weights"] = torch.full_like(step["image_keys"][:, 0], 1 / max(1, count))
        return step

    def _losses(
        self,
        count: int,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        momentum_image_states: torch.Tensor,
        image_keys: torch.Tensor,
        text_keys: torch.Tensor,
        pair_index: torch.Tensor,
        image_ids: torch.Tensor,
        pair_weights: torch.Tensor,
        bool_masked_pos: torch.Tensor,
        masked_input_ids: torch.Tensor,
        bool_masked_words: torch.Tensor,
        codebook_indices: torch.Tensor | None,
        codebook_pixel_values: torch.Tensor | None,
    ) -> SimlaForPreTrainingOutput:
        """All terms of a batch of at least one row, of which the first `count` are pairs."""
        config, share = self.config, self.distillation_share()
        batch = Batch(pixel_values, input_ids, attention_mask)
        states = self.simla.encode_image(pixel_values)
        words = self.simla.encode_text(input_ids, attention_mask)
        image_embeds = l2_normalize(self.simla.visual_projection(states[:, 0]))
        text_embeds = l2_normalize(self.simla.text_projection(words[:, 0]))
        online = Side(self.simla, self.heads, self.simla.text_model.remember(states))
        with torch.no_grad():
            twin_memory = self.momentum_encoder.text_model.remember(momentum_image_states)
        twin = Side(self.momentum_encoder, self.momentum_heads, twin_memory)

        itc = self._itc(share, image_embeds, text_embeds, image_keys, text_keys, image_ids, pair_index)
        similarities = in_batch_similarities(image_embeds, text_embeds, image_keys, text_keys, self._tau())
        images_first, texts_first = (self.negative_hardness() * each for each in similarities)
        itm = itm_term(batch, online, (images_first, texts_first), self._negatives(image_ids))
        terms = {"itc": itc, "itm": itm}
        if config.mlm_weight > 0:
            quirk = config.match_original_code
            terms["mlm"] = mlm_term(batch, online, twin, masked_input_ids, bool_masked_words, share, quirk)
        if config.mim_weight > 0:
            if codebook_indices is None:
                seen = pixel_values if codebook_pixel_values is None else codebook_pixel_values
                codebook_indices = self.image_codes(seen)
            terms["mim"] = mim_term(batch, online, twin, bool_masked_pos, codebook_indices, share)
        if config.psl_weight > 0:
            terms["psl"] = psl_term(batch, online, twin, image_embeds, image_keys, share, config)
        terms = {name: (pair_weights * per_pair).sum() for name, per_pair in terms.items()}
        weights = config.loss_weights
        return SimlaForPreTrainingOutput(
            loss=torch.stack([weights[name] * term for name, term in terms.items()]).sum(),
            **{f"loss_{name}": terms.get(name, pair_weights.new_zeros(())).detach() for name in weights},
            image_embeds=image_embeds[:count],
            text_embeds=text_embeds[:count],
        )

    def _tau(self) -> torch.Tensor:
        """The temperature within its bounds, for a step that begins with one out of them."""
        return self.simla.temperature.clamp(self.config.min_temperature, self.config.max_temperature)

    def _itc(
        self,
        share: torch.Tensor,
        image_embeds: torch.Tensor,
        text_embeds: torch.Tensor,
        image_keys: torch.Tensor,
        text_keys: torch.Tensor,
        image_ids: torch.Tensor,
        pair_index: torch.Tensor,
    ) -> torch.Tensor:
        """L_itc of each pair: `s = f T_all / tau` against `a softmax(s') + (1 - a) onehot`, mean of both directions.

        `T_all` holds the whole step's momentum features and the queue; empty slots, and unless `match_original_code`
        other captions of the same picture, have probability 0 in prediction and target.
        """
        own_keys = (image_keys, text_keys, image_ids, pair_index)
        fresh_images, fresh_texts, fresh_ids, fresh_numbers = self._pending or own_keys
        own = pair_index[:, None] == fresh_numbers[None, :]
        if self.config.match_original_code:
            empty = torch.arange(len(self.key_queue), device=own.device) >= self.key_queue.filled
            left_out = torch.cat([own, empty.expand(len(own), -1)], dim=1)
        else:
            same = image_ids[:, None] == fresh_ids[None, :]
            left_out = torch.cat([own | same, self.key_queue.invalid_negatives(image_ids)], dim=1)
        images = torch.cat([fresh_images, self.key_queue.image_keys.to(fresh_images.dtype)])
        texts = torch.cat([fresh_texts, self.key_queue.text_keys.to(fresh_texts.dtype)])
        target = torch.zeros_like(pair_index)  # the own partner is in column 0
        losses = []
        for queries, teachers, partners, keys in (
            (image_embeds, image_keys, text_keys, texts),
            (text_embeds, text_keys, image_keys, images),
        ):
            logits = contrast_logits(queries, partners, keys, left_out, self._tau())
            teacher = contrast_logits(teachers, partners, keys, left_out, self._tau()).detach()
            losses.append(distilled_cross_entropy(logits, target, teacher, share))
        return (losses[0] + losses[1]) / 2

    def _negatives(self, image_ids: torch.Tensor) -> torch.Tensor:
        """(n, n) bool: which others of the batch are no partner of each pair."""
        if self.config.match_original_code:
            return ~torch.eye(len(image_ids), dtype=torch.bool, device=image_ids.device)
        return image_ids[:, None] != image_ids[None, :]


def _never_empty(inputs: dict[str, Any]) -> dict[str, Any]:
    """A blank row of weight 0 in place of no rows, in every tensor: every parameter takes part in each backward."""
    return {name: None if rows is None else at_least_one_row(rows) for name, rows in inputs.items()}


__all__ = ["SimlaForPreTraining", "SimlaForPreTrainingOutput"]
