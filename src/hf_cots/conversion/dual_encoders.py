"""Other dual encoders (CLIP, SigLIP, Chinese-CLIP, ALIGN, ...) as folders of ours, checked against the source."""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ..models import COTSModel, COTSProcessor
from ..models.dual_encoders import load_dual_encoder, read_dual_encoder, read_image_processor
from ..models.losses import l2_normalize
from ..models.processing_dual_encoder import load_dual_processor


LARGEST_DIFFERENCE = 1e-5  # of an embedding of length 1, in float32
# Short, long beyond any context, empty, in capitals, with punctuation, accents, digits and other scripts.
TEXTS = (
    "a photo of a dog",
    "Two RED circles, left of a blue square!",
    "",
    "caf\u00e9, na\u00efve & 3.14",
    "\u4e00\u53ea\u72d7 \u0441\u043e\u0431\u0430\u043a\u0430",
    " ".join(f"word {i} of a very long caption" for i in range(40)),
)
IMAGE_SIZES = ((320, 240), (240, 320), (97, 501), (13, 7))


def text_fields(tokenizer: PreTrainedTokenizerBase, text_padding: str) -> dict[str, Any]:
    """The fields of a COTS config that a tokenizer decides.

    Args:
        text_padding: that of the config. What is padded in front cannot be filled up by the model.
    """
    mask = -1 if tokenizer.mask_token_id is None else tokenizer.mask_token_id
    fields = {"mask_token_id": mask, "special_token_ids": sorted(tokenizer.all_special_ids)}
    if text_padding == "attended" and tokenizer.padding_side == "right":
        fields["pad_token_id"] = tokenizer.pad_token_id
    return fields


def convert_dual_encoder(source: str, output: Path, **hub: Any) -> tuple[COTSModel, dict[str, float]]:
    """Write a dual encoder as a COTS model and processor to a folder, which must give the source's embeddings after
    they are loaded again.

    The heads and the image tokenizer of the token level are not there: `mvm_weight` is 0, and `mlm_weight` too if the
    tokenizer has no mask token.

    Args:
        source: Hub id or folder; sentence-transformers' folders of a CLIP too.
        output: folder to write. Nothing is written there unless the embeddings agree.
        hub: `revision` and `token`.

    Returns:
        The model as it was loaded again, and the largest differences, of [`compare_embeddings`].

    Raises:
        OSError: if the source is not there, or the folder cannot be written.
        ValueError: naming what cannot be taken over, or the difference of embeddings.
    """
    theirs = load_dual_encoder(source, **hub).eval()
    their_processor, _ = load_dual_processor(source, **hub)
    processor = COTSProcessor.from_dual_encoder(source, **hub)
    fields = text_fields(processor.tokenizer, read_dual_encoder(theirs)["text_padding"]) | {"mvm_weight": 0}
    fields |= {"mlm_weight": 0} if fields["mask_token_id"] == -1 else {}
    fields |= read_image_processor(source, theirs.config.vision_config, **hub)
    model = COTSModel.from_dual_encoder(theirs, **fields)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as draft:
        model.save_pretrained(draft)
        processor.save_pretrained(draft)
        model, processor = AutoModel.from_pretrained(draft).eval(), AutoProcessor.from_pretrained(draft)
        differences = compare_embeddings(theirs, their_processor, model, processor)
        worst = max(differences.values())
        if not worst <= LARGEST_DIFFERENCE:  # NaN neither
            raise ValueError(
                f"{source}: the converted model gives other embeddings, by up to {worst:.2g}, and was not written"
            )
        output.mkdir(exist_ok=True)
        for path in Path(draft).iterdir():
            os.replace(path, output / path.name)
    return model, differences


@torch.no_grad()
def compare_embeddings(
    theirs: PreTrainedModel, their_processor: ProcessorMixin, ours: COTSModel, processor: COTSProcessor
) -> dict[str, float]:
    """The largest difference of any component of the normalized embeddings of some images and texts, by `"image"` and
    `"text"`; each model gets them from its own processor."""
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)) for size in IMAGE_SIZES]
    images += [Image.linear_gradient("L").convert("RGB").resize(IMAGE_SIZES[0])]
    padding = {"padding": "max_length" if processor.padding == "max_length" else True}
    limit = {"truncation": True, "max_length": processor.tokenizer.model_max_length}
    pixels = their_processor(images=images, return_tensors="pt")
    words = their_processor(text=list(TEXTS), return_tensors="pt", **padding, **limit)
    expected = {
        "image": theirs.get_image_features(**pixels).pooler_output,
        "text": theirs.get_text_features(**words).pooler_output,
    }
    output = ours(**processor(images=images, text=list(TEXTS), return_tensors="pt"))
    found = {"image": output.image_embeds, "text": output.text_embeds}
    return {
        kind: float((l2_normalize(expected[kind].float()) - found[kind]).abs().max()) for kind in ("image", "text")
    }
