"""Codes that are computed in the training step: without gradients, under its autocast, inside its compiled graph."""

import re

import pytest
import torch

from hf_cots import COTSForPreTraining, COTSImageTokenizer
from hf_cots.models.step import Step
from hf_cots.models.token_level import find_masked
from tests.support.tiny import tiny_batch, tiny_config


@pytest.fixture
def model():
    torch.manual_seed(0)
    return COTSForPreTraining(tiny_config()).train()


def test_they_carry_no_gradient_and_follow_autocast(model, monkeypatch):
    seen, encode = [], COTSImageTokenizer.get_codebook_indices

    def watch(self, pixels):
        seen.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return encode(self, pixels)

    monkeypatch.setattr(COTSImageTokenizer, "get_codebook_indices", watch)
    with torch.autocast("cpu", torch.bfloat16):
        model(**tiny_batch()).loss.backward()
    assert seen == [(False, True)]
    assert all(parameter.grad is None for parameter in model.image_tokenizer.parameters())


def test_they_are_compiled_when_training_is(model):
    """Each convolution of the encoder is in a graph that dynamo took, and in none a decoder's. That training compiles
    the whole step, of which this is the part, `tests/training/test_trainer.py` shows."""
    taken: list[str] = []

    def backend(graph, inputs):
        taken.extend(str(node.meta.get("nn_module_stack", "")) for node in graph.graph.nodes)
        return graph.forward

    masked = torch.zeros(8, 16, dtype=torch.bool)
    masked[:, :6] = True
    torch._dynamo.reset()
    found = find_masked(model.config, {"bool_masked_pos": masked, "bool_masked_words": masked})
    batch = tiny_batch() | {"bool_masked_pos": masked, "masked_positions": found, "codebook_indices": None}
    step = Step(torch.arange(8), torch.arange(8), torch.ones(8))
    term = torch.compile(model.mvm_term, backend=backend)(batch, torch.randn(8, 24), step)
    torch._dynamo.reset()
    term.backward()
    # As torch writes them until 2.10: ._modules['encoder'] for .encoder
    text = re.sub(r"\._modules\['(\w+)'\]", r".\1", "\n".join(taken))
    names = [name for name, part in model.image_tokenizer.named_modules() if isinstance(part, torch.nn.Conv2d)]
    encoder = [name for name in names if name.startswith("encoder")]
    assert len(encoder) == 21
    missing = [name for name in encoder if f"image_tokenizer.{name}" not in text]
    assert not missing
    assert "image_tokenizer.decoder" not in text


def test_only_the_pairs_that_are_masked_are_tokenized(model, monkeypatch):
    sizes, encode = [], COTSImageTokenizer.get_codebook_indices
    monkeypatch.setattr(
        COTSImageTokenizer, "get_codebook_indices", lambda self, x: sizes.append(len(x)) or encode(self, x)
    )
    batch = tiny_batch()
    masked = torch.zeros(8, 16, dtype=torch.bool)
    masked[:3, :6] = True
    words = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    model(**batch, bool_masked_pos=masked, masked_input_ids=batch["input_ids"], bool_masked_words=words)
    assert sizes == [3]


def test_given_codes_spare_the_tokenizer(model, monkeypatch):
    batch = tiny_batch()
    codes = model.image_codes(batch["pixel_values"])
    model.eval()
    wanted = model(**batch).loss_mvm
    monkeypatch.setattr(COTSImageTokenizer, "get_codebook_indices", None)
    assert torch.equal(model(**batch, codebook_indices=codes).loss_mvm, wanted)
