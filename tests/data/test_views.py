"""Second views: pure functions of an item's seed, of the strength asked for, and padded like any batch."""

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image

from hf_cots.data.augmentation import RandomCropFlip
from hf_cots.data.collator import COTSCollator
from hf_cots.data.sources import load_pairs
from hf_cots.data.views import SecondViews, StrongView, TokenDropping
from hf_cots.models.masking import generator
from tests.support.tiny_cookie import tiny_cookie_config
from tests.support.worlds import World, all_pairs, encoded, tiny_processor


PLAIN = RandomCropFlip(16, min_scale=1, min_aspect=1, flip=0)
WORDS = TokenDropping(0.2, 0.5, 0.1, mask_token_id=4, special_token_ids=(0, 1, 2, 3, 4), vocab_size=50)


@pytest.fixture(scope="module")
def pairs(world):
    return load_pairs(str(world.imagefolder), seed=3)


def noise(side=16, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def view(picture, seed=0, **settings):
    return np.asarray(StrongView(PLAIN, **settings)(picture, generator(seed, 5)))


# ---------------------------------------------------------------------- pictures


def test_a_view_depends_on_the_seed_alone():
    np.random.seed(1)
    first = view(noise(), seed=5)
    np.random.seed(2)
    assert np.array_equal(view(noise(), seed=5), first)
    assert not np.array_equal(view(noise(), seed=6), first)
    assert first.shape == (16, 16, 3)


def test_with_everything_off_only_the_crop_is_left():
    for seed in range(20):
        assert np.array_equal(view(noise(), seed, color_jitter=0, grayscale=0, blur=0), np.asarray(noise()))


def test_gray_views_have_equal_channels_as_often_as_asked():
    gray = sum((view(noise(), seed, grayscale=0.2, blur=0).std(axis=-1) == 0).all() for seed in range(400))
    assert 50 < gray < 110  # 80 of 400; the deviation is 8
    assert (view(noise(), grayscale=1).std(axis=-1) == 0).all()


def test_blur_smooths_as_often_as_asked():
    def roughness(picture):
        return np.abs(np.diff(picture.astype(float), axis=0)).mean()

    big = RandomCropFlip(224, min_scale=1, min_aspect=1, flip=0)
    picture = noise(224)

    def rough(seed, blur):
        strong = StrongView(big, color_jitter=0, grayscale=0, blur=blur)
        return roughness(np.asarray(strong(picture, generator(seed, 5))))

    assert all(rough(seed, 1.0) < rough(seed, 0.0) + 1e-6 for seed in range(6))
    assert min(rough(seed, 1.0) for seed in range(6)) < 0.3 * rough(0, 0.0)


def test_jitter_keeps_within_its_strength():
    """Of one plain colour: brightness by at most 40%, the hue by a tenth of the circle; and it is used."""
    colour = Image.new("RGB", (16, 16), (150, 90, 60))
    hue = colorsys.rgb_to_hsv(150 / 255, 90 / 255, 60 / 255)[0]
    shifts, lights = [], []
    for seed in range(60):
        pixel = view(colour, seed, grayscale=0, blur=0)[8, 8] / 255
        shifts.append((colorsys.rgb_to_hsv(*pixel)[0] - hue + 0.5) % 1 - 0.5)
        lights.append(pixel.max() / (150 / 255))
    assert 0.05 < max(np.abs(shifts)) < 0.12
    assert min(lights) < 0.75
    assert max(lights) > 1.2


# ---------------------------------------------------------------------- words


def test_words_fare_as_asked():
    """Of 20,000 words a fifth is dropped: half masked, a tenth replaced, the rest deleted. Special tokens stay."""
    ids = np.concatenate([[2], np.full(10, 20), [3]])
    kept = masked = total = length = 0
    for seed in range(2000):
        result = WORDS(ids, generator(seed, 6))
        assert result[0] == 2
        assert result[-1] == 3
        kept, masked = kept + (result == 20).sum(), masked + (result == 4).sum()
        total, length = total + 10, length + len(result) - 2
    assert kept / total == pytest.approx(0.8 + 0.2 * 0.1 / 50, abs=0.01)
    assert (total - length) / total == pytest.approx(0.2 * 0.4, abs=0.006)
    # A random word is the mask once in fifty times.
    assert masked / total == pytest.approx(0.2 * (0.5 + 0.1 / 50), abs=0.006)


def test_dropping_depends_on_the_generator_alone():
    ids = np.arange(5, 25)
    assert np.array_equal(WORDS(ids, generator(1, 6)), WORDS(ids, generator(1, 6)))
    assert len({tuple(WORDS(ids, generator(seed, 6))) for seed in range(5)}) == 5


def test_a_text_is_never_emptied():
    delete = TokenDropping(0.999, 0, 0, mask_token_id=4, special_token_ids=(2, 3), vocab_size=50)
    for seed in range(50):
        assert len(delete(np.array([2, 20, 21, 3]), generator(seed, 6))) >= 3
    assert np.array_equal(delete(np.array([2, 3]), generator(0, 6)), [2, 3])


# ---------------------------------------------------------------------- batches


def collator(**fields):
    config = tiny_cookie_config(special_token_ids=[0, 1, 2, 3, 4], mask_token_id=4, **fields)
    crop = RandomCropFlip(32)
    return COTSCollator(tiny_processor(), config, crop, views=SecondViews.from_config(config, crop))


def test_names_and_shapes(pairs):
    batch = collator()([pairs[i] for i in (0, 17, 5)])
    assert {name for name in batch if name.startswith("view")} == {
        "view_pixel_values",
        "view_input_ids",
        "view_attention_mask",
    }
    assert batch["view_pixel_values"].shape == batch["pixel_values"].shape
    assert not torch.equal(batch["view_pixel_values"], batch["pixel_values"])
    assert batch["view_input_ids"].shape == batch["view_attention_mask"].shape
    assert torch.equal(batch["view_attention_mask"], (batch["view_input_ids"] != 0).long())
    assert "bool_masked_pos" not in batch


@pytest.mark.parametrize("term", ["visual", "textual"])
def test_views_come_only_where_they_are_contrasted(pairs, term):
    batch = collator(**{f"{term}_weight": 0})([pairs[0], pairs[1]])
    assert ("view_pixel_values" in batch) == (term != "visual")
    assert ("view_input_ids" in batch) == (term != "textual")


def test_views_do_not_depend_on_their_company(pairs):
    collate = collator()
    alone, crowd = collate([pairs[(1, 4)]]), collate([pairs[(1, i)] for i in (16, 4, 9)])
    assert torch.equal(crowd["view_pixel_values"][1], alone["view_pixel_values"][0])
    length = int(alone["view_attention_mask"].sum())
    assert torch.equal(crowd["view_input_ids"][1, :length], alone["view_input_ids"][0, :length])
    assert crowd["view_attention_mask"][1].sum() == length
    again = collate([pairs[(2, 4)]])
    assert not torch.equal(again["view_pixel_values"], alone["view_pixel_values"])


def test_first_views_are_what_they_were_without_second_ones(pairs):
    items = [pairs[i] for i in (0, 17, 5)]
    with_views, without = collator()(items), collator(visual_weight=0, textual_weight=0)(items)
    for name, rows in without.items():
        assert torch.equal(with_views[name], rows), name


def test_a_batch_of_no_pairs_has_every_column(pairs):
    wanted, empty = collator()([pairs[3]]), collator()([])
    assert wanted.keys() == empty.keys()
    assert all(len(rows) == 0 for rows in empty.values())


# ---------------------------------------------------------------------- siblings


@pytest.fixture(scope="module")
def families(world):
    """Two rows of one picture with two captions and one, a picture with three, one with a single caption."""
    folder = world.root / "families"
    folder.mkdir()
    captions = [["red", "blue"], ["green"], ["a", "b", "c"], ["alone"]]
    rows = []
    for i, ((name, picture, _), texts) in enumerate(zip(all_pairs(), captions)):
        (folder / name).write_bytes(encoded(picture))
        rows.append({"file_name": name, "caption": texts, "concept": str(max(i, 1))})
    World.write_metadata(folder, rows)
    return load_pairs(str(folder), image_id_column="concept")


def test_siblings_are_other_captions_of_the_same_picture(families):
    names = {families.caption(i): {families.sibling(i, seed) for seed in range(60)} for i in range(len(families))}
    assert names == {
        "red": {"blue", "green"},
        "blue": {"red", "green"},
        "green": {"red", "blue"},
        "a": {"b", "c"},
        "b": {"a", "c"},
        "c": {"a", "b"},
        "alone": {None},
    }
    assert families.sibling(0, 5) == families.sibling(0, 5)


def test_siblings_become_the_second_view(families):
    assert "sibling" not in families[0]
    families.siblings = True
    items = [families[(epoch, i)] for epoch in range(3) for i in range(len(families))]
    families.siblings = False
    batch = collator(text_view="sibling", word_drop_ratio=0.99, word_drop_masked=1, word_drop_replaced=0)(items)
    tokenizer = tiny_processor().tokenizer
    for item, ids in zip(items, batch["view_input_ids"]):
        words = tokenizer.decode(ids[ids > 3])
        # Without a sibling, words are dropped.
        assert words.replace(" ", "") == (item["sibling"] or "[MASK]" * len(tokenizer.tokenize("alone")))
