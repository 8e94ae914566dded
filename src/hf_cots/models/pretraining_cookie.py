"""COOKIE pre-training (Wen et al. 2021): three contrasts within the batch, all of them after the shared transformer.

    cross_modal   the image's weak view and its caption
    visual        two augmented views of the image
    textual       the caption and a second view of it

Keys of all ranks are gathered with gradient: the loss is that of the global batch. The order of an optimizer step is
COTS's, so that [`COTSTrainer`] serves both: `begin_step` with all its micro-batches, forward and backward for each,
`end_step`. A micro-batch is a batch of its own to the contrasts, unless gradients are cached.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from .configuration_cookie import CookieConfig
from .instance_level import compare_in_batch, hinge, info_nce
from .losses import l2_normalize
from .modeling_cookie import CookieModel, CookiePreTrainedModel
from .pretraining import PreTrainingModel, on_request, takes_output_options
from .step import Batch, Step


# The two sides of each contrast.
SIDES = {
    "cross_modal": ("image_embeds", "text_embeds"),
    "visual": ("image_embeds", "view_image_embeds"),
    "textual": ("text_embeds", "view_text_embeds"),
}


@dataclass
class CookieForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor`, scalar): the weighted sum of the three terms.
        loss_cross_modal, loss_visual, loss_textual (`torch.FloatTensor`, scalars): the terms before their weights; 0
            where a term has weight 0.
        image_embeds, text_embeds (`torch.FloatTensor` of shape `(batch, projection_dim)`): L2-normalized.
        vision_model_output, text_model_output (`BaseModelOutputWithPooling`): each stream's output, if its hidden
            states or attentions were asked for.
    """

    loss: torch.FloatTensor | None = None
    loss_cross_modal: torch.FloatTensor | None = None
    loss_visual: torch.FloatTensor | None = None
    loss_textual: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None
    text_model_output: BaseModelOutputWithPooling | None = None


class CookieForPreTraining(CookiePreTrainedModel, PreTrainingModel):
    """[`CookieModel`] with its three losses, which have no parameters of their own.

    Its files load as [`CookieModel`], and the other way round.

    Args:
        config ([`CookieConfig`]).
    """

    encoder_class = CookieModel
    caches_gradients = True  # all three contrasts are within the batch

    def __init__(self, config: CookieConfig):
        super().__init__(config)
        self.cookie = CookieModel(config)
        self.post_init()

    @classmethod
    def from_vision_text_pretrained(
        cls, vision: str | PreTrainedModel, text: str | PreTrainedModel, image_tokenizer: Any = None, **config_fields
    ) -> "CookieForPreTraining":
        """Start pre-training from two pretrained towers; projections and shared layers are new.

        Args:
            vision, text, config_fields: as in [`COTSModel.from_vision_text_pretrained`].
            image_tokenizer: there is no use for one.

        Raises:
            ValueError: if a tower does not fit, or an image tokenizer is given.
        """
        if image_tokenizer is not None:
            cls.refuse_image_tokenizer()
        return super().from_vision_text_pretrained(vision, text, **config_fields)

    def set_image_tokenizer(self, image_tokenizer: Any) -> None:
        """Always a ValueError: no patch is masked here."""
        self.refuse_image_tokenizer()

    @staticmethod
    def refuse_image_tokenizer() -> None:
        raise ValueError("COOKIE does not mask patches: leave out the image tokenizer")

    # ------------------------------------------------------------------ forward

    def momentum_features(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Nothing: there is no momentum encoder."""
        return {}

    @takes_output_options
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        image_ids: torch.LongTensor | None = None,
        view_pixel_values: torch.FloatTensor | None = None,
        view_input_ids: torch.LongTensor | None = None,
        view_attention_mask: torch.Tensor | None = None,
        step: Step | None = None,
    ) -> CookieForPreTrainingOutput:
        """The losses of one micro-batch of n pairs.

        Args:
            pixel_values, view_pixel_values: (n, 3, image_size, image_size), the weak and the strong view, normalized.
            input_ids, attention_mask: (n, length); view_input_ids, view_attention_mask: (n, other length).
            image_ids: (n,) int64, equal for the captions of one image, which are no negatives of each other.
            step: of [`begin_step`]. In training without one forward is a step of its own.

        Raises:
            ValueError: if a contrast is on whose view is not given.
        """
        batch = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}
        batch |= {"view_pixel_values": view_pixel_values, "view_input_ids": view_input_ids}
        batch |= {"view_attention_mask": view_attention_mask, "image_ids": image_ids}
        step = self.step_for(batch, step)
        image, text = self.tower_outputs(batch)
        contrasted = self.embed(batch, image, text) | self.contrast_parameters()
        terms = self.contrast_terms(contrasted, step) if step.cached is None else step.cached.terms
        return CookieForPreTrainingOutput(
            **self.loss_and_terms(terms, step, contrasted),
            image_embeds=contrasted["image_embeds"],
            text_embeds=contrasted["text_embeds"],
            vision_model_output=on_request(image),
            text_model_output=on_request(text),
        )

    # ------------------------------------------------------------------ the contrasts

    def contrast_embeds(self, batch: Batch, step: Step) -> dict[str, torch.Tensor]:
        """The normalized embeddings (n, projection_dim) of the sides of the contrasts; `batch` is what forward takes.

        Raises:
            ValueError: if a contrast is on whose view is not there.
        """
        return self.embed(batch, *self.tower_outputs(batch))

    def tower_outputs(self, batch: Batch) -> tuple[BaseModelOutputWithPooling, BaseModelOutputWithPooling]:
        """The streams' outputs for image and caption; `pooler_output` is not normalized yet."""
        options = self.output_options | {"return_dict": True}
        return (
            self.cookie.get_image_features(batch["pixel_values"], **options),
            self.cookie.get_text_features(batch["input_ids"], batch.get("attention_mask"), **options),
        )

    def embed(
        self, batch: Batch, image: BaseModelOutputWithPooling, text: BaseModelOutputWithPooling
    ) -> dict[str, torch.Tensor]:
        """[`contrast_embeds`], with the streams' outputs for image and caption."""
        embeds = {"image_embeds": l2_normalize(image.pooler_output), "text_embeds": l2_normalize(text.pooler_output)}
        for term, view in (("visual", "view_pixel_values"), ("textual", "view_input_ids")):
            if self.config.loss_weights[term] > 0 and batch.get(view) is None:
                raise ValueError(f"{term}_weight > 0 needs {view}, which the collator makes; or set the weight to 0")
        if self.config.visual_weight > 0:
            embeds["view_image_embeds"] = self._image(batch["view_pixel_values"])
        if self.config.textual_weight > 0:
            embeds["view_text_embeds"] = self._text(batch["view_input_ids"], batch.get("view_attention_mask"))
        return embeds

    def _image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return l2_normalize(self.cookie.get_image_features(pixel_values, return_dict=True).pooler_output)

    def _text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        return l2_normalize(self.cookie.get_text_features(input_ids, attention_mask, return_dict=True).pooler_output)

    def contrast_parameters(self) -> dict[str, torch.Tensor]:
        """The learned parameters of the contrasts themselves."""
        return {"temperature": self.cookie.temperature} if self.config.learn_temperature else {}

    def contrast_terms(self, contrasted: dict[str, torch.Tensor], step: Step) -> dict[str, torch.Tensor]:
        """The terms of this rank's pairs against the batches of all ranks, scalars; those of weight 0 are left out.

        Args:
            contrasted: of [`contrast_embeds`] and [`contrast_parameters`].
        """
        terms = {}
        for name, sides in SIDES.items():
            if self.config.loss_weights[name] == 0:
                continue
            first, second = (contrasted[side] for side in sides)
            if name == "cross_modal" and self.config.cross_modal_loss == "hinge":
                losses = hinge(compare_in_batch(first, second, step.image_ids, 1.0), self.config.margin)
            else:
                temperature = contrasted.get("temperature", self.config.temperature)
                losses = info_nce(compare_in_batch(first, second, step.image_ids, temperature))
            terms[name] = (step.weights * losses).sum()
        return terms
