"""Training that starts from another dual encoder: `--model` of a CLIP, SigLIP, ALIGN, ..."""

import logging
import shutil

import pytest
import torch
from transformers import AutoModel, AutoProcessor

from hf_cots import COTSForPreTraining, COTSModel, COTSProcessor
from hf_cots.data.sources import load_pairs
from hf_cots.search.loading import load_encoder
from hf_cots.train import train
from tests.support.dual_folders import DUAL_ENCODERS, TEXTS, many_images, write_clip, write_siglip
from tests.support.runs import assert_same_checkpoints, assert_same_weights, make_trainer
from tests.support.worlds import SIDE


QUEUES = {"queue_size": 24, "similarity_queue_size": 8, "filter_warmup_steps": 1}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Folders of dual encoders, each written when it is first asked for."""
    root, made = tmp_path_factory.mktemp("dual"), {}

    def get(kind):
        if kind not in made:
            torch.manual_seed(0)
            made[kind] = DUAL_ENCODERS[kind](root / kind)
        return made[kind]

    return get


def flags(world, source, output, overrides=None, **settings):
    """Flags of a run from a dual encoder."""
    options = {"vision": None, "text": None, "image_tokenizer": None, "model": source} | settings
    return world.flags(output, **options, config_overrides=QUEUES | (overrides or {}))


def embeddings(model, processor, texts=TEXTS):
    inputs = processor(images=many_images(), text=list(texts), return_tensors="pt")
    with torch.no_grad():
        output = model.eval()(**inputs)
    return output.image_embeds, output.text_embeds


# ---------------------------------------------------------------------- where it starts


@pytest.mark.parametrize("kind", DUAL_ENCODERS)
def test_it_starts_with_the_sources_embeddings(world, sources, tmp_path, kind):
    trainer = make_trainer(flags(world, sources(kind), tmp_path))
    assert type(trainer.model) is COTSForPreTraining
    ours = trainer.processing_class
    theirs = COTSProcessor.from_dual_encoder(sources(kind))
    assert ours.image_processor.to_dict() == theirs.image_processor.to_dict()
    assert (ours.padding, ours.tokenizer.model_max_length) == (theirs.padding, theirs.tokenizer.model_max_length)
    expected = embeddings(COTSModel.from_dual_encoder(str(sources(kind))), theirs)
    for found, wanted in zip(embeddings(trainer.model.cots, ours), expected):
        assert torch.equal(found, wanted)
    momentum = trainer.model.momentum_encoder.state_dict()
    assert_same_weights(momentum, {name: trainer.model.cots.state_dict()[name] for name in momentum})


def test_what_is_taken_over_is_told_in_one_line(world, sources, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="hf_cots"):
        make_trainer(flags(world, sources("clip"), tmp_path))
    (line,) = (record.getMessage() for record in caplog.records if ": keeping " in record.getMessage())
    assert "(CLIPModel): keeping CLIPVisionModel" in line
    assert 'CLIPTextModel (text_pooling="tower") with their projections, the temperature 0.07' in line
    assert f"images of {SIDE} pixels and texts of 20 tokens" in line
    assert line.endswith("; mvm_weight is 0: no --image_tokenizer is named")
    assert caplog.text.count("<mask> was added to it and to the text tower for word masking") == 1


def test_levels_that_cannot_be_had(world, sources, tmp_path):
    """What is asked for by name is an error, what is not is left out, what can be had is on."""
    with pytest.raises(ValueError, match="mvm_weight > 0 needs a trained image tokenizer"):
        make_trainer(flags(world, sources("vision-text"), tmp_path, {"mvm_weight": 1}))
    config = make_trainer(flags(world, sources("vision-text"), tmp_path)).model.config
    assert (config.mvm_weight, config.mlm_weight, config.task_weight) == (0, 1, 1)
    whole = make_trainer(flags(world, sources("vision-text"), tmp_path, image_tokenizer=world.image_tokenizer)).model
    assert (whole.config.mvm_weight, whole.config.mlm_weight) == (1, 1)
    ours, theirs = whole.image_tokenizer.state_dict(), AutoModel.from_pretrained(world.image_tokenizer).state_dict()
    assert_same_weights(ours, theirs)
    bare = make_trainer(flags(world, sources("vision-text"), tmp_path, {"mlm_weight": 0, "task_weight": 0.5})).model
    assert (bare.config.mlm_weight, bare.config.task_weight) == (0, 0.5)


# ---------------------------------------------------------------------- flags


def test_another_image_size(world, sources, tmp_path):
    trainer = make_trainer(flags(world, sources("clip"), tmp_path, image_size=48))
    sizes = trainer.processing_class.image_processor
    assert (sizes.size.shortest_edge, sizes.crop_size.height, sizes.crop_size.width) == (48, 48, 48)
    assert trainer.model.config.vision_config.image_size == 48
    item = trainer.train_dataset[0]
    assert trainer.data_collator([item])["pixel_values"].shape == (1, 3, 48, 48)


def test_lengths_of_texts(world, tmp_path):
    """A context of more than 64 tokens is kept; of less, if asked for; of one length only, where padding is read."""
    long = write_clip(tmp_path / "long", max_position_embeddings=77)
    tokenizer = AutoProcessor.from_pretrained(long).tokenizer
    tokenizer.model_max_length = 77
    tokenizer.save_pretrained(long)
    lengths = [
        make_trainer(flags(world, long, tmp_path / "out", **options)).processing_class.tokenizer.model_max_length
        for options in ({}, {"max_text_length": 12}, {"max_text_length": 500})
    ]
    assert lengths == [77, 12, 77]
    siglip = write_siglip(tmp_path / "siglip")
    with pytest.raises(ValueError, match=r"--max_text_length 12: .* only accepts texts padded to 16 tokens"):
        make_trainer(flags(world, siglip, tmp_path / "out", max_text_length=12))
    assert make_trainer(flags(world, siglip, tmp_path / "out", max_text_length=16)).model.config.pad_token_id == 0


def test_lora_and_frozen_towers(world, sources, tmp_path):
    pytest.importorskip("peft")
    model = make_trainer(flags(world, sources("siglip"), tmp_path, lora_rank=2, freeze="text")).model
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("vision_model" in name and "lora_" in name for name in trained)
    assert not any("text_model" in name for name in trained)
    assert not any("momentum" in name for name in trained)


def test_other_models_and_architectures_are_refused(world, sources, tmp_path):
    _, text = world.towers()
    with pytest.raises(
        ValueError, match="is not a COTS, SIMLA or COOKIE model: its model_type is 'bert', nor another dual encoder"
    ):
        make_trainer(flags(world, text, tmp_path))
    with pytest.raises(ValueError, match=r"the dual encoder .* can only be turned into a COTS"):
        make_trainer(flags(world, sources("clip"), tmp_path, architecture="simla"))


# ---------------------------------------------------------------------- runs


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_run_from_start_to_search(world, sources, tmp_path, kind):
    """The towers learn, and what is saved reads images and texts as the source did."""
    results = train(flags(world, sources(kind), tmp_path, eval_data=world.imagefolder, eval_split="train"))
    assert set(results) == {"text_to_image", "image_to_text"}
    encoder = load_encoder(tmp_path / "model", "cpu")
    theirs = COTSProcessor.from_dual_encoder(sources(kind))
    assert encoder.processor.padding == theirs.padding
    for name, rows in theirs(images=many_images(), text=list(TEXTS), return_tensors="pt").items():
        assert torch.equal(encoder.processor(images=many_images(), text=list(TEXTS), return_tensors="pt")[name], rows)
    start = COTSModel.from_dual_encoder(str(sources(kind)))
    for tower in ("vision_model", "text_model"):
        before, after = (getattr(model, tower).state_dict() for model in (start, encoder.model))
        assert [name for name in after if not torch.equal(before[name], after[name])], tower


def test_a_trained_model_is_continued_with_its_preprocessing(world, sources, tmp_path):
    """A COTS that came from a CLIP crops, and its texts keep their length, when it is trained on."""
    COTSModel.from_dual_encoder(str(sources("clip")), mvm_weight=0, mlm_weight=0).save_pretrained(tmp_path / "cots")
    COTSProcessor.from_dual_encoder(sources("clip")).save_pretrained(tmp_path / "cots")
    again = make_trainer(flags(world, tmp_path / "cots", tmp_path / "out", {"image_mean": [0.1, 0.2, 0.3]}))
    processor = again.processing_class
    assert processor.image_processor.size.shortest_edge == SIDE
    assert list(processor.image_processor.image_mean) == [0.1, 0.2, 0.3]
    assert processor.tokenizer.model_max_length == 20


def test_a_resumed_run_is_the_uninterrupted_one(world, sources, tmp_path):
    whole, halves = (
        flags(world, sources("siglip"), tmp_path / name, max_steps=2, save_strategy="steps", save_steps=1)
        for name in ("whole", "halves")
    )
    train(whole)
    shutil.copytree(tmp_path / "whole" / "checkpoint-1", tmp_path / "halves" / "checkpoint-1")
    train([*halves, "--resume_from_checkpoint", "last"])
    assert_same_checkpoints(tmp_path / "whole", tmp_path / "halves", 2)


# ---------------------------------------------------------------------- batches without an attention mask


def test_words_are_masked_without_an_attention_mask(world, sources, tmp_path):
    """Padding is a special token, and is never masked."""
    tokenizer = COTSProcessor.from_dual_encoder(sources("siglip")).tokenizer
    trainer = make_trainer(flags(world, sources("siglip"), tmp_path))
    collate = trainer.data_collator
    fields = trainer.model.config.to_dict() | {"mlm_weight": 1, "mask_token_id": 2}
    config = type(trainer.model.config).from_dict(fields)
    pairs = load_pairs(str(world.imagefolder))
    batch = type(collate)(collate.processor, config, collate.augmentation)([pairs[i] for i in range(4)])
    assert "attention_mask" not in batch
    assert batch["input_ids"].shape == (4, 16)
    masked = batch["bool_masked_words"]
    assert masked.any(dim=1).all()
    assert not (batch["input_ids"][masked][:, None] == torch.tensor(tokenizer.all_special_ids)).any()
    output = COTSForPreTraining(config)(**batch)
    assert output.loss_mlm > 0
