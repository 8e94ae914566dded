"""Batches: keys, shapes, and the same numbers whatever the other items and the number of workers."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hf_cots.data.augmentation import RandomCropFlip
from hf_cots.data.batches import PairBatches
from hf_cots.data.collator import COTSCollator
from hf_cots.data.sources import load_pairs
from tests.support.tiny import tiny_config
from tests.support.worlds import tiny_processor


@pytest.fixture(scope="module")
def pairs(world):
    return load_pairs(str(world.imagefolder), seed=3)


def collator(augment=True, **fields):
    config = tiny_config(special_token_ids=[0, 1, 2, 3, 4], mask_token_id=4, **fields)
    return COTSCollator(tiny_processor(), config, RandomCropFlip(32) if augment else None)


def test_names_shapes_and_types(pairs):
    batch = collator()([pairs[i] for i in (0, 17, 5)])  # "red ...": 3 words, "light blue ...": 4
    length = 6
    expected = {
        "pixel_values": ((3, 3, 32, 32), torch.float32),
        "input_ids": ((3, length), torch.int64),
        "attention_mask": ((3, length), torch.int64),
        "image_ids": ((3,), torch.int64),
        "bool_masked_pos": ((3, 16), torch.bool),
        "masked_input_ids": ((3, length), torch.int64),
        "bool_masked_words": ((3, length), torch.bool),
    }
    positions = batch.pop("masked_positions")
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in batch.items()} == expected
    assert positions["rows"].tolist() == [0, 1, 2]
    for name, mask in (("patches", "bool_masked_pos"), ("words", "bool_masked_words")):
        assert positions[name].tolist() == np.flatnonzero(batch[mask].numpy()).tolist()
    assert batch["image_ids"].tolist() == [int(pairs.image_ids[row]) for row in (0, 17, 5)]
    assert len(set(batch["image_ids"].tolist())) == 3
    assert batch["attention_mask"].sum(dim=1).tolist() == [5, 6, 5]
    assert batch["bool_masked_pos"].sum(dim=1).tolist() == [6, 6, 6]
    assert batch["bool_masked_words"].sum(dim=1).tolist() == [1, 1, 1]
    assert not (batch["bool_masked_words"] & (batch["input_ids"] < 5)).any()
    unmasked = ~batch["bool_masked_words"]
    assert torch.equal(batch["masked_input_ids"][unmasked], batch["input_ids"][unmasked])


@pytest.mark.parametrize(("mvm", "mlm", "masks"), [(0, 0, False), (1, 0, True), (0, 1, True)])
def test_masks_come_only_where_a_token_level_is_on(pairs, mvm, mlm, masks):
    batch = collator(mvm_weight=mvm, mlm_weight=mlm)([pairs[0], pairs[1]])
    names = {"bool_masked_pos", "masked_input_ids", "bool_masked_words"}
    assert names & set(batch) == (names if masks else set())


def test_without_augmentation_the_processor_resizes(pairs):
    batch = collator(augment=False)([pairs[0], pairs[20]])
    pixels = np.stack([np.asarray(pairs[i]["image"]) for i in (0, 20)]).transpose(0, 3, 1, 2)
    torch.testing.assert_close(batch["pixel_values"], torch.tensor(pixels / 127.5 - 1, dtype=torch.float32))


def test_augmentation_follows_the_seed_of_the_item(pairs):
    collate = collator()
    first = collate([pairs[(1, 4)]])
    torch.testing.assert_close(collate([pairs[(1, 4)]]), first, rtol=0, atol=0)
    assert not torch.equal(first["pixel_values"], collate([pairs[(2, 4)]])["pixel_values"])


def test_an_item_does_not_depend_on_the_other_items(pairs):
    collate = collator()
    alone = collate([pairs[(1, 4)]])
    crowd = collate([pairs[(1, i)] for i in (16, 4, 9)])
    length = alone["input_ids"].shape[1]
    assert crowd["input_ids"].shape[1] > length
    alone.pop("masked_positions")  # of the batch, not of an item
    for name, rows in alone.items():
        row = crowd[name][1]
        assert torch.equal(row[:length] if rows.shape[1:] == (length,) else row, rows[0]), name


def test_the_number_of_workers_changes_nothing(pairs):
    def load(workers):
        batches = PairBatches(len(pairs), 16, seed=1)
        batches.set_epoch(2)
        return list(DataLoader(pairs, batch_sampler=batches, num_workers=workers, collate_fn=collator()))

    alone = load(0)
    assert len(alone) == 3
    for workers in (1, 3):
        torch.testing.assert_close(load(workers), alone, rtol=0, atol=0)


def test_items_that_are_none_are_dropped(pairs):
    items = [None, pairs[3], None, pairs[5]]
    torch.testing.assert_close(collator()(items), collator()([pairs[3], pairs[5]]), rtol=0, atol=0)


@pytest.mark.parametrize("items", [[], [None, None]])
def test_a_batch_of_no_pairs_has_every_column(pairs, items):
    wanted, empty = collator()([pairs[3]]), collator()(items)
    assert wanted.keys() == empty.keys()
    positions, of_none = wanted.pop("masked_positions"), empty.pop("masked_positions")
    wanted, empty = wanted | positions, empty | of_none
    for name in wanted:
        assert len(empty[name]) == 0
        assert empty[name].dtype == wanted[name].dtype
