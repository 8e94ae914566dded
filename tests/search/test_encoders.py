"""All kinds of encoders against the model's own logits, on tiny models of random weights written to disk."""

import sys

import datasets
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor, BertModel, ViTModel

from hf_cots.data.sources import PairDataset, load_pairs
from hf_cots.search.encoders import encode_pairs
from hf_cots.search.loading import load_encoder
from hf_cots.search.torch_encoders import DualEncoder, SentenceEncoder, TextEncoder, encode_images, encode_texts
from tests.support.clip import SCALE, VISION, make_clip, text_fields
from tests.support.embeddings import assert_close, equal
from tests.support.worlds import all_pairs, encoded, tiny_tokenizer


IMAGES = [image for _, image, _ in all_pairs()[12:19]]
TEXTS = [caption for _, _, caption in all_pairs()[12:19]]  # of two lengths


def make_chinese_clip(folder):
    make_clip(folder, transformers.ChineseCLIPConfig, transformers.ChineseCLIPModel, transformers.ChineseCLIPProcessor)


def make_siglip(folder):
    tokenizer = tiny_tokenizer()
    config = transformers.SiglipConfig(
        text_config=text_fields(tokenizer) | {"projection_size": 32}, vision_config=VISION
    )
    transformers.SiglipModel(config).save_pretrained(folder)
    transformers.SiglipProcessor(transformers.SiglipImageProcessor(size=SCALE), tokenizer).save_pretrained(folder)


def make_blip(folder):
    tokenizer = tiny_tokenizer()
    text = text_fields(tokenizer) | {"encoder_hidden_size": 32}
    config = transformers.BlipConfig(
        text_config=text, vision_config=VISION, projection_dim=16, image_text_hidden_size=16
    )
    model = transformers.BlipForImageTextRetrieval(config)
    with torch.no_grad():  # the default random weights are so small that all images get one embedding
        for weight in (weight for weight in model.parameters() if weight.ndim > 1):
            weight *= 8
    model.save_pretrained(folder)
    transformers.BlipProcessor(transformers.BlipImageProcessor(size=SCALE), tokenizer).save_pretrained(folder)


def make_bert(folder):
    tokenizer = tiny_tokenizer()
    BertModel(transformers.BertConfig(**text_fields(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(3)
    for make in (make_clip, make_siglip, make_chinese_clip, make_blip, make_bert):
        make(root / make.__name__.removeprefix("make_"))
    return root


def own_scores(folder, kind):
    """Cosine similarities (images, texts) by the model's own forward, one padded batch."""
    padding = "max_length" if kind == "siglip" else True
    processor = AutoProcessor.from_pretrained(folder)
    lengths = {"max_length": 24} if kind == "siglip" else {}
    inputs = processor(images=IMAGES, text=TEXTS, padding=padding, return_tensors="pt", **lengths)
    with torch.no_grad():
        if kind == "blip":
            model = transformers.BlipForImageTextRetrieval.from_pretrained(folder).eval()
            return model(**inputs, use_itm_head=False).itm_score
        model = AutoModel.from_pretrained(folder).eval()
        logits = model(**inputs).logits_per_image
        return (logits - (model.logit_bias if kind == "siglip" else 0)) / model.logit_scale.exp()


@pytest.mark.parametrize("kind", ["clip", "siglip", "chinese_clip", "blip"])
def test_dual_encoders_equal_their_own_logits(folders, kind):
    encoder = load_encoder(str(folders / kind), device="cpu")
    assert isinstance(encoder, DualEncoder)
    images, texts = encoder.encode_images(iter(IMAGES), batch_size=3), encoder.encode_texts(TEXTS, batch_size=2)
    assert images.shape == texts.shape == (7, encoder.dim)
    assert images.dtype == texts.dtype == np.float32
    expected = own_scores(folders / kind, kind)
    assert expected.std() > 1e-3  # the random weights do tell pairs apart
    assert_close(images @ texts.T, expected, rtol=1e-4, atol=1e-5)  # float32 in another order


def test_siglip_depends_on_its_padding(folders):
    """The reason for padding to full length: with the padding of the others its embeddings are different ones."""
    encoder = load_encoder(str(folders / "siglip"), device="cpu")
    inputs = encoder.processor(text=TEXTS[:1], return_tensors="pt")
    with torch.no_grad():
        short = encoder.model.get_text_features(**inputs).pooler_output
    assert np.abs(torch.nn.functional.normalize(short).numpy() - encoder.encode_texts(TEXTS[:1])).max() > 1e-3


def test_a_cots_is_loaded_bit_for_bit(world):
    encoder = load_encoder(str(world.model), device="cpu")
    model, processor = (
        AutoModel.from_pretrained(world.model).eval(),
        AutoProcessor.from_pretrained(world.model),
    )
    with torch.no_grad():
        own = model(**processor(images=IMAGES, text=TEXTS, return_tensors="pt"))
    assert equal(encoder.encode_images(IMAGES), own.image_embeds)
    assert equal(encoder.encode_texts(TEXTS), own.text_embeds)
    assert equal(encode_images(model, processor, IMAGES), own.image_embeds)
    assert equal(encode_texts(model, processor, TEXTS), own.text_embeds)


@pytest.mark.parametrize("kind", ["clip", "siglip", "blip", "bert"])
def test_texts_longer_than_the_model_can_take_are_cut(folders, kind):
    encoder = load_encoder(str(folders / kind), device="cpu")
    assert np.isfinite(encoder.encode_texts(["red " * 100])).all()


def test_empty_results_have_a_width(folders):
    for kind in ("clip", "siglip"):
        encoder = load_encoder(str(folders / kind), device="cpu")
        assert encoder.encode_images([]).shape == encoder.encode_texts([]).shape == (0, encoder.dim)
    assert load_encoder(str(folders / "bert"), device="cpu").encode_texts([]).shape == (0, 32)


def test_a_text_model_pools_the_mean_of_its_tokens(folders):
    encoder = load_encoder(str(folders / "bert"), device="cpu")
    assert isinstance(encoder, TextEncoder)
    model, tokenizer = AutoModel.from_pretrained(folders / "bert").eval(), tiny_tokenizer()
    rows = []
    for text in TEXTS:  # one by one: no padding
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        rows.append(torch.nn.functional.normalize(states.mean(dim=0), dim=0))
    assert_close(encoder.encode_texts(TEXTS, batch_size=4), torch.stack(rows), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"bert \(BertModel\) has no image tower"):
        encoder.encode_images(IMAGES)


@pytest.fixture(scope="module")
def sentence_folders(folders, tmp_path_factory):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    root = tmp_path_factory.mktemp("sentences")
    text = Transformer(str(folders / "bert"))
    SentenceTransformer(modules=[text, Pooling(32, "cls"), Normalize()], device="cpu").save(str(root / "text"))
    SentenceTransformer(modules=[Transformer(str(folders / "clip"))], device="cpu").save(str(root / "clip"))
    return root


def test_a_sentence_transformer_equals_its_own_encode(sentence_folders):
    from sentence_transformers import SentenceTransformer

    encoder = load_encoder(str(sentence_folders / "text"), device="cpu")
    assert isinstance(encoder, SentenceEncoder)
    own = SentenceTransformer(str(sentence_folders / "text"), device="cpu").encode(TEXTS, convert_to_tensor=True)
    assert_close(encoder.encode_texts(TEXTS, batch_size=2), own, rtol=1e-4, atol=1e-5)
    assert encoder.dim == 32
    with pytest.raises(ValueError, match="has no image tower: it only encodes text"):
        encoder.encode_images(IMAGES)


def test_a_sentence_transformer_with_images_equals_the_dual_encoder_in_it(folders, sentence_folders):
    outer = load_encoder(str(sentence_folders / "clip"), device="cpu")
    inner = load_encoder(str(folders / "clip"), device="cpu")
    assert isinstance(outer, SentenceEncoder)
    close = {"rtol": 1e-4, "atol": 1e-5}
    assert_close(outer.encode_images(IMAGES, 3), inner.encode_images(IMAGES), **close)
    assert_close(outer.encode_texts(TEXTS), inner.encode_texts(TEXTS), **close)
    assert outer.encode_images([]).shape == (0, 16)


def test_without_sentence_transformers_the_extra_is_named(sentence_folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'hf-cots\[sentence-transformers\]'"):
        load_encoder(str(sentence_folders / "text"))


# ---------------------------------------------------------------------- models that cannot be used


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match="no such model folder: /nothing/model"):
        load_encoder("/nothing/model")


def test_an_unknown_name_is_a_one_line_error():
    with pytest.raises(OSError, match="cannot load the model 'nobody/nothing'") as caught:
        load_encoder("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_a_model_of_images_only_is_refused(tmp_path):
    ViTModel(transformers.ViTConfig(**VISION)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="ViTModel has no separate embeddings for images and texts"):
        load_encoder(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: {}, r"CLIPModel needs weights that are missing from the file: text_projection\.weight"),
        (lambda weight: {"text_projection.weight": weight[1:].contiguous()}, "the weights do not fit the config"),
    ],
)
def test_weights_that_a_file_lacks_are_not_made_up(tmp_path, change, message):
    make_clip(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights |= change(weights.pop("text_projection.weight"))
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        load_encoder(str(tmp_path))


def test_a_text_model_without_a_pooler_is_welcome(tmp_path):
    make_bert(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
    assert len(kept) < len(weights)
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert load_encoder(str(tmp_path), device="cpu").encode_texts(TEXTS).shape == (7, 32)


# ---------------------------------------------------------------------- fingerprints


def test_a_fingerprint_is_of_the_weights_alone(folders, tmp_path):
    first, again = (load_encoder(str(folders / "clip"), device="cpu") for _ in range(2))
    assert first.fingerprint() == again.fingerprint()
    assert len(first.fingerprint()) == 32
    first.model.save_pretrained(tmp_path)
    first.processor.save_pretrained(tmp_path)
    assert load_encoder(str(tmp_path), device="cpu").fingerprint() == first.fingerprint()
    with torch.no_grad():
        again.model.text_projection.weight[0, 0] += 1e-6
    assert again.fingerprint() != first.fingerprint()
    same = first.fingerprint()
    first.model.bfloat16()
    assert first.fingerprint() != same


# ---------------------------------------------------------------------- data sets


def test_encode_pairs_keeps_rows_captions_and_ids_together(world):
    encoder = load_encoder(str(world.model), device="cpu")
    pairs = load_pairs(str(world.imagefolder))
    encoded_pairs = encode_pairs(encoder, pairs, batch_size=16)
    assert equal(encoded_pairs.image_ids, pairs.image_ids)
    assert equal(encoded_pairs.text_ids, encoded_pairs.image_ids)
    assert encoded_pairs.rows == encoded_pairs.captions == list(range(40))
    assert encoded_pairs.broken == []


def test_encode_pairs_skips_broken_images_and_lists_them(world):
    images = [encoded(image) for image in IMAGES[:3]]
    rows = {"image": [images[0], b"no", *images[1:]], "caption": [["a", "b"], ["c"], ["d"], ["e", "f"]]}
    pairs = PairDataset(datasets.Dataset.from_dict(rows), name="x")
    result = encode_pairs(load_encoder(str(world.model), device="cpu"), pairs)
    assert result.rows == [0, 2, 3]
    assert [pairs.caption(i) for i in result.captions] == ["a", "b", "d", "e", "f"]
    assert result.image_ids.tolist() == [0, 2, 3]
    assert result.text_ids.tolist() == [0, 0, 2, 3, 3]
    assert [broken.name for broken in result.broken] == ["x, row 1"]
    expected = encode_texts(
        AutoModel.from_pretrained(world.model).eval(),
        AutoProcessor.from_pretrained(world.model),
        ["d"],
    )
    assert_close(result.text_embeds[2:3], expected, rtol=1e-4, atol=1e-5)
