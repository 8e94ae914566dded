"""Masks of patches and tokens, each a pure function of a pair's seed; and the random streams of that seed.

Randomness is counter-based (Philox): a seed is made from (seed, epoch, sample id), so that a resumed run, another
number of workers and another batch composition draw the same masks.
"""

import math
from enum import IntEnum

import numpy as np


MIN_BLOCK_FRACTION = 16 / 576  # BEiT's smallest block, 16 patches, as a fraction of its 24 x 24 grid
MIN_ASPECT, MAX_ASPECT = 0.3, 1 / 0.3
_UINT64 = (1 << 64) - 1


class RandomStream(IntEnum):
    """The independent random streams of one seed. A value is part of what a seed means: never change or reuse one."""

    PATCH_MASK = 1
    TOKEN_MASK = 2
    MASKED_FRACTION = 3
    AUGMENTATION = 4
    IMAGE_VIEW = 5
    TEXT_VIEW = 6
    OTHER_CAPTION = 7
    HARD_NEGATIVE = 8
    FRAME_TIMES = 9


def mix(*parts: int) -> int:
    """Hash integers to 63 well-mixed bits (splitmix64, Steele et al. 2014); it fits an int64 tensor."""
    state = 0
    for part in parts:
        state = (state + (part & _UINT64) + 0x9E3779B97F4A7C15) & _UINT64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _UINT64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _UINT64
        state ^= state >> 31
    return state >> 1


def generator(seed: int, stream: RandomStream) -> np.random.Generator:
    """The generator of one random stream of a pair's seed."""
    return np.random.Generator(np.random.Philox(key=[seed, stream]))


def block_mask(rng: np.random.Generator, grid: int, num_masked: int, min_block: int | None = None) -> np.ndarray:
    """Mask exactly `num_masked` patches in rectangular blocks, as BEiT does (Bao et al. 2021).

    Rectangles of a random area (at least `min_block`, by default 16 patches of a 24 x 24 grid, in proportion for
    others) and aspect ratio (0.3 to 3.3) are added until the count is reached; the last one is cut short.

    Returns:
        (grid * grid,) bool, true where the patch is masked.

    Raises:
        ValueError: if there are fewer patches than are to be masked.
    """
    if num_masked > grid * grid:
        raise ValueError(f"cannot mask {num_masked} of {grid} x {grid} patches")
    mask = np.zeros((grid, grid), dtype=bool)
    smallest = max(1, round(MIN_BLOCK_FRACTION * grid * grid)) if min_block is None else min_block
    while (remaining := num_masked - int(mask.sum())) > 0:
        area = rng.uniform(smallest, max(smallest, remaining))
        aspect = math.exp(rng.uniform(math.log(MIN_ASPECT), math.log(MAX_ASPECT)))
        height = min(grid, max(1, round(math.sqrt(area * aspect))))
        width = min(grid, max(1, round(math.sqrt(area / aspect))))
        top, left = rng.integers(0, grid - height + 1), rng.integers(0, grid - width + 1)
        block = np.zeros_like(mask)
        block[top : top + height, left : left + width] = True
        new = np.flatnonzero(block & ~mask)
        mask.flat[new[:remaining]] = True
    return mask.ravel()


def token_mask(
    rng: np.random.Generator,
    input_ids: np.ndarray,
    special_token_ids: np.ndarray,
    ratio: float,
    mask_token_id: int,
    vocab_size: int,
    attention_mask: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Mask tokens as BERT does (Devlin et al. 2019): of the chosen 80% become [MASK], 10% a random token, 10% stay.

    `round(ratio * tokens)` are chosen, at least one; special tokens and padding never. In a text of special tokens
    only, nothing is masked.

    Args:
        input_ids: (length,) token ids of one text, padding included.
        special_token_ids: ids that are never masked.
        attention_mask: (length,), 0 on padding.

    Returns:
        The masked ids and a bool array of the positions to predict, both (length,).
    """
    maskable = ~np.isin(input_ids, special_token_ids)
    if attention_mask is not None:
        maskable &= attention_mask != 0
    candidates = np.flatnonzero(maskable)
    masked_ids, masked = input_ids.copy(), np.zeros(len(input_ids), dtype=bool)
    if len(candidates) == 0:
        return masked_ids, masked
    chosen = rng.choice(candidates, size=max(1, round(ratio * len(candidates))), replace=False)
    draw = rng.random(len(chosen))
    random_ids = rng.integers(0, vocab_size, size=len(chosen))
    masked_ids[chosen] = np.where(draw < 0.8, mask_token_id, np.where(draw < 0.9, random_ids, input_ids[chosen]))
    masked[chosen] = True
    return masked_ids, masked


def draw_masks(
    seeds: list[int],
    input_ids: np.ndarray,
    attention_mask: np.ndarray | None,
    patch_grid: int,
    num_masked_patches: int,
    word_mask_ratio: float,
    masked_fraction: float,
    special_token_ids: list[int] | tuple[int, ...],
    mask_token_id: int,
    vocab_size: int,
    min_block: int | None = None,
) -> dict[str, np.ndarray]:
    """Draw the masks of a batch, each row from its own seed.

    With `masked_fraction` below 1 a pair is masked with that probability, drawn from its own seed; the masks of the
    other pairs are all false.

    Args:
        seeds: one per pair, of [`mix`].
        input_ids: (n, length) int64.
        attention_mask: (n, length), 0 on padding, which is never masked whatever its id.
        patch_grid: patches on a side.
        num_masked_patches, min_block: as for [`block_mask`].
        word_mask_ratio, special_token_ids, mask_token_id, vocab_size: as for [`token_mask`].
        masked_fraction: probability that a pair is masked.

    Returns:
        `bool_masked_pos` (n, patches) and `bool_masked_words` (n, length), bool; `masked_input_ids` (n, length) int64.

    Example:
        >>> ids = np.array([[101, 7, 8, 9, 102], [101, 7, 102, 0, 0]])
        >>> tokens = {"special_token_ids": (0, 101, 102), "mask_token_id": 103, "vocab_size": 99}
        >>> masks = draw_masks([5, 6], ids, None, 4, 6, word_mask_ratio=0.3, masked_fraction=1.0, **tokens)
        >>> masks["bool_masked_pos"].sum(axis=1).tolist(), masks["bool_masked_words"].sum(axis=1).tolist()
        ([6, 6], [1, 1])
    """
    patches = np.zeros((len(seeds), patch_grid * patch_grid), dtype=bool)
    masked_ids, tokens = input_ids.copy(), np.zeros(input_ids.shape, dtype=bool)
    special = np.asarray(special_token_ids)
    for row, seed in enumerate(seeds):
        if generator(seed, RandomStream.MASKED_FRACTION).random() >= masked_fraction:
            continue
        rng = generator(seed, RandomStream.PATCH_MASK)
        patches[row] = block_mask(rng, patch_grid, num_masked_patches, min_block)
        masked_ids[row], tokens[row] = token_mask(
            generator(seed, RandomStream.TOKEN_MASK),
            input_ids[row],
            special,
            word_mask_ratio,
            mask_token_id,
            vocab_size,
            None if attention_mask is None else attention_mask[row],
        )
    return {"bool_masked_pos": patches, "masked_input_ids": masked_ids, "bool_masked_words": tokens}
