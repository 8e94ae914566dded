"""The crop is a pure function of picture and generator, and of the shapes asked for."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from hf_cots.data.augmentation import RandomCropFlip


def noise(width=40, height=30, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def crop(picture, seed=0, **settings):
    return np.asarray(RandomCropFlip(16, **settings)(picture, np.random.default_rng(seed)))


def coordinates(side=256):
    """A picture whose red and green channels tell where a pixel came from."""
    grid = np.arange(side, dtype=np.uint8)
    return Image.fromarray(np.stack([*np.meshgrid(grid, grid), np.zeros((side, side), np.uint8)], axis=-1))


def test_the_crop_depends_on_the_seed_alone():
    np.random.seed(1)
    first = crop(noise(), seed=5)
    np.random.seed(2)
    assert np.array_equal(crop(noise(), seed=5), first)
    assert not np.array_equal(crop(noise(), seed=6), first)
    assert first.shape == (16, 16, 3)


def test_with_everything_off_a_square_picture_is_plainly_resized():
    picture = noise(40, 40)
    plain = np.asarray(picture.resize((16, 16), Image.Resampling.BICUBIC, reducing_gap=3.0))
    for seed in range(5):
        assert np.array_equal(crop(picture, seed, min_scale=1, min_aspect=1, flip=0), plain)


def test_with_everything_off_a_picture_of_the_asked_size_comes_back():
    picture = noise(16, 16)
    assert np.array_equal(crop(picture, min_scale=1, min_aspect=1, flip=0), np.asarray(picture))
    assert np.array_equal(crop(picture, min_scale=1, min_aspect=1, flip=1), np.asarray(ImageOps.mirror(picture)))


def test_flips_occur_as_often_as_asked():
    flipped = sum(
        np.array_equal(crop(noise(16, 16), seed, min_scale=1, min_aspect=1, flip=0.25), np.asarray(noise(16, 16)))
        for seed in range(400)
    )
    assert 265 < flipped < 335  # 300 plainly drawn of 400; the deviation is 8.7


def test_crops_keep_within_the_asked_area_and_aspect():
    picture, areas = coordinates(), []
    for seed in range(200):
        result = crop(picture, seed, min_scale=0.3, flip=0).astype(float)
        # The outermost samples lie half a cell inside the crop on both sides.
        width = (result[8, -1, 0] - result[8, 0, 0]) * 16 / 15
        height = (result[-1, 8, 1] - result[0, 8, 1]) * 16 / 15
        areas.append(width * height / 256**2)
        assert 0.7 < width / height < 1.4
    assert 0.25 < min(areas) < 0.35
    assert max(areas) > 0.9


def test_crops_come_from_everywhere():
    centres = np.array([crop(coordinates(), seed, min_scale=0.2, flip=0)[8, 8, :2] for seed in range(100)])
    assert centres.min() < 90
    assert centres.max() > 165
    assert abs(centres.mean() - 128) < 15


@pytest.mark.parametrize("size", [(1, 50), (50, 1), (1, 1), (3, 2000)])
def test_thin_pictures(size):
    for seed in range(20):
        assert crop(noise(*size), seed).shape == (16, 16, 3)
