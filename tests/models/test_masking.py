"""Masks: exact counts, determinism by seed, BERT's proportions."""

import numpy as np
import pytest

from hf_cots.models.masking import RandomStream, block_mask, draw_masks, generator, mix, token_mask


SPECIAL = (0, 100, 101, 102, 103)


def text(words, length, seed=0):
    """[CLS] words [SEP] [PAD]..."""
    ids = np.zeros(length, dtype=np.int64)
    ids[0], ids[words + 1] = 101, 102
    ids[1 : words + 1] = np.random.default_rng(seed).integers(104, 1000, words)
    return ids


def masks(seeds, input_ids, fraction=1.0, grid=6, count=14):
    return draw_masks(seeds, input_ids, None, grid, count, 0.3, fraction, SPECIAL, 103, 1000)


@pytest.mark.parametrize("grid", [1, 2, 3, 4, 7, 14, 24, 32])
@pytest.mark.parametrize("ratio", [0.01, 0.15, 0.4, 0.75, 1.0])
def test_block_mask_has_the_exact_count(grid, ratio):
    count = max(1, round(ratio * grid * grid))
    for seed in range(12):
        mask = block_mask(np.random.default_rng(seed), grid, count)
        assert mask.shape == (grid * grid,)
        assert mask.dtype == bool
        assert mask.sum() == count


def test_more_masked_patches_than_there_are_is_an_error_and_no_endless_search():
    assert block_mask(generator(0, RandomStream.PATCH_MASK), 4, 16).all()
    with pytest.raises(ValueError, match="cannot mask 17 of 4 x 4 patches"):
        block_mask(generator(0, RandomStream.PATCH_MASK), 4, 17)


def test_block_mask_is_blockwise_and_reaches_every_patch():
    """Masked patches have far more masked neighbours than independent draws would give (0.4)."""
    rng, neighbours, total = np.random.default_rng(0), [], np.zeros((24, 24))
    for _ in range(600):
        mask = block_mask(rng, 24, 230).reshape(24, 24)
        total += mask
        neighbours.append((mask[:, 1:] & mask[:, :-1]).sum() / mask[:, :-1].sum())
    assert np.mean(neighbours) > 0.7
    assert (total > 0).all(), "no patch may be out of reach"
    assert (total < 600).all(), "no patch may always be masked"


def test_mix_is_deterministic_fits_int64_and_depends_on_order_and_every_part():
    assert mix(1, 2, 3) == mix(1, 2, 3)
    variants = [(1, 2, 3), (3, 2, 1), (1, 2), (1, 2, 4), (0, 2, 3), (-1, 2, 3), (1, 2, 3, 0)]
    assert len({mix(*v) for v in variants}) == len(variants)
    assert all(0 <= mix(i, 2**63) < 2**63 for i in range(100))
    assert len({mix(0, i) for i in range(10_000)}) == 10_000


def test_streams_of_one_seed_are_independent_and_keep_their_numbers():
    """Another number would change what every seed means, and so every run that is resumed."""
    names = "PATCH_MASK TOKEN_MASK MASKED_FRACTION AUGMENTATION IMAGE_VIEW TEXT_VIEW OTHER_CAPTION HARD_NEGATIVE "
    names += "FRAME_TIMES"
    assert {name: int(stream) for name, stream in RandomStream.__members__.items()} == {
        name: number for number, name in enumerate(names.split(), start=1)
    }
    draws = np.array([[generator(mix(s), stream).random() for stream in RandomStream] for s in range(300)])
    assert np.abs(np.corrcoef(draws.T) - np.eye(9)).max() < 0.2


def test_same_seed_same_masks_and_another_seed_others():
    ids = np.stack([text(20, 30)] * 2)
    a, b = masks([mix(1), mix(2)], ids), masks([mix(1), mix(2)], ids)
    for name in a:
        assert np.array_equal(a[name], b[name])
        assert not np.array_equal(a[name][0], a[name][1]), "equal rows with different seeds"


def test_rows_do_not_depend_on_the_batch():
    """Order, the other rows and their number leave a row's masks alone."""
    ids = np.stack([text(5 + r, 30, seed=r) for r in range(8)])
    seeds = [mix(7, r) for r in range(8)]
    whole = masks(seeds, ids, fraction=0.7)
    order = [5, 2, 7]
    part = masks([seeds[r] for r in order], ids[order], fraction=0.7)
    for name, rows in part.items():
        assert np.array_equal(rows, whole[name][order])
    for name, row in masks([seeds[3]], ids[3:4], fraction=0.7).items():
        assert np.array_equal(row[0], whole[name][3])


def test_padding_does_not_move_the_masks_of_tokens():
    """The same text padded to another length is masked at the same words with the same ids."""
    short, long = text(9, 11, seed=1), text(9, 40, seed=1)
    a, b = (masks([mix(4)], ids[None]) for ids in (short, long))
    assert np.array_equal(a["masked_input_ids"][0], b["masked_input_ids"][0, :11])
    assert np.array_equal(a["bool_masked_words"][0], b["bool_masked_words"][0, :11])
    assert np.array_equal(a["bool_masked_pos"], b["bool_masked_pos"])


def test_draw_masks_leaves_its_input_alone_and_has_the_right_shapes():
    ids = np.stack([text(20, 30, seed=r) for r in range(3)])
    before = ids.copy()
    drawn = masks([1, 2, 3], ids)
    assert np.array_equal(ids, before)
    assert drawn["bool_masked_pos"].shape == (3, 36)
    assert (drawn["bool_masked_pos"].sum(axis=1) == 14).all()
    assert drawn["masked_input_ids"].shape == drawn["bool_masked_words"].shape == (3, 30)
    unmasked = ~drawn["bool_masked_words"]
    assert np.array_equal(drawn["masked_input_ids"][unmasked], ids[unmasked])


def mask_text(ids, seed, ratio=0.15, vocab=1000):
    return token_mask(np.random.default_rng(seed), ids, np.asarray(SPECIAL), ratio, 103, vocab)


def test_special_tokens_and_padding_are_never_masked():
    ids = text(12, 40)
    ids[4] = 100  # an unknown word
    special = np.isin(ids, SPECIAL)
    reached = np.zeros(40, dtype=bool)
    for seed in range(200):
        changed, masked = mask_text(ids, seed, ratio=0.5)
        assert not masked[special].any()
        assert np.array_equal(changed[special], ids[special])
        reached |= masked
    assert reached[~special].all()


@pytest.mark.parametrize(
    ("words", "ratio", "expected"), [(0, 0.15, 0), (1, 0.15, 1), (3, 0.15, 1), (20, 0.15, 3), (7, 1.0, 7)]
)
def test_number_of_masked_tokens(words, ratio, expected):
    ids = text(words, 30)
    changed, masked = mask_text(ids, 0, ratio)
    assert masked.sum() == expected
    assert np.array_equal(changed[~masked], ids[~masked])


def test_eighty_ten_ten():
    """Of many masked tokens 80% are [MASK], 10% random, 10% themselves (a random one of 100,000 is never itself)."""
    ids = text(20_000, 20_002)
    changed, masked = mask_text(ids, 0, ratio=0.5, vocab=100_000)
    assert masked.sum() == 10_000
    new, old = changed[masked], ids[masked]
    assert (new == 103).mean() == pytest.approx(0.8, abs=0.015)
    assert (new == old).mean() == pytest.approx(0.1, abs=0.01)
    random = new[(new != 103) & (new != old)]
    assert len(random) / 10_000 == pytest.approx(0.1, abs=0.01)
    assert random.mean() == pytest.approx(50_000, rel=0.1)
    assert random.max() < 100_000


def test_masked_fraction_is_the_fraction_of_rows_with_masks():
    ids = np.tile(text(8, 12), (1000, 1))
    drawn = masks([mix(0, r) for r in range(1000)], ids, fraction=0.3)
    patches, words = drawn["bool_masked_pos"].any(axis=1), drawn["bool_masked_words"].any(axis=1)
    assert np.array_equal(patches, words), "a pair takes both masked passes or none"
    assert patches.mean() == pytest.approx(0.3, abs=0.05)
    assert np.array_equal(drawn["masked_input_ids"][~words], ids[~words])
    everything = masks([mix(0, r) for r in range(1000)], ids, fraction=1.0)
    assert everything["bool_masked_pos"].any(axis=1).all()
    # A smaller fraction is a subset with unchanged masks.
    assert np.array_equal(everything["bool_masked_pos"][patches], drawn["bool_masked_pos"][patches])


def test_padding_is_known_by_the_attention_mask_whatever_its_id():
    """RoBERTa pads with id 1, which no list of BERT's special tokens holds."""
    input_ids = np.full((1, 12), 1)
    input_ids[0, :3] = [500, 501, 502]
    attended = (np.arange(12) < 3)[None].astype(int)
    for seed in range(50):
        drawn = draw_masks([seed], input_ids, attended, 4, 6, 0.9, 1.0, SPECIAL, 103, 1000)
        assert drawn["bool_masked_words"][0, :3].sum() == 3
        assert not drawn["bool_masked_words"][0, 3:].any()
