"""SIMLA pre-training (Khan et al. 2022): alignment at four levels, each distilled from a momentum model.

    ITC   image and text features, contrasted with the step's momentum features and the queues
    ITM   does the pair belong together? One hard negative image for each text, one hard negative text for each image
    XMM   masked words from the image (MLM), codes of masked patches from the text (MIM), through the same weights
    PSL   keywords that the momentum model's attention picks out of the text, predicted from the image's feature

The order of an optimizer step is COTS's: `begin_step` with all its micro-batches, forward and backward for each,
`end_step`. All terms but ITM, whose negatives are of the micro-batch, give a pair the same loss in any micro-batch and
on any rank. Under a plain `Trainer`, forward begins and ends a step of its own.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from .configuration_simla import SimlaConfig
from .losses import l2_normalize
from .masking import RandomStream, generator, mix
from .modeling_dvae import COTSImageTokenizer
from .modeling_simla import SimlaModel, SimlaPreTrainedModel
from .pretraining import PreTrainingModel, on_request, resized_bias, takes_output_options, warmup_fraction
from .queues import KeyQueue
from .step import Batch, Step
from .terms_simla import Side, SimlaHeads, itc_term, itm_term, mim_term, mlm_term, psl_term
from .towers import at_least_one_row


@dataclass
class SimlaForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor`, scalar): the weighted sum of the five terms.
        loss_itc, loss_itm, loss_mlm, loss_mim, loss_psl (`torch.FloatTensor`, scalars): the terms before their
            weights; 0 where a term has weight 0.
        image_embeds, text_embeds (`torch.FloatTensor` of shape `(batch, projection_dim)`): L2-normalized.
        vision_model_output, text_model_output (`BaseModelOutputWithPooling`): each stream's output, if its hidden
            states or attentions were asked for.
    """

    loss: torch.FloatTensor | None = None
    loss_itc: torch.FloatTensor | None = None
    loss_itm: torch.FloatTensor | None = None
    loss_mlm: torch.FloatTensor | None = None
    loss_mim: torch.FloatTensor | None = None
    loss_psl: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None
    text_model_output: BaseModelOutputWithPooling | None = None


class SimlaForPreTraining(SimlaPreTrainedModel, PreTrainingModel):
    """SIMLA for pre-training: a [`SimlaModel`] with momentum model, queues, heads and image tokenizer.

    Its files can be loaded as [`SimlaModel`] (the rest is ignored), and files of a [`SimlaModel`] as this class, with
    the momentum model equal to the online model, new heads and empty queues. `SimlaForPreTraining(SimlaConfig())` has
    238,264,183 trainable parameters, as the authors' has.

    Args:
        config ([`SimlaConfig`]): terms with weight 0 have no parameters.
    """

    encoder_class = SimlaModel

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

    def resize_heads(self, words: int) -> None:
        self.simla.resize_concepts(words)
        if self.heads.word_transform is not None:
            self.heads.word_bias = resized_bias(self.heads.word_bias, words)

    # ------------------------------------------------------------------ the step

    @torch.no_grad()
    def momentum_features(self, batch: Batch) -> dict[str, torch.Tensor]:
        """`image_keys` and `text_keys` (n, D), and `momentum_image_states` (n, 1 + patches, hidden)."""
        encoder = self.momentum_encoder
        image = encoder.encode_image(batch["pixel_values"])
        text = encoder.encode_text(batch["input_ids"], batch.get("attention_mask"))
        return {
            "momentum_image_states": image.last_hidden_state,
            "image_keys": l2_normalize(encoder.visual_projection(image.pooler_output)),
            "text_keys": l2_normalize(encoder.text_projection(text.pooler_output)),
        }

    def distillation_weight(self) -> torch.Tensor:
        """a: the weight of the momentum model's predictions in the step under way; scalar float32.

        It rises in equal steps from 0 in the first step to the config's weight.
        """
        fraction = warmup_fraction(self.steps_seen, self.config.distillation_warmup_steps)
        return self.config.distillation_weight * fraction

    def negative_hardness(self) -> torch.Tensor:
        """The factor of ITC's similarities when negatives are drawn by them: 0 draws any, 1 the authors' hard ones;
        scalar float32."""
        return warmup_fraction(self.steps_seen, self.config.hard_negative_warmup_steps)

    # ------------------------------------------------------------------ forward

    @takes_output_options
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        image_ids: torch.LongTensor | None = None,
        bool_masked_pos: torch.BoolTensor | None = None,
        masked_input_ids: torch.LongTensor | None = None,
        bool_masked_words: torch.BoolTensor | None = None,
        masked_positions: dict[str, torch.Tensor] | None = None,
        codebook_indices: torch.LongTensor | None = None,
        codebook_pixel_values: torch.FloatTensor | None = None,
        step: Step | None = None,
    ) -> SimlaForPreTrainingOutput:
        """Compute the losses of one micro-batch of n pairs.

        Args:
            pixel_values: (n, 3, image_size, image_size), normalized with the config's mean and deviation.
            input_ids, attention_mask: (n, length).
            image_ids: (n,) int64, equal for the captions of one image.
            bool_masked_pos: (n, patches); masked_input_ids, bool_masked_words: (n, length). Of [`masking.draw_masks`];
                drawn here if not given.
            masked_positions: of [`find_masked`], which finds them here if they are not given.
            codebook_indices: (n, patches) int64 codes of the patches; computed here if not given,
            codebook_pixel_values: from these pixels, or else from `pixel_values`. Another crop of the image is what
                `match_original_code` wants here.
            step: of [`begin_step`]. In training without one forward is a step of its own; in evaluation the queues
                stay as they are.
        """
        batch = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}
        batch |= {"bool_masked_pos": bool_masked_pos, "masked_input_ids": masked_input_ids, "image_ids": image_ids}
        batch |= {"bool_masked_words": bool_masked_words, "codebook_indices": codebook_indices}
        batch |= {"codebook_pixel_values": codebook_pixel_values, "masked_positions": masked_positions}
        step = self.step_for(batch, step)
        batch, step = _never_empty(self.with_masks(batch, step), step)
        config, weight, temperature = self.config, self.distillation_weight(), self.simla.temperature

        image = self.simla.encode_image(batch["pixel_values"], **self.output_options)
        text = self.simla.encode_text(batch["input_ids"], batch["attention_mask"], **self.output_options)
        image_embeds = l2_normalize(self.simla.visual_projection(image.pooler_output))  # (n, D)
        text_embeds = l2_normalize(self.simla.text_projection(text.pooler_output))  # (n, D)
        online, momentum = self._sides(image.last_hidden_state, step)

        losses = {}  # (n,) each
        queued = self._pending or step.keys  # momentum features of the whole step
        losses["itc"] = itc_term(image_embeds, text_embeds, step, queued, self.key_queue, temperature, weight, config)
        drawn = (temperature, self.negative_hardness(), config, None if self.training else _draws(step))
        losses["itm"] = itm_term(batch, online, image_embeds, text_embeds, step, *drawn)
        if config.mlm_weight > 0:
            losses["mlm"] = mlm_term(batch, online, momentum, weight, config)
        if config.mim_weight > 0:
            losses["mim"] = mim_term(batch, online, momentum, self._codes(batch), weight)
        if config.psl_weight > 0:
            losses["psl"] = psl_term(batch, online, momentum, image_embeds, step, weight, config)
        return SimlaForPreTrainingOutput(
            **self.loss_and_terms({name: (step.weights * each).sum() for name, each in losses.items()}, step),
            image_embeds=image_embeds[: len(input_ids)],
            text_embeds=text_embeds[: len(input_ids)],
            vision_model_output=on_request(image),
            text_model_output=on_request(text),
        )

    def _sides(self, image_states: torch.Tensor, step: Step) -> tuple[Side, Side]:
        """The trained and the momentum model, each with keys and values of the clean images."""
        online = Side(self.simla, self.heads, self.simla.text_model.cache_cross_attention(image_states))
        with torch.no_grad():
            cache = self.momentum_encoder.text_model.cache_cross_attention(step.momentum_image_states)
        return online, Side(self.momentum_encoder, self.momentum_heads, cache)

    def _codes(self, batch: Batch) -> torch.Tensor:
        """(n, patches) int64 codes: those given, or of the pixels given for them, or of the images themselves."""
        if batch["codebook_indices"] is not None:
            return batch["codebook_indices"]
        pixels = batch["codebook_pixel_values"]
        return self.image_codes(batch["pixel_values"] if pixels is None else pixels)


def _draws(step: Step) -> torch.Tensor:
    """(n, 2) random numbers in [0, 1), each pair's from its index: evaluation draws the same negatives every time."""
    rows = [generator(mix(index), RandomStream.HARD_NEGATIVE).random(2).tolist() for index in step.pair_index.tolist()]
    return torch.tensor(rows, device=step.pair_index.device)


def _never_empty(batch: Batch, step: Step) -> tuple[Batch, Step]:
    """A blank row of weight 0 in place of no rows, in every tensor: every parameter takes part in each backward."""
    batch = {name: at_least_one_row(rows) if isinstance(rows, torch.Tensor) else rows for name, rows in batch.items()}
    tensors = {field.name: getattr(step, field.name) for field in fields(step)}
    padded = {name: at_least_one_row(rows) for name, rows in tensors.items() if isinstance(rows, torch.Tensor)}
    return batch, replace(step, **padded)  # type: ignore[arg-type]
