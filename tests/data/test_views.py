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
from hf_cots.models.masking import RandomStream, generator
from tests.support.tiny_cookie import tiny_cookie_config
from tests.support.worlds import World, all_pairs, encoded, noise, tiny_processor


PLAIN = RandomCropFlip(16, min_scale=1, min_aspect=1, flip=0)
TOKENS = TokenDropping(0.2, 0.5, 0.1, mask_token_id=4, special_token_ids=(0, 1, 2, 3, 4), vocab_size=50)


@pytest.fixture(scope="module")
def pairs(world):
    return load_pairs(str(world.imagefolder), seed=3)


def view(image, seed=0, **settings):
    return np.asarray(StrongView(PLAIN, **settings)(image, generator(seed, RandomStream.IMAGE_VIEW)))


def drop(tokens, ids, seed):
    return tokens(np.asarray(ids), generator(seed, RandomStream.TEXT_VIEW))


# ---------------------------------------------------------------------- images


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
    big = RandomCropFlip(224, min_scale=1, min_aspect=1, flip=0)

    def roughness(seed, blur):
        strong = StrongView(big, color_jitter=0, grayscale=0, blur=blur)
        pixels = np.asarray(strong(noise(224, 224), generator(seed, RandomStream.IMAGE_VIEW)), dtype=float)
        return np.abs(np.diff(pixels, axis=0)).mean()

    blurred = [roughness(seed, 1.0) for seed in range(6)]
    assert all(rough < roughness(seed, 0.0) + 1e-6 for seed, rough in enumerate(blurred))
    assert min(blurred) < 0.3 * roughness(0, 0.0)


def test_jitter_keeps_within_its_strength():
    """Of one plain color: brightness by at most 40%, the hue by a tenth of the circle; and it is used."""
    color = Image.new("RGB", (16, 16), (150, 90, 60))
    hue = colorsys.rgb_to_hsv(150 / 255, 90 / 255, 60 / 255)[0]
    shifts, lights = [], []
    for seed in range(60):
        pixel = view(color, seed, grayscale=0, blur=0)[8, 8] / 255
        shifts.append((colorsys.rgb_to_hsv(*pixel)[0] - hue + 0.5) % 1 - 0.5)
        lights.append(pixel.max() / (150 / 255))
    assert 0.05 < max(np.abs(shifts)) < 0.12
    assert min(lights) < 0.75
    assert max(lights) > 1.2


# ---------------------------------------------------------------------- tokens


def test_tokens_are_dropped_as_asked():
    """Of 20,000 tokens a fifth is dropped: half masked, a tenth replaced, the rest deleted. Special tokens stay."""
    ids = np.concatenate([[2], np.full(10, 20), [3]])
    kept = masked = total = length = 0
    for seed in range(2000):
        result = drop(TOKENS, ids, seed)
        assert result[[0, -1]].tolist() == [2, 3]
        kept, masked = kept + (result == 20).sum(), masked + (result == 4).sum()
        total, length = total + 10, length + len(result) - 2
    assert kept / total == pytest.approx(0.8 + 0.2 * 0.1 / 50, abs=0.01)
    assert (total - length) / total == pytest.approx(0.2 * 0.4, abs=0.006)
    # A random token is the mask once in fifty times.
    assert masked / total == pytest.approx(0.2 * (0.5 + 0.1 / 50), abs=0.006)


def test_dropping_depends_on_the_generator_alone():
    ids = np.arange(5, 25)
    assert np.array_equal(drop(TOKENS, ids, 1), drop(TOKENS, ids, 1))
    assert len({tuple(drop(TOKENS, ids, seed)) for seed in range(5)}) == 5


def test_a_text_is_never_emptied():
    delete = TokenDropping(0.999, 0, 0, mask_token_id=4, special_token_ids=(2, 3), vocab_size=50)
    for seed in range(50):
        assert len(drop(delete, [2, 20, 21, 3], seed)) >= 3
    assert np.array_equal(drop(delete, [2, 3], 0), [2, 3])


# ---------------------------------------------------------------------- batches


def collator(**fields):
    config = tiny_cookie_config(special_token_ids=[0, 1, 2, 3, 4], mask_token_id=4, **fields)
    crop = RandomCropFlip(32)
    return COTSCollator(tiny_processor(), config, crop, views=SecondViews.from_config(config, crop))


def test_names_and_shapes(pairs):
    batch = collator()([pairs[i] for i in (0, 17, 5)])
    views = {"view_pixel_values", "view_input_ids", "view_attention_mask"}
    assert set(batch) == views | {"pixel_values", "input_ids", "attention_mask", "image_ids"}
    assert batch["view_pixel_values"].shape == batch["pixel_values"].shape
    assert not torch.equal(batch["view_pixel_values"], batch["pixel_values"])
    assert batch["view_input_ids"].shape == batch["view_attention_mask"].shape
    assert torch.equal(batch["view_attention_mask"], (batch["view_input_ids"] != 0).long())


@pytest.mark.parametrize("term", ["visual", "textual"])
def test_views_come_only_where_they_are_contrasted(pairs, term):
    batch = collator(**{f"{term}_weight": 0})([pairs[0], pairs[1]])
    assert ("view_pixel_values" in batch) == (term != "visual")
    assert ("view_input_ids" in batch) == (term != "textual")


def test_views_do_not_depend_on_the_other_items(pairs):
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


# ---------------------------------------------------------------------- other captions


@pytest.fixture(scope="module")
def families(world):
    """Two rows of one image with two captions and one, an image with three, one with a single caption."""
    folder = world.root / "families"
    folder.mkdir()
    captions = [["red", "blue"], ["green"], ["a", "b", "c"], ["alone"]]
    rows = []
    for i, ((name, image, _), texts) in enumerate(zip(all_pairs(), captions)):
        (folder / name).write_bytes(encoded(image))
        rows.append({"file_name": name, "caption": texts, "concept": str(max(i, 1))})
    World.write_metadata(folder, rows)
    return load_pairs(str(folder), image_id_column="concept")


def test_other_captions_are_of_the_same_image(families):
    drawn = [{families.other_caption(i, seed) for seed in range(60)} for i in range(len(families))]
    names = {families.caption(i): others for i, others in enumerate(drawn)}
    assert names == {
        "red": {"blue", "green"},
        "blue": {"red", "green"},
        "green": {"red", "blue"},
        "a": {"b", "c"},
        "b": {"a", "c"},
        "c": {"a", "b"},
        "alone": {None},
    }
    assert families.other_caption(0, 5) == families.other_caption(0, 5)


def test_other_captions_become_the_second_view(families):
    assert "other_caption" not in families[0]
    families.other_captions = True
    items = [families[(epoch, i)] for epoch in range(3) for i in range(len(families))]
    families.other_captions = False
    batch = collator(text_view="other_caption", word_drop_ratio=0.99, word_drop_masked=1, word_drop_replaced=0)(items)
    tokenizer = tiny_processor().tokenizer
    for item, ids in zip(items, batch["view_input_ids"]):
        words = tokenizer.decode(ids[ids > 3])
        # Without another caption, words are dropped.
        assert words.replace(" ", "") == (item["other_caption"] or "[MASK]" * len(tokenizer.tokenize("alone")))
