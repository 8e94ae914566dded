"""The audit finds planted mismatches, and training accepts its mask for the data it was made for, and for no other."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch

import hf_cots.train
from hf_cots.data.keep_mask import apply_keep_mask, write_keep_mask
from hf_cots.data.sources import load_pairs
from hf_cots.evaluation.diagnostics.audit import Audit, audit_pairs, write_audit
from hf_cots.models import COTSModel
from hf_cots.search.torch_encoders import DualEncoder
from tests.support.cli import call, error_of, succeed
from tests.support.worlds import all_pairs, tiny_processor


PLANTED = (3, 17, 30)
COLUMNS = ["rank", "pair", "row", "score", "deviations", "kept", "caption", "closest_caption"]


def write_csv(world, name, captions):
    path = world.root / name
    rows = [f"{world.imagefolder.name}/{file},{caption}" for (file, _, _), caption in zip(all_pairs(), captions)]
    path.write_text("\n".join(["image,caption", *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def noisy(world):
    """Three captions swapped among each other."""
    captions = [caption for _, _, caption in all_pairs()]
    for i, j in zip(PLANTED, (17, 30, 3)):
        captions[i] = all_pairs()[j][2]
    return write_csv(world, "noisy.csv", captions)


@pytest.fixture(scope="module")
def clean(world):
    return write_csv(world, "clean.csv", [caption for _, _, caption in all_pairs()])


@pytest.fixture(scope="module")
def trained(world, clean):
    """The folder of a model that has learned the clean world."""
    folder = world.root / "trained"
    off = {"contrast": "in_batch", "mvm_weight": 0.0, "mlm_weight": 0.0, "task_weight": 0.0, "filter_lambda": None}
    settings = {"max_steps": 300, "learning_rate": 2e-3, "per_device_train_batch_size": 20, "logging_steps": 50}
    hf_cots.train.train(world.flags(folder, off, train_data=clean, image_tokenizer=None, **settings))
    return folder / "model"


@pytest.fixture(scope="module")
def encoder(trained):
    return DualEncoder(COTSModel.from_pretrained(trained).eval(), tiny_processor())


@pytest.fixture(scope="module")
def audited(encoder, noisy):
    pairs = load_pairs(str(noisy))
    return audit_pairs(encoder, pairs, 1.5), pairs


def test_planted_mismatches_come_first(audited):
    audit, _ = audited
    assert set(audit.order[:3].tolist()) == set(PLANTED)
    assert not audit.kept[list(PLANTED)].any()


def test_scores_and_threshold_equal_the_loop(audited, encoder):
    audit, pairs = audited
    images, texts = [], []
    for i in range(len(pairs)):
        inputs = tiny_processor()(images=[pairs[i]["image"]], text=[pairs.caption(i)], return_tensors="pt")
        with torch.no_grad():
            output = encoder.model(**inputs)
        images.append(output.image_embeds[0])
        texts.append(output.text_embeds[0])
    scores = [float(a @ b) for a, b in zip(images, texts)]
    assert audit.scores == pytest.approx(np.array(scores), abs=1e-5)
    assert audit.threshold == pytest.approx(np.mean(scores) - 1.5 * np.std(scores), abs=1e-5)
    assert audit.closest.tolist() == [int((torch.stack(texts) @ image).argmax()) for image in images]


def test_the_files(audited, tmp_path):
    audit, pairs = audited
    files = write_audit(audit, pairs, tmp_path / "deep", shown=5)
    with open(files["suspects.csv"], newline="") as file:
        table = list(csv.DictReader(file))
    lines = [json.loads(line) for line in files["suspects.jsonl"].read_text().splitlines()]
    assert len(table) == len(lines) == 40
    assert list(table[0]) == list(lines[0]) == COLUMNS
    assert [line["rank"] for line in lines] == list(range(1, 41))
    assert [line["score"] for line in lines] == sorted(line["score"] for line in lines)
    assert lines[0]["caption"] == pairs.caption(lines[0]["pair"])
    page = files["suspects.html"].read_text()
    assert len(re.findall(r'<img alt="row \d+" src="data:image/jpeg;base64,', page)) == 5
    assert not re.search(r'(src|href)="(?!data:)', page), "the page needs nothing but itself"


def test_captions_on_the_page_are_text_not_markup(world, trained):
    captions = ["<script>alert(1)</script>", *(caption for _, _, caption in all_pairs()[1:])]
    path = write_csv(world, "hostile.csv", captions)
    succeed("audit", trained, path, "--output", world.root / "hostile")
    page = (world.root / "hostile" / "suspects.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_images_that_cannot_be_read_are_not_kept_and_not_ranked(world, encoder, clean):
    (world.root / "torn.png").write_bytes(b"<html>")
    broken = world.root / "broken.csv"
    broken.write_text(clean.read_text() + "torn.png,a torn image\n")
    audit = audit_pairs(encoder, load_pairs(str(broken)))
    assert np.isnan(audit.scores[40])
    assert audit.closest[40] == -1
    assert not audit.kept[40]
    assert 40 not in audit.order
    assert len(audit.order) == 40


def test_training_accepts_the_mask(world, trained, noisy):
    output = world.root / "audit"
    result = succeed("audit", trained, noisy, "--output", output, "--filter-lambda", 1.5)
    assert "--keep_mask" in result.stdout
    mask = json.loads((output / "keep_mask.json").read_text())
    assert set(PLANTED) <= set(mask["left_out"])
    pairs = load_pairs(str(noisy))
    before = [pairs.caption(i) for i in range(40)]
    apply_keep_mask(pairs, output / "keep_mask.json")
    kept = [i for i in range(40) if i not in mask["left_out"]]
    assert [pairs.caption(i) for i in range(len(pairs))] == [before[i] for i in kept]
    assert [pairs[i]["caption"] for i in range(len(pairs))] == [before[i] for i in kept]
    steps = {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": len(kept)}
    steps |= {"save_strategy": "steps", "save_steps": 1, "keep_mask": output / "keep_mask.json"}
    hf_cots.train.train(world.flags(world.root / "masked", train_data=noisy, **steps))
    assert (world.root / "masked" / "checkpoint-1").is_dir()
    assert not (world.root / "masked" / "checkpoint-2").exists(), "an epoch is one batch of what is kept"


def edited(mask, **fields):
    return json.dumps(json.loads(mask) | fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mask: "not json", "is not a keep-mask"),
        (lambda mask: "[]", "is not a keep-mask"),
        (lambda mask: edited(mask, left_out=["x"]), "is not a keep-mask"),
        (lambda mask: edited(mask, pairs=39), "was made for 39 pairs"),
        (lambda mask: edited(mask, fingerprint="0" * 16), "was made for other data"),
        (lambda mask: edited(mask, left_out=[40]), "leaves out pair 40"),
        (lambda mask: edited(mask, left_out=[-1]), "numbered from 0 to 39"),
        (lambda mask: edited(mask, left_out=list(range(40))), "drops all 40 pairs"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(world, noisy, tmp_path, change, message):
    pairs = load_pairs(str(noisy))
    write_keep_mask(tmp_path / "mask.json", pairs, np.arange(40) > 2)
    (tmp_path / "mask.json").write_text(change((tmp_path / "mask.json").read_text()))
    with pytest.raises(ValueError, match=message):
        apply_keep_mask(pairs, tmp_path / "mask.json")
    assert len(pairs) == 40


def test_a_missing_mask_and_a_stream_are_refused(world, noisy, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such keep-mask"):
        hf_cots.train.train(world.flags(tmp_path, train_data=noisy, keep_mask=tmp_path / "no.json"))
    with pytest.raises(ValueError, match="leave out --streaming"):
        hf_cots.train.train(world.flags(tmp_path, train_data=noisy, keep_mask=tmp_path / "no.json", streaming=True))


def test_the_fingerprint_knows_captions_names_and_order_but_no_folder(world, noisy, tmp_path):
    fingerprint = load_pairs(str(noisy)).fingerprint()
    header, *rows = noisy.read_text().splitlines()
    other = world.root / "other.csv"
    for changed in ([rows[1], rows[0], *rows[2:]], [rows[0] + " too", *rows[1:]]):
        other.write_text("\n".join([header, *changed]) + "\n")
        assert load_pairs(str(other)).fingerprint() != fingerprint
    shutil.copytree(world.imagefolder, tmp_path / "moved")
    other = tmp_path / "moved.csv"
    other.write_text(noisy.read_text().replace(f"{world.imagefolder.name}/", "moved/"))
    assert load_pairs(str(other)).fingerprint() == fingerprint


def test_equal_scores_leave_nothing_out():
    audit = Audit(np.full(4, 0.5, dtype=np.float32), 0.5, np.zeros(4, dtype=np.int64))
    assert audit.kept.all()
    assert audit.order.tolist() == [0, 1, 2, 3]
    assert np.abs(audit.deviations).max() == 0


def test_a_negative_lambda_is_refused(trained, noisy, tmp_path):
    result = call("audit", trained, noisy, "--output", tmp_path, "--filter-lambda", -1)
    assert "filter_lambda must not be negative" in error_of(result)
