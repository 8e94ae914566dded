"""The crop is a pure function of image and generator, and of the shapes asked for."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from hf_cots.data.augmentation import RandomCropFlip
from tests.support.worlds import noise


FULL = {"min_scale": 1, "min_aspect": 1}


def crop(image, seed=0, **settings):
    return np.asarray(RandomCropFlip(16, **settings)(image, np.random.default_rng(seed)))


def coordinates(side=256):
    """An image whose red and green channels tell where a pixel came from."""
    grid = np.arange(side, dtype=np.uint8)
    return Image.fromarray(np.stack([*np.meshgrid(grid, grid), np.zeros((side, side), np.uint8)], axis=-1))


def test_the_crop_depends_on_the_seed_alone():
    np.random.seed(1)
    first = crop(noise(40, 30), seed=5)
    np.random.seed(2)
    assert np.array_equal(crop(noise(40, 30), seed=5), first)
    assert not np.array_equal(crop(noise(40, 30), seed=6), first)
    assert first.shape == (16, 16, 3)


@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize("side", [16, 40])
def test_a_full_crop_of_a_square_image_is_plainly_resized(side, flip):
    plain = noise(side, side).resize((16, 16), Image.Resampling.BICUBIC, reducing_gap=3.0)
    for seed in range(5):
        assert np.array_equal(
            crop(noise(side, side), seed, flip=flip, **FULL), ImageOps.mirror(plain) if flip else plain
        )


def test_flips_occur_as_often_as_asked():
    plain = sum(np.array_equal(crop(noise(), seed, flip=0.25, **FULL), noise()) for seed in range(400))
    assert 265 < plain < 335  # 300 of 400; the deviation is 8.7


def test_crops_keep_within_the_asked_area_and_aspect():
    areas = []
    for seed in range(200):
        result = crop(coordinates(), seed, min_scale=0.3, flip=0).astype(float)
        # The outermost samples lie half a cell inside the crop on both sides.
        width = (result[8, -1, 0] - result[8, 0, 0]) * 16 / 15
        height = (result[-1, 8, 1] - result[0, 8, 1]) * 16 / 15
        areas.append(width * height / 256**2)
        assert 0.7 < width / height < 1.4
    assert 0.25 < min(areas) < 0.35
    assert max(areas) > 0.9


def test_crops_come_from_everywhere():
    centers = np.array([crop(coordinates(), seed, min_scale=0.2, flip=0)[8, 8, :2] for seed in range(100)])
    assert centers.min() < 90
    assert centers.max() > 165
    assert abs(centers.mean() - 128) < 15


@pytest.mark.parametrize("size", [(1, 50), (50, 1), (1, 1), (3, 2000)])
def test_thin_images(size):
    for seed in range(20):
        assert crop(noise(*size), seed).shape == (16, 16, 3)


def test_recoloring_maps_black_and_white_to_two_far_colors():
    drawing = Image.new("RGB", (16, 16), "white")
    drawing.paste("black", (0, 0, 8, 16))
    drawing.paste((127, 127, 127), (8, 0, 12, 16))
    dark = 0
    for seed in range(200):
        pixels = crop(drawing, seed, flip=0, recolor=1, **FULL).astype(float)
        ink, gray, ground = pixels[8, 2], pixels[8, 10], pixels[8, 14]
        assert abs(ink.mean() - ground.mean()) > 95
        assert np.allclose(gray, (ink + ground) / 2, atol=2)
        dark += ground.mean() < ink.mean()
    assert 60 < dark < 140


def test_recoloring_changes_no_other_draw():
    plain = crop(noise(40, 30), seed=3)
    assert np.array_equal(crop(noise(40, 30), seed=3, recolor=0), plain)
    recolored = [crop(noise(40, 30), seed, recolor=0.25) for seed in range(200)]
    kept = sum(np.array_equal(image, crop(noise(40, 30), seed)) for seed, image in enumerate(recolored))
    assert 125 < kept < 175  # 150 of 200
