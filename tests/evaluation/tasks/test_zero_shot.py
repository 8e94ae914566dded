"""Zero-shot classification against a loop, its prompts, and the data that it takes."""

import itertools

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hf_cots.evaluation.tasks.labelled_images import load_labelled_images
from hf_cots.evaluation.tasks.zero_shot import (
    TEMPLATES,
    class_embeddings,
    classify,
    read_class_names,
    read_templates,
    top_k_probability,
)
from hf_cots.search.loading import load_encoder
from tests.support.known_encoder import KnownEncoder
from tests.support.worlds import World, all_pairs, encoded


COLOURS = {"red": (255, 0, 0), "lime": (0, 255, 0), "dark_blue": (0, 0, 128)}


def class_folders(root, per_class=2):
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            Image.new("RGB", (8, 8), colour).save(root / name / f"{number}.png")
    return root


def table_file(path, rows, feature=None):
    features = datasets.Features({"image": datasets.Image(), "label": feature}) if feature else None
    pictures = [{"bytes": encoded(Image.new("RGB", (8, 8), colour)), "path": None} for colour, _ in rows]
    data = {"image": pictures, "label": [label for _, label in rows]}
    datasets.Dataset.from_dict(data, features=features).to_parquet(path)
    return str(path)


# ---------------------------------------------------------------------- the rule


def test_a_real_model_equals_a_loop_over_pictures_and_classes(world, tmp_path):
    encoder = load_encoder(str(world.model), device="cpu")
    for name, picture, caption in all_pairs():
        folder = tmp_path / caption.rsplit(" ", 2)[0].replace(" ", "_")  # the colour
        folder.mkdir(exist_ok=True)
        picture.save(folder / name)
    data = load_labelled_images(str(tmp_path))
    templates = ["a {}", "the {} square", "{} circle"]
    result = classify(encoder, data, read_class_names(None, data), templates, batch_size=7)
    described = {}
    for label in data.classes:
        embeds = [encoder.encode_texts([t.replace("{}", label.replace("_", " "))])[0] for t in templates]
        described[label] = F.normalize(torch.stack(embeds).mean(dim=0), dim=0)
    assert list(described) == ["black", "green", "light_blue", "red", "yellow"]
    right = {1: [], 5: []}
    for row, label in enumerate(data.labels):
        embed = encoder.encode_images([data.pictures.read_row(row)])[0]
        ranking = sorted(described, key=lambda other: -float(embed @ described[other]))
        for k in right:
            right[k].append(label in ranking[:k])
    assert result.metrics()["top1"] == pytest.approx(100 * np.mean(right[1]))
    assert 0 < result.metrics()["top1"] < 100
    assert result.metrics()["top5"] == 100


def test_a_class_is_the_normalised_mean_of_its_normalised_descriptions():
    encoder = KnownEncoder({"a x": [3, 0, 0], "b x": [0, 4, 0], "a y": [0, 0, 1], "b y": [0, 0, 9]})
    embeds = class_embeddings(encoder, ["x", "y"], ["a {}", "b {}"])
    torch.testing.assert_close(embeds, torch.tensor([[0.5**0.5, 0.5**0.5, 0], [0, 0, 1]]))
    assert encoder.texts == ["a x", "b x", "a y", "b y"]


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_top_k_equals_the_enumeration_of_all_orders(k):
    scores = torch.tensor([[1, 1, 2, 0, 1], [3, 3, 3, 3, 3], [0, 1, 2, 3, 4]], dtype=torch.float64)
    correct = torch.tensor([0, 3, 2])
    expected = []
    for row, own in zip(scores.tolist(), correct.tolist()):
        orders = [
            o for o in itertools.permutations(range(5)) if all(row[a] >= row[b] for a, b in itertools.pairwise(o))
        ]
        expected.append(sum(own in order[:k] for order in orders) / len(orders))
    assert top_k_probability(scores, correct, k).tolist() == pytest.approx(expected)


def test_a_constant_model_gets_exactly_the_chance_level(tmp_path):
    data = load_labelled_images(str(class_folders(tmp_path)))
    vectors = {colour: [1, 1] for colour in COLOURS.values()}
    vectors |= {f"{name}": [1, 1] for name in ("red", "lime", "dark blue", "x1", "x2", "x3", "x4")}
    names = read_class_names(None, data) | {f"x{i}": f"x{i}" for i in range(1, 5)}
    result = classify(KnownEncoder(vectors), data, names, ["{}"])
    assert result.metrics() == pytest.approx(result.chance())
    assert result.chance() == pytest.approx({"top1": 100 / 7, "top5": 500 / 7, "mean_per_class_top1": 100 / 7})


def test_the_mean_over_classes_is_not_that_over_pictures(tmp_path):
    rows = [(COLOURS["red"], "red")] * 3 + [(COLOURS["lime"], "lime")]
    data = load_labelled_images(table_file(tmp_path / "x.parquet", rows))
    encoder = KnownEncoder(
        {COLOURS["red"]: [1, 0], COLOURS["lime"]: [1, 0], "red": [1, 0], "lime": [0, 1], "blue": [-1, 0]}
    )
    names = read_class_names(None, data) | {"blue": "blue"}
    report = classify(encoder, data, names, ["{}"]).to_dict()
    intervals = report["zero_shot"].pop("intervals")
    assert report["zero_shot"] == {"top1": 75, "top5": 100, "mean_per_class_top1": 50, "images": 4, "classes": 3}
    assert report["per_class"] == {
        "lime": {"images": 1, "top1": 0},
        "red": {"images": 3, "top1": 100},
        "blue": {"images": 0},
    }
    low, high = intervals["top1"]
    assert low < 75 < high


def test_broken_pictures_are_left_out_and_named(tmp_path):
    folder = class_folders(tmp_path)
    (folder / "lime" / "1.png").write_bytes(b"nothing")
    vectors = {COLOURS["red"]: [1, 0, 0], COLOURS["lime"]: [0, 1, 0], COLOURS["dark_blue"]: [0, 0, 1]}
    texts = {
        f"a photo of a {name}.": vectors[COLOURS[name.replace(" ", "_")]] for name in ("red", "lime", "dark blue")
    }
    data = load_labelled_images(str(folder))
    result = classify(KnownEncoder(vectors | texts), data, read_class_names(None, data))
    assert len(result.rows) == 5
    assert result.metrics()["top1"] == 100
    assert len(result.broken) == 1
    assert result.broken[0].name.endswith("lime/1.png")


# ---------------------------------------------------------------------- prompts


def test_templates_are_texts_or_files_of_them(tmp_path):
    (tmp_path / "prompts.txt").write_text("a {}\n\nthe {}.\n")
    assert read_templates(["my {}", str(tmp_path / "prompts.txt")]) == ["my {}", "a {}", "the {}."]
    assert all("{}" in template for template in TEMPLATES)
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
    path.write_text("red\nlime\n")
    with pytest.raises(ValueError, match=r"data, row 0: the class 'dark_blue' is not in .*names\.txt"):
        read_class_names(path, data)
    path.write_text("red\nlime\nred\tx\n")
    with pytest.raises(ValueError, match=r"names\.txt, line 3: the class 'red' occurs twice"):
        read_class_names(path, data)
    with pytest.raises(FileNotFoundError, match="no such file: /nothing"):
        read_class_names("/nothing", data)


def test_one_class_is_nothing_to_tell_apart(tmp_path):
    data = load_labelled_images(table_file(tmp_path / "x.parquet", [(COLOURS["red"], "red")]))
    with pytest.raises(ValueError, match="1 class, at least two are needed"):
        classify(KnownEncoder({COLOURS["red"]: [1.0]}), data, read_class_names(None, data))


# ---------------------------------------------------------------------- data


def test_folders_tables_and_class_label_features_give_the_same(tmp_path):
    folder = load_labelled_images(str(class_folders(tmp_path / "folder", per_class=1)))
    order = ["dark_blue", "lime", "red"]
    rows = [(COLOURS[name], name) for name in order]
    plain = load_labelled_images(table_file(tmp_path / "a.parquet", rows))
    numbered = [(COLOURS[name], order.index(name)) for name in order]
    feature = load_labelled_images(table_file(tmp_path / "b.parquet", numbered, datasets.ClassLabel(names=order)))
    whole = load_labelled_images(table_file(tmp_path / "c.parquet", numbered))
    for data in (folder, plain, feature):
        assert data.labels == data.classes == order
    assert whole.labels == whole.classes == ["0", "1", "2"]
    for data in (folder, plain, feature, whole):
        assert [data.pictures.read_row(row).getpixel((4, 4)) for row in range(3)] == [COLOURS[name] for name in order]


def test_an_image_folder_with_a_label_column_is_read_too(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    Image.new("RGB", (8, 8), "lime").save(tmp_path / "b.png")
    World.write_metadata(tmp_path, [{"file_name": "a.png", "kind": "x"}, {"file_name": "b.png", "kind": "y"}])
    data = load_labelled_images(str(tmp_path), label_column="kind", columns=("kind",))
    assert data.labels == ["x", "y"]
    assert data.columns == {"kind": ["x", "y"]}


def test_what_is_wrong_with_the_data_is_said_in_one_line(tmp_path):
    folder = class_folders(tmp_path / "folder")
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no picture"):
        load_labelled_images(str(folder))
    with pytest.raises(FileNotFoundError, match="no such file or folder: /nothing"):
        load_labelled_images("/nothing")
    path = table_file(tmp_path / "x.parquet", [(COLOURS["red"], "red"), (COLOURS["lime"], None)])
    with pytest.raises(ValueError, match=r"column 'label' is empty in 1 row\(s\), the first is row 1"):
        load_labelled_images(path)
    with pytest.raises(ValueError, match=r"has no column 'kind'; it has image, label. Name one with --label-column"):
        load_labelled_images(path, label_column="kind")
    with pytest.raises(ValueError, match="has no column 'picture'"):
        load_labelled_images(table_file(tmp_path / "y.parquet", [(COLOURS["red"], "red")]), image_column="picture")
    with pytest.raises(ValueError, match="column 'label' holds float in row 0, not a text or a whole number"):
        load_labelled_images(table_file(tmp_path / "z.parquet", [(COLOURS["red"], 0.5)]))
    unlabelled = datasets.ClassLabel(names=["a"])
    with pytest.raises(ValueError, match=r"is empty in 1 row\(s\), the first is row 0"):
        load_labelled_images(table_file(tmp_path / "w.parquet", [(COLOURS["red"], -1)], unlabelled))
