"""Features of frozen towers: each is computed once, kept in a folder, and never given for anything else."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from hf_cots import COTSModel
from hf_cots.data import frozen_features
from hf_cots.data.frozen_features import TowerFeatures, store_features
from hf_cots.data.sources import PairDataset, load_pairs
from tests.support.worlds import World, all_pairs, tiny_processor


@pytest.fixture
def world(tmp_path):
    """Tests here change the images and captions."""
    return World(tmp_path)


def tower_model(world, **fields):
    vision, text = world.towers()
    return COTSModel.from_vision_text_pretrained(str(vision), str(text), projection_dim=16, **fields).eval()


def features_of(world, model, pairs=None):
    pairs = load_pairs(str(world.imagefolder)) if pairs is None else pairs
    return store_features(model, tiny_processor(), pairs, world.root / "features", batch_size=16)


@pytest.fixture
def passes(monkeypatch):
    """How many images and texts went through the towers."""
    count = {"image": 0, "text": 0}
    for modality, name in (("image", "encode_image"), ("text", "encode_text")):
        plain = getattr(COTSModel, name)

        def counted(self, inputs, *args, plain=plain, modality=modality, **kwargs):
            count[modality] += len(inputs)
            return plain(self, inputs, *args, **kwargs)

        monkeypatch.setattr(COTSModel, name, counted)
    return count


@pytest.mark.parametrize("pooling", ["mean", "cls+mean"])
def test_they_are_what_the_towers_give_pair_by_pair(world, pooling):
    model = tower_model(world, image_pooling=pooling)
    frozen = features_of(world, model)
    pairs, processor = load_pairs(str(world.imagefolder)), tiny_processor()
    assert len(frozen) == len(pairs) == 40
    for index in (0, 17, 39):
        inputs = processor(images=pairs[index]["image"], text=pairs[index]["caption"], return_tensors="pt")
        with torch.no_grad():
            image = model.encode_image(inputs["pixel_values"]).pooler_output[0]
            text = model.encode_text(inputs["input_ids"], inputs["attention_mask"]).pooler_output[0]
        torch.testing.assert_close(frozen[index]["image_features"], image, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(frozen[index]["text_features"], text, rtol=1e-5, atol=1e-5)
        assert frozen[index]["image_ids"] == pairs[index]["image_id"]


def test_batches_are_looked_up_by_epoch_and_index_and_may_be_empty(world):
    frozen = features_of(world, tower_model(world))
    batch, none = frozen.__getitems__([(0, 5), (3, 39), (1, 5)]), frozen.__getitems__([])
    for name, rows in batch.items():
        assert torch.equal(rows, torch.stack([frozen[i][name] for i in (5, 39, 5)])), name
        assert torch.equal(frozen.all_features()[name][5], rows[0])
        assert none[name].shape == (0, *rows.shape[1:])


def test_a_second_call_runs_no_tower_and_gives_the_same_bits(world, passes):
    first = features_of(world, tower_model(world)).all_features()
    assert passes == {"image": 40, "text": 40}
    second = features_of(world, tower_model(world)).all_features()
    assert passes == {"image": 40, "text": 40}
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_images_are_decoded_once_and_broken_ones_reported_every_time(world, monkeypatch):
    model, reads = tower_model(world), []
    plain = PairDataset.read_row
    monkeypatch.setattr(PairDataset, "read_row", lambda self, row: reads.append(row) or plain(self, row))

    def read(name):
        pairs = load_pairs(str(world.imagefolder), report=world.root / f"{name}.jsonl")
        if name == "part":
            pairs.keep(np.arange(40) % 2 == 0)
        reads.clear()
        return features_of(world, model, pairs), pairs.report.skipped(), len(reads)

    first, _, decoded = read("first")
    second, _, decoded_again = read("second")
    assert (decoded, decoded_again) == (40, 0)
    for name, rows in first.all_features().items():
        assert torch.equal(rows, second.all_features()[name])
    part, _, _ = read("part")
    for name, rows in part.all_features().items():
        assert torch.equal(rows, first.all_features()[name][::2]), name
    (world.imagefolder / "p07.png").write_bytes(b"no image")
    assert [read(name)[1] for name in ("third", "fourth")] == [1, 1]


def test_lost_features_are_computed_again(world, passes):
    first = features_of(world, tower_model(world)).all_features()
    (shard,) = (world.root / "features").glob("image-*/*.safetensors")
    shard.unlink()
    again = features_of(world, tower_model(world)).all_features()
    assert passes == {"image": 80, "text": 40}
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_features_in_bfloat16_are_kept_apart_and_near(world, passes):
    pairs, model = load_pairs(str(world.imagefolder)), tower_model(world)
    exact = features_of(world, model).all_features()
    folder = world.root / "features"
    rough = store_features(model, tiny_processor(), pairs, folder, precision="bfloat16").all_features()
    assert passes == {"image": 80, "text": 80}
    for name in ("image_features", "text_features"):
        assert rough[name].dtype == torch.float32
        assert not torch.equal(rough[name], exact[name])
        torch.testing.assert_close(rough[name], exact[name], rtol=0.05, atol=0.05)


def test_captions_of_one_image_share_its_feature(world, passes):
    names = [name for name, _, _ in all_pairs()]
    rows = [{"file_name": name, "caption": [f"red {i}", "the left", f"a {i}"]} for i, name in enumerate(names)]
    World.write_metadata(world.imagefolder, rows)
    frozen = features_of(world, tower_model(world))
    assert len(frozen) == 120
    assert passes["image"] == 40
    assert passes["text"] == 81, "one of the captions is everywhere the same"
    assert torch.equal(frozen[3]["image_features"], frozen[4]["image_features"])
    assert torch.equal(frozen[1]["text_features"], frozen[4]["text_features"])


def test_what_is_exchanged_is_computed_again(world, passes):
    features_of(world, tower_model(world))
    path = world.imagefolder / "p03.png"
    ImageOps.mirror(ImageOps.flip(Image.open(path).convert("RGB"))).save(path)
    lines = (world.imagefolder / "metadata.jsonl").read_text().splitlines()
    lines[5] = json.dumps(json.loads(lines[5]) | {"caption": "another one"})
    (world.imagefolder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    frozen = features_of(world, tower_model(world))
    assert passes == {"image": 41, "text": 41}
    fresh = store_features(tower_model(world), tiny_processor(), frozen.pairs, world.root / "fresh")
    for name, rows in fresh.all_features().items():
        torch.testing.assert_close(frozen.all_features()[name], rows, rtol=1e-5, atol=1e-5)


def test_another_tower_or_pooling_has_features_of_its_own(world, passes):
    features_of(world, tower_model(world))
    other = tower_model(world)
    with torch.no_grad():
        other.vision_model.layernorm.bias.add_(1)
    changed = features_of(world, other).all_features()
    assert passes == {"image": 80, "text": 40}, "the text tower is the same"
    features_of(world, tower_model(world, text_pooling="mean"))
    assert passes == {"image": 80, "text": 80}
    again = features_of(world, other).all_features()
    assert torch.equal(again["image_features"], changed["image_features"])


def test_a_killed_call_loses_no_more_than_a_shard(world, passes, monkeypatch):
    monkeypatch.setattr(frozen_features, "SHARD_ROWS", 8)
    plain = COTSModel.encode_image

    def dying(self, pixels, **kwargs):
        if passes["image"] >= 32:
            raise KeyboardInterrupt
        return plain(self, pixels, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(COTSModel, "encode_image", dying)
        with pytest.raises(KeyboardInterrupt):
            features_of(world, tower_model(world))
    assert passes["image"] == 32
    resumed = features_of(world, tower_model(world)).all_features()
    assert passes["image"] == 40
    fresh = store_features(
        tower_model(world), tiny_processor(), load_pairs(str(world.imagefolder)), world.root / "fresh"
    )
    for name, rows in fresh.all_features().items():
        torch.testing.assert_close(resumed[name], rows, rtol=1e-5, atol=1e-5)


def test_a_damaged_file_is_named(world):
    features_of(world, tower_model(world))
    (shard,) = (world.root / "features").glob("image-*/*.safetensors")
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{shard.name} is damaged .* delete it"):
        features_of(world, tower_model(world))
    shard.unlink()
    assert len(features_of(world, tower_model(world))) == 40


def test_a_broken_image_is_replaced_as_in_training(world):
    (world.imagefolder / "p07.png").write_bytes(b"no image")
    frozen = features_of(world, tower_model(world))
    assert torch.equal(frozen[7]["image_features"], frozen[8]["image_features"])
    assert torch.equal(frozen[7]["text_features"], frozen[8]["text_features"])
    assert frozen[7]["image_ids"] == frozen[8]["image_ids"]


def test_processes_may_share_a_folder(world, passes):
    """Two have computed the same; what a third reads, and adds, is right whichever it takes."""
    model, pairs = tower_model(world), load_pairs(str(world.imagefolder))
    images = [pairs[index]["image"] for index in range(8)]
    one, other = (TowerFeatures(model, tiny_processor(), world.root / "features") for _ in range(2))
    one.get_image_rows(images[:4])
    other.get_image_rows(images[2:6])
    one.images.features(), other.images.features()
    third = TowerFeatures(model, tiny_processor(), world.root / "features")
    assert len(third.images.features()) == 8
    alone = TowerFeatures(model, tiny_processor(), world.root / "alone")
    rows, expected = third.get_image_rows(images), alone.get_image_rows(images)
    torch.testing.assert_close(third.images.features()[rows], alone.images.features()[expected], rtol=1e-5, atol=1e-5)
    assert passes["image"] == 4 + 4 + 2 + 8


def test_the_model_keeps_its_mode(world):
    model = tower_model(world).train()
    features_of(world, model)
    assert model.training
