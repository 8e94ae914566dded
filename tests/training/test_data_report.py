"""Training tells how much data it has before its first step, and never takes a step on nothing."""

import json
import logging
import subprocess
import sys
from functools import partial

import pytest

import hf_cots.train
import hf_cots.train_dvae
from hf_cots.evaluation.retrieval.run import EvaluationRun
from hf_cots.training.arguments import to_flags
from tests.support.worlds import TINY_IMAGE_TOKENIZER, all_pairs, write_images, write_json_lines


INSTANCE_LEVEL = {"mvm_weight": 0, "mlm_weight": 0, "filter_lambda": None, "filter_warmup_steps": 0}
ROWS = [{"image": f"images/{name}", "caption": caption} for name, _, caption in all_pairs()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    write_images(folder / "images")
    return folder


def train(world, output, **settings):
    return hf_cots.train.train(
        world.flags(output, INSTANCE_LEVEL, image_tokenizer=None, **{"max_steps": 1} | settings)
    )


def train_image_tokenizer(output, **settings):
    flags = {
        "config": TINY_IMAGE_TOKENIZER,
        "output_dir": output,
        "per_device_train_batch_size": 8,
        "report_to": "none",
    }
    flags |= {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "max_steps": 1}
    return hf_cots.train_dvae.train(to_flags(flags | settings))


def read_report(output):
    return json.loads((output / "data_report.json").read_text())


def test_the_data_are_told_before_the_first_step(world, folder, tmp_path, caplog):
    path = write_json_lines(folder / "p.jsonl", ROWS)
    with caplog.at_level(logging.INFO):
        train(world, tmp_path / "run", train_data=path, eval_data=path)
    report = read_report(tmp_path / "run")
    assert report["train"] == report["evaluation"]
    assert (report["train"]["pairs"], report["train"]["images"], report["overlap"]["captions"]) == (40, 40, 40)
    assert "evaluation on training data" in caplog.text


def test_frozen_features_are_reported_as_their_pairs(world, tmp_path):
    frozen = {"freeze": ["vision", "text"], "feature_cache": tmp_path / "features"}
    train(world, tmp_path / "run", **frozen)
    assert read_report(tmp_path / "run")["train"]["sampled"] == 40


def test_the_image_tokenizers_data_are_told(world, tmp_path):
    train_image_tokenizer(tmp_path / "run", train_data=world.imagefolder)
    assert read_report(tmp_path / "run")["train"]["images"] == 40


@pytest.mark.parametrize("model", ["cots", "image tokenizer"])
def test_a_step_without_a_pair_is_refused(world, folder, tmp_path, model):
    """The stream begins well, and then come 24 images that are not there."""
    rows = [row | {"image": f"gone{i}.png"} if 8 <= i < 32 else row for i, row in enumerate(ROWS)]
    stream = {"train_data": write_json_lines(folder / "s.jsonl", rows), "streaming": True, "shuffle_buffer_size": 1}
    start = partial(train, world) if model == "cots" else train_image_tokenizer
    with pytest.raises(
        ValueError, match=r"s\.jsonl: step 2 has no usable pair, .*gone\d+\.png: no such file; see .*jsonl"
    ):
        start(tmp_path / "run", **stream | {"max_steps": 5})
    assert not (tmp_path / "run" / "model").exists()


def test_a_streams_report_is_of_what_is_known(world, folder, tmp_path):
    path = write_json_lines(folder / "p.jsonl", ROWS)
    train(world, tmp_path / "run", train_data=path, streaming=True, eval_data=path)
    report = read_report(tmp_path / "run")
    assert (report["train"]["pairs"], report["train"]["sampled"]) == (None, 40)
    assert (report["overlap"]["streamed"], report["overlap"]["images"]) == (True, 40)


def test_the_separator_is_a_flag(world, folder, tmp_path):
    path = folder / "p.csv"
    lines = [f"images/{name};{caption};1,2,3" for name, _, caption in all_pairs()]
    path.write_text("\n".join(["image;caption;a, b, c", *lines]) + "\n")
    with pytest.raises(ValueError, match=r"p\.csv, line 1: the separator could be comma or semicolon"):
        train(world, tmp_path / "run", train_data=path)
    train(world, tmp_path / "run", train_data=path, eval_data=path, separator=";")
    assert read_report(tmp_path / "run")["evaluation"]["pairs"] == 40


# ---------------------------------------------------------------------- evaluation


def test_evaluation_tells_its_data(world, folder, tmp_path, caplog):
    rows = [row | {"caption": f"{row['caption']} 猫"} for row in ROWS[:20]]
    path = write_json_lines(folder / "e.jsonl", rows)
    settings = {"resamples": 2, "failures": 0, "output": tmp_path / "r.json", "check_overlap": str(path)}
    with caplog.at_level(logging.INFO):
        EvaluationRun(str(world.model), str(path), **settings).run(lambda report: None)
    report = json.loads((tmp_path / "r.data_report.json").read_text())
    assert (report["evaluation"]["pairs"], report["overlap"]["images"]) == (20, 20)
    assert report["evaluation"]["unknown_tokens"] > 0.2
    assert "of the captions' tokens are unknown to the tokenizer" in caplog.text
    assert "evaluation on training data" in caplog.text


def test_the_console_shows_it(world, folder, tmp_path):
    write_json_lines(folder / "e.jsonl", ROWS[:20])
    command = [
        sys.executable,
        "-m",
        "hf_cots",
        "evaluate",
        str(world.model),
        str(folder / "e.jsonl"),
        "--resamples",
        "2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "20 pairs of 20 images, 1.00 captions per image; of 20 captions 0.0% are cut" in done.stderr
    (folder / "images" / "notes.txt").write_text("x")
    command = [sys.executable, "-m", "hf_cots", "search", str(world.model), str(folder / "images"), "red", "-k", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "skipping 1 files that are not images (.txt)" in done.stderr
    assert len(done.stdout.splitlines()) == 1
