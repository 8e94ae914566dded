"""A re-ranker for the tests' world: an untrained SIMLA with large weights, so that its logits differ, in a folder."""

from pathlib import Path

import torch
from transformers import BertModel, ViTModel

from hf_cots import SimlaModel
from tests.support.worlds import World, tiny_processor


def simla_folder(world: World) -> Path:
    """SIMLA over the world's towers, with its processor."""
    folder = world.root / "simla"
    if not folder.is_dir():
        vision, text = world.towers()
        torch.manual_seed(5)
        fields = {"projection_dim": 16, "num_masked_patches": 5, "min_block_patches": 2}
        towers = ViTModel.from_pretrained(vision), BertModel.from_pretrained(text)
        model = SimlaModel.from_vision_text_pretrained(*towers, **fields)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(12)
        model.save_pretrained(folder)
        tiny_processor().save_pretrained(folder)
    return folder
