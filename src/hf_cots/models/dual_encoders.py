"""Dual encoders of transformers as COTS models: the config and the weights that give the same embeddings.

Nothing is known here of any architecture by name: a dual encoder has an image tower and a text tower, at most a linear
projection on each, and a temperature. It runs once on a small input, and what its embeddings are made of is found by
trying what a COTS can pool. What gives other embeddings or logits is refused.
"""

import copy
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from .configuration_two_tower import TwoTowerConfig
from .dual_encoder_files import locate_dual_encoder
from .image_processing_cots import output_sides
from .losses import l2_normalize
from .model_files import named_damage
from .processing_dual_encoder import as_cots_image_processor
from .tower_properties import describe_tower, first_line, image_sides
from .towers import copy_tower, pooled


logger = logging.getLogger(__name__)

INSTEAD = {
    "cots": "it is one: load it with from_pretrained",
    "siglip2": "take a SigLIP 2 of fixed resolution, such as google/siglip2-base-patch16-224",
}
ELSE = "take a dual encoder such as CLIP, SigLIP or ALIGN, or combine two towers with from_vision_text_pretrained"


# ---------------------------------------------------------------------- loading


def load_dual_encoder(source: str | PreTrainedModel, **hub: Any) -> PreTrainedModel:
    """A dual encoder from a Hub id, a folder, or in memory, in float32 if it is loaded here.

    Args:
        hub: `revision` and `token`.

    Raises:
        OSError: naming the file, if one is damaged or a git-lfs pointer.
        ValueError: if it has no two towers, or some of their weights are not in its files.
    """
    if isinstance(source, PreTrainedModel):
        _check_kind(source.name_or_path or type(source).__name__, source.config)
        return source
    with named_damage(source):
        folder, subfolder = locate_dual_encoder(source, **hub)
        options = {"subfolder": subfolder, "trust_remote_code": False, **hub}
        config = AutoConfig.from_pretrained(folder, **options)
        _check_kind(source, config)
        model, info = AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **options)
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise refusal(
            source, config.model_type, f"its files are missing {len(missing)} of its weights, such as {missing[0]}"
        )
    return model


def _check_kind(source: str, config: PreTrainedConfig) -> None:
    """Check, before weights are read, that transformers' model of a config encodes images and texts in two towers."""
    native = MODEL_MAPPING.get(type(config), None)
    encodes = all(hasattr(native, f"get_{kind}_features") for kind in ("image", "text"))
    if not encodes or not {"vision_config", "text_config"} <= set(config.sub_configs) or config.model_type == "cots":
        raise refusal(source, config.model_type, "it is not a dual encoder with an image and a text tower")


def refusal(source: str, model_type: str, reason: str) -> ValueError:
    """The error for what cannot be a COTS: what it is, why not, and what to do."""
    return ValueError(f"{source} ({model_type}) cannot become a COTS: {reason}; {INSTEAD.get(model_type, ELSE)}")


def read_image_processor(source: str, vision_config: PreTrainedConfig, **hub: Any) -> dict[str, Any]:
    """Mean and deviation of a dual encoder's image processor; of a convolutional net, which takes any size, also the
    size of the images that it makes. Empty if there is none, which is logged."""
    folder, subfolder = locate_dual_encoder(source, **hub)
    options = {"subfolder": subfolder, "trust_remote_code": False, **hub}
    try:
        theirs = AutoImageProcessor.from_pretrained(folder, backend="pil", **options)
    except (OSError, ValueError):
        logger.warning("%s has no image processor: image_mean and image_std are 0.5 unless they are given", source)
        return {}
    ours = as_cots_image_processor(theirs)
    fields: dict[str, Any] = {"image_mean": list(ours.image_mean), "image_std": list(ours.image_std)}
    if not hasattr(vision_config, "patch_size"):
        fields["image_size"] = output_sides(ours)[0]  # type: ignore[index]
    return fields


# ---------------------------------------------------------------------- config


@torch.no_grad()
def read_dual_encoder(model: PreTrainedModel) -> dict[str, Any]:
    """The fields of a COTS config, its towers' among them, with which it computes what a dual encoder does.

    Raises:
        ValueError: naming the model, and what a COTS cannot express.
    """
    fields: dict[str, Any] = {"mask_token_id": -1}
    with _refused(model):
        for name, half in (("vision_config", model.vision_model), ("text_config", model.text_model)):
            fields[name] = copy.deepcopy(half.config)
            fields[name].dtype = torch.float32  # a tower is made in the type that its config names
        image, text = (_find_projection(model, name) for name in ("visual_projection", "text_projection"))
        fields["image_projection"], fields["text_projection"] = (
            "linear" if isinstance(layer, nn.Linear) else "none" for layer in (image, text)
        )
        fields["projection_bias"] = any(getattr(layer, "bias", None) is not None for layer in (image, text))
        training = model.training
        try:
            return fields | _try_out(model.eval(), image, text)
        finally:
            model.train(training)


def copy_dual_encoder(target: Any, source: PreTrainedModel) -> None:
    """Copy the weights of a dual encoder into a [`COTSModel`] with the fields of [`read_dual_encoder`].

    Raises:
        ValueError: naming the parameters, if some depend on the image size in a way that is not known.
    """
    copy_tower(target.vision_model, source.vision_model)
    copy_tower(target.text_model, source.text_model)
    for name in ("visual_projection", "text_projection"):
        ours, theirs = getattr(target, name), _find_projection(source, name)
        if isinstance(ours, nn.Linear):
            state = theirs.state_dict()
            if ours.bias is not None:  # a config says it of both projections
                state.setdefault("bias", torch.zeros_like(ours.bias))
            ours.load_state_dict(state)


@contextmanager
def _refused(model: PreTrainedModel) -> Iterator[None]:
    """Turn what a model raises where it is tried out into one line that refuses it."""
    try:
        yield
    except ModuleNotFoundError:
        raise
    except Exception as error:
        name = model.name_or_path or type(model).__name__
        raise refusal(name, model.config.model_type, first_line(error)) from error


def _find_projection(model: PreTrainedModel, name: str) -> nn.Module:
    layer = getattr(model, name, nn.Identity())
    if not isinstance(layer, (nn.Linear, nn.Identity)):
        raise ValueError(f"its {name} is not a linear layer but a {type(layer).__name__}")
    return layer


def _try_out(model: PreTrainedModel, image_projection: nn.Module, text_projection: nn.Module) -> dict[str, Any]:
    """The poolings, the treatment of padding, the width of the joint space and the temperature, found by running a
    model on two images and texts."""
    vision = describe_tower(model.vision_model, "image")
    describe_tower(model.text_model, "text")
    pixels, ids = _some_inputs(model)
    image = model.vision_model(pixel_values=pixels, return_dict=True)
    text = model.text_model(input_ids=ids, return_dict=True)
    wanted = model(pixel_values=pixels, input_ids=ids, return_dict=True)
    states = image.last_hidden_state
    states = states.flatten(2).transpose(1, 2) if states.ndim == 4 else states
    patches, words = states[:, vision.num_special_tokens :], text.last_hidden_state
    image_pooling = _find_pooling(image, states[:, 0], patches, image_projection, wanted.image_embeds, "image")
    text_pooling = _find_pooling(text, words[:, 0], words, text_projection, wanted.text_embeds, "text")
    attends = text_pooling == "tower" and _pools_padding(model.text_model, ids)
    return {
        "image_pooling": image_pooling,
        "text_pooling": text_pooling,
        "text_padding": "attended" if attends else "ignored",
        "projection_dim": wanted.image_embeds.shape[-1],
    } | _read_temperature(model, wanted)


def _some_inputs(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Two random images, and two random texts of ten words or less; among the first five are CLIP's end token and the
    last of the vocabulary, by which old configs of CLIP find it."""
    generator, config = torch.Generator().manual_seed(0), model.text_model.config
    pixels = torch.randn(2, 3, *image_sides(model.vision_model.config), generator=generator)
    length = min(10, describe_tower(model.text_model).max_positions or 10)
    ids = torch.randint(0, config.vocab_size - 1, (2, length), generator=generator)
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int) and end < config.vocab_size:
        ids[:, 3] = end
    ids[:, 4] = config.vocab_size - 1
    return pixels.to(model.device, model.dtype), ids.to(model.device)


def _find_pooling(
    output: Any, first: torch.Tensor, others: torch.Tensor, projection: nn.Module, wanted: torch.Tensor, kind: str
) -> str:
    """Which pooling of a tower's output gives the embeddings of its dual encoder.

    Args:
        output: of the tower.
        first: (n, hidden) state of its first token; others: (n, tokens, hidden), of what `"mean"` averages.
        wanted: (n, projection_dim) embeddings of any length.

    Raises:
        ValueError: if none does.
    """
    own = output.get("pooler_output")
    wanted = l2_normalize(wanted)
    for pooling in ("cls", "mean") if own is None else ("tower", "cls", "mean"):
        feature = pooled(pooling, first, others.mean(dim=1), None if own is None else own.flatten(1))
        fits = feature.shape[-1] == getattr(projection, "in_features", wanted.shape[-1])
        if fits and torch.allclose(l2_normalize(projection(feature)), wanted, atol=_tolerance(output)):
            return pooling
    raise ValueError(f"its {kind} embeddings are not a pooled and linearly projected output of its {kind} tower")


def _tolerance(output: Any) -> float:
    return 1e-4 if output.last_hidden_state.dtype in (torch.float32, torch.float64) else 2e-2


def _pools_padding(tower: PreTrainedModel, ids: torch.Tensor) -> bool:
    """Whether a tower's own pooled output changes with what the attention mask leaves out, as that of SigLIP does, the
    state of whatever stands last.

    Args:
        ids: (n, length) texts of which at least five words are kept.
    """
    kept = (ids.shape[1] + 5) // 2
    mask, padded = torch.ones_like(ids), ids.clone()
    mask[:, kept:], padded[:, kept:] = 0, ids[:, :1]
    words, padding = (tower(input_ids=x, attention_mask=mask, return_dict=True) for x in (ids, padded))
    difference = (words.pooler_output - padding.pooler_output).abs().max()
    return bool(difference > 10 * _tolerance(words) * words.pooler_output.abs().max())


def _read_temperature(model: PreTrainedModel, wanted: Any) -> dict[str, float]:
    """The temperature, with bounds that allow for it, and the bias of the sigmoid loss.

    Args:
        wanted: output of the model, with logits.

    Raises:
        ValueError: if its logits are made in another way.
    """
    scale, temperature, bias = (getattr(model, name, None) for name in ("logit_scale", "temperature", "logit_bias"))
    if temperature is None and scale is None:
        raise ValueError("it has neither a logit_scale nor a temperature")
    tau = math.exp(-scale.item()) if temperature is None else temperature.item()
    images, texts = l2_normalize(wanted.image_embeds), l2_normalize(wanted.text_embeds)
    logits = images @ texts.t() / tau + (0 if bias is None else bias)
    tolerance = _tolerance(wanted.vision_model_output) * max(1, 1 / tau)
    if not torch.allclose(logits, wanted.logits_per_image.to(logits), atol=tolerance):
        raise ValueError("its logits are not cosine similarities over a temperature")
    low, high = min(tau, TwoTowerConfig.min_temperature), max(tau, TwoTowerConfig.max_temperature)
    fields = {"temperature": tau, "min_temperature": low, "max_temperature": high}
    return fields if bias is None else fields | {"initial_logit_bias": bias.item()}
