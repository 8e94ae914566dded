"""Zero-shot classification against a loop, its prompts, and the data that it takes."""

import itertools

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hf_cots.evaluation.tasks.labelled_images import load_labelled_images
from hf_cots.evaluation.tasks.prompts import DEFAULT_TEMPLATE, read_templates
from hf_cots.evaluation.tasks.zero_shot import (
    class_embeddings,
    evaluate_zero_shot,
    read_class_names,
    top_k_probability,
)
from hf_cots.search.loading import load_encoder
from tests.support.embeddings import assert_close
from tests.support.known_encoder import KnownEncoder
from tests.support.worlds import World, all_pairs, encoded


COLORS = {"red": (255, 0, 0), "lime": (0, 255, 0), "dark_blue": (0, 0, 128)}


def class_folders(root, per_class=2):
    for name, color in COLORS.items():
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            Image.new("RGB", (8, 8), color).save(root / name / f"{number}.png")
    return root


def table_file(path, rows, feature=None):
    features = datasets.Features({"image": datasets.Image(), "label": feature}) if feature else None
    images = [{"bytes": encoded(Image.new("RGB", (8, 8), color)), "path": None} for color, _ in rows]
    data = {"image": images, "label": [label for _, label in rows]}
    datasets.Dataset.from_dict(data, features=features).to_parquet(path)
    return str(path)


# ---------------------------------------------------------------------- the rule


def test_a_real_model_equals_a_loop_over_images_and_classes(world, tmp_path):
    encoder = load_encoder(str(world.model), device="cpu")
    for name, image, caption in all_pairs():
        folder = tmp_path / caption.rsplit(" ", 2)[0].replace(" ", "_")  # the color
        folder.mkdir(exist_ok=True)
        image.save(folder / name)
    data = load_labelled_images(str(tmp_path))
    templates = ["a {}", "the {} square", "{} circle"]
    result = evaluate_zero_shot(encoder, data, read_class_names(None, data), templates, batch_size=7)
    described = {}
    for label in data.classes:
        embeds = [encoder.encode_texts([t.replace("{}", label.replace("_", " "))])[0] for t in templates]
        described[label] = F.normalize(torch.from_numpy(np.stack(embeds)).mean(dim=0), dim=0).numpy()
    assert list(described) == ["black", "green", "light_blue", "red", "yellow"]
    right = {1: [], 5: []}
    for row, label in enumerate(data.labels):
        embed = encoder.encode_images([data.images.read_row(row)])[0]
        ranking = sorted(described, key=lambda other: -float(embed @ described[other]))
        for k in right:
            right[k].append(label in ranking[:k])
    assert result.metrics()["top1"] == pytest.approx(100 * np.mean(right[1]))
    assert 0 < result.metrics()["top1"] < 100
    assert result.metrics()["top5"] == 100


def test_a_class_is_the_normalized_mean_of_its_normalized_descriptions():
    encoder = KnownEncoder({"a x": [3, 0, 0], "b x": [0, 4, 0], "a y": [0, 0, 1], "b y": [0, 0, 9]})
    embeds = class_embeddings(encoder, ["x", "y"], ["a {}", "b {}"])
    assert_close(embeds, torch.tensor([[0.5**0.5, 0.5**0.5, 0], [0, 0, 1]]))
    assert encoder.texts == ["a x", "b x", "a y", "b y"]


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_top_k_equals_the_enumeration_of_all_orders(k):
    scores = np.array([[1, 1, 2, 0, 1], [3, 3, 3, 3, 3], [0, 1, 2, 3, 4]], dtype=np.float64)
    correct = np.array([0, 3, 2])
    expected = []
    for row, own in zip(scores.tolist(), correct.tolist()):
        orders = itertools.permutations(range(5))
        hits = [own in o[:k] for o in orders if all(row[a] >= row[b] for a, b in itertools.pairwise(o))]
        expected.append(np.mean(hits))
    assert top_k_probability(scores, correct, k).tolist() == pytest.approx(expected)


def test_a_constant_model_gets_exactly_the_chance_level(tmp_path):
    data = load_labelled_images(str(class_folders(tmp_path)))
    vectors = {color: [1, 1] for color in COLORS.values()}
    vectors |= {f"{name}": [1, 1] for name in ("red", "lime", "dark blue", "x1", "x2", "x3", "x4")}
    names = read_class_names(None, data) | {f"x{i}": f"x{i}" for i in range(1, 5)}
    result = evaluate_zero_shot(KnownEncoder(vectors), data, names, ["{}"])
    assert result.metrics() == pytest.approx(result.chance())
    assert result.chance() == pytest.approx({"top1": 100 / 7, "top5": 500 / 7, "mean_per_class_top1": 100 / 7})


def test_the_mean_over_classes_is_not_that_over_images(tmp_path):
    rows = [(COLORS["red"], "red")] * 3 + [(COLORS["lime"], "lime")]
    data = load_labelled_images(table_file(tmp_path / "x.parquet", rows))
    vectors = {"red": [1, 0], "lime": [0, 1], "blue": [-1, 0]}
    encoder = KnownEncoder(vectors | {color: [1, 0] for color in COLORS.values()})
    names = read_class_names(None, data) | {"blue": "blue"}
    report = evaluate_zero_shot(encoder, data, names, ["{}"]).to_dict()
    intervals = report["zero_shot"].pop("intervals")
    assert report["zero_shot"] == {"top1": 75, "top5": 100, "mean_per_class_top1": 50, "images": 4, "classes": 3}
    assert report["per_class"] == {
        "lime": {"images": 1, "top1": 0},
        "red": {"images": 3, "top1": 100},
        "blue": {"images": 0},
    }
    low, high = intervals["top1"]
    assert low < 75 < high


def test_broken_images_are_skipped_and_named(tmp_path):
    folder = class_folders(tmp_path)
    (folder / "lime" / "1.png").write_bytes(b"nothing")
    vectors = dict(zip(COLORS.values(), np.eye(3).tolist()))
    texts = {f"a photo of a {name.replace('_', ' ')}.": vectors[color] for name, color in COLORS.items()}
    data = load_labelled_images(str(folder))
    result = evaluate_zero_shot(KnownEncoder(vectors | texts), data, read_class_names(None, data))
    assert len(result.rows) == 5
    assert result.metrics()["top1"] == 100
    assert [broken.name for broken in result.broken] == [str(folder / "lime" / "1.png")]


# ---------------------------------------------------------------------- prompts


def test_templates_are_texts_or_files_of_them(tmp_path):
    (tmp_path / "prompts.txt").write_text("a {}\n\nthe {}.\n")
    assert read_templates(["my {}", str(tmp_path / "prompts.txt")]) == ["my {}", "a {}", "the {}."]
    assert read_templates([DEFAULT_TEMPLATE]) == [DEFAULT_TEMPLATE]
    with pytest.raises(ValueError, match=r"the template 'a photo' has no \{\} for the class name"):
        read_templates(["a photo"])
    (tmp_path / "prompts.txt").write_text("a {}\nthe")
    with pytest.raises(ValueError, match=r"prompts\.txt, line 2: 'the' has no {}"):
        read_templates([str(tmp_path / "prompts.txt")])


def test_class_names_come_from_a_file_or_from_the_labels(tmp_path):
    data = load_labelled_images(str(class_folders(tmp_path / "data")))
    assert read_class_names(None, data) == {"dark_blue": "dark blue", "lime": "lime", "red": "red"}
    path = tmp_path / "names.txt"
    path.write_text("red\tscarlet\nlime\n\ndark_blue\ngrey\tash\n")
    assert read_class_names(path, data) == {"red": "scarlet", "lime": "lime", "dark_blue": "dark blue", "grey": "ash"}
    for text, message in (
        ("red\nlime\n", r"data, row 0: the class 'dark_blue' is not in .*names\.txt"),
        ("red\nlime\nred\tx\n", r"names\.txt, line 3: the class 'red' occurs twice"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_class_names(path, data)
    with pytest.raises(FileNotFoundError, match="no such file: /nothing"):
        read_class_names("/nothing", data)


def test_one_class_is_refused(tmp_path):
    data = load_labelled_images(table_file(tmp_path / "x.parquet", [(COLORS["red"], "red")]))
    with pytest.raises(ValueError, match="needs at least two classes, got 1"):
        evaluate_zero_shot(KnownEncoder({COLORS["red"]: [1.0]}), data, read_class_names(None, data))


# ---------------------------------------------------------------------- data


def test_folders_tables_and_class_label_features_give_the_same(tmp_path):
    folder = load_labelled_images(str(class_folders(tmp_path / "folder", per_class=1)))
    order = ["dark_blue", "lime", "red"]
    rows = [(COLORS[name], name) for name in order]
    plain = load_labelled_images(table_file(tmp_path / "a.parquet", rows))
    numbered = [(COLORS[name], order.index(name)) for name in order]
    feature = load_labelled_images(table_file(tmp_path / "b.parquet", numbered, datasets.ClassLabel(names=order)))
    numbers = load_labelled_images(table_file(tmp_path / "c.parquet", numbered))
    for data, labels in ((folder, order), (plain, order), (feature, order), (numbers, ["0", "1", "2"])):
        assert data.labels == data.classes == labels
        assert [data.images.read_row(row).getpixel((4, 4)) for row in range(3)] == [COLORS[name] for name in order]


def test_an_image_folder_with_a_label_column_is_read_too(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    Image.new("RGB", (8, 8), "lime").save(tmp_path / "b.png")
    World.write_metadata(tmp_path, [{"file_name": "a.png", "kind": "x"}, {"file_name": "b.png", "kind": "y"}])
    data = load_labelled_images(str(tmp_path), label_column="kind", columns=("kind",))
    assert data.labels == ["x", "y"]
    assert data.columns == {"kind": ["x", "y"]}


def test_errors_in_the_data_are_one_line(tmp_path):
    folder = class_folders(tmp_path / "folder")
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="empty contains no images"):
        load_labelled_images(str(folder))
    with pytest.raises(FileNotFoundError, match="no such file or folder: /nothing"):
        load_labelled_images("/nothing")
    path = table_file(tmp_path / "x.parquet", [(COLORS["red"], "red"), (COLORS["lime"], None)])
    with pytest.raises(ValueError, match=r"column 'label' is empty in 1 row\(s\), the first is row 1"):
        load_labelled_images(path)
    with pytest.raises(ValueError, match=r"has no column 'kind'; it has image, label. Choose one with --label-column"):
        load_labelled_images(path, label_column="kind")
    for label, feature, column, message in (
        ("red", None, "photo", "has no column 'photo'"),
        (0.5, None, "image", "column 'label' contains float in row 0, not a text or a whole number"),
        (-1, datasets.ClassLabel(names=["a"]), "image", r"is empty in 1 row\(s\), the first is row 0"),
    ):
        path = table_file(tmp_path / "y.parquet", [(COLORS["red"], label)], feature)
        with pytest.raises(ValueError, match=message):
            load_labelled_images(path, image_column=column)
