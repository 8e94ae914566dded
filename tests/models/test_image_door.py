"""The same file gives the same pixels by path, bytes, PIL, array or tensor; all else is refused in one line."""

import base64
import io
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from hf_cots import COTSImageProcessor, COTSProcessor
from hf_cots.data.images import BrokenImage, read_image
from hf_cots.models import load_image
from hf_cots.search.torch_encoders import encode_images
from tests.support.embeddings import equal
from tests.support.words import tiny_tokenizer
from tests.support.worlds import draw


SIZE = {"height": 32, "width": 32}
PHOTO = draw("green", "circle", "top").resize((60, 40))


@pytest.fixture
def processor():
    return COTSProcessor(COTSImageProcessor(size=SIZE), tiny_tokenizer())


def pixels(processor, images, **options):
    return processor(images=images, return_tensors="pt", **options)["pixel_values"]


def icon():
    """Black lines on transparency."""
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(image).line((5, 5, 60, 60), fill=(0, 0, 0, 255), width=4)
    return image


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    PHOTO.save(path, exif=exif, quality=95)


GRADIENT = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)
FILES = {
    "plain.png": PHOTO.save,
    "icon.png": icon().save,
    "icon.webp": lambda path: icon().save(path, lossless=True),
    "deep.png": Image.fromarray(GRADIENT).save,
    "deep.tiff": Image.fromarray(GRADIENT).save,
    "float.tiff": Image.fromarray(GRADIENT.astype(np.float32) / 65535).save,
    "palette.png": lambda path: PHOTO.convert("P").save(path, transparency=PHOTO.convert("P").getpixel((0, 0))),
    "gray_alpha.png": Image.merge("LA", [PHOTO.convert("L")] * 2).save,
    "color_key.png": lambda path: PHOTO.save(path, transparency=(255, 255, 255)),
    "cmyk.jpg": PHOTO.convert("CMYK").save,
    "bits.png": PHOTO.convert("1").save,
    "turned.jpg": turned,
    "film.gif": lambda path: PHOTO.save(path, save_all=True, append_images=[PHOTO.rotate(90)]),
    "film.png": lambda path: icon().save(path, save_all=True, append_images=[icon().rotate(90)]),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_gives_the_same_pixels_by_every_way(processor, tmp_path, name):
    path = tmp_path / name
    FILES[name](path)
    data = path.read_bytes()
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    with open(path, "rb") as file:
        ways = {
            "str": str(path),
            "Path": path,
            "bytes": data,
            "bytearray": bytearray(data),
            "memoryview": memoryview(data),
            "BytesIO": io.BytesIO(data),
            "file": file,
            "data URL": url,
            "cell with bytes": {"bytes": data, "path": None},
            "cell with a path": {"bytes": None, "path": str(path)},
            "PIL": Image.open(path),
            "read_image": read_image(path),
            "array": np.asarray(read_image(data)),
        }
        expected = pixels(processor, read_image(path))
        for way, image in ways.items():
            assert equal(pixels(processor, image), expected), way
    many = [str(path), [path, read_image(path)]], np.array([str(path)] * 3), (path for _ in range(3))
    for images in many:
        assert equal(pixels(processor, images), expected.expand(3, -1, -1, -1))


def test_a_black_icon_is_not_all_black(processor, tmp_path):
    icon().save(tmp_path / "icon.png")
    assert (pixels(processor, str(tmp_path / "icon.png")) < 0).float().mean() < 0.2


ARRAY = np.asarray(PHOTO)
WAYS = {
    "channels last": ARRAY,
    "channels first": ARRAY.transpose(2, 0, 1),
    "float in [0, 1]": ARRAY.astype(np.float32) / 255,
    "double in [0, 1]": ARRAY / 255,
    "half in [0, 1]": (ARRAY / 255).astype(np.float16),
    "bfloat16 tensor": torch.from_numpy(ARRAY.astype(np.float32)).to(torch.bfloat16).permute(2, 0, 1),
    "float in [0, 255]": ARRAY.astype(np.float32),
    "int64": ARRAY.astype(np.int64),
    "16 bits": ARRAY.astype(np.uint16) * 257,
    "big endian": (ARRAY.astype(np.uint16) * 257).astype(">u2"),
    "int32 of 16 bits": ARRAY.astype(np.int32) * 257,
    "opaque": np.dstack([ARRAY, np.full(ARRAY.shape[:2], 255, np.uint8)]),
    "float, opaque": np.dstack([ARRAY / 255, np.ones(ARRAY.shape[:2])]),
    "tensor": torch.from_numpy(ARRAY.copy()).permute(2, 0, 1),
    "float tensor": torch.from_numpy(ARRAY.copy()).permute(2, 0, 1) / 255,
    "tensor with gradient": (torch.from_numpy(ARRAY.copy()) / 255).requires_grad_(),
    "batch": ARRAY[None],
    "list of batches": [torch.from_numpy(ARRAY.copy())[None]],
}


@pytest.mark.parametrize("way", WAYS)
def test_arrays_of_every_form(processor, way):
    assert equal(pixels(processor, WAYS[way]), pixels(processor, PHOTO))


GRAY = (np.arange(3000) % 256).astype(np.uint8).reshape(50, 60)


@pytest.mark.parametrize(
    "gray",
    [GRAY, GRAY[..., None], GRAY[None], GRAY / 255, GRAY.astype(np.float32), [GRAY], torch.from_numpy(GRAY)],
    ids=["2-D", "last", "first", "in [0, 1]", "float", "list", "tensor"],
)
def test_gray_arrays(processor, gray):
    assert equal(pixels(processor, gray), pixels(processor, Image.fromarray(GRAY)))


def test_deep_gray_arrays_and_masks(processor):
    for deep in (GRADIENT, GRADIENT.astype(np.int32), GRADIENT.astype(np.float32) / 65535):
        assert equal(pixels(processor, deep), pixels(processor, Image.fromarray(deep)))
    mask = GRAY > 99
    assert equal(pixels(processor, mask), pixels(processor, Image.fromarray(mask)))


def test_transparent_arrays_lie_on_white(processor):
    clear = np.zeros((20, 20, 4), np.uint8)
    for image in (clear, clear / 255.0, clear[..., 2:]):
        assert (pixels(processor, image) == 1).all()


def test_values_of_the_callers_own_scale_are_left_alone():
    processor = COTSImageProcessor(size=SIZE)
    own = np.random.default_rng(0).normal(size=(3, 32, 32)).astype(np.float32)
    options = {"do_rescale": False, "do_resize": False, "do_normalize": False}
    for image in (own, torch.from_numpy(own)):
        assert np.array_equal(processor(image, return_tensors="np", **options)["pixel_values"][0], own)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("no/such/icon.png", "no such image file: no/such/icon.png"),
        (Path("no/such/icon.png"), "no such image file: no/such/icon.png"),
        ("x" * 5000, r"no such image file: x+\.\.\."),
        ("", "no such image file"),
        (["a\0b"], "no such image file"),
        (b"<html>", "image without a name: cannot identify image file these bytes"),
        ([PHOTO, None], r"images\[1\]: an image must be a path.*not NoneType"),
        ([[PHOTO], [3]], r"images\[1\]\[0\]: .*not int"),
        (3.5, "not float"),
        ({"pixel_values": ARRAY}, "not dict"),
        ([], "images is empty"),
        ([[], []], "images is empty"),
        (np.zeros((0, 60, 3), np.uint8), r"shape \(0, 60, 3\) is not an image"),
        (np.zeros(60, np.uint8), r"shape \(60,\) is not an image"),
        (np.zeros((1, 1, 9, 9, 3), np.uint8), r"shape \(1, 1, 9, 9, 3\)"),
        (np.zeros((7, 50, 60), np.uint8), r"shape \(7, 50, 60\) is not an image: neither its first"),
        (np.full((9, 9, 3), np.nan), "values from nan to nan"),
        (np.full((9, 9), np.inf, np.float32), "values from inf to inf"),
        (np.linspace(-1, 1, 243).reshape(9, 9, 3), "values from -1 to 1 .*normalized before"),
        (np.full((9, 9, 3), 70_000), "values from 70000"),
        (np.zeros((9, 9), complex), "complex128"),
        (Image.fromarray(np.full((9, 9), np.nan, np.float32)), "not finite"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(processor, images, message):
    with pytest.raises(ValueError, match=message) as caught:
        pixels(processor, images)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


def test_broken_files_are_named(processor, tmp_path):
    PHOTO.save(tmp_path / "half.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "half.png").read_bytes()[:80])
    (tmp_path / "folder.png").mkdir()
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")
    for name in ("half.png", "folder.png", "bomb.png"):
        for image in (str(tmp_path / name), tmp_path / name):
            with pytest.raises(ValueError, match=name):
                pixels(processor, image)


def test_a_url_that_is_named_is_downloaded_and_goes_the_same_way(processor, tmp_path, monkeypatch):
    icon().save(tmp_path / "icon.png")
    asked, data = [], (tmp_path / "icon.png").read_bytes()
    monkeypatch.setattr(urllib.request, "urlopen", lambda r: asked.append(r.full_url) or io.BytesIO(data))
    assert equal(pixels(processor, "https://x.org/icon.png"), pixels(processor, icon()))
    assert asked == ["https://x.org/icon.png"]
    with pytest.raises(BrokenImage, match="no such file"):
        read_image("https://x.org/icon.png")
    assert len(asked) == 1, "data never makes a download"

    def fail(request):
        raise OSError("unreachable")

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    with pytest.raises(ValueError, match=r"https://x\.org/icon\.png: unreachable"):
        pixels(processor, ["https://x.org/icon.png"])


def test_read_image_and_load_image_agree(tmp_path):
    for name, save in FILES.items():
        save(tmp_path / name)
        assert np.array_equal(read_image(tmp_path / name), load_image(str(tmp_path / name))), name


def test_encode_images_takes_what_the_processor_takes(world, tmp_path):
    from transformers import AutoModel, AutoProcessor

    model, processor = AutoModel.from_pretrained(world.model).eval(), AutoProcessor.from_pretrained(world.model)
    path = tmp_path / "icon.png"
    icon().save(path)
    expected = encode_images(model, processor, [read_image(path)])
    array = np.asarray(read_image(path))
    for images in (icon(), path, str(path), path.read_bytes(), [str(path)], array, array[None], iter([icon()])):
        assert equal(encode_images(model, processor, images), expected)
    for wrong, message in ((3, "not int"), ([None], "not NoneType"), ("no.png", r"no such image file: no\.png")):
        with pytest.raises(ValueError, match=message):
            encode_images(model, processor, wrong)
