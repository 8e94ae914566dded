"""The converter on files with the authors' keys: against the slow reference, to and fro, without running pickles."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModel, AutoProcessor

from hf_cots import SimlaForPreTraining, SimlaModel
from hf_cots.conversion import simla
from hf_cots.models.terms_simla import Side, code_logits, keywords
from tests.conversion.test_saved_modules import Attack
from tests.support import reference_simla as slow
from tests.support.authors_simla import TINY, Sizes, authors_state
from tests.support.cli import call, error_of, succeed
from tests.support.runs import assert_same_weights
from tests.support.worlds import tiny_tokenizer


# A small image tokenizer, and masks for its small grid: what the file does not say.
SMALL = {"hidden_size": 8, "decoder_input_size": 8, "blocks_per_group": 1}
FIELDS = {"image_tokenizer_config": SMALL, "num_masked_patches": 5, "min_block_patches": 2}


def write(path: Path, state: dict) -> Path:
    """A file as a training run of theirs leaves it: beside the weights an optimizer and a pickled configuration."""
    config = OmegaConf.create({"lr": 1e-4, "train_file": ["a.json", "b.json"], "optimizer": {"opt": None}})
    torch.save(
        {"model": state, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}, "lr_scheduler": {"epoch": 3}}
        | {"config": config, "epoch": 3},
        path,
    )
    return path


@pytest.fixture(scope="module", params=["pre-training", "retrieval"])
def tiny(request, tmp_path_factory):
    state = authors_state(TINY, retrieval=request.param == "retrieval")
    return state, write(tmp_path_factory.mktemp("tiny") / "checkpoint.pth", state)


def pair(sizes: Sizes, length: int = 7):
    """One image, one padded text, and a mask of patches."""
    source = torch.Generator().manual_seed(1)
    side = sizes.grid * sizes.patch
    ids = torch.randint(104, sizes.words, (1, length), generator=source)
    ids[0, 0], ids[0, -2:] = 101, 0
    masked = torch.zeros(1, sizes.grid**2, dtype=torch.bool)
    masked[0, torch.randperm(sizes.grid**2, generator=source)[: sizes.grid**2 // 3]] = True
    return torch.randn(1, 3, side, side, generator=source), ids, masked


@torch.no_grad()
def compare(state, model: SimlaForPreTraining, sizes: Sizes) -> None:
    """All that a checkpoint is read for, within 1e-5 of the reference in float64."""
    reference = slow.Reference(state, heads=max(1, sizes.width // 64))
    pixels, ids, masked = pair(sizes)
    there = ids != 0
    image = reference.image(pixels[0])
    feature = slow.unit(reference.linear(image[0], "vision_proj"))
    encoder = model.simla
    output = encoder(pixel_values=pixels, input_ids=ids, attention_mask=there.long())

    def close(ours, expected):
        torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-5)

    close(output.image_embeds[0], feature)
    close(output.text_embeds[0], reference.text_feature(ids[0], there[0]))
    cache = encoder.cache_image(pixels)
    close(encoder.match(ids, there.long(), image_cache=cache)[0], reference.itm_logits(ids[0], there[0], image))
    if model.config.mim_weight == 0:
        return
    batch = {"pixel_values": pixels, "input_ids": ids, "attention_mask": there.long()}
    logits = code_logits(batch, Side(encoder, model.heads, cache), masked)
    close(logits, reference.code_logits(pixels[0], masked[0], ids[0], there[0])[masked[0]])
    twin = model.momentum_encoder
    chosen = keywords(batch, Side(twin, model.momentum_heads, twin.cache_image(pixels)), model.config)
    _, rows = reference.together(ids[0], there[0], reference.image(pixels[0], m="_m"), "_m")
    may_vote = [int(word) not in model.config.special_token_ids for word in ids[0]]
    assert set(chosen[0].nonzero().flatten().tolist()) == slow.keywords(rows, may_vote)
    close(encoder.predict_keywords(pixels)[0], 1 / (1 + torch.exp(-reference.concept_logits(feature))))


def test_a_small_file(tiny):
    state, path = tiny
    compare(state, simla.convert_simla(path, **FIELDS), TINY)


def test_the_authors_sizes(tmp_path):
    """The full model from a file with exactly their keys. The larger tensors of the momentum encoder are the trained
    model's, so that 1 GB is written and not 2; the small file shows that the two are told apart."""
    state = authors_state(Sizes(), shared_above=1_000_000)
    model = simla.convert_simla(write(tmp_path / "pretrain.pth", state), image_tokenizer_config=SMALL)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 238_264_183  # 238.26M
    assert model.simla.temperature.tolist() == pytest.approx([0.05])
    compare(state, model, Sizes())


def test_the_authors_retrieval_file(tmp_path):
    """At 384 pixels, in their sizes but for layers and queue; the parameters of all layers are counted."""
    sizes = Sizes(layers=1, grid=24, queue=64)
    state = authors_state(sizes, retrieval=True)
    assert state["visual_encoder.pos_embed"].shape == (1, 577, 768)
    model = simla.convert_simla(write(tmp_path / "retrieval.pth", state))
    compare(state, model, sizes)
    stack, tower = model.simla.text_model.layers[0], model.simla.vision_model.layers[0]
    one = sum(p.numel() for part in (stack, tower) for p in part.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained + 11 * one == 223_742_723  # 223.74M


def test_to_and_fro(tiny):
    state, path = tiny
    torch.testing.assert_close(simla.to_simla(simla.convert_simla(path, **FIELDS))["model"], state, rtol=0, atol=0)


def test_another_resolution(tiny):
    """Positions of patches are resized with the grid; the first token's stays, and a pre-training file serves for
    retrieval."""
    state, path = tiny
    model = simla.convert_simla(path, image_size=48, mlm_weight=0, mim_weight=0, psl_weight=0)
    positions = model.simla.vision_model.embeddings.position_embeddings
    assert positions.shape == (1, 37, 128)
    assert torch.equal(positions[:, 0], state["visual_encoder.pos_embed"][:, 0])
    assert not torch.equal(positions, model.momentum_encoder.vision_model.embeddings.position_embeddings)
    wanted = SimlaModel(model.config).state_dict().keys()
    assert {name.removeprefix("simla.") for name in model.state_dict() if name.startswith("simla.")} == wanted
    with torch.no_grad():
        assert model.simla(pixel_values=torch.randn(1, 3, 48, 48)).image_embeds.shape == (1, 16)


def test_positions_are_resized_by_cubic_convolution():
    """Keys' kernel with a = -3/4, on a grid whose border is repeated, rows and columns one after the other."""

    def kernel(x, a=-0.75):
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    weights = torch.zeros(6, 4)
    for new in range(6):
        centre = (new + 0.5) * 4 / 6 - 0.5
        for old in range(-3, 8):
            weights[new, min(3, max(0, old))] += kernel(centre - old)
    positions = torch.randn(1, 17, 3)
    expected = torch.einsum("ri,cj,ijd->rcd", weights, weights, positions[0, 1:].view(4, 4, 3))
    resized = simla.resize_positions(positions, 6)
    assert torch.equal(resized[:, 0], positions[:, 0])
    torch.testing.assert_close(resized[0, 1:].view(6, 6, 3), expected, rtol=0, atol=1e-5)
    assert simla.resize_positions(positions, 4) is positions


def test_queues_arrive_slot_by_slot(tiny):
    state, path = tiny
    queue = simla.convert_simla(path, **FIELDS).key_queue
    assert int(queue.filled) == TINY.queue
    assert int(queue.pointer) == TINY.queue // 2
    torch.testing.assert_close(queue.text_keys, state["text_queue"].t())
    ids = queue.image_ids
    assert (ids == state["idx_queue"][0]).all() if "idx_queue" in state else (ids < 0).all()
    assert "idx_queue" in state or len(ids.unique()) == TINY.queue


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("itm_head.weight"), r"missing \['itm_head.weight'\]"),
        (lambda s: s.pop("image_queue"), "missing 'image_queue'"),
        (lambda s: s.pop("temp"), r"missing \['temp'\]"),
        (lambda s: s.update({"extra.weight": torch.zeros(1)}), r"unknown \['extra.weight'\]"),
        (lambda s: s.update({"text_proj.weight": torch.zeros(16, 3)}), "text_proj.weight has the shape"),
        (lambda s: s.clear(), "has no 'model' with SIMLA's weights"),
    ],
)
def test_a_file_that_does_not_fit(tmp_path, change, message):
    state = authors_state(TINY)
    change(state)
    with pytest.raises(ValueError, match=message):
        simla.convert_simla(write(tmp_path / "odd.pth", state), **FIELDS)


def test_nothing_that_a_file_names_is_run(tmp_path):
    path, marker = tmp_path / "harm.pth", tmp_path / "ran"
    torch.save({"model": authors_state(TINY), "config": Attack(marker)}, path)
    with pytest.raises(ValueError, match=r"asks for code that is not run here: (posix|nt)\.system"):
        simla.read_simla(path)
    assert not marker.exists()
    with pytest.raises(FileNotFoundError, match="no such file"):
        simla.read_simla(tmp_path / "none.pth")
    for damaged in (b"not a checkpoint", path.read_bytes()[:5000]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is no checkpoint that torch\.save wrote"):
            simla.read_simla(path)


def test_the_command_there_and_back(tmp_path):
    """A folder for the Auto classes, and the file again."""
    state = authors_state(TINY, retrieval=True)
    path = write(tmp_path / "checkpoint.pth", state)
    tiny_tokenizer().save_pretrained(tmp_path / "words")
    ours, again = tmp_path / "ours", tmp_path / "again.pth"
    succeed("convert", "simla", path, "--output", ours, "--tokenizer", tmp_path / "words")
    model, processor = (auto.from_pretrained(ours) for auto in (AutoModel, AutoProcessor))
    assert type(model) is SimlaModel
    assert torch.equal(model.itm_head.weight, state["itm_head.weight"])
    words = processor(text=["red square"])["input_ids"][0]
    assert processor.tokenizer.convert_ids_to_tokens(words) == ["[CLS]", "red", "square"]
    assert processor.image_processor.size == {"height": 32, "width": 32}
    succeed("convert", "simla", ours, "--output", again, "--to-simla")
    assert_same_weights(simla.read_simla(again), state)
    missing = call("convert", "simla", tmp_path / "none.pth", "--output", tmp_path / "x")
    assert f"error: no such file: {tmp_path / 'none.pth'}" in error_of(missing)


def test_converted_weights_have_no_random_image_tokenizer(tiny, tmp_path):
    _, path = tiny
    model = simla.convert_simla(path, **FIELDS)
    simla.save_converted(model, tmp_path)
    _, info = SimlaForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert all(name.startswith("image_tokenizer.") for name in info["missing_keys"])
    assert bool(info["missing_keys"]) == (model.config.mim_weight > 0)


def test_the_tokenizer_reads_as_theirs():
    tokenizer = simla.simla_tokenizer(tiny_tokenizer(), max_length=6)
    ids = tokenizer("A RED, (light-blue) circle/square!", truncation=True)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "a", "red", "light", "blue", "circle"]
    both = tokenizer(["red", "light blue square"], padding=True, return_tensors="pt")
    assert both["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert (both["input_ids"][0, 2:] == tokenizer.pad_token_id).all()


@pytest.mark.parametrize(("grid", "fields"), [(4, (5, 1)), (6, (11, 2)), (8, (19, 4)), (9, (75, 16)), (14, (75, 16))])
def test_a_small_image_gets_a_small_mask(tmp_path, caplog, grid, fields):
    """75 of 256 patches in proportion where 75 do not fit; what is asked for stays."""
    sizes = replace(TINY, grid=grid, positions=grid**2 + 8)
    path = write(tmp_path / "small.pth", authors_state(sizes))
    config = simla.convert_simla(path, image_tokenizer_config=SMALL).config
    assert (config.num_masked_patches, config.min_block_patches) == fields
    told = [record.getMessage() for record in caplog.records if "masked patches" in record.getMessage()]
    assert len(told) == (grid < 9)
    assert all(f"an image of {grid**2}: the converted model masks {fields[0]}" in line for line in told)
    asked = simla.convert_simla(path, image_tokenizer_config=SMALL, num_masked_patches=3, min_block_patches=1).config
    assert (asked.num_masked_patches, asked.min_block_patches) == (3, 1)
