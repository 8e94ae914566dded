"""The code cache: exactly the codes that the model would compute, or none."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from hf_cots import COTSForPreTraining, COTSImageTokenizer
from hf_cots.data.augmentation import RandomCropFlip, crop_image
from hf_cots.data.code_cache import CodeCache, CodeSettings, write_codes
from hf_cots.data.collator import COTSCollator
from hf_cots.data.sources import load_pairs
from tests.support.tiny import tiny_config
from tests.support.worlds import tiny_image_tokenizer_config, tiny_processor, write_images


CROP = RandomCropFlip(32, 0.4, 0.5)
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def pairs(world):
    return load_pairs(str(world.imagefolder), seed=7)


def varied_tokenizer(seed=1):
    """Random weights whose codes differ from patch to patch."""
    torch.manual_seed(seed)
    model = COTSImageTokenizer(tiny_image_tokenizer_config()).eval()
    patches = torch.rand(8, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    with torch.no_grad():
        model.encoder.head.bias -= model.get_logits(patches).mean(dim=(0, 2, 3))
    return model


@pytest.fixture(scope="module")
def tokenizer():
    return varied_tokenizer()


@pytest.fixture(scope="module")
def folder(pairs, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / "codes"
    assert write_codes(pairs, tokenizer, folder, CROP, epochs=2, batch_size=7, shard_size=30) == 80
    return folder


def settings(model, **changes):
    parts = {"tokenizer": model, "tokenizer_size": 32, "augmentation": CROP, "seed": 7}
    return CodeSettings.from_tokenizer(**(parts | dict(zip(("image_mean", "image_std"), HALF)) | changes))


def test_it_holds_the_codes_that_the_model_computes_in_training(pairs, tokenizer, folder):
    """One by one through the model of the training run, from the collator's own pixels."""
    config = tiny_config(image_tokenizer_config=tokenizer.config)
    model = COTSForPreTraining(config).eval()
    model.set_image_tokenizer(tokenizer)
    collator = COTSCollator(tiny_processor(), config, CROP)
    cache = CodeCache(folder, settings(tokenizer))
    assert len(cache) == 80
    seen = set()
    for epoch in (0, 1):
        for index in range(40):
            item = pairs[(epoch, index)]
            wanted = model.image_codes(collator([item])["pixel_values"])[0]
            found = cache.find(item["seed"], crop_image(item, CROP))
            assert (found.dtype, found.tolist()) == (np.uint16, wanted.tolist())
            seen |= set(wanted.tolist())
    assert len(seen) > 10


def test_shards_are_what_the_docstring_says(folder):
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["cache.json", *(f"codes-0000{i}.safetensors" for i in range(3))]
    shards = [load_file(folder / name) for name in names[1:]]
    assert [len(shard["crops"]) for shard in shards] == [30, 30, 20]
    for shard in shards:
        dtypes = {"crops": np.int64, "contents": np.int64, "codes": np.uint16}
        assert {name: rows.dtype for name, rows in shard.items()} == dtypes
        assert shard["codes"].shape[1] == 16
    assert len(set(np.concatenate([shard["crops"] for shard in shards]).tolist())) == 80


def test_a_batch_has_codes_only_if_all_are_held(pairs, tokenizer, folder, caplog):
    cache = CodeCache(folder, settings(tokenizer))
    items = [pairs[(1, index)] for index in (3, 1, 3)]
    crops = [crop_image(item, CROP) for item in items]
    codes = cache.codes([item["seed"] for item in items], crops)
    assert (codes.shape, codes.dtype) == ((3, 16), np.int64)
    assert codes[0].tolist() == codes[2].tolist()
    assert not caplog.messages
    later = pairs[(2, 0)]
    seeds, crops = [items[0]["seed"], later["seed"]], [crops[0], crop_image(later, CROP)]
    assert cache.codes(seeds, crops) is None
    assert cache.codes(seeds, crops) is None
    assert len(caplog.messages) == 1, "logged once"
    assert "is missing 1 of 2 crops" in caplog.text


def test_another_image_under_the_same_seed_is_not_found(pairs, tokenizer, folder):
    cache, item = CodeCache(folder, settings(tokenizer)), pairs[(0, 0)]
    found = cache.find(item["seed"], crop_image(item, CROP))
    assert cache.find(item["seed"], crop_image(item | {"image": Image.new("RGB", (32, 32))}, CROP)) is None
    copy = pickle.loads(pickle.dumps(cache))  # as worker processes get it
    assert copy.find(item["seed"], crop_image(item, CROP)).tolist() == found.tolist()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"tokenizer": varied_tokenizer(2)}, "tokenizer"),
        ({"tokenizer_size": 64}, "tokenizer_size"),
        ({"augmentation": RandomCropFlip(64, 0.4, 0.5)}, "image_size"),
        ({"augmentation": RandomCropFlip(32, 0.3, 0.5)}, "min_scale"),
        ({"augmentation": RandomCropFlip(32, 0.4, 0)}, "flip"),
        ({"augmentation": RandomCropFlip(32, 0.4, 0.5, 0.5)}, "min_aspect"),
        ({"image_mean": (0.5, 0.5, 0.4)}, "image_mean"),
        ({"image_std": (0.5, 0.5, 0.4)}, "image_std"),
        ({"seed": 8}, "seed"),
    ],
)
def test_a_cache_of_other_settings_is_refused_by_name(tokenizer, folder, change, name):
    with pytest.raises(ValueError, match=rf"code cache .* was made with {name} .*, not .*hf-cots tokenize"):
        CodeCache(folder, settings(tokenizer, **change))


def test_the_settings_hold_the_fingerprint_of_the_encoder_alone(tokenizer, folder):
    other = varied_tokenizer()
    with torch.no_grad():
        other.decoder.head.weight += 1
    CodeCache(folder, settings(other))
    with torch.no_grad():
        other.encoder.groups[0][0].convs[0].weight[0, 0, 0, 0] += 1e-6
    with pytest.raises(ValueError, match="made with tokenizer"):
        CodeCache(folder, settings(other))


def test_what_is_no_cache_is_refused(tmp_path, tokenizer, folder):
    with pytest.raises(FileNotFoundError, match="no such code cache"):
        CodeCache(tmp_path / "none", settings(tokenizer))
    with pytest.raises(ValueError, match="is not a code cache"):
        CodeCache(tmp_path, settings(tokenizer))
    shutil.copy(folder / "cache.json", tmp_path)
    with pytest.raises(ValueError, match="is empty"):
        CodeCache(tmp_path, settings(tokenizer))
    for text in ("{", "[]", '{"settings": []}'):
        (tmp_path / "cache.json").write_text(text)
        with pytest.raises(ValueError, match="is not a code cache"):
            CodeCache(tmp_path, settings(tokenizer))


def test_a_killed_run_loses_at_most_one_shard(pairs, tokenizer, folder, tmp_path, monkeypatch):
    """It dies in the second shard's last batch, and after that while the third shard is half written."""
    calls, encode, replace = 0, COTSImageTokenizer.get_codebook_indices, __import__("os").replace

    def dying(self, pixels):
        nonlocal calls
        calls += 1
        if calls == 10:
            raise KeyboardInterrupt
        return encode(self, pixels)

    def dying_replace(draft, path):
        if path.name == "codes-00002.safetensors":
            draft.write_bytes(draft.read_bytes()[:100])
            raise KeyboardInterrupt
        replace(draft, path)

    cache = tmp_path / "killed"
    options = {"epochs": 2, "batch_size": 7, "shard_size": 30}
    with monkeypatch.context() as patch:
        patch.setattr(COTSImageTokenizer, "get_codebook_indices", dying)
        with pytest.raises(KeyboardInterrupt):
            write_codes(pairs, tokenizer, cache, CROP, **options)
    assert [path.name for path in cache.glob("*.safetensors")] == ["codes-00000.safetensors"]
    with monkeypatch.context() as patch:
        patch.setattr("hf_cots.data.shards.os.replace", dying_replace)
        with pytest.raises(KeyboardInterrupt):
            write_codes(pairs, tokenizer, cache, CROP, **options)
    assert len(CodeCache(cache, settings(tokenizer))) == 60
    assert write_codes(pairs, tokenizer, cache, CROP, **options) == 20
    assert write_codes(pairs, tokenizer, cache, CROP, **options) == 0
    for path in folder.iterdir():
        assert (cache / path.name).read_bytes() == path.read_bytes()


def test_more_epochs_are_added_to_a_cache(pairs, tokenizer, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "grown")
    assert write_codes(pairs, tokenizer, tmp_path / "grown", CROP, epochs=3, shard_size=30) == 60, (
        "two shards written again"
    )
    assert len(CodeCache(tmp_path / "grown", settings(tokenizer))) == 120


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shard_size": 31}, "was started with shard_size 30, not 31"),
        ({"augmentation": RandomCropFlip(32)}, "was made with min_scale 0.4, not 0.2"),
        ({"epochs": 0}, "epochs=0"),
        ({"image_mean": [0.5]}, "three numbers each"),
    ],
)
def test_writing_goes_on_with_the_same_settings_only(pairs, tokenizer, folder, change, message):
    options = {"augmentation": CROP, "epochs": 2, "shard_size": 30} | change
    with pytest.raises(ValueError, match=message):
        write_codes(pairs, tokenizer, folder, **options)


def test_other_data_is_refused(tokenizer, folder, tmp_path):
    pairs = load_pairs(str(write_images(tmp_path / "few", 9)), caption_column=None, seed=7)
    with pytest.raises(ValueError, match="was started with pairs 40, not 9"):
        write_codes(pairs, tokenizer, folder, CROP, shard_size=30)


def test_a_damaged_shard_is_named(pairs, tokenizer, folder, tmp_path):
    cache = tmp_path / "codes"
    shutil.copytree(folder, cache)
    shard = cache / "codes-00001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"codes-00001\.safetensors is damaged .* delete it"):
        CodeCache(cache, settings(tokenizer))
    with pytest.raises(ValueError, match=r"codes-00001\.safetensors is damaged .* delete it"):
        write_codes(pairs, tokenizer, cache, CROP, epochs=2, shard_size=30)
    shard.unlink()
    assert write_codes(pairs, tokenizer, cache, CROP, epochs=2, batch_size=7, shard_size=30) == 30
    assert shard.read_bytes() == whole


def test_broken_images_do_not_stop_it(tokenizer, tmp_path):
    folder = write_images(tmp_path / "images", 9)
    (folder / "p03.png").write_bytes(b"no image")
    pairs = load_pairs(str(folder), caption_column=None, seed=7)
    assert write_codes(pairs, tokenizer, tmp_path / "cache", CROP, workers=2) == 9
    cache, item = CodeCache(tmp_path / "cache", settings(tokenizer)), pairs[(0, 3)]
    assert cache.find(item["seed"], crop_image(item, CROP)) is not None
    assert json.loads((tmp_path / "cache" / "cache.json").read_text())["pairs"] == 9
