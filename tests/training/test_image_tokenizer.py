"""Training the image tokenizer."""

import pytest
import torch
from transformers import AutoModel

from hf_cots.data.augmentation import RandomCropFlip
from hf_cots.data.collator import ImageCollator
from hf_cots.data.sources import load_pairs
from hf_cots.training.image_tokenizer import train_image_tokenizer
from tests.support.runs import assert_same_weights
from tests.support.worlds import tiny_image_tokenizer_config


@pytest.fixture(scope="module")
def pairs(world):
    return load_pairs(str(world.imagefolder))


def train(pairs, folder, steps=10, **settings):
    return train_image_tokenizer(tiny_image_tokenizer_config(), pairs, folder, steps, batch_size=8, **settings)


def reconstruction_error(model, pairs):
    pixels = ImageCollator(RandomCropFlip(32, 1, 0, 1))([pairs[i] for i in range(len(pairs))])["pixel_values"]
    with torch.no_grad():
        return (model.decode(model.get_codebook_indices(pixels)) - pixels).abs().mean().item()


def test_training_saves_what_it_returns(pairs, tmp_path):
    model = train(pairs, tmp_path)
    assert not model.training
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded).__name__ == "COTSImageTokenizer"
    assert_same_weights(loaded.state_dict(), model.state_dict())


def test_the_seed_decides(pairs, tmp_path):
    weights = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.manual_seed(len(weights) + 100)
        weights.append(train(pairs, tmp_path / name, steps=3, seed=seed).state_dict())
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


def test_longer_training_reconstructs_better(pairs, tmp_path):
    short, long = (train(pairs, tmp_path / str(n), steps=n, min_scale=0.9, flip=0) for n in (2, 120))
    assert reconstruction_error(long, pairs) < 0.7 * reconstruction_error(short, pairs)
