"""Export with open sizes, run at other sizes than the example's: of each tower, and of both in one."""

import pytest
import torch
from torch.export import Dim

from tests.support.model_classes import ALL_ENCODERS, batch_of, make_loud


class Tower(torch.nn.Module):
    """One tower with plain tensors in and out, as an exported program wants it."""

    def __init__(self, model, name):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, *given):
        return getattr(self.model, f"get_{self.name}_features")(*given).pooler_output


def pad(batch, row, length):
    batch["attention_mask"][row, length:] = 0
    return batch


@ALL_ENCODERS
@pytest.mark.parametrize("example", [2, 3])
def test_the_image_tower_with_an_open_batch(cls, example):
    tower = Tower(make_loud(cls), "image").eval()
    pixels = (batch_of(cls, pairs=example)["pixel_values"],)
    with torch.no_grad():
        module = torch.export.export(tower, pixels, dynamic_shapes={"given": ({0: Dim("batch")},)}).module()
        for pairs in (1, 2, 5):
            other = batch_of(cls, pairs=pairs, seed=pairs)["pixel_values"]
            torch.testing.assert_close(module(other), tower(other), rtol=1e-5, atol=1e-5)


@ALL_ENCODERS
def test_the_text_tower_with_open_batch_and_length(cls):
    tower = Tower(make_loud(cls), "text").eval()
    example = pad(batch_of(cls, pairs=3, length=9), 1, 5)
    shape = {0: Dim("batch"), 1: Dim("length", max=40)}
    with torch.no_grad():
        given = (example["input_ids"], example["attention_mask"])
        module = torch.export.export(tower, given, dynamic_shapes={"given": (shape, shape)}).module()
        for pairs, length in ((1, 9), (5, 4), (2, 40)):
            other = pad(batch_of(cls, pairs=pairs, length=length, seed=pairs), 0, 3)
            other = (other["input_ids"], other["attention_mask"])
            torch.testing.assert_close(module(*other), tower(*other), rtol=1e-5, atol=1e-5)


@ALL_ENCODERS
def test_the_text_tower_without_a_mask(cls):
    tower = Tower(make_loud(cls), "text").eval()
    shape = {0: Dim("batch"), 1: Dim("length", max=40)}
    with torch.no_grad():
        given = (batch_of(cls, pairs=3)["input_ids"],)
        module = torch.export.export(tower, given, dynamic_shapes={"given": (shape,)}).module()
        other = batch_of(cls, pairs=6, length=7)["input_ids"]
        torch.testing.assert_close(module(other), tower(other), rtol=1e-5, atol=1e-5)


@ALL_ENCODERS
def test_the_exporters_of_transformers(cls):
    """Both towers in one program, all sizes open."""
    exporters = pytest.importorskip("transformers.exporters")
    pytest.importorskip("torch", "2.11", "what the exporters of transformers ask for")
    model = make_loud(cls)
    exported = exporters.DynamoExporter().export(
        model, batch_of(cls, pairs=4), config=exporters.DynamoConfig(dynamic=True)
    )
    program = getattr(exported, "program", exported)
    with torch.no_grad():
        for pairs, length in ((5, 7), (2, 12)):
            other = batch_of(cls, pairs=pairs, length=length)
            ours, theirs = model(**other), program.module()(**other)
            for name in ("image_embeds", "text_embeds", "logits_per_image"):
                torch.testing.assert_close(theirs[name], ours[name], rtol=1e-4, atol=1e-4)


@ALL_ENCODERS
def test_no_rows_still_work(cls):
    """A rank may hold no pair of a ragged last batch."""
    model = make_loud(cls)
    empty = {name: rows[:0] for name, rows in batch_of(cls).items()}
    assert model.encode_image(empty["pixel_values"]).pooler_output.shape[0] == 0
    assert model.encode_text(empty["input_ids"], empty["attention_mask"]).pooler_output.shape[0] == 0
