"""Encoding: ahead of the model, by length, in bfloat16."""

import json
import threading

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from hf_cots import ImageIndex, load_encoder
from hf_cots.data.images import BrokenImage
from hf_cots.search.encoders import encode_readable, precision_of, set_precision
from hf_cots.search.encoding import embed_ahead, embed_by_length
from hf_cots.search.torch_encoders import choose_precision, prepare_image
from tests.support.cli import call, error_of, succeed
from tests.support.dual_folders import write_align, write_chinese_clip, write_clip, write_siglip
from tests.support.embeddings import assert_close, equal
from tests.support.pixel_encoder import PixelEncoder, write_folder
from tests.support.worlds import noise


IMAGES = [noise(20 + i, 30, i) for i in range(11)]
CPU = torch.device("cpu")


# ---------------------------------------------------------------------- ahead of the model


@pytest.mark.parametrize("write", [None, write_clip, write_siglip, write_chinese_clip, write_align])
def test_pixels_of_one_image_are_those_of_a_batch(world, tmp_path, write):
    folder = world.model if write is None else write(tmp_path / "model")
    processor = AutoProcessor.from_pretrained(folder)
    together = processor(images=IMAGES, return_tensors="pt")
    alone = [prepare_image(processor, image) for image in IMAGES]
    assert all(each.keys() == together.keys() for each in alone)
    for name, values in together.items():
        assert equal(torch.cat([each[name] for each in alone]), values)


def test_embeddings_are_those_of_the_towers_fed_by_hand(world):
    encoder = load_encoder(world.model, "cpu")
    by_hand = []
    for start in range(0, len(IMAGES), 4):
        inputs = encoder.processor(images=IMAGES[start : start + 4], return_tensors="pt")
        with torch.no_grad():
            by_hand.append(encoder.model.get_image_features(**inputs).pooler_output)
    expected = torch.nn.functional.normalize(torch.cat(by_hand), dim=1)
    assert equal(encoder.encode_images(IMAGES, batch_size=4), expected)
    embeds, problems = encode_readable(encoder, IMAGES.__getitem__, range(len(IMAGES)), batch_size=4)
    assert equal(embeds, expected)
    assert problems == [None] * len(IMAGES)


def test_what_comes_next_is_prepared_while_the_model_computes():
    prepared = [threading.Event() for _ in range(6)]

    def prepare(item):
        prepared[item].set()
        return item

    def embed(batch):
        following = min(batch[-1] + 1, 5)
        assert prepared[following].wait(10)  # else the model would wait for it
        return np.array(batch)

    embeddings, _ = embed_ahead(range(6), prepare, embed, batch_size=2)
    assert np.concatenate(embeddings).tolist() == list(range(6))


def test_batches_are_full_although_images_are_broken():
    def read(item):
        if item % 3 == 0:
            raise BrokenImage(str(item), "broken")
        return item

    sizes = []

    def embed(batch):
        sizes.append(len(batch))
        return np.array(batch)

    embeddings, problems = embed_ahead(range(10), read, embed, batch_size=4)
    assert np.concatenate(embeddings).tolist() == [1, 2, 4, 5, 7, 8]
    assert sizes == [4, 2]
    names = [problem and problem.name for problem in problems]
    assert names == ["0", None, None, "3", None, None, "6", None, None, "9"]
    assert embed_ahead([], read, embed, 4) == ([], [])


# ---------------------------------------------------------------------- by length


def test_texts_are_embedded_with_others_of_their_length():
    texts = ["x" * (i * 37 % 50 + 1) for i in range(50)]
    batches = []

    def embed(batch):
        batches.append([len(text) for text in batch])
        return np.array([[float(len(text))] for text in batch])

    assert embed_by_length(texts, embed, 8)[:, 0].tolist() == [len(text) for text in texts]
    assert [len(batch) for batch in batches] == [8] * 6 + [2]
    flat = [length for batch in batches for length in batch]
    assert flat == sorted((len(text) for text in texts), reverse=True)
    batches.clear()
    embed_by_length(texts[:8], embed, 8)
    assert batches == [[len(text) for text in texts[:8]]]  # one batch stays as it is


def test_the_order_of_texts_does_not_change_their_embeddings(world):
    encoder = load_encoder(world.model, "cpu")
    texts = ["red", "a large blue circle on the left", "a square", "green " * 9, "one black star", "two"]
    alone = np.concatenate([encoder.encode_texts([text]) for text in texts])
    assert_close(encoder.encode_texts(texts, batch_size=2), alone, rtol=0, atol=1e-6)


# ---------------------------------------------------------------------- bfloat16


def test_bfloat16_is_near_and_leaves_the_weights_alone(world):
    full, half = load_encoder(world.model, "cpu"), load_encoder(world.model, "cpu", precision="bfloat16")
    assert (precision_of(full), precision_of(half)) == ("float32", "bfloat16")
    assert full.fingerprint() == half.fingerprint()
    for one, other in (
        (full.encode_images(IMAGES), half.encode_images(IMAGES)),
        (full.encode_texts(["a red circle", "two"]), half.encode_texts(["a red circle", "two"])),
    ):
        assert other.dtype == np.float32
        assert_close(np.linalg.norm(other, axis=1), np.ones(len(other), np.float32))
        assert 0 < np.abs(one - other).max() < 0.05
    assert equal(set_precision(half, "float32").encode_images(IMAGES), full.encode_images(IMAGES))


def test_auto_is_bfloat16_where_a_gpu_computes_in_it(monkeypatch):
    assert choose_precision("auto", CPU) == "float32"
    for supported, chosen in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda supported=supported: supported)
        assert choose_precision("auto", torch.device("cuda")) == chosen
    with pytest.raises(ValueError, match="--precision must be float32, bfloat16, auto, not 'half'"):
        choose_precision("half", CPU)
    with pytest.raises(ValueError, match="pixels does not support --precision bfloat16"):
        set_precision(PixelEncoder(), "bfloat16")


def test_an_index_keeps_its_precision(world, tmp_path):
    photos, to = write_folder(tmp_path / "photos", 6), tmp_path / "index"
    expected = load_encoder(world.model, "cpu", precision="bfloat16").encode_images(sorted(photos.iterdir()))
    succeed("index", world.model, photos, "--to", to, "--precision", "bfloat16")
    index = ImageIndex.open(to, device="cpu")
    assert equal(index.embeds, expected)
    assert index.search(photos / "003.png", 1)[0].path.name == "003.png"  # the query in float32
    (photos / "000.png").unlink()
    write_folder(photos, 1)
    index.update()
    assert_close(index.embeds, expected, rtol=0, atol=1e-6)
    refused = error_of(call("index", world.model, photos, "--to", to, "--precision", "float32"))
    assert f"the index {to} was encoded in bfloat16, not in float32: choose another index with --to" in refused
    assert error_of(call("index", world.model, photos, "--to", tmp_path / "other", "--precision", "half"))
    assert not (tmp_path / "other").exists()


def test_an_evaluation_tells_its_precision(world, tmp_path):
    found = {}
    for precision in ("float32", "bfloat16"):
        output = tmp_path / f"{precision}.json"
        options = ("--resamples", 2, "--failures", 0, "--output", output)
        succeed("evaluate", world.model, world.parquet, "--precision", precision, *options)
        found[precision] = json.loads(output.read_text())
        assert found[precision]["environment"]["precision"] == precision
    assert found["float32"]["model"] == found["bfloat16"]["model"]
