"""`hf-cots inspect`: what is drawn is what the model computes, and it shows what a trained token level knows."""

import math

import pytest
import torch
from PIL import Image

import hf_cots.train
from hf_cots.demo.training import train_image_tokenizer
from hf_cots.evaluation.diagnostics.inspect_cots import (
    COTSInspection,
    Prediction,
    color_codes,
    inspect_image,
    load_with_token_heads,
)
from hf_cots.evaluation.rendering.panels import draw_panels
from tests.support.cli import call, error_of, succeed
from tests.support.tiny import TINY_IMAGE_TOKENIZER
from tests.support.worlds import draw, encoded


@pytest.fixture(scope="module")
def trained(world):
    """A run that overfits the world's forty images: a trained image tokenizer, then the token level."""
    sizes = {"config": TINY_IMAGE_TOKENIZER | {"kl_weight": 0.0005}, "max_steps": 150, "min_scale": 0.9, "flip": 0}
    sizes |= {"train_data": str(world.imagefolder), "per_device_train_batch_size": 8}
    tokenizer = train_image_tokenizer(world.root, **sizes)
    settings = {"image_tokenizer": tokenizer, "max_steps": 250, "learning_rate": 3e-3, "min_scale": 1.0}
    settings |= {"save_strategy": "steps", "save_steps": 250, "lr_scheduler_type": "constant_with_warmup"}
    folder = world.root / "trained"
    overrides = {"text_pooling": "mean", "task_weight": 0, "instance_weight": 0.1, "filter_lambda": None}
    hf_cots.train.train(world.flags(folder, overrides, **settings))
    return folder / "checkpoint-250"


def test_a_trained_token_level_predicts_better_with_the_true_caption(trained):
    """Far better than guessing among the codes, and better with the true caption than with none or a false one."""
    model, processor = load_with_token_heads(str(trained))
    losses = {"": [], "true": [], "false": []}
    for color, other in (("red", "green"), ("black", "yellow"), ("green", "red"), ("yellow", "black")):
        for place in ("left", "right", "top", "bottom"):
            image = draw(color, "square", place)
            for seed in range(4):
                for kind, caption in (("true", f"{color} square {place}"), ("false", f"{other} square {place}")):
                    found = inspect_image(model, processor, image, caption, seed)
                    losses[kind].append(found.predictions[caption].loss)
                losses[""].append(found.predictions[""].loss)
    without, true, false = (sum(values) / len(values) for values in (losses[""], losses["true"], losses["false"]))
    assert true < without
    assert true < false
    assert true < 0.6 * math.log(64)


def test_what_is_found_is_what_the_model_computes(trained):
    model, processor = load_with_token_heads(str(trained))
    image = draw("red", "circle", "left")
    found = inspect_image(model, processor, image, "red circle left", seed=3)
    pixels = processor(images=[image], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found.image, torch.tensor(list(image.tobytes())).view(32, 32, 3).permute(2, 0, 1) / 255)
    assert torch.equal(found.codes.flatten(), model.image_codes(pixels)[0])
    assert int(found.mask.sum()) == model.config.num_masked_patches
    assert list(found.predictions) == ["", "red circle left"]
    text = processor(text=["red circle left"], return_tensors="pt")
    with torch.no_grad():
        output = model(
            pixel_values=pixels,
            **{name: text[name] for name in ("input_ids", "attention_mask")},
            bool_masked_pos=found.mask.view(1, -1),
            masked_input_ids=text["input_ids"],
            bool_masked_words=text["attention_mask"] == 0,
        )
    assert found.predictions["red circle left"].loss == pytest.approx(output.loss_mvm.item(), rel=1e-5)
    assert found.reconstruction.shape == (3, 32, 32)
    other = inspect_image(model, processor, image, seed=4)
    assert not torch.equal(other.mask, found.mask)
    assert list(other.predictions) == [""]


def test_equal_codes_have_equal_colors_and_others_do_not():
    colors = color_codes(torch.arange(8192).view(64, 128))
    assert colors.min() >= 0
    assert colors.max() <= 1
    assert torch.equal(color_codes(torch.tensor([[5, 5]])), colors[:, 0, 5].view(3, 1, 1).expand(3, 1, 2))
    assert len({tuple(color) for color in colors.flatten(1).t().tolist()}) == 8192


def test_the_panels_are_drawn_in_order():
    shades = [torch.full((3, 32, 32), value / 10) for value in (1, 2, 3, 4)]
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:2] = True
    predictions = {"": Prediction(0.5, 1.0, shades[2]), "a very long caption " * 9: Prediction(1.0, 0.1, shades[3])}
    found = COTSInspection(shades[0], torch.zeros(4, 4, dtype=torch.long), shades[1], mask, predictions)
    sheet = draw_panels(found.panels())
    assert sheet.size == (6 * 232 + 8, 224 + 32 + 34)
    drawn = [sheet.crop((left, 8, left + 224, 8 + 224)) for left in range(8, 6 * 232, 232)]
    for number, value in {0: 0.1, 2: 0.2, 4: 0.3, 5: 0.4}.items():
        assert drawn[number].getcolors() == [(224 * 224, (round(value * 255),) * 3)], number
    assert drawn[3].getpixel((5, 5)) == (153, 153, 153)
    assert drawn[3].getpixel((5, 220)) == (26, 26, 26)
    for number in range(6):
        below = sheet.crop((number * 232 + 8, 240, number * 232 + 232, 290)).convert("L")
        assert below.getextrema()[0] < 100, "a title"
        gap = sheet.crop((number * 232 + 232, 240, number * 232 + 238, 290))  # the next letter may touch the rest
        assert gap.getcolors() == [(300, (235,) * 3)]


def test_the_command(trained, world, tmp_path):
    output = tmp_path / "deep" / "one.png"
    for caption, panels in ((["--caption", "red square left"], 6), ([], 5)):
        result = succeed("inspect", trained, world.imagefolder / "p00.png", *caption, "--output", output)
        assert "without caption:" in result.output
        assert ('with caption "red square left":' in result.output) == (panels == 6)
        with Image.open(output) as sheet:
            assert sheet.width == panels * 232 + 8


@pytest.mark.parametrize(
    ("model", "image", "message"),
    [
        ("DEPLOYABLE", "WHOLE", "output_dir/checkpoint-1000, not a model to deploy"),
        ("/no/model", "WHOLE", "/no/model"),
        ("TOKENIZER", "WHOLE", "is not a COTS model: its model_type is 'cots_image_tokenizer'"),
        ("TRAINED", "BROKEN", "cannot identify"),
        ("TRAINED", "/no/image.png", "no such file"),
    ],
)
def test_errors_are_one_line(trained, world, tmp_path, model, image, message):
    (tmp_path / "broken.png").write_bytes(encoded(draw("red", "circle", "left"))[:9])
    paths = {"WHOLE": world.imagefolder / "p00.png", "BROKEN": tmp_path / "broken.png"}
    paths |= {"TRAINED": trained, "DEPLOYABLE": trained.parent / "model", "TOKENIZER": world.image_tokenizer}
    result = call("inspect", paths.get(model, model), paths.get(image, image), "--output", tmp_path / "x.png")
    assert message in error_of(result)
    assert not (tmp_path / "x.png").exists()


def test_a_model_without_the_level_is_refused(world, tmp_path):
    settings = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    hf_cots.train.train(world.flags(tmp_path, {"mvm_weight": 0}, **settings))
    with pytest.raises(ValueError, match="mvm_weight=0 and cannot predict"):
        load_with_token_heads(str(tmp_path / "checkpoint-1"))
