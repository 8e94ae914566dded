"""Exported towers give the model's embeddings, run in every verb, and are refused where they would not."""

import json
import shutil

import numpy as np
import pytest
import torch

from hf_cots.export.cost import measure_overlap, share_of_best
from hf_cots.export.run import Export, ExportRefused
from hf_cots.search.encoders import EncodedPairs
from hf_cots.search.exported import ExportedEncoder
from hf_cots.search.fingerprint import describe_model
from hf_cots.search.index import ImageIndex
from hf_cots.search.loading import load_encoder
from tests.export.conftest import resnet_folder
from tests.support.cli import call, error_of, succeed
from tests.support.embeddings import assert_close
from tests.support.user_folder import clip_folder
from tests.support.worlds import all_pairs


IMAGES = [image for _, image, _ in all_pairs()[:7]]
TEXTS = ["red", *(text for *_, text in all_pairs()[:9]), "a light blue circle the left " * 20]


def compare(folder, source, atol=1e-4):
    ours, theirs = load_encoder(folder), load_encoder(source, "cpu")
    assert isinstance(ours, ExportedEncoder)
    assert ours.dim == theirs.dim
    for batch_size in (1, 3, 64):  # of other sizes than the three examples
        images, texts = ours.encode_images(IMAGES, batch_size), ours.encode_texts(TEXTS, batch_size)
        assert_close(images, theirs.encode_images(IMAGES), rtol=0, atol=atol)
        assert_close(texts, theirs.encode_texts(TEXTS), rtol=0, atol=atol)
        assert_close(np.linalg.norm(images, axis=1), torch.ones(len(images)))
        assert (images.dtype, texts.dtype) == (np.float32, np.float32)


# ---------------------------------------------------------------------- embeddings


def test_onnx_gives_the_embeddings_of_the_model(exported, world_of_exports):
    compare(exported, world_of_exports.model)


def test_a_resnet_with_projections_of_two_layers(world_of_exports, tmp_path):
    source = resnet_folder(world_of_exports)
    Export(str(source), tmp_path / "onnx").run()
    compare(tmp_path / "onnx", source)
    with pytest.raises(ValueError, match=r"int8 only covers .* of the image tower's weights"):
        Export(str(source), tmp_path / "int8", precision="int8", min_overlap=0).run()
    assert not (tmp_path / "int8").exists()


def test_a_clip_of_transformers(world_of_exports, tmp_path):
    source = clip_folder(world_of_exports)
    Export(str(source), tmp_path / "onnx").run()
    compare(tmp_path / "onnx", source)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_openvino_gives_the_embeddings_of_the_model(world_of_exports, tmp_path, precision):
    pytest.importorskip("openvino")
    Export(str(world_of_exports.model), tmp_path / "openvino", "openvino", precision).run()
    compare(tmp_path / "openvino", world_of_exports.model, 1e-4 if precision == "fp32" else 1e-2)


def test_fp16_takes_less_room(exported, world_of_exports, tmp_path):
    Export(str(world_of_exports.model), tmp_path / "fp16", precision="fp16").run()
    compare(tmp_path / "fp16", world_of_exports.model, 1e-2)
    for kind in ("image", "text"):
        name = f"{kind}_encoder.onnx"
        assert (tmp_path / "fp16" / name).stat().st_size < (exported / name).stat().st_size


# ---------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def int8(world_of_exports):
    """In int8, by the command line, with what it cost."""
    folder = world_of_exports.root / "int8"
    flags = ("--eval-data", world_of_exports.parquet, "--min-overlap", "0.5")
    result = succeed("export", world_of_exports.model, "--output", folder, "--precision", "int8", *flags)
    return folder, result


def test_the_record_says_what_was_exported_and_what_it_cost(int8, world_of_exports):
    folder, result = int8
    about = json.loads((folder / "export.json").read_text())
    source = load_encoder(world_of_exports.model, "cpu")
    assert about["source"]["name"] == str(world_of_exports.model)
    assert about["source"]["fingerprint"] == describe_model(source)
    assert {"torch", "transformers", "onnx", "onnxruntime"} <= about["versions"].keys()
    for kind in ("image", "text"):
        assert about["towers"][kind]["precision"] == "int8"
        assert about["towers"][kind]["bytes"] == (folder / f"{kind}_encoder.onnx").stat().st_size
        for size in ("1", "32", "64"):
            times = about["evaluation"]["latency"][kind][size]
            assert times["speedup"] == pytest.approx(times["source_ms"] / times["exported_ms"], rel=0.02, abs=0.01)
    found = about["evaluation"]
    assert found["data"] == {"name": str(world_of_exports.parquet), "images": 40, "texts": 40, "skipped": 0}
    alone = load_encoder(folder)
    images, texts = [image for _, image, _ in all_pairs()], [text for *_, text in all_pairs()]
    best = [
        np.argsort(-encoder.encode_texts(texts) @ encoder.encode_images(images).T)[:, :10]
        for encoder in (source, alone)
    ]
    shared = np.mean([len(set(one.tolist()) & set(other.tolist())) / 10 for one, other in zip(*best)])
    assert found["overlap"]["top_10"]["text_to_image"] == pytest.approx(shared, abs=0.01)
    report = world_of_exports.root / "report.json"
    succeed("evaluate", folder, world_of_exports.parquet, "--output", report, "--failures", 0, "--resamples", 10)
    for direction in ("text_to_image", "image_to_text"):
        recall = json.loads(report.read_text())[direction]["R@1"]
        assert found["R@1"]["exported"][direction] == pytest.approx(recall)
    assert "top-10 overlap" in result.output


def test_an_int8_text_does_not_depend_on_its_batch(int8):
    """As it would with one scale for the activations of a whole batch."""
    encoder = load_encoder(int8[0])
    texts = ["red circle left", "black square top", "yellow circle bottom"]  # of equal lengths
    together, alone = encoder.encode_texts(texts), [encoder.encode_texts([text])[0] for text in texts]
    assert_close(together, np.stack(alone), rtol=0, atol=1e-5)


def test_index_and_search_take_the_folder(exported, world_of_exports, tmp_path):
    photos, index = world_of_exports.imagefolder, tmp_path / "index"
    succeed("index", exported, photos, "--to", index)
    found = json.loads(succeed("search", index, "a red circle", "--json").stdout)
    expected = ImageIndex.from_folder(str(world_of_exports.model), photos, device="cpu").search("a red circle")
    assert [match["path"].split("/")[-1] for match in found] == [match.path.name for match in expected]
    assert [match["score"] for match in found] == pytest.approx([match.score for match in expected], abs=1e-4)
    again = json.loads(succeed("index", exported, photos, "--to", index, "--json").stdout)
    assert again["encoded"] == 0
    assert "their embeddings cannot be compared" in error_of(
        call("index", world_of_exports.model, photos, "--to", index)
    )


# ---------------------------------------------------------------------- overlap


def test_the_overlap_is_the_share_of_the_best_ten():
    queries = torch.eye(20)
    other = queries.roll(1, dims=0)
    assert share_of_best((queries, queries), (queries, queries)) == 1
    gallery = torch.nn.functional.normalize(torch.randn(50, 20), dim=1)
    before, after = (queries @ gallery.T, other @ gallery.T)
    tops = [[set(row.argsort(descending=True)[:10].tolist()) for row in scores] for scores in (before, after)]
    expected = np.mean([len(one & two) / 10 for one, two in zip(*tops)])
    assert share_of_best((queries, gallery), (other, gallery)) == pytest.approx(expected)


def test_equal_texts_count_once_and_small_galleries_count_whole():
    def encoded(images, texts):
        ids = np.arange(len(images)), np.arange(len(texts)) % len(images)
        return EncodedPairs(images, texts, *ids, list(range(len(images))), list(range(len(texts))), [])

    images, texts = np.eye(30), np.eye(30)[:3]
    broken = texts.copy()
    broken[2] = np.eye(30)[29]  # of a text that is there twice; the first of both is as it was
    same = measure_overlap(encoded(images, texts), encoded(images, broken), ["a", "b", "a"])
    assert same.lowest == 1
    differs = measure_overlap(encoded(images, texts), encoded(images, broken), ["a", "b", "c"])
    assert differs.text_encoder < 1
    assert differs.image_encoder == 1
    assert measure_overlap(encoded(images[:4], texts), encoded(images[:4], broken), ["a", "b", "c"]).text_to_image == 1


# ---------------------------------------------------------------------- refusals


def test_an_export_past_the_tolerance_leaves_nothing(world_of_exports, tmp_path, monkeypatch):
    worse = {"lowest": 0.9, "top_10": {"image_encoder": 0.99, "text_encoder": 0.91}}
    monkeypatch.setattr("hf_cots.export.run.measure_cost", lambda *_: {"overlap": worse})
    output = tmp_path / "int8"
    flags = ("--output", output, "--precision", "int8", "--eval-data", world_of_exports.parquet)
    error = error_of(call("export", world_of_exports.model, *flags))
    assert "is 0.900, below --min-overlap 0.97 (image tower alone 0.990, text tower alone 0.910)" in error
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ExportRefused):
        Export(str(world_of_exports.model), output, min_overlap=0.91)._check_overlap(worse)
    Export(str(world_of_exports.model), output, min_overlap=0.9)._check_overlap(worse)


def test_int8_without_data_is_refused(world_of_exports, tmp_path):
    result = call("export", world_of_exports.model, "--output", tmp_path / "new", "--text-precision", "int8")
    assert "give pairs with --eval-data" in error_of(result)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--format", "tflite"), "--format must be onnx or openvino, not 'tflite'"),
        (("--precision", "int4"), "--precision must be one of fp32, fp16, int8 for --format onnx, not 'int4'"),
        (("--format", "openvino", "--precision", "int8"), "--precision must be one of fp32, fp16 for"),
        (("--min-overlap", "97"), "--min-overlap must be from 0 to 1, got 97"),
    ],
)
def test_wrong_options_are_refused(world_of_exports, tmp_path, flags, message):
    assert message in error_of(call("export", world_of_exports.model, "--output", tmp_path / "new", *flags))


def test_a_folder_of_other_files_is_refused(world_of_exports):
    error = error_of(call("export", world_of_exports.model, "--output", world_of_exports.imagefolder))
    assert "contains other files" in error


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_missing_runtime_names_the_extra(world_of_exports, tmp_path, monkeypatch, format):
    package = {"onnx": "onnxruntime", "openvino": "openvino"}[format]
    monkeypatch.setitem(__import__("sys").modules, package, None)
    result = call("export", world_of_exports.model, "--output", tmp_path / "new", "--format", format)
    assert f"{package} is not installed, which exported models need: pip install 'hf-cots[{format}]'" in error_of(
        result
    )


def test_an_export_is_no_source_of_another(exported, tmp_path):
    assert "is not a dual encoder" in error_of(call("export", exported, "--output", tmp_path / "new"))


def test_another_device_or_precision_is_refused(exported):
    with pytest.raises(ValueError, match="is an exported model, which only runs on the CPU, not on cuda"):
        load_encoder(exported, "cuda")
    with pytest.raises(ValueError, match="does not support --precision bfloat16"):
        load_encoder(exported, precision="bfloat16")
    assert load_encoder(exported, precision="auto").dim == 16


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", "copy it again"),
        ("other", "onnxruntime cannot open this file"),
        ("gone", "has 0 bytes"),
        ("json", r"export\.json is truncated or not JSON"),
        ("later", "has version 99, but this hf-cots only reads versions up to 1"),
        ("fields", "is not a valid file of `hf-cots export`"),
    ],
)
def test_damage_is_named(exported, tmp_path, damage, message):
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    tower, about = folder / "text_encoder.onnx", folder / "export.json"
    if damage == "cut":
        tower.write_bytes(tower.read_bytes()[:1000])
    elif damage == "other":
        tower.write_bytes(bytes(tower.stat().st_size))
    elif damage == "gone":
        tower.unlink()
    else:
        fields = json.loads(about.read_text())
        texts = {"json": '{"version": 1, ', "later": json.dumps(fields | {"version": 99}), "fields": '{"version": 1}'}
        about.write_text(texts[damage])
    with pytest.raises((OSError, ValueError), match=message):
        load_encoder(folder)
