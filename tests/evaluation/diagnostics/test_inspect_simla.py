"""`hf-cots inspect` on a SIMLA: keywords, and the patches that tokens attend to."""

import pytest
import torch
from PIL import Image

from hf_cots import SimlaModel
from hf_cots.evaluation.diagnostics.inspect_simla import heat_map, inspect_simla
from hf_cots.evaluation.rendering.panels import draw_panels
from hf_cots.search.loading import load_reranker
from tests.support.cli import succeed
from tests.support.simla_world import simla_folder
from tests.support.worlds import all_pairs


NAME, IMAGE, CAPTION = all_pairs()[18]


@pytest.fixture(scope="module")
def simla(world):
    return load_reranker(str(simla_folder(world)), "cpu")


def test_keywords_are_the_likeliest_words(simla):
    model, processor = simla
    found = inspect_simla(model, processor, IMAGE, num_keywords=4)
    with torch.no_grad():
        likely = model.predict_keywords(processor(images=[IMAGE], return_tensors="pt")["pixel_values"])[0]
    order = sorted(range(len(likely)), key=lambda word: -float(likely[word]))[:4]
    assert [word for word, _ in found.keywords] == processor.tokenizer.convert_ids_to_tokens(order)
    assert [p for _, p in found.keywords] == pytest.approx([float(likely[word]) for word in order])
    assert found.tokens == []
    assert found.match is None
    assert len(found.lines()) == 4


def test_tokens_attend_to_patches(simla):
    model, processor = simla
    found = inspect_simla(model, processor, IMAGE, CAPTION)
    assert found.tokens == CAPTION.split()
    assert found.attention.shape == (len(found.tokens), 4, 4)
    inputs = processor(images=[IMAGE], text=[CAPTION], return_tensors="pt")
    with torch.no_grad():
        attention = model.word_patch_attention(inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"])
        logits = model.match(inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"])
    torch.testing.assert_close(found.attention, attention[0, 1:-1])  # without [CLS] and [SEP]
    assert found.match == pytest.approx(float(logits.softmax(dim=1)[0, 1]))
    assert found.lines()[-1] == f"match: {found.match:.1%}"
    assert draw_panels(found.panels()).width == (1 + len(found.tokens)) * 232 + 8


def test_a_heat_map_is_reddest_where_attention_is_greatest():
    attention = torch.zeros(4, 4)
    attention[1, 2], attention[0, 0] = 0.4, 0.1
    heat = heat_map(torch.zeros(3, 32, 32), attention)
    assert heat[0, 12, 20] == pytest.approx(0.7)
    assert heat[0, 4, 4] == pytest.approx(0.7 / 4)
    assert heat[:, 30, 30].tolist() == [0, 0, 0]
    nothing = heat_map(torch.full((3, 32, 32), 0.5), torch.zeros(4, 4))
    assert torch.isfinite(nothing).all()


def test_a_model_without_keywords(simla, tmp_path):
    model, processor = simla
    config = type(model.config).from_dict(model.config.to_dict() | {"psl_weight": 0})
    found = inspect_simla(SimlaModel(config).eval(), processor, IMAGE)
    assert found.keywords == []
    draw_panels(found.panels()).save(tmp_path / "sheet.png")


def test_the_command(world, tmp_path):
    words = (simla_folder(world), world.imagefolder / NAME, "--caption", CAPTION)
    result = succeed("inspect", *words, "--output", tmp_path / "deep" / "sheet.png")
    assert "match: " in result.output
    assert Image.open(tmp_path / "deep" / "sheet.png").width > 500
