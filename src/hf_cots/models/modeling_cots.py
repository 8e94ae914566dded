"""COTS for inference (Lu et al. 2022): two streams that are compared only by a dot product.

M images and N texts cost M + N encodings and one matrix product; an image embedding never depends on a text.
Pre-training lives in `pretraining_cots.py`.
"""

import copy
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, can_return_tuple

from .cards import WithCard
from .configuration_cots import COTSConfig
from .dual_encoders import copy_dual_encoder, load_dual_encoder, read_dual_encoder, read_image_processor
from .frame_pooling import FrameAttention, find_distinct, mean_of_frames
from .losses import full_precision, l2_normalize
from .model_files import give_default_mode, named_damage
from .renamed_fields import RENAMED_BUFFERS
from .standardize import Standardize, mean_and_deviation
from .tower_properties import describe_tower
from .towers import at_least_one_row, build_tower, copy_tower, feature_size, last_words, load_tower, pooled


@dataclass
class COTSOutput(ModelOutput):
    """
    Args:
        logits_per_image (`torch.FloatTensor` of shape `(images, texts)`): cosine similarities over the temperature.
        logits_per_text (`torch.FloatTensor` of shape `(texts, images)`): its transpose.
        image_embeds (`torch.FloatTensor` of shape `(images, projection_dim)`): L2-normalized, float32 or wider.
        text_embeds (`torch.FloatTensor` of shape `(texts, projection_dim)`): L2-normalized, float32 or wider.
        vision_model_output, text_model_output (`BaseModelOutputWithPooling`): each stream's output; `pooler_output` is
            the projected feature before normalization.
        pooler_output (`torch.FloatTensor` of shape `(rows, projection_dim)`): if only one modality was encoded, its
            embeddings, under the name that pipelines expect.
        logits_per_video, video_embeds, video_model_output: the same outputs for clips, if given instead of images.
    """

    logits_per_image: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    pooler_output: torch.FloatTensor | None = None
    logits_per_video: torch.FloatTensor | None = None
    video_embeds: torch.FloatTensor | None = None
    video_model_output: BaseModelOutputWithPooling | None = None


class COTSPreTrainedModel(WithCard, PreTrainedModel):
    """Base class of the COTS models: config, weight initialization, and attributes for Trainer."""

    config: COTSConfig
    config_class = COTSConfig
    base_model_prefix = "cots"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["ViTEmbeddings", "ViTLayer", "BertEmbeddings", "BertLayer"]
    # Our forwards take no num_items_in_batch; without this line Trainer would not divide by the accumulation steps.
    accepts_loss_kwargs = False
    # Where the Auto classes find the code that is saved beside the weights.
    auto_classes = {
        "AutoConfig": "configuration_cots.COTSConfig",
        "AutoModel": "modeling_cots.COTSModel",
        "AutoModelForZeroShotImageClassification": "modeling_cots.COTSModel",
    }
    # What a pre-training file holds beside the two streams; a COTSModel, or a level of weight 0, leaves it out.
    _keys_to_ignore_on_load_unexpected = [
        r"^(momentum_encoder|key_queue|key_center|score_queue|logit_bias|image_tokenizer|mvm_|mlm_|steps_seen|pairs_seen)",
        r"vision_model\..*mask_token$",
    ]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, COTSModel) and module.log_temperature is not None:
            init.constant_(module.log_temperature, math.log(self.config.temperature))
        if isinstance(module, Standardize):  # buffers are garbage after a load on the meta device
            init.zeros_(module.mean)
            init.ones_(module.deviation)
        if isinstance(module, FrameAttention):
            init.normal_(module.query)  # wide enough that attention differs from frame to frame
            for layer in (module.position, module.output):
                init.zeros_(layer.weight)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As in transformers, but also accepts older buffer names, and moves the weights to aligned memory.

        A safetensors file is mapped into memory as it lies, mostly off the 64-byte boundaries that fresh tensors have;
        matrix products then take other code paths and differ in the last bit. Aligned, a loaded model gives exactly
        the embeddings of the model that was saved.

        Raises:
            OSError: naming the file, if one is damaged or a git-lfs pointer.
        """
        renamed = {rf"key_queue\.{old}": f"key_queue.{new}" for old, new in RENAMED_BUFFERS.items()}
        source = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        with named_damage(source or ""):
            loaded = super().from_pretrained(*args, **({"key_mapping": renamed} | kwargs))
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            if tensor.device.type == "cpu":
                tensor.data = tensor.data.clone()
        return loaded

    def save_pretrained(self, save_directory, **kwargs):
        """Save weights, config and the code of these classes: the Auto classes then load them without the package."""
        self.config.auto_map = dict(self.auto_classes)
        # Under today's names, whatever names the file had that the model was loaded from.
        super().save_pretrained(save_directory, **({"save_original_format": False} | kwargs))
        if kwargs.get("is_main_process", True):
            give_default_mode(*Path(save_directory).glob("model*.safetensors"))


class COTSModel(COTSPreTrainedModel):
    """COTS for inference: two streams and two projections.

    `COTSModel(COTSConfig())` has 195,375,872 parameters: ViT-B/16 at 384 pixels 86,090,496, BERT-base
    108,891,648, both without pooler, and two linear projections 393,728. The mask token's 768 belong to
    [`COTSForPreTraining`] only.

    Args:
        config ([`COTSConfig`]).
        use_mask_token (`bool`, defaults to `False`): give the image stream a mask token, for pre-training.
    """

    def __init__(self, config: COTSConfig, use_mask_token: bool = False):
        super().__init__(config)
        own_image, own_text = (pooling == "tower" for pooling in (config.image_pooling, config.text_pooling))
        self.vision_model = build_tower(
            config.vision_config, add_pooling_layer=own_image, use_mask_token=use_mask_token
        )
        self.text_model = build_tower(config.text_config, add_pooling_layer=own_text)
        image_size = feature_size(config.vision_config, config.image_pooling)
        text_size = feature_size(config.text_config, config.text_pooling)
        self.visual_projection = make_projection(config.image_projection, image_size, config)
        self.text_projection = make_projection(config.text_projection, text_size, config)
        self.vision_tower = describe_tower(config.vision_config, "image")
        self.text_tower = describe_tower(config.text_config, "text")
        self.has_mask_token = use_mask_token
        self.frame_pooler = FrameAttention(image_size) if config.frame_pooling == "attention" else None
        self.log_temperature = None
        if config.learn_temperature:
            self.log_temperature = nn.Parameter(torch.tensor([math.log(config.temperature)]))  # FSDP shards no scalars
        self.post_init()

    @classmethod
    def from_vision_text_pretrained(
        cls, vision: str | PreTrainedModel, text: str | PreTrainedModel, **config_fields
    ) -> "COTSModel":
        """Create a model from two pretrained towers; the projections are new.

        Args:
            vision: Hub id, folder or model of an image encoder (ViT, DeiT, BEiT, DINOv2, SigLIP, ...), or of a dual
            encoder (CLIP, SigLIP, ALIGN, COTS, ...), whose image tower is used.
            text: Hub id, folder or model of a text encoder (BERT, MiniLM, RoBERTa, ModernBERT, GPT-2, T5, ...), or of
            a dual encoder, whose text tower is used.
            config_fields: any field of [`COTSConfig`], and `image_size`, a side in pixels other than the image
                tower's, to which its position embeddings are interpolated. The image tokenizer's input size follows
                the patch grid.

        Raises:
            ValueError: if a tower holds several modalities and is no dual encoder, or does not fit its config.
        """
        vision_tower, text_tower = load_tower(vision, "image"), load_tower(text, "text")
        model = cls(cls.config_class.from_towers(vision_tower.config, text_tower.config, **config_fields))
        copy_tower(model.vision_model, vision_tower)
        copy_tower(model.text_model, text_tower)
        return model

    @classmethod
    def from_dual_encoder(cls, source: str | PreTrainedModel, **config_fields) -> "COTSModel":
        """Create a model from a pretrained dual encoder, with the same embeddings and temperature.

        CLIP, Chinese-CLIP, MetaCLIP 2, AltCLIP, SigLIP, SigLIP 2 of fixed resolution, ALIGN, VisionTextDualEncoder and
        sentence-transformers' CLIP: any whose embeddings are poolings and linear projections of two towers, which is
        found out by running it once. The logits are the source's too, but for SigLIP's bias, which moves all of them
        alike: it becomes `initial_logit_bias`, from which [`COTSForPreTraining`] starts with `contrast="sigmoid"`.

        Args:
            source: Hub id, folder or model. What is loaded is loaded in float32; the result is float32 in any case.
            config_fields: any field of [`COTSConfig`], and `image_size` as in [`from_vision_text_pretrained`]. By
                default `image_mean` and `image_std` are those of the source's image processor, `temperature` is the
                source's and widens its bounds where it lies outside, and `mask_token_id` is -1: to mask words, give
                it and `special_token_ids`.

        Raises:
            OSError: if the source cannot be found, or one of its files is damaged.
            ValueError: naming the source and what cannot be taken over, if it is another kind of model.
        """
        if not issubclass(cls.config_class, COTSConfig):
            raise ValueError(
                f"{cls.__name__} has layers that dual encoders do not have: use COTSModel.from_dual_encoder"
            )
        dual_encoder = load_dual_encoder(source)
        fields = read_dual_encoder(dual_encoder)
        if not isinstance(source, PreTrainedModel):
            fields |= read_image_processor(source, fields["vision_config"])
        model = cls(cls.config_class.from_towers(**(fields | config_fields)))
        copy_dual_encoder(model, dual_encoder)
        return model

    @torch.no_grad()
    def standardize_projections(self, image_features: torch.Tensor, text_features: torch.Tensor) -> None:
        """Make the projections see standardized features: in their first layers W <- W / sigma, b <- b - W mu, with
        each feature's mean and deviation over the training data.

        New projections then begin with outputs of zero mean in which every feature counts alike (data-dependent
        initialization, Kraehenbuehl et al. 2016). With `config.standardize_features` mean and deviation stay apart
        from W and b, so that these also learn in the standardized features.

        Args:
            image_features, text_features: (n, [`feature_size`]) global features before projection.

        Raises:
            ValueError: if a projection is missing or has no bias.
        """
        if "none" in (self.config.image_projection, self.config.text_projection) or not self.config.projection_bias:
            raise ValueError(
                "features can only be standardized by projections with a bias: set image_projection and "
                'text_projection to "linear" or "mlp", and projection_bias=true'
            )
        for projection, features in ((self.visual_projection, image_features), (self.text_projection, text_features)):
            layer = projection[0] if isinstance(projection, nn.Sequential) else projection
            features = features.to(self.device)
            if isinstance(layer, Standardize):
                layer.measure(features)
                continue
            mean, deviation = mean_and_deviation(features)
            layer.weight.div_(deviation)
            layer.bias.sub_(layer.weight @ mean)

    @torch.no_grad()
    def truncated(self, dim: int) -> "COTSModel":
        """Return a copy whose embeddings are the first `dim` dimensions of this model's, normalized again.

        Smaller vectors cost less memory and time in an index. Trained with `config.nested_dims`, they lose little.

        Raises:
            ValueError: if a stream has no projection, or `dim` is out of range.
        """
        if not 0 < dim <= self.config.projection_dim:
            raise ValueError(
                f"dim must be from 1 to the {self.config.projection_dim} dimensions of the embeddings, got {dim}"
            )
        if "none" in (self.config.image_projection, self.config.text_projection):
            raise ValueError(
                "an embedding without a projection cannot be truncated, because it is the tower's own feature"
            )
        model = copy.deepcopy(self)
        for projection in (model.visual_projection, model.text_projection):
            last = projection[-1] if isinstance(projection, nn.Sequential) else projection
            last.out_features = dim
            last.weight = nn.Parameter(last.weight[:dim].clone())
            last.bias = None if last.bias is None else nn.Parameter(last.bias[:dim].clone())
        model.config.nested_dims = [each for each in self.config.nested_dims or () if each < dim] or None
        model.config.projection_dim = dim
        return model

    @property
    def temperature(self) -> torch.Tensor | float:
        """The temperature tau: a number, or the learned value clamped to its bounds."""
        if self.log_temperature is None:
            return self.config.temperature
        temperature = full_precision(self.log_temperature).exp()
        return temperature.clamp(self.config.min_temperature, self.config.max_temperature)

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Clamp a learned temperature to its bounds, beyond which it would get no gradient."""
        if self.log_temperature is not None:
            self.log_temperature.clamp_(math.log(self.config.min_temperature), math.log(self.config.max_temperature))

    def get_input_embeddings(self) -> nn.Module:
        """The text stream's word embeddings."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.text_model.set_input_embeddings(value)

    def encode_image(
        self, pixel_values: torch.FloatTensor, bool_masked_pos: torch.BoolTensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Encode images: returns `last_hidden_state` (n, tokens, hidden) and, as `pooler_output`, the global feature
        (n, [`feature_size`]) before projection.

        Args:
            pixel_values: (n, 3, image_size, image_size), normalized.
            bool_masked_pos: (n, patches), true where the patch embedding is replaced by the mask token.
            kwargs: passed on to the tower (`interpolate_pos_encoding=True` for another resolution, say).

        Raises:
            ValueError: if patches are to be masked by a model without a mask token.
        """
        if bool_masked_pos is not None:
            if not self.has_mask_token:  # CLIP's forward would take the argument and not use it
                raise ValueError(f"{type(self).__name__} has no mask token: create it with use_mask_token=True")
            kwargs["bool_masked_pos"] = at_least_one_row(bool_masked_pos)
        if not self.vision_tower.takes & {"interpolate_pos_encoding", "kwargs"}:
            kwargs.pop("interpolate_pos_encoding", None)  # a convolutional net takes any size
        output = self.vision_model(pixel_values=at_least_one_row(pixel_values), **kwargs)
        hidden = output.last_hidden_state[: pixel_values.shape[0]]
        if hidden.ndim == 4:  # the map (n, hidden, rows, columns) of a convolutional net
            hidden = hidden.flatten(2).transpose(1, 2)
        own = None
        if self.config.image_pooling == "tower":
            own = output.pooler_output[: pixel_values.shape[0]].flatten(1)
        mean = self.patch_states(hidden).mean(dim=1)
        # Output classes of towers differ: some have no pooled output, others more than a stream's needs.
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden,
            pooler_output=pooled(self.config.image_pooling, hidden[:, 0], mean, own),
            hidden_states=output.get("hidden_states"),
            attentions=output.get("attentions"),
        )

    def patch_states(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of an image's states (n, tokens, hidden) those of its patches; special tokens stand in front of them."""
        return hidden[:, self.vision_tower.num_special_tokens :]

    def encode_frames(
        self, pixel_values_videos: torch.FloatTensor, frame_mask: torch.BoolTensor | None = None, **kwargs
    ) -> torch.Tensor:
        """Compute the global feature (n, frames, [`feature_size`]) of each frame before projection, as for an image.

        Masked frames and, outside of training, frames that equal the previous one are not encoded.

        Args:
            pixel_values_videos: (n, frames, 3, image_size, image_size), normalized.
            frame_mask: (n, frames), false for missing frames of a clip, whose features are undefined; all true if not
                given.
            kwargs: passed on to the tower.

        Raises:
            ValueError: if that is not the shape of clips, or one of them has no frame.
        """
        if pixel_values_videos.ndim != 5:
            raise ValueError(
                "pixel_values_videos must have the shape (clips, frames, channels, height, width), got "
                f"{tuple(pixel_values_videos.shape)}"
            )
        shape, pixels = pixel_values_videos.shape[:2], pixel_values_videos.flatten(0, 1)
        if torch.compiler.is_compiling() or (frame_mask is None and self.vision_model.training):
            return self.encode_image(pixels, **kwargs).pooler_output.unflatten(0, shape)
        mask = self.all_frames(pixel_values_videos) if frame_mask is None else frame_mask.bool()
        if not mask.any(dim=1).all():
            raise ValueError("frame_mask must keep at least one frame of each clip")
        if self.vision_model.training:  # dropout would differ from frame to frame
            number = (mask.flatten().cumsum(dim=0) - 1).clamp(min=0)
        else:
            mask, number = find_distinct(pixel_values_videos, mask)
        features = self.encode_image(pixels[mask.flatten()], **kwargs).pooler_output
        return features[number].unflatten(0, shape)

    def pool_frames(self, features: torch.Tensor, frame_mask: torch.BoolTensor | None = None) -> torch.Tensor:
        """One feature (n, [`feature_size`]) of each clip, of those of its frames (n, frames, [`feature_size`]), by
        `config.frame_pooling`."""
        mask = self.all_frames(features) if frame_mask is None else frame_mask.bool()
        return mean_of_frames(features, mask) if self.frame_pooler is None else self.frame_pooler(features, mask)

    @staticmethod
    def all_frames(clips: torch.Tensor) -> torch.Tensor:
        """A mask (n, frames) of clips (n, frames, ...) that all have as many frames."""
        return torch.ones(clips.shape[:2], dtype=torch.bool, device=clips.device)

    def encode_video(
        self, pixel_values_videos: torch.FloatTensor, frame_mask: torch.BoolTensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """The image stream on clips: as `last_hidden_state` each frame's global feature (n, frames, [`feature_size`]),
        and as `pooler_output` the clip's (n, [`feature_size`]), before projection. Arguments as in
        [`encode_frames`]."""
        features = self.encode_frames(pixel_values_videos, frame_mask, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=features, pooler_output=self.pool_frames(features, frame_mask)
        )

    def encode_text(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Encode texts: returns `last_hidden_state` (n, length, hidden) and the global feature (n, [`feature_size`]).

        Args:
            input_ids: (n, length).
            attention_mask: (n, length), 0 on padding; all ones if not given, or with `text_padding="attended"`.

        Raises:
            ValueError: if the texts have more tokens than the tower has positions.
        """
        length = input_ids.shape[1]
        if self.config.text_padding == "attended":
            input_ids, attention_mask = self.pad_to_full_length(input_ids), None
        tower_mask = attention_mask if input_ids.shape[0] else None  # a blank text that is all padding would give NaN
        if self.text_tower.is_causal:
            kwargs = self.causal_arguments(tower_mask) | kwargs
        try:
            output = self.text_model(input_ids=at_least_one_row(input_ids), attention_mask=tower_mask, **kwargs)
        except (IndexError, RuntimeError) as error:
            length, positions = input_ids.shape[1], getattr(self.config.text_config, "max_position_embeddings", None)
            if positions is None or length <= positions:
                raise
            raise ValueError(
                f"texts of {length} tokens are too long for the text tower's {positions} positions: tokenize them "
                "with truncation=True"
            ) from error
        hidden = output.last_hidden_state[: input_ids.shape[0]]
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        own = last_words(hidden, mask) if self.config.text_pooling == "last" else None
        if self.config.text_pooling == "tower":
            own = output.pooler_output[: input_ids.shape[0]]
        # BERT's own output class has more fields than a stream's output needs.
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden[:, :length],
            pooler_output=pooled(self.config.text_pooling, hidden[:, 0], mean, own),
            hidden_states=output.get("hidden_states"),
            attentions=output.get("attentions"),
        )

    def pad_to_full_length(self, input_ids: torch.LongTensor) -> torch.LongTensor:
        """Texts (n, length) for a tower that reads padding, filled up with `pad_token_id`, if it is known, to the one
        length that the tower was trained with."""
        missing = (self.text_tower.max_positions or 0) - input_ids.shape[1]
        if self.config.pad_token_id is None or missing <= 0:
            return input_ids
        return nn.functional.pad(input_ids, (0, missing), value=self.config.pad_token_id)

    def causal_arguments(self, attention_mask: torch.Tensor | None) -> dict[str, Any]:
        """What a causal text tower is given beside words and mask: positions that do not count padding in front,
        unless it pools by itself, and no wish for a cache.

        Args:
            attention_mask: (n, length), 0 on padding.
        """
        arguments: dict[str, Any] = {}
        counts = self.config.text_pooling != "tower" and "position_ids" in self.text_tower.takes
        if counts and attention_mask is not None:
            arguments["position_ids"] = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
        if "use_cache" in self.text_tower.takes:
            arguments["use_cache"] = False
        return arguments

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.FloatTensor, **kwargs) -> BaseModelOutputWithPooling:
        """Get image features; `pooler_output` is the projected feature (n, projection_dim), *not* normalized."""
        output = self.encode_image(pixel_values, **kwargs)
        output.pooler_output = self.visual_projection(output.pooler_output)
        return output

    @can_return_tuple
    def get_video_features(
        self, pixel_values_videos: torch.FloatTensor, frame_mask: torch.BoolTensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Get video features; `pooler_output` is the projected feature (n, projection_dim), *not* normalized.

        The features of the frames are made one by `config.frame_pooling` and then projected. Arguments as in
        [`encode_frames`].
        """
        output = self.encode_video(pixel_values_videos, frame_mask, **kwargs)
        output.pooler_output = self.visual_projection(output.pooler_output)
        return output

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Get text features; `pooler_output` is the projected feature (n, projection_dim), *not* normalized.

        `token_type_ids` is there for tokenizers that return it: a single text is of type 0 throughout, which is what
        every tower assumes by itself.
        """
        output = self.encode_text(input_ids, attention_mask, **kwargs)
        output.pooler_output = self.text_projection(output.pooler_output)
        return output

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        interpolate_pos_encoding: bool = False,
        pixel_values_videos: torch.FloatTensor | None = None,
        frame_mask: torch.BoolTensor | None = None,
        **kwargs,
    ) -> COTSOutput:
        """Encode images or clips, texts, or both; if both are given, compare every image or clip with every text.

        Args:
            input_ids, attention_mask: (texts, length).
            pixel_values: (images, 3, image_size, image_size).
            interpolate_pos_encoding: accept other image sizes, if the tower can.
            pixel_values_videos: (clips, frames, 3, image_size, image_size), in place of images.
            frame_mask: (clips, frames), false for missing frames of a clip.

        Raises:
            ValueError: if neither modality is given, or both images and clips are.
        """
        if input_ids is None and pixel_values is None and pixel_values_videos is None:
            raise ValueError(f"{type(self).__name__} needs input_ids, pixel_values, or both")
        if pixel_values is not None and pixel_values_videos is not None:
            raise ValueError("give either pixel_values (images) or pixel_values_videos (clips), not both")
        image_output, video_output, text_output = None, None, None
        sizes = {"interpolate_pos_encoding": True} if interpolate_pos_encoding else {}
        if pixel_values is not None:
            image_output = self.get_image_features(pixel_values, return_dict=True, **sizes, **kwargs)
        if pixel_values_videos is not None:
            video_output = self.get_video_features(
                pixel_values_videos, frame_mask, return_dict=True, **sizes, **kwargs
            )
        if input_ids is not None:
            text_output = self.get_text_features(input_ids, attention_mask, return_dict=True, **kwargs)
        if video_output is not None:
            return video_contrastive_output(video_output, text_output, self.temperature)
        return contrastive_output(image_output, text_output, self.temperature)


def make_projection(kind: str, width: int, config: COTSConfig) -> nn.Module:
    """The layers from a stream's global feature of this width to the joint space."""
    dim, bias = config.projection_dim, config.projection_bias
    if kind == "none":
        return nn.Identity()
    layers: list[nn.Module] = [Standardize(width)] if config.standardize_features else []
    if kind == "linear":
        layers += [nn.Linear(width, dim, bias=bias)]
    else:
        hidden = config.projection_hidden_dim
        layers += [nn.Linear(width, hidden, bias=bias), nn.GELU(), nn.Linear(hidden, dim, bias=bias)]
    return nn.Sequential(*layers) if len(layers) > 1 else layers[0]


def contrastive_output(
    image_output: BaseModelOutputWithPooling | None,
    text_output: BaseModelOutputWithPooling | None,
    temperature: torch.Tensor | float,
) -> COTSOutput:
    """Normalized embeddings of what was encoded, and, if both were, all pairwise similarities over tau."""
    image_embeds = None if image_output is None else l2_normalize(image_output.pooler_output)
    text_embeds = None if text_output is None else l2_normalize(text_output.pooler_output)
    logits, alone = None, image_embeds if text_embeds is None else text_embeds
    if image_embeds is not None and text_embeds is not None:
        logits, alone = image_embeds @ text_embeds.t() / temperature, None
    # In one call: fields set one by one would stand in another order, which indexing and tuples show.
    return COTSOutput(
        logits_per_image=logits,
        logits_per_text=None if logits is None else logits.t(),
        image_embeds=image_embeds,
        text_embeds=text_embeds,
        vision_model_output=image_output,
        text_model_output=text_output,
        pooler_output=alone,
    )


def video_contrastive_output(
    video_output: BaseModelOutputWithPooling,
    text_output: BaseModelOutputWithPooling | None,
    temperature: torch.Tensor | float,
) -> COTSOutput:
    """As [`contrastive_output`], by the names for clips."""
    output = contrastive_output(video_output, text_output, temperature)
    return COTSOutput(
        logits_per_text=output.logits_per_text,
        text_embeds=output.text_embeds,
        text_model_output=text_output,
        pooler_output=output.pooler_output,
        logits_per_video=output.logits_per_image,
        video_embeds=output.image_embeds,
        video_model_output=video_output,
    )


__all__ = ["COTSModel", "COTSOutput", "COTSPreTrainedModel"]
