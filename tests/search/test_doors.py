"""One text is one text and one limit is one limit by every way in; numbers that are none are never ranked."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, AutoTokenizer, pipeline

from hf_cots import COTSCollator, COTSModel, COTSProcessor, ImageIndex, RerankedIndex, Reranker
from hf_cots.search.encoders import encode_pairs
from hf_cots.search.fusion import CandidateBudget, Fusion
from hf_cots.search.loading import load_encoder, load_reranker
from hf_cots.search.torch_encoders import DualEncoder, encode_images, encode_texts
from tests.support.embeddings import assert_close, equal
from tests.support.simla_world import simla_folder
from tests.support.worlds import SIDE, all_pairs, tiny_processor, tiny_tokenizer


CAPTIONS = [caption for _, _, caption in all_pairs()]
LONG = "red square left light blue circle top green black yellow bottom right " * 4  # more words than any limit here


@pytest.fixture(scope="module")
def loaded(world):
    return AutoModel.from_pretrained(world.model).eval(), AutoProcessor.from_pretrained(world.model)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name, image, _ in all_pairs()[:9]:
        image.save(folder / name)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def index(loaded, paths):
    return ImageIndex(DualEncoder(*loaded), paths)


@pytest.fixture(scope="module")
def reranked(world, index):
    return RerankedIndex.from_index(index, str(simla_folder(world)))


# ---------------------------------------------------------------------- texts


@pytest.mark.parametrize("one", ["a red square", np.array("a red square"), np.str_("a red square")])
def test_one_text_is_one_text(loaded, one):
    model, processor = loaded
    expected = encode_texts(model, processor, ["a red square"])
    assert expected.shape == (1, 16)
    assert equal(encode_texts(model, processor, one), expected)
    assert equal(DualEncoder(model, processor).encode_texts(one), expected)


def test_any_ordered_collection_of_texts(loaded):
    model, processor = loaded
    texts = CAPTIONS[:3]
    expected = encode_texts(model, processor, texts)
    tokens = processor(text=texts, return_tensors="pt")["input_ids"]
    for kind in (tuple, np.array, iter, lambda each: dict.fromkeys(each).keys()):
        assert equal(encode_texts(model, processor, kind(texts)), expected)
        assert equal(processor(text=kind(texts), return_tensors="pt")["input_ids"], tokens)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (None, "not NoneType"),
        (3, "not int"),
        (b"red", "not bytes"),
        ({"red": 1}, "not dict"),
        ({"red", "blue"}, "not set"),
        (["red", None], "text number 1 must be a str, got 'None'"),
        (["red", float("nan")], r"text number 1 must be a str, got 'nan' \(float\)"),
        ([["red"]], "text number 0"),
        (np.array([["red"]]), "text number 0"),
        (["red", "\udcff"], "text number 1 is not valid Unicode"),
    ],
)
def test_what_is_no_text_is_refused(loaded, texts, message):
    model, processor = loaded
    with pytest.raises(ValueError, match=message):
        encode_texts(model, processor, texts)
    if texts is not None:
        with pytest.raises(ValueError, match=message):
            processor(text=texts)


def test_no_text_and_the_empty_text(loaded):
    model, processor = loaded
    for nothing in ([], (), np.array([])):
        assert encode_texts(model, processor, nothing).shape == (0, 16)
        with pytest.raises(ValueError, match="text is empty"):
            processor(text=nothing)
    embeds = encode_texts(model, processor, ["", "a", "  "])
    assert embeds.shape == (3, 16)
    assert np.isfinite(embeds).all()


def test_text_encoders_too(world):
    encoder = load_encoder(str(world.towers()[1]))
    assert equal(encoder.encode_texts("a red square"), encoder.encode_texts(["a red square"]))
    assert encoder.encode_texts(np.array(CAPTIONS[:2])).shape[0] == 2
    assert isinstance(encoder.encode_texts("a"), np.ndarray)


def test_the_reranker_scores_one_text(world):
    images = [image for _, image, _ in all_pairs()[:4]]
    ours = Reranker(*load_reranker(str(simla_folder(world)), "cpu"), images.__getitem__)
    rows, columns = torch.zeros(4, dtype=torch.long), torch.arange(4)
    listed = ours.score(["a red square"], rows, columns)
    assert equal(ours.score("a red square", rows, columns), listed)
    assert isinstance(listed, np.ndarray)
    for wrong in (torch.full((4,), 1), torch.full((4,), -1)):
        with pytest.raises(ValueError, match="are out of range for 1 texts"):
            ours.score("a", wrong, columns)


# ---------------------------------------------------------------------- one limit


def model_of_limit(world, folder, positions=40, **carried):
    """A copy of the model whose tokenizer carries other options."""
    shutil.copytree(world.model, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | carried))
    return folder


def embeddings_by_every_way(folder, text):
    """{way: (embedding, tokens)} of one text."""
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    collate = COTSCollator(processor, model.config)
    item = {"image": Image.new("RGB", (SIDE, SIDE)), "caption": text, "image_id": 0, "seed": 1}
    processor.save_pretrained(folder / "again")
    ways = {
        "processor": processor(text=text, return_tensors="pt"),
        "training": {name: rows for name, rows in collate([item]).items() if name in ("input_ids", "attention_mask")},
        "saved again": AutoProcessor.from_pretrained(folder / "again")(text=[text], return_tensors="pt"),
        "tokenizer": processor.tokenizer([text], truncation=True, return_tensors="pt"),
    }
    found = {}
    for way, inputs in ways.items():
        with torch.no_grad():
            embeds = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).text_embeds
        found[way] = embeds[0], inputs["input_ids"].shape[1]
    found["evaluation"] = encode_texts(model, processor, text)[0], None
    found["search"] = load_encoder(str(folder)).encode_texts(text)[0], None
    return found


@pytest.mark.parametrize(
    ("carried", "limit"),
    [
        ({}, 24),
        ({"max_length": 12}, 24),
        ({"max_length": 60, "stride": 2, "truncation": False}, 24),
        ({"padding": "max_length", "max_length": 30, "pad_to_multiple_of": 8}, 24),
        ({"model_max_length": 10}, 10),
        ({"model_max_length": 10**30}, 40),  # the tower's positions
        ({"model_max_length": 10**30, "max_length": 9}, 9),
    ],
)
def test_a_long_text_has_one_embedding(world, tmp_path, carried, limit):
    found = embeddings_by_every_way(model_of_limit(world, tmp_path / "m", **carried), LONG)
    expected, _ = found["processor"]
    for way, (embedding, tokens) in found.items():
        assert_close(embedding, expected, rtol=0, atol=1e-6, msg=way)
        assert tokens in (None, limit), way


def test_a_limit_inside_tokenizer_json_is_not_another_one(world, tmp_path):
    """As all-MiniLM-L6-v2 has it: cut at 128 and padded to 128 in the tokenizer's own file."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(12)
    tokenizer.backend_tokenizer.enable_padding(length=12)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.init_kwargs["max_length"] == 12
    processor = COTSProcessor(tiny_processor().image_processor, again)
    assert processor(text=LONG, return_tensors="pt")["input_ids"].shape == (1, 24)
    processor = COTSProcessor(tiny_processor().image_processor, AutoTokenizer.from_pretrained(tmp_path))
    processor.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer.json").read_text())
    assert saved["truncation"] is None
    assert saved["padding"] is None


def test_sentence_transformers_cuts_at_the_same_length(world):
    st = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import Transformer

    wrapped = st.SentenceTransformer(modules=[Transformer(str(world.model))], device="cpu")
    theirs = torch.nn.functional.normalize(wrapped.encode([LONG], convert_to_tensor=True).clone(), dim=1)
    ours = load_encoder(str(world.model), "cpu").encode_texts(LONG)
    assert_close(theirs, ours, rtol=0, atol=1e-6)


def test_a_pipeline_that_does_not_cut_says_what_to_do(world):
    """transformers' pipeline never asks its tokenizer to truncate."""
    task = pipeline("zero-shot-image-classification", model=str(world.model))
    labels, image = [LONG * 10, "a red square"], all_pairs()[0][1]
    with pytest.raises(ValueError, match=r"texts of \d+ tokens are too long for the text tower's 40 positions"):
        task(image, candidate_labels=labels, hypothesis_template="{}")
    assert len(task(image, candidate_labels=CAPTIONS[:2], hypothesis_template="{}")) == 2


# ---------------------------------------------------------------------- what is asked


def test_a_path_is_an_image_and_a_str_a_text(index, paths):
    for query in (paths[3], Image.open(paths[3]), paths[3].read_bytes(), np.asarray(Image.open(paths[3]))):
        best = index.search(query, 1)[0]
        assert best.path == paths[3]
        assert best.score == pytest.approx(1, abs=1e-5)
    assert index.search("red square left") == index.search(np.str_("red square left"))
    with pytest.raises(ValueError, match=r"no such image file: no\.png"):
        index.search(Path("no.png"))


@pytest.mark.parametrize("query", [None, 3, ["red", "blue"], {"text": "red"}, ("red",)])
def test_other_queries_are_refused(index, reranked, query):
    message = "the query is missing" if query is None else r"must be one text .* or one image"
    with pytest.raises(ValueError, match=message):
        index.search(query)
    with pytest.raises(ValueError, match="needs a text as the query, not"):
        reranked.search(query)


def test_a_reranker_takes_no_image_as_its_query(reranked, paths):
    with pytest.raises(ValueError, match="needs a text as the query, not"):
        reranked.search(paths[0])


@pytest.mark.parametrize("k", [0, -1, 2.5, "3", None, float("nan")])
def test_k_is_a_positive_whole_number(index, reranked, k):
    for each in (index, reranked):
        with pytest.raises(ValueError, match="k must be a whole number of at least 1, got"):
            each.search("red", k)


def test_k_beyond_the_gallery_and_of_numpy(index, reranked):
    for each in (index, reranked):
        assert len(each.search("red", 1000)) == 9
        assert len(each.search("red", np.int64(2))) == 2


@pytest.mark.parametrize("size", [0, -1, 2.5, None])
def test_batch_sizes_are_positive_whole_numbers(loaded, index, paths, size):
    model, processor = loaded
    for call in (
        lambda: ImageIndex(index.encoder, paths, batch_size=size),
        lambda: encode_images(model, processor, [Image.open(paths[0])], size),
        lambda: encode_texts(model, processor, ["a"], size),
        lambda: Reranker(None, None, None, batch_size=size),
    ):
        with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1, got"):
            call()


def test_an_index_of_one_path_and_of_strings(index, paths):
    assert ImageIndex(index.encoder, str(paths[0])).paths == [paths[0]]
    assert ImageIndex(index.encoder, map(str, paths)).search("red") == index.search("red")
    with pytest.raises(ValueError, match="none of 0 image files"):
        ImageIndex(index.encoder, [])


def test_budgets_and_fusions_out_of_range():
    for wrong in ((-1,), (3, float("nan"))):
        with pytest.raises(ValueError, match="max_candidates must be at least 0"):
            CandidateBudget(*wrong)
    for wrong in ((-0.1,), (1.1,), (float("nan"),), (0.5, 0), (0.5, 1, -1)):
        with pytest.raises(ValueError, match="the fusion weight must be"):
            Fusion(*wrong)


# ---------------------------------------------------------------------- numbers that are none


def broken_model(world, images=True, value=torch.nan):
    """Embeddings of images without green on the left, or of all texts, are no numbers."""
    model = COTSModel.from_pretrained(world.model).eval()
    original = model.get_image_features if images else model.get_text_features

    def features(*args, **kwargs):
        output = original(*args, **kwargs)
        rows = kwargs["pixel_values"][:, 1, 12, 6] < 0 if images else torch.ones(len(output.pooler_output)).bool()
        output.pooler_output = torch.where(rows[:, None], value, output.pooler_output)
        return output

    setattr(model, "get_image_features" if images else "get_text_features", features)
    return model


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_broken_embedding_is_named_and_never_found(world, loaded, paths, value):
    index = ImageIndex(DualEncoder(broken_model(world, value=value), loaded[1]), paths)
    assert "p00.png" not in {path.name for path in index.paths}
    broken = [each.name for each in index.broken]
    assert str(paths[0]) in broken
    assert "its embedding is not finite" in str(index.broken[0])
    assert len(index.embeds) == len(index.paths) == len(paths) - len(broken)
    found = index.search("red square left", 100)
    assert len(found) == len(index)
    assert all(np.isfinite(match.score) for match in found)
    assert found == index.search("red square left", len(index))
    with pytest.raises(ValueError, match="query's embedding is not finite"):
        index.search(paths[0])
    with pytest.raises(ValueError, match=r"none of 1 image files.*p00.png: its embedding is not finite"):
        ImageIndex(index.encoder, paths[:1])


def test_a_query_that_is_no_number_is_refused(world, loaded, index, paths):
    broken = ImageIndex(DualEncoder(broken_model(world, images=False), loaded[1]), paths)
    with pytest.raises(ValueError, match="query's embedding is not finite"):
        broken.search("red")


def test_pairs_with_broken_embeddings_are_named(world, loaded):
    from hf_cots import load_pairs

    pairs = load_pairs(str(world.imagefolder))
    with pytest.raises(ValueError, match=r"\d+ image embeddings are not finite; the first is that of .*\.png"):
        encode_pairs(DualEncoder(broken_model(world), loaded[1]), pairs)
    with pytest.raises(ValueError, match=r"40 text embeddings are not finite; the first is that of .*pair 0"):
        encode_pairs(DualEncoder(broken_model(world, images=False), loaded[1]), pairs)


def test_a_reranker_that_gives_no_numbers_is_refused(reranked, monkeypatch):
    score = reranked.reranker.score
    monkeypatch.setattr(reranked.reranker, "score", lambda *args: score(*args) * torch.nan)
    with pytest.raises(ValueError, match=r"scores are not finite for 9 images, such as .*\.png"):
        reranked.search("red")


def test_a_candidate_that_is_gone_is_named(world, index, tmp_path):
    shutil.copy(index.paths[0], tmp_path / "a.png")
    shutil.copy(index.paths[1], tmp_path / "b.png")
    both = RerankedIndex.from_index(ImageIndex(index.encoder, sorted(tmp_path.iterdir())), str(simla_folder(world)))
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"a\.png: no such file"):
        both.search("red")


def test_embeddings_are_ordinary_arrays(loaded, index):
    model, processor = loaded
    images = [image for _, image, _ in all_pairs()[:3]]
    for embeds in (
        encode_images(model, processor, images),
        encode_texts(model, processor, CAPTIONS[:3]),
        encode_texts(model, processor, []),
        index.embeds,
    ):
        assert type(embeds) is np.ndarray
        assert embeds.flags.writeable
        layer = torch.nn.Linear(16, 2)
        layer(torch.from_numpy(embeds)).sum().backward()
        assert layer.weight.grad is not None
        pickle.loads(pickle.dumps(embeds))
