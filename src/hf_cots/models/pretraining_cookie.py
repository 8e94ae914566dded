"""COOKIE pre-training (Wen et al. 2021): three contrasts within the batch, all of them after the shared transformer.

    cross_modal   the picture's weak view and its caption
    visual        two augmented views of the picture
    textual       the caption and a second view of it

Keys of all ranks are gathered with gradient: the loss is that of the global batch. The order of an optimizer step is
COTS's, so that [`COTSTrainer`] serves both: `begin_step` with all its micro-batches, forward and backward for each,
`end_step`. A micro-batch is a batch of its own to the contrasts, unless gradients are cached.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_cookie import CookieConfig
from .distributed import fill_image_ids, global_pair_index, row_counts
from .instance_level import hinge, info_nce, rows_of_all_ranks, with_gradients
from .losses import l2_normalize
from .modeling_cookie import CookieModel, CookiePreTrainedModel
from .pretraining import PreTrainingModel


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
        image_embeds, text_embeds (`torch.FloatTensor` of shape `(batch, projection_dim)`): L2-normalised.
    """

    loss: torch.FloatTensor | None = None
    loss_cross_modal: torch.FloatTensor | None = None
    loss_visual: torch.FloatTensor | None = None
    loss_textual: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None


class CookieForPreTraining(CookiePreTrainedModel, PreTrainingModel):
    """[`CookieModel`] with its three losses, which have no parameters of their own.

    Its files load as [`CookieModel`], and the other way round.

    Args:
        config ([`CookieConfig`]).
    """

    encoder_class = CookieModel
    loss_terms = ("loss_cross_modal", "loss_visual", "loss_textual")

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
        raise ValueError("COOKIE masks no patches: leave out the image tokenizer")

    # ------------------------------------------------------------------ the step

    def new_queues(self) -> None:
        """Count anew: what training on new data wants. There are no queues."""
        self.reset_counters()

    @torch.no_grad()
    def begin_step(self, micro_batches: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        """Number and weigh the pairs of a whole optimizer step.

        Args:
            micro_batches: this rank's micro-batches.

        Returns:
            For each micro-batch `image_ids` (n,) int64, and `pair_weights` (n,), such that the sum over the
            step, after Trainer's division by micro-batches and ranks, is the mean over all its pairs.
        """
        steps: list[dict[str, torch.Tensor]] = [{} for _ in micro_batches]
        self.assign_pair_index(micro_batches, steps)
        return [{name: step[name] for name in ("image_ids", "pair_weights")} for step in steps]

    # ------------------------------------------------------------------ what the contrasts compare

    def contrast_embeds(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The normalised embeddings (n, projection_dim) of the sides of the contrasts; `batch` is what forward takes.

        Raises:
            ValueError: if a contrast is on whose view is not there.
        """
        embeds = {"image_embeds": self._image(batch["pixel_values"])}
        embeds["text_embeds"] = self._text(batch["input_ids"], batch.get("attention_mask"))
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

    @property
    def caches_gradients(self) -> bool:
        """All three contrasts are within the batch."""
        return True

    def contrast_parameters(self) -> dict[str, torch.Tensor]:
        """What is learned of the contrasts themselves."""
        return {"temperature": self.cookie.temperature} if self.config.learn_temperature else {}

    def contrast_terms(
        self, compared: dict[str, torch.Tensor], image_ids: torch.Tensor, pair_weights: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The terms of this rank's pairs against the batches of all ranks; those of weight 0 are left out.

        Args:
            compared: of [`contrast_embeds`] and [`contrast_parameters`].
            image_ids, pair_weights: (n,).
        """
        config = self.config
        temperature = compared.get("temperature", config.temperature)
        terms = {}
        for name, (first, second) in SIDES.items():
            if config.loss_weights[name] == 0:
                continue
            if name == "cross_modal" and config.cross_modal_loss == "hinge":
                rows = rows_of_all_ranks(compared[first], compared[second], image_ids, 1.0)
                losses = hinge(rows, config.margin)
            else:
                losses = info_nce(rows_of_all_ranks(compared[first], compared[second], image_ids, temperature))
            terms[name] = (pair_weights * losses).sum()
        return terms

    # ------------------------------------------------------------------ forward

    def forward(
        self,
        pixel_values: torch.FloatTensor,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        image_ids: torch.LongTensor | None = None,
        view_pixel_values: torch.FloatTensor | None = None,
        view_input_ids: torch.LongTensor | None = None,
        view_attention_mask: torch.Tensor | None = None,
        pair_weights: torch.FloatTensor | None = None,
        cached: dict[str, dict[str, torch.Tensor]] | None = None,
        token_type_ids: torch.LongTensor | None = None,
    ) -> CookieForPreTrainingOutput:
        """The losses of one micro-batch of n pairs.

        Args:
            pixel_values, view_pixel_values: (n, 3, image_size, image_size), the weak and the strong view, normalised.
            input_ids, attention_mask: (n, length); view_input_ids, view_attention_mask: (n, other length).
            image_ids: (n,) int64, equal for the captions of one picture, which are no negatives of each other.
            pair_weights: of [`begin_step`]. In training without them forward is a step of its own.
            cached: of [`cache_gradients`]; stands for the contrasts of a whole step.
            token_type_ids: ignored, see [`COTSModel.get_text_features`].

        Raises:
            ValueError: if a contrast is on whose view is not given.
        """
        batch = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}
        views = {"view_pixel_values": view_pixel_values, "view_input_ids": view_input_ids}
        views["view_attention_mask"] = view_attention_mask
        if pair_weights is None and self.training:
            self.cookie.clamp_temperature()
            (step,) = self.begin_step([batch | {"image_ids": image_ids}])
            image_ids, pair_weights = step["image_ids"], step["pair_weights"]
        elif pair_weights is None:
            numbers = global_pair_index(self.pairs_seen, row_counts(len(input_ids), input_ids.device))
            image_ids = fill_image_ids(image_ids, numbers)
            pair_weights = self.uniform_weights(image_ids, 1 / max(1, len(image_ids)))

        embeds, parameters = self.contrast_embeds(batch | views), self.contrast_parameters()
        terms = cached["terms"] if cached else self.contrast_terms(embeds | parameters, image_ids, pair_weights)
        weights = self.config.loss_weights
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        if cached:
            loss = with_gradients(loss, embeds | parameters, cached["gradients"])
        return CookieForPreTrainingOutput(
            loss=loss,
            **{f"loss_{name}": terms.get(name, loss.new_zeros(())).detach() for name in weights},
            image_embeds=embeds["image_embeds"],
            text_embeds=embeds["text_embeds"],
        )


__all__ = ["CookieForPreTraining", "CookieForPreTrainingOutput"]
