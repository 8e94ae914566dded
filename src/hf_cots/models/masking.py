"""Which patches and words are masked: a pure function of a pair's seed.

Randomness is counter-based (Philox): a seed is made from (seed, epoch, sample id), so that a resumed run, another
number of workers and another batch composition draw the same masks.
"""

import math

import numpy as np


PATCH_STREAM, WORD_STREAM, SHARE_STREAM = 1, 2, 3
MIN_BLOCK_SHARE = 16 / 576  # BEiT's smallest block, 16 patches, as a share of its 24 x 24 grid
MIN_ASPECT, MAX_ASPECT = 0.3, 1 / 0.3
_WORD = (1 << 64) - 1


def mix(*parts: int) -> int:
    """Hash whole numbers to 63 well-mixed bits (splitmix64, Steele et al. 2014); it fits an int64 tensor."""
    state = 0
    for part in parts:
        state = (state + (part & _WORD) + 0x9E3779B97F4A7C15) & _WORD
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _WORD
        state ^= state >> 31
    return state >> 1


def generator(seed: int, stream: int) -> np.random.Generator:
    """An independent random stream of one pair."""
    return np.random.Generator(np.random.Philox(key=[seed, stream]))


def block_mask(rng: np.random.Generator, grid: int, num_masked: int, min_block: int | None = None) -> np.ndarray:
    """Blockwise mask of patches as in BEiT (Bao et al. 2021), with exactly `num_masked` of them.

    Rectangles of a random area (at least `min_block`, by default 16 patches of a 24 x 24 grid, in proportion for
    others) and aspect ratio (0.3 to 3.3) are laid until the count is reached; the last one is cut short.

    Returns:
        (grid * grid,) bool, true where the patch is masked.

    Raises:
        ValueError: if there are fewer patches than are to be masked.
    """
    if num_masked > grid * grid:
        raise ValueError(f"{num_masked} of {grid} x {grid} patches cannot be masked")
    mask = np.zeros((grid, grid), dtype=bool)
    smallest = max(1, round(MIN_BLOCK_SHARE * grid * grid)) if min_block is None else min_block
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


def word_mask(
    rng: np.random.Generator,
    input_ids: np.ndarray,
    special_token_ids: np.ndarray,
    ratio: float,
    mask_token_id: int,
    vocab_size: int,
    attention_mask: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """BERT's word masking (Devlin et al. 2019): of the chosen words 80% become [MASK], 10% a random word, 10% stay.

    `round(ratio * words)` words are chosen, at least one; special tokens and padding never. A text without words has
    nothing to mask.

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
    words = np.flatnonzero(maskable)
    masked_ids, masked = input_ids.copy(), np.zeros(len(input_ids), dtype=bool)
    if len(words) == 0:
        return masked_ids, masked
    chosen = rng.choice(words, size=max(1, round(ratio * len(words))), replace=False)
    fate = rng.random(len(chosen))
    random_words = rng.integers(0, vocab_size, size=len(chosen))
    masked_ids[chosen] = np.where(fate < 0.8, mask_token_id, np.where(fate < 0.9, random_words, input_ids[chosen]))
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
    """The masks of a batch, each row a function of its own seed.

    With `masked_fraction` below 1 a pair takes the masked passes with that probability, drawn from its own seed; the
    rows of the others are all false.

    Args:
        seeds: one seed per pair, of [`mix`].
        input_ids: (n, length) int64.
        attention_mask: (n, length), 0 on padding, which is never masked whatever its id.

    Returns:
        `bool_masked_pos` (n, patches), `masked_input_ids` (n, length), `bool_masked_words` (n, length).
    """
    patches = np.zeros((len(seeds), patch_grid * patch_grid), dtype=bool)
    masked_ids, words = input_ids.copy(), np.zeros(input_ids.shape, dtype=bool)
    special = np.asarray(special_token_ids)
    for row, seed in enumerate(seeds):
        if generator(seed, SHARE_STREAM).random() >= masked_fraction:
            continue
        patches[row] = block_mask(generator(seed, PATCH_STREAM), patch_grid, num_masked_patches, min_block)
        masked_ids[row], words[row] = word_mask(
            generator(seed, WORD_STREAM),
            input_ids[row],
            special,
            word_mask_ratio,
            mask_token_id,
            vocab_size,
            None if attention_mask is None else attention_mask[row],
        )
    return {"bool_masked_pos": patches, "masked_input_ids": masked_ids, "bool_masked_words": words}
