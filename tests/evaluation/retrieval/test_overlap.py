"""Which images and captions of a test set are found in a training set."""

import io
import json

import datasets
import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy.fft import dctn

from hf_cots.data.hashes import perceptual_hash
from hf_cots.data.sources import PairDataset, load_pairs
from hf_cots.evaluation.retrieval.overlap import (
    Fingerprints,
    check_overlap,
    color_grid,
    nearest_duplicates,
    normalize_caption,
)
from tests.support.worlds import World, all_pairs, encoded


def scene(seed, side=160):
    """An image with some structure: twelve colored shapes on a gradient."""
    random = np.random.default_rng(seed)
    ramp = np.linspace(0, 255, side).astype(np.uint8)
    image = Image.fromarray(np.stack([np.tile(ramp, (side, 1))] * 3, axis=2))
    pen = ImageDraw.Draw(image)
    for number in range(12):
        left, top = random.integers(0, side - 20, size=2).tolist()
        width, height = random.integers(15, side // 2, size=2).tolist()
        paint = pen.rectangle if number % 2 else pen.ellipse
        paint((left, top, left + width, top + height), fill=tuple(random.integers(0, 255, size=3).tolist()))
    return image


def saved(image, quality):
    return encoded(image, "JPEG", quality=quality)


def copies(image):
    """Scaled, recompressed, darker."""
    return image.resize((97, 97)), Image.open(io.BytesIO(saved(image, 40))), image.point(lambda v: v * 0.9)


def make_pairs(name, images, captions=None):
    captions = captions or [f"{name} caption {number}" for number in range(len(images))]
    return PairDataset(datasets.Dataset.from_dict({"image": images, "caption": captions}), name=name)


def test_the_perceptual_hash_is_the_textbook_one():
    for seed in range(5):
        image = scene(seed)
        gray = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
        # scipy's scale differs from ours by a factor of each row and column; the textbook one has none.
        low = dctn(gray, type=2)[:8, :8]
        bits = "".join("1" if value > np.median(low) else "0" for value in low.flatten())
        assert perceptual_hash(image) == int(bits, 2)


def test_copies_are_near_and_other_images_far():
    for seed in range(8):
        own = perceptual_hash(scene(seed))
        for copy in copies(scene(seed)):
            assert (own ^ perceptual_hash(copy.convert("RGB"))).bit_count() <= 4
            assert np.abs(color_grid(scene(seed)) - color_grid(copy)).max() <= 26
        assert min((own ^ perceptual_hash(scene(other))).bit_count() for other in range(100, 110)) > 10


def test_images_without_structure_have_one_hash_but_their_own_colors():
    assert len({perceptual_hash(Image.new("RGB", (40, 30), color)) for color in ("red", "blue", "white")}) == 1
    assert color_grid(Image.new("RGB", (9, 9), (1, 2, 3))).tolist() == [1, 2, 3] * 16


def random_fingerprints(count, seed):
    """Few bits and few colors, so that there are many near-duplicates."""
    random = np.random.default_rng(seed)
    hashes = random.integers(0, 2**10, size=count, dtype=np.uint64)
    colors = random.choice([10, 50, 90], size=(count, 1)) + np.zeros((1, 48), dtype=np.int64)
    return Fingerprints(np.arange(count), np.arange(count), hashes, colors.astype(np.int16))


@pytest.mark.parametrize("block", [1, 3, 100])
@pytest.mark.parametrize("distance", [1, 2])
def test_the_nearest_duplicate_equals_a_loop(block, distance):
    queries, gallery = random_fingerprints(25, 0), random_fingerprints(40, 1)
    nearest, distances = nearest_duplicates(queries, gallery, distance, block)
    assert (nearest == -1).any()
    assert (nearest >= 0).any()
    for i, (query, colors) in enumerate(zip(queries.hashes.tolist(), queries.colors)):
        duplicates = [
            ((query ^ other).bit_count(), j)
            for j, other in enumerate(gallery.hashes.tolist())
            if (query ^ other).bit_count() <= distance and np.abs(colors - gallery.colors[j]).max() <= 48
        ]
        assert (distances[i], nearest[i]) == min(duplicates, default=(65, -1))


def test_a_flag_in_other_colors_is_another_flag():
    def flag(*colors):
        image = Image.new("RGB", (90, 60))
        for number, color in enumerate(colors):
            image.paste(color, (30 * number, 0, 30 * number + 30, 60))
        return image

    france, other = flag((0, 0, 139), "white", "crimson"), flag("crimson", (255, 255, 150), (0, 80, 0))
    assert (perceptual_hash(france) ^ perceptual_hash(other)).bit_count() <= 4
    train = make_pairs("train", [encoded(other), saved(france.resize((120, 80)), 70)])
    found = check_overlap(make_pairs("test", [encoded(france)]), train).pictures
    assert [(m.train, m.identical) for m in found] == [("train, row 1", False)]


def test_copies_are_found_whatever_their_form():
    test = make_pairs("test", [encoded(scene(seed)) for seed in (1, 2, 3, 4)])
    train_images = [
        encoded(scene(50)),
        encoded(scene(2), "BMP"),  # other bytes, the same pixels
        saved(scene(3), 50),  # other pixels
        encoded(scene(51)),
        encoded(scene(4)),  # the same bytes
    ]
    found = check_overlap(test, make_pairs("train", train_images)).pictures
    assert [(m.test, m.train, m.identical) for m in found] == [
        ("test, row 1", "train, row 1", True),
        ("test, row 2", "train, row 2", False),
        ("test, row 3", "train, row 4", True),
    ]
    assert [m.distance for m in found][::2] == [0, 0]
    assert 0 <= found[1].distance <= 4


def test_the_distance_decides_what_is_a_duplicate():
    image = scene(3)
    copy = next(c for c in (saved(image, q) for q in range(1, 60)) if 0 < hash_distance(image, c) <= 8)
    bits = hash_distance(image, copy)
    test, train = make_pairs("test", [encoded(image)]), make_pairs("train", [copy])
    assert [match.distance for match in check_overlap(test, train, distance=bits).pictures] == [bits]
    assert check_overlap(test, train, distance=bits - 1).pictures == []
    with pytest.raises(ValueError, match="0 to 64 bits, got 65"):
        check_overlap(test, train, distance=65)


def hash_distance(image, data):
    return (perceptual_hash(image) ^ perceptual_hash(Image.open(io.BytesIO(data)).convert("RGB"))).bit_count()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("A man, riding a wave!", "a man riding a  wave"),
        ("Ｃａｆé", "café"),
        ("STRASSE", "straße"),
        ("e\u0301", "\u00e9"),
    ],
)
def test_captions_are_equal_up_to_case_and_punctuation(first, second):
    assert normalize_caption(first) == normalize_caption(second) != ""


def test_captions_keep_what_distinguishes_them():
    assert len({normalize_caption(text) for text in ("two dogs", "2 dogs", "two dog s", "हिन्दी", "हनद")}) == 5


def test_captions_in_both_are_reported_as_both_write_them():
    test = make_pairs("test", [encoded(scene(1)), encoded(scene(2))], [["A dog.", "a cat"], ["a bird"]])
    train = make_pairs("train", [encoded(scene(3))], [["a dog", "Bird, A"]])
    overlap = check_overlap(test, train)
    assert [(m.test, m.train) for m in overlap.captions] == [("A dog.", "a dog")]
    assert (overlap.test_captions, overlap.train_captions) == (3, 2)


def test_files_are_named_by_path_and_read_once(tmp_path):
    world = World(tmp_path)
    names = [str(world.imagefolder / name) for name, _, _ in all_pairs()[:3]]
    rows = [{"image": name, "caption": f"{i} {name[-7:]}"} for i in range(2) for name in names]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "test.jsonl").write_text(json.dumps({"image": names[1], "caption": "x"}) + "\n")
    overlap = check_overlap(load_pairs(str(tmp_path / "test.jsonl")), load_pairs(str(tmp_path / "train.jsonl")))
    assert (overlap.test_pictures, overlap.train_pictures) == (1, 3)
    assert [(m.test, m.train, m.identical) for m in overlap.pictures] == [(names[1], names[1], True)]


def test_broken_images_are_named_and_the_rest_compared():
    test = make_pairs("test", [encoded(scene(1)), b"nothing"])
    overlap = check_overlap(test, make_pairs("train", [b"", encoded(scene(1))]))
    assert len(overlap.pictures) == 1
    assert [name.split(":")[0] for name in overlap.broken] == ["test, row 1", "train, row 0"]


def test_the_report_is_one_line_and_goes_into_json():
    test = make_pairs("test", [encoded(scene(1)), encoded(scene(2))], ["a", "b"])
    overlap = check_overlap(test, make_pairs("train", [saved(scene(1), 60), encoded(scene(2))], ["A", "c"]))
    assert overlap.summary() == (
        "of 2 test images 1 are pixel for pixel among the 2 training images and 1 more are nearly (perceptual "
        "hashes within 4 of 64 bits, similar colors); of 2 captions 1 are among the 2 training captions"
    )
    restored = json.loads(json.dumps(overlap.to_dict()))
    found = {"test": "test, row 1", "train": "train, row 1", "distance": 0, "identical": True}
    assert restored["pictures"][1] == found


def test_the_second_time_no_image_is_decoded_but_broken_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_COTS_CACHE", str(tmp_path))
    cells = [{"bytes": saved(scene(seed), 90)} for seed in range(3)] + [{"bytes": b"no image"}]
    test, train = make_pairs("test", cells[1:3]), make_pairs("train", cells)
    first = check_overlap(test, train)
    assert [match.identical for match in first.pictures] == [True, True]
    assert len(first.broken) == 1
    asked = []
    decode = PairDataset.read_row
    monkeypatch.setattr(PairDataset, "read_row", lambda self, row: asked.append((self.name, row)) or decode(self, row))
    assert check_overlap(test, train) == first
    assert asked == [("train", 3)]
    other = make_pairs("train", [*cells[:2], {"bytes": saved(scene(9), 90)}, cells[3]])
    assert [match.test for match in check_overlap(test, other).pictures] == [first.pictures[0].test]
    assert len(asked) == 1 + 1 + 4  # other data are read


def test_a_damaged_file_of_kept_hashes_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_COTS_CACHE", str(tmp_path))
    pairs = make_pairs("test", [scene(0), scene(1)])
    check_overlap(pairs, pairs)
    (file,) = (tmp_path / "overlap").iterdir()
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match=f"{file.name} is damaged"):
        check_overlap(pairs, pairs)
