"""Any image becomes normalized square RGB pixels; each is read from a real file where that matters."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from hf_cots import COTSImageProcessor
from hf_cots.models import to_rgb


SIZE = {"height": 32, "width": 32}


@pytest.fixture
def processor():
    return COTSImageProcessor(size=SIZE)


def plain(processor, image):
    """Pixels back in [0, 255], channels last."""
    pixels = processor(image, return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 32, 32)
    assert pixels.dtype == torch.float32
    return ((pixels[0] * 0.5 + 0.5) * 255).movedim(0, -1)


def assert_color(processor, image, color, tolerance=1.0):
    pixels = plain(processor, image)
    expected = torch.tensor(color, dtype=torch.float32).expand(32, 32, 3)
    torch.testing.assert_close(pixels, expected, rtol=0, atol=tolerance)


def reread(image, path, **options):
    image.save(path, **options)
    return Image.open(path)


def test_rgb_is_resized_rescaled_and_normalized(processor):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    pixels = processor(image, return_tensors="np").pixel_values[0]
    np.testing.assert_allclose(pixels, ((expected - 0.5) / 0.5).transpose(2, 0, 1), atol=1e-5)


def test_the_full_image_is_seen(processor):
    """A wide image is squeezed, not cropped: both ends are there."""
    image = Image.new("RGB", (320, 32))
    image.paste((255, 0, 0), (0, 0, 40, 32))
    image.paste((0, 0, 255), (280, 0, 320, 32))
    pixels = plain(processor, image)
    assert pixels[16, 0].tolist() == pytest.approx([255, 0, 0], abs=2)
    assert pixels[16, 31].tolist() == pytest.approx([0, 0, 255], abs=2)


@pytest.mark.parametrize(
    ("mode", "stored", "expected"),
    [
        ("L", 90, (90, 90, 90)),
        ("1", 1, (255, 255, 255)),
        ("LA", (40, 255), (40, 40, 40)),
        ("LA", (40, 0), (255, 255, 255)),
        ("RGBA", (200, 0, 0, 0), (255, 255, 255)),  # transparency is white
        ("RGBA", (200, 0, 0, 128), (227, 127, 127)),
        ("RGBA", (200, 10, 20, 255), (200, 10, 20)),
    ],
)
def test_gray_and_transparent_files(processor, tmp_path, mode, stored, expected):
    image = reread(Image.new(mode, (20, 20), stored), tmp_path / "x.png")
    assert_color(processor, image, expected, 1.5 if stored == (200, 0, 0, 128) else 1.0)


def test_palette(processor, tmp_path):
    image = Image.new("P", (20, 20), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    assert_color(processor, reread(image, tmp_path / "p.png"), (10, 200, 30))
    transparent = reread(image, tmp_path / "t.png", transparency=1)
    assert transparent.mode == "P"
    assert_color(processor, transparent, (255, 255, 255))


def test_rgb_with_a_transparent_color(processor, tmp_path):
    image = reread(Image.new("RGB", (20, 20), (10, 20, 30)), tmp_path / "t.png", transparency=(10, 20, 30))
    assert image.mode == "RGB"
    assert_color(processor, image, (255, 255, 255))


@pytest.mark.parametrize(("value", "expected"), [(0x8080, 128), (0xFFFF, 255), (0x2020, 32), (0x0080, 0), (0, 0)])
def test_sixteen_bit_png(processor, tmp_path, value, expected):
    image = reread(Image.fromarray(np.full((20, 20), value, dtype=np.uint16)), tmp_path / "16.png")
    assert image.mode.startswith("I")
    assert_color(processor, image, (expected,) * 3)


def test_sixteen_bit_gradient_keeps_its_steps(tmp_path):
    values = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, axis=0)
    rgb = np.asarray(to_rgb(reread(Image.fromarray(values), tmp_path / "g.png")))
    assert np.abs(rgb[0, :, 0].astype(int) - np.arange(256)).max() <= 1


def test_cmyk_jpeg(processor, tmp_path):
    image = reread(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), tmp_path / "c.jpg", quality=95)
    assert image.mode == "CMYK"
    red, green, blue = plain(processor, image)[16, 16].tolist()
    assert red > 200
    assert max(green, blue) < 60


def test_exif_rotation_is_applied(processor, tmp_path):
    """Orientation 6: the camera was turned; what is stored left comes out on top."""
    image = Image.new("RGB", (32, 32), "black")
    image.paste("white", (0, 0, 16, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = plain(processor, reread(image, tmp_path / "r.jpg", exif=exif, quality=95))
    assert pixels[4, 16].min() > 240
    assert pixels[28, 16].max() < 15


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 2), (31, 33)])
def test_odd_sizes(processor, size):
    assert_color(processor, Image.new("RGB", size, (7, 80, 150)), (7, 80, 150))


def test_an_animation_gives_its_first_frame(processor, tmp_path):
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert_color(processor, Image.open(tmp_path / "a.gif"), (255, 0, 0), 3)


def test_to_rgb_returns_upright_8_bit_rgb_and_leaves_the_original():
    image = Image.new("RGBA", (5, 4), (1, 2, 3, 0))
    converted = to_rgb(image)
    assert (converted.mode, converted.size) == ("RGB", (5, 4))
    assert image.mode == "RGBA"


def test_arrays_and_tensors_equal_the_image(processor):
    array = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    expected = processor(Image.fromarray(array), return_tensors="pt").pixel_values
    channels_first = np.ascontiguousarray(array.transpose(2, 0, 1))
    for image in (array, channels_first, torch.from_numpy(channels_first)):
        torch.testing.assert_close(processor(image, return_tensors="pt").pixel_values, expected, rtol=0, atol=0.01)


def test_one_or_many(processor):
    images = [Image.new("RGB", (20 + i, 30), (i * 40, 0, 0)) for i in range(4)]
    together = processor(images, return_tensors="pt").pixel_values
    assert together.shape == (4, 3, 32, 32)
    for i, image in enumerate(images):
        assert torch.equal(processor(image, return_tensors="pt").pixel_values[0], together[i])
        assert torch.equal(processor([image], return_tensors="pt").pixel_values[0], together[i])
    mixed = processor([images[0], Image.new("L", (9, 9)), Image.new("RGBA", (5, 5))], return_tensors="pt")
    assert mixed.pixel_values.shape == (3, 3, 32, 32)


def test_default_is_384_pixels():
    assert COTSImageProcessor()(Image.new("RGB", (9, 9)), return_tensors="pt").pixel_values.shape == (1, 3, 384, 384)


@pytest.mark.parametrize("cls", [COTSImageProcessor, AutoImageProcessor])
def test_save_and_load(tmp_path, cls):
    ours = COTSImageProcessor(size={"height": 24, "width": 24}, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    ours.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path)
    assert type(loaded) is COTSImageProcessor
    assert loaded.to_dict() == ours.to_dict()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    a, b = (p(image, return_tensors="pt").pixel_values for p in (ours, loaded))
    assert a.shape == (1, 3, 24, 24)
    assert torch.equal(a, b)


def test_what_is_no_image_is_refused(processor):
    with pytest.raises((ValueError, TypeError)):
        processor("no/such/image.png", return_tensors="pt")
