"""Training the image tokenizer."""

import pytest
import torch

from hf_cots import COTSImageTokenizer
from hf_cots.data.augmentation import RandomCropFlip
from hf_cots.data.collator import ImageCollator
from hf_cots.data.sources import load_pairs
from hf_cots.demo.training import train_image_tokenizer
from tests.support.runs import assert_same_weights
from tests.support.tiny import TINY_IMAGE_TOKENIZER


@pytest.fixture(scope="module")
def pairs(world):
    return load_pairs(str(world.imagefolder))


def train(world, folder, steps, **changes):
    sizes = {"config": TINY_IMAGE_TOKENIZER, "max_steps": steps, "per_device_train_batch_size": 8}
    names = {"train_data": str(world.imagefolder), "output_dir": str(folder), "learning_rate": 2e-3}
    return COTSImageTokenizer.from_pretrained(train_image_tokenizer(folder, **(sizes | names | changes)))


def reconstruction_error(model, pairs):
    pixels = ImageCollator(RandomCropFlip(32, 1, 0, 1))([pairs[i] for i in range(len(pairs))])["pixel_values"]
    with torch.no_grad():
        return (model.decode(model.get_codebook_indices(pixels)) - pixels).abs().mean().item()


def test_the_seed_decides(world, tmp_path):
    weights = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.manual_seed(len(weights) + 100)
        weights.append(train(world, tmp_path / name, steps=3, seed=seed).state_dict())
    assert_same_weights(weights[0], weights[1])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_images_are_pixels_from_0_to_1_and_follow_the_seed(pairs):
    collate = ImageCollator(RandomCropFlip(32))

    def read_pixels(*keys):
        return collate([key and pairs[key] for key in keys])["pixel_values"]

    pixels = read_pixels((1, 3))
    assert (pixels.shape, pixels.dtype) == ((1, 3, 32, 32), torch.float32)
    assert pixels.min() >= 0
    assert pixels.max() == 1
    assert torch.equal(read_pixels(None, (1, 3)), pixels)
    assert not torch.equal(read_pixels((2, 3)), pixels)
    assert read_pixels(None).shape == (1, 3, 32, 32)


def test_longer_training_reconstructs_better(world, pairs, tmp_path):
    short, long = (train(world, tmp_path / str(n), steps=n, min_scale=0.9, flip=0) for n in (2, 120))
    assert reconstruction_error(long, pairs) < 0.7 * reconstruction_error(short, pairs)
