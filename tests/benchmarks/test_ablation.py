"""The ablation: order and identity of runs, shuffled captions, statistics, and resuming after a kill."""

import io
import itertools
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from benchmarks.ablation.frozen_encoder import FrozenEncoder
from benchmarks.ablation.icons import EMOJI_STYLE, write_icons
from benchmarks.ablation.plan import Recipes, Run
from benchmarks.ablation.results import Results
from benchmarks.ablation.sets import AblationSet, shuffle_fraction
from benchmarks.ablation.summary import bootstrap_interval, markdown, p_value, rsum_by_name
from hf_cots import COTSConfig, COTSModel
from hf_cots.data.frozen_features import TowerFeatures
from hf_cots.data.sources import load_pairs
from hf_cots.search.encoders import encode_pairs
from hf_cots.search.torch_encoders import DualEncoder
from hf_cots.training.arguments import parse_recipe
from tests.benchmarks.support import DIRECTIONS, recorded_line, run_command
from tests.support.embeddings import assert_close, equal
from tests.support.paths import ROOT
from tests.support.processes import ENVIRONMENT
from tests.support.worlds import World, tiny_processor


def emoji_run(row, init="text", batch=32, steps=700, noise=0, seed=0):
    return Run("emoji", init, row, batch, steps, "steps", noise, seed)


@pytest.fixture(scope="module")
def recipes():
    return Recipes()


# ---------------------------------------------------------------------- the plan


def test_every_row_is_a_valid_config(recipes):
    for row in recipes.content["rows"]:
        for batch in recipes.content["batches"]:
            flags = recipes.flags(emoji_run(row, batch=batch))
            overrides = flags["config_overrides"] | {"image_tokenizer_config": {"image_size": 192}}
            assert COTSConfig(**overrides).instance_weight == 1, row


def test_the_baselines_are_what_their_papers_say(recipes):
    rows = recipes.content["rows"]
    off = {"mvm_weight": 0, "mlm_weight": 0, "task_weight": 0, "filter_lambda": None}
    assert rows["clip"] == {"contrast": "in_batch", **off}
    assert rows["siglip"] == {"contrast": "sigmoid", "temperature": 0.1, "initial_logit_bias": -10, **off}
    assert rows["albef"] == {"contrast": "momentum", "center_keys": False, "soft_target_alpha": 0.4, **off}


def test_runs_come_once_with_the_main_question_first(recipes):
    runs = recipes.runs()
    assert len(runs) == len(set(runs)) == len({recipes.key(run) for run in runs})
    first = next(index for index, run in enumerate(runs) if run.init == "frozen_text")
    equal_steps, equal_time = runs[first : first + 6 * 6], runs[first + 6 * 6 : first + 6 * 6 + 6 * 3]
    assert runs[0] == emoji_run("clip", "heads", 16, 600)
    assert equal_steps[0] == emoji_run("clip", "frozen_text", 16, 600)
    assert {run.seed for run in equal_steps[:6]} == {0}, "all rows of a seed before the next seed"
    assert {run.budget for run in equal_steps} == {"steps"}
    assert {run.budget for run in equal_time} == {"time"}
    assert {run.row for run in equal_time} < {run.row for run in equal_steps}
    assert {0, 0.05, 0.1, 0.2} == {run.noise for run in runs}
    assert {16, 32, 128, 256} == {run.batch for run in runs}
    assert not [run for run in runs if run.row == "clip" and run.budget == "time"]


@pytest.mark.parametrize(
    ("card", "init", "row", "steps"),
    [("cots-warm", "heads", "momentum", 600), ("cots-scratch", "frozen_text", "momentum+all", 3000)],
)
def test_the_recipes_for_small_data_are_what_was_measured(recipes, card, init, row, steps):
    published = yaml.safe_load((ROOT / "model_cards" / card / "recipe.yaml").read_text())
    measured = recipes.flags(emoji_run(row, init, 16, steps))
    names = ("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "freeze", "standardize_features")
    for name in names:
        assert published.get(name) == measured.get(name), name
    assert published["per_device_train_batch_size"] == 16
    if init == "frozen_text":
        assert published["max_steps"] == steps
        assert published["vision"] == measured["vision"]
    fields, used = published["config_overrides"], measured["config_overrides"]
    unused = {"soft_target_warmup_steps"}
    if used["filter_lambda"] is None:
        unused |= {"filter_warmup_steps", "similarity_queue_size"}
    default = COTSConfig()
    for name in (set(fields) | set(used)) - unused:
        assert fields.get(name, getattr(default, name)) == used.get(name, getattr(default, name)), name


def test_zero_noise_has_one_key_as_integer_and_float(recipes):
    keys = [recipes.key(emoji_run("clip", noise=noise)) for noise in (0, 0.0, 0.1)]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("recipe_file", "results", "recorded"),
    [("recipes.yaml", "ablation.jsonl", 550), ("cookie.yaml", "cookie_ablation.jsonl", 49)],
)
def test_recorded_runs_are_recognized_after_renames(recipe_file, results, recorded):
    """As many planned runs as at the time of recording: no renamed flag makes a finished run start again."""
    recipes = Recipes(ROOT / "benchmarks" / "ablation" / recipe_file)
    finished = Results(ROOT / "benchmarks" / "results" / results).finished()
    assert sum(recipes.key(run) in finished for run in recipes.runs()) == recorded


def test_a_part_of_the_training_pairs(tmp_path):
    """The same part for all runs, in the order of the set; captions are shuffled within it."""
    rows = [{"file_name": f"{i}.png", "text": f"name {i}"} for i in range(40)]
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    part = AblationSet("emoji", tmp_path, train_pairs=15)
    pairs = [json.loads(line) for line in part.train_file(0, 0).read_text().splitlines()]
    numbers = [int(pair["name"].split()[1]) for pair in pairs]
    assert len(set(numbers)) == 15
    assert numbers == sorted(numbers)
    assert numbers != list(range(15))
    noisy = [json.loads(line) for line in part.train_file(0.4, 0).read_text().splitlines()]
    assert [pair["name"] for pair in noisy] == [pair["name"] for pair in pairs]
    assert {pair["text"] for pair in noisy} == {pair["text"] for pair in pairs}
    assert sum(pair["text"] != pair["name"] for pair in noisy) == 6
    assert len(AblationSet("emoji", tmp_path).train_file(0, 0).read_text().splitlines()) == 40


def test_rows_of_a_group_differ_in_nothing_but_the_config(recipes):
    flags = [recipes.flags(emoji_run(row)) for row in recipes.content["rows"]]
    for one, other in itertools.pairwise(flags):
        assert {**one, "config_overrides": 0} == {**other, "config_overrides": 0}


def test_an_init_may_bring_batch_sizes_of_its_own(recipes):
    warm = recipes.flags(emoji_run("momentum", "warm", 16, 600))
    assert "batches" not in warm
    assert warm["learning_rate"] == recipes.content["inits"]["warm"]["batches"][16]["learning_rate"]
    assert warm["config_overrides"]["queue_size"] == 1024


def test_the_command_line_replaces_a_stages_values(recipes):
    runs = recipes.runs(rows=["clip", "siglip"], batches=[16], seeds=[7], sets=["emoji"], steps=[5])
    assert {run.row for run in runs} == {"clip", "siglip"}
    assert {(run.batch, run.seed, run.set, run.steps) for run in runs} == {(16, 7, "emoji", 5)}
    for name, values in {"rows": ["clip", "sgilip"], "sets": ["coco"], "batches": [7]}.items():
        with pytest.raises(ValueError, match=f"know no {name} '{values[-1]}'"):
            recipes.runs(**{name: values})


def test_another_recipe_is_another_run(recipes):
    run, other = emoji_run("clip"), Recipes()
    assert other.key(run) == recipes.key(run)
    other.content["flags"]["weight_decay"] = 0.1
    assert other.key(run) != recipes.key(run)


# ---------------------------------------------------------------------- noise


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.2])
def test_the_given_fraction_of_captions_is_shuffled(fraction):
    texts = [f"text {i // 2}" for i in range(400)]
    mixed = shuffle_fraction(texts, fraction, seed=1)
    assert sorted(mixed) == sorted(texts)
    assert sum(a != b for a, b in zip(texts, mixed)) == round(400 * fraction)
    assert mixed == shuffle_fraction(texts, fraction, seed=1) != shuffle_fraction(texts, fraction, seed=2)
    assert shuffle_fraction(texts, 0, seed=1) == texts


# ---------------------------------------------------------------------- ranks and statistics


GOOD, BAD = [1] * 60 + [20] * 40, [1] * 20 + [20] * 80  # ranks


def test_names_add_up_to_rsum():
    line = recorded_line("clip", 0, [1, 2, 7, 30, 1])
    assert rsum_by_name(line).sum() == pytest.approx(sum(sum(line["metrics"][d].values()) for d in line["metrics"]))


def test_a_name_of_many_images_counts_once():
    line = recorded_line("clip", 0, [1, 40, 7, 1])
    line["query_ids"] = {direction: [0, 0, 0, 1] for direction in DIRECTIONS}
    assert rsum_by_name(line) == pytest.approx([100 * (1 + 1 + 2) / 3, 300])
    assert "| 66.7 / 66.7 / 83.3 |" in markdown([line])


def test_p_value_equals_all_exchanges():
    differences = np.array([3.0, 1.0, -2.0, 4.0, 0.5, 2.5, -0.5, 1.5])
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=8)]
    exact = np.mean([s >= abs(differences.sum()) - 1e-9 for s in sums])
    assert p_value(differences) == pytest.approx(exact, abs=0.015)
    assert p_value(np.zeros(5)) == 1


def test_the_interval_covers_names_and_seeds():
    generator = np.random.default_rng(0)
    one_seed = generator.normal(1, 1, (1, 400)) / 400
    low, high = bootstrap_interval(one_seed)
    assert low < one_seed.sum() < high
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(400), rel=0.15)
    spread = np.stack([one_seed[0] - 1 / 400, one_seed[0] + 1 / 400])
    wide = bootstrap_interval(spread)
    assert wide[1] - wide[0] > 3 * (high - low), "seeds that differ widen it"


def test_the_summary_compares_with_clip_on_the_same_seeds():
    lines = [recorded_line("clip", seed, BAD) for seed in (0, 1)]
    lines += [recorded_line("momentum", seed, GOOD) for seed in (0, 1, 2)]
    lines += [recorded_line("momentum", 0, BAD, budget="time")]
    text = markdown(lines)
    sections = text.split("## ")[1:]
    assert len(sections) == 2
    rows = [row.split(" | ") for row in sections[0].splitlines() if row.startswith("| ")][1:]
    assert [row[0] for row in rows] == ["| momentum", "| clip"]
    assert rows[0][1] == "3"
    assert rows[0][7].startswith("+240.0 [")
    assert float(rows[0][8]) < 0.01
    assert rows[1][7] == ""
    assert "the time of 10 steps of clip" in sections[1]
    assert "| clip |" in sections[1], "CLIP's own steps are its time"


def test_seconds_of_the_clock_are_not_averaged_with_the_processors():
    """Lines of earlier runs have only the clock's, which other load changes."""
    lines = [recorded_line("clip", seed, BAD) for seed in (0, 1)] + [recorded_line("momentum", 0, GOOD)]
    lines[0]["processor_seconds"] = 3.0
    rows = [row.split(" | ") for row in markdown(lines).splitlines() if row.startswith("| ")]
    assert [row[3] for row in rows] == ["CPU seconds", "-", "3"]


def test_batches_of_all_sizes_are_compared_with_the_largest_of_clip():
    """Where they saw as many pairs: 600 steps of 16 and 38 of 256, not 1,200 of 16."""
    lines = [recorded_line("clip", seed, BAD, batch=256, steps=38) for seed in (0, 1)]
    runs = (("clip", GOOD, 600), ("momentum", GOOD, 600), ("momentum", GOOD, 1200), ("clip", BAD, 1200))
    lines += [recorded_line(row, 0, ranks, batch=16, steps=steps) for row, ranks, steps in runs]
    sections = [part for part in markdown(lines).split("## ") if "batches of all sizes" in part]
    assert len(sections) == 1
    rows = [row.strip("| ").split(" | ") for row in sections[0].splitlines() if row.startswith("| ")][1:]
    assert sections[0].startswith("emoji, text, 10,000 pairs")
    assert [row[:4] for row in rows] == [
        ["clip", "16", "600", "1"],
        ["momentum", "16", "600", "1"],
        ["clip", "256", "38", "2"],
    ]
    assert all(row[5].startswith("+240.0 [") for row in rows[:2])
    assert len(rows[2]) == 5, "not with itself"


# ---------------------------------------------------------------------- the file of results, and the command


def test_a_torn_line_is_skipped_and_the_next_is_intact(tmp_path):
    results = Results(tmp_path / "deep" / "results.jsonl")
    results.append({"run": "a"})
    with open(results.path, "a") as file:
        file.write('{"run": "b", "me')
    assert results.finished() == {"a"}
    results.append({"run": "c"})
    assert results.finished() == {"a", "c"}


ROWS = ("clip", "siglip", "albef", "momentum+all")
CHOSEN = [word for row in ROWS for word in ("--row", row)] + ["--noise", "0.2"]


def smoke_run(work, results, *options):
    return ["run", "--smoke", "--work", str(work), "--results", str(results), "--init", "tiny", *options]


def test_a_killed_command_resumes(work, tmp_path):
    """Killed after its first line, it repeats nothing; a third call has nothing to do; the lines are complete."""
    results = tmp_path / "results.jsonl"
    arguments = smoke_run(work, results, *CHOSEN)
    command = [sys.executable, "-m", "benchmarks.ablation", *arguments]

    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (results.is_file() and results.read_text().endswith("\n")) and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = results.read_text()
    assert first.count("\n") < 5
    run_command(*arguments)
    assert results.read_text().startswith(first)
    lines = Results(results).lines()
    recipes = [(line["recipe"]["row"], line["recipe"]["budget"], line["recipe"]["steps"]) for line in lines]
    assert len(recipes) == len(set(recipes)) == len({line["run"] for line in lines})
    assert {row for row, _, _ in recipes} == set(ROWS)
    again = run_command(*arguments)
    assert f"{len(lines)} runs, {len(lines)} of them in" in again
    for line in lines:
        assert len(line["commit"]) == 40
        assert line["machine"]["cores"] >= 1
        for direction, ranks in line["ranks"].items():
            assert len(ranks) == len(line["query_ids"][direction]) == line["metrics"][direction]["queries"] > 5
            assert line["metrics"][direction]["R@10"] == pytest.approx(100 * np.mean(np.array(ranks) <= 10))
        assert ("token_gain" in line) == (line["recipe"]["row"] == "momentum+all")
        assert line["losses"]["loss_instance"] > 0
        assert line["noise"]["planted"] == round(0.2 * line["data"]["train"])
        assert len(line["noise"]["filter"]) == 10
        assert 0 <= line["noise"]["audit_precision"] <= 1
    assert json.dumps(lines)
    assert "precision of the audit" in markdown(lines)


def test_no_run_starts_that_cannot_end_in_time(work, tmp_path):
    results = tmp_path / "results.jsonl"
    assert "time is up" in run_command(*smoke_run(work, results, "--row", "clip", "--minutes", "0.01"))
    assert not results.exists()


# ---------------------------------------------------------------------- fine-tuning


def test_rows_of_fine_tuning_set_flags():
    recipes = Recipes(ROOT / "benchmarks" / "ablation" / "fine_tuning.yaml")
    runs = recipes.runs()
    assert len(runs) == len({recipes.key(run) for run in runs})
    for run in runs + recipes.runs(smoke=True):
        flags = recipes.flags(run)
        paths = {"train_data": "pairs", "output_dir": "runs/x"}
        model, _, training = parse_recipe(flags | paths)
        assert model.config_overrides["contrast"] == ("in_batch" if run.row == "clip" else "momentum")
        assert training.max_steps == run.steps
    (frozen,) = {tuple(recipes.flags(run)["freeze"]) for run in runs if run.row == "half_frozen"}
    assert frozen == ("text:3", "vision:6")
    assert not any("freeze" in recipes.flags(run) for run in runs if run.row == "momentum")


def test_icons_are_the_first_of_the_set_with_three_galleries(tmp_path):
    def write(path, **columns):
        size = len(next(iter(columns.values())))
        buffer = io.BytesIO()
        images = []
        for shade in range(size):
            buffer.seek(0)
            Image.new("RGB", (4, 4), (shade, 0, 0)).save(buffer, "PNG")
            images.append({"bytes": buffer.getvalue(), "path": None})
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"image": images, **columns}), path)

    made = tmp_path / "icons"
    write(made / "train.parquet", name=["star", "home", "star", "bell", "cat"])
    write(made / "test.parquet", name=["dog", "cow"])
    write(made / "test_new_styles.parquet", name=["star", "snail", "bell"])
    styles = [EMOJI_STYLE, "fluent-emoji", EMOJI_STYLE]
    write(made / "emoji" / "test_new_styles.parquet", text=["a", "b", "c"], style=styles)
    write_icons(tmp_path / "set", 3, made)
    write_icons(tmp_path / "set", None, made)
    data = AblationSet("icons", tmp_path / "set", 3)
    assert load_pairs(str(data.train_file(0, 0)), caption_column="text").table["name"][:] == ["star", "home", "star"]
    assert len(load_pairs(str(replace(data, train_pairs=None).train_file(0, 0)), caption_column="text")) == 5
    names = {label: gallery.table["text"][:] for label, gallery in data.galleries().items()}
    assert names == {"": ["dog", "cow"], "unseen styles": ["star", "bell"], "emoji": ["a", "c"]}
    assert data.galleries()["unseen styles"][1]["image"].getpixel((0, 0)) == (2, 0, 0)
    with pytest.raises(ValueError, match="not shuffled"):
        data.train_file(0.1, 0)
    with pytest.raises(FileNotFoundError, match="make icons"):
        write_icons(tmp_path / "other", 3, tmp_path / "nothing")


def test_other_galleries_have_tables_of_their_own():
    line = recorded_line("clip", 0, [1, 20])
    results = {name: line[name] for name in ("metrics", "ranks", "query_ids")}
    line["other_galleries"] = {"unseen styles": results | {"ranks": {d: [1, 1] for d in line["ranks"]}}}
    text = markdown([line])
    assert "## emoji, text, batch 32" in text
    assert "## emoji: unseen styles, text, batch 32" in text
    assert "600.0 [" in text


def test_galleries_are_encoded_from_stored_features(tmp_path, monkeypatch):
    world = World(tmp_path)
    vision, text = world.towers()
    model = COTSModel.from_vision_text_pretrained(str(vision), str(text), projection_dim=16).eval()
    pairs, processor = load_pairs(str(world.imagefolder)), tiny_processor()
    encoder = FrozenEncoder(model, TowerFeatures(model, processor, world.root / "features"))
    first, plain = encode_pairs(encoder, pairs), encode_pairs(DualEncoder(model, processor), pairs)
    monkeypatch.setattr(COTSModel, "encode_image", None)
    monkeypatch.setattr(COTSModel, "encode_text", None)
    again = encode_pairs(encoder, pairs)
    for kind in ("image_embeds", "text_embeds"):
        assert equal(getattr(first, kind), getattr(again, kind))
        assert_close(getattr(first, kind), getattr(plain, kind), rtol=1e-4, atol=1e-5)
