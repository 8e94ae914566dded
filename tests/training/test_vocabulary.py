"""New words for a tokenizer and a model: alignment against plain loops, and what stays as it was."""

from collections import defaultdict

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertModel

from hf_cots.training.vocabulary import add_embeddings, align_tokens, extend_tokenizer
from tests.support.tiny import tiny_config
from tests.support.words import tiny_tokenizer


PAIRS = [
    ("the red dog", "собака красная"),
    ("a red house", "дом красный"),
    ("the dog runs", "собака бежит"),
    ("big house", "большой дом"),
    ("a cat", "кошка"),
]
ENGLISH, RUSSIAN = (list(texts) for texts in zip(*PAIRS))


@pytest.fixture(scope="module")
def extended():
    return extend_tokenizer(tiny_tokenizer(), RUSSIAN, 60)


def align_slowly(sources, targets, iterations):
    """IBM Model 1 as its authors write it down."""
    t = {(e, f): 1.0 for s, g in zip(sources, targets) for e in s for f in g}
    for iteration in range(iterations + 1):
        counts = defaultdict(float)
        for source, target in zip(sources, targets):
            for f in target:
                total = sum(t[e, f] for e in source)
                for e in source:
                    counts[e, f] += t[e, f] / total
        if iteration < iterations:
            totals = defaultdict(float)
            for (e, _), count in counts.items():
                totals[e] += count
            t = {(e, f): count / totals[e] for (e, f), count in counts.items()}
    totals = defaultdict(float)
    for (_, f), count in counts.items():
        totals[f] += count
    return {(f, e): count / totals[f] for (e, f), count in counts.items()}


@pytest.mark.parametrize("iterations", [0, 1, 5])
def test_alignment_is_that_of_plain_loops(iterations):
    rng = np.random.default_rng(0)
    sources, targets = ([rng.integers(0, 9, rng.integers(1, 6)).tolist() for _ in range(30)] for _ in range(2))
    sources[3] = []  # a text of nothing but unknown letters
    found = align_tokens(sources, targets, iterations)
    used = [(s, t) for s, t in zip(sources, targets) if s and t]
    expected = align_slowly(*zip(*used), iterations)
    assert found.nnz == len(expected)
    for (target, source), value in expected.items():
        assert found[target, source] == pytest.approx(value)
    assert np.asarray(found.sum(axis=1)).ravel()[targets[0][0]] == pytest.approx(1)


def test_alignment_finds_what_goes_together():
    found = align_tokens([[1, 2], [2, 3], [1, 3]], [[11, 12], [12, 13], [11, 13]]).toarray()
    assert found[11:].argmax(axis=1).tolist() == [1, 2, 3]


def test_what_was_there_stays(extended):
    before = tiny_tokenizer()
    assert {token: extended.get_vocab()[token] for token in before.get_vocab()} == before.get_vocab()
    assert extended(ENGLISH)["input_ids"] == before(ENGLISH)["input_ids"]
    assert extended.unk_token_id not in extended(RUSSIAN)["input_ids"][0]
    assert before.unk_token_id in before(RUSSIAN)["input_ids"][0]


def test_the_same_texts_give_the_same_tokens():
    """The library's trainer alone breaks ties by chance."""
    texts = [f"{a}{b}{c}" for a in "абвг" for b in "дежз" for c in "иклм"]
    vocabularies = [extend_tokenizer(tiny_tokenizer(), texts, 80).get_vocab() for _ in range(4)]
    assert all(each == vocabularies[0] for each in vocabularies)


def test_it_is_saved_and_loaded(extended, tmp_path):
    extended.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(RUSSIAN + ENGLISH)["input_ids"] == extended(RUSSIAN + ENGLISH)["input_ids"]


def test_other_kinds_of_tokenizers_are_refused():
    with pytest.raises(ValueError, match="only a WordPiece tokenizer"):
        extend_tokenizer(object.__new__(type("Plain", (), {"name_or_path": "plain"})), RUSSIAN, 60)


def test_new_embeddings_are_means_of_aligned_ones(extended, tmp_path):
    before, model = tiny_tokenizer(), BertModel(tiny_config().text_config)
    known = model.get_input_embeddings().weight.detach().clone()
    add_embeddings(model, before, extended, ENGLISH, RUSSIAN)
    words = model.get_input_embeddings().weight
    first = 1 + max(before.get_vocab().values())
    assert len(words) == 1 + max(extended.get_vocab().values())
    assert torch.equal(words[:first], known[:first])
    tokens = {"add_special_tokens": False}
    ids, source_ids = extended(RUSSIAN, **tokens)["input_ids"], before(ENGLISH, **tokens)["input_ids"]
    aligned = align_slowly(source_ids, ids, 5)
    token = ids[4][0]  # of the cat, which stands in no other pair
    mean = sum(known[e] * value for (f, e), value in aligned.items() if f == token)
    assert torch.allclose(words[token], mean, atol=1e-6)
    unseen = set(range(first, len(words))) - {each for text in ids for each in text}
    assert unseen
    assert torch.allclose(words[min(unseen)], known[:first].mean(dim=0))
    model.save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).config.vocab_size == len(words)
