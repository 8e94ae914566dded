"""A run goes on at the next pair with all of its state, or is refused by name; so is a setting without effect."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file

from hf_cots.data.hashes import stable_id
from hf_cots.train import build_trainer
from hf_cots.training.arguments import DVAETrainingArguments, parse_arguments
from hf_cots.training.checkpoints import find_problem, last_checkpoint
from hf_cots.training.image_tokenizer import METRICS
from hf_cots.training.trainer import COTSTrainer
from tests.support.runs import assert_same_weights
from tests.support.worlds import all_pairs, checkpoint


PAIRS = 38
OVERRIDES = {"mvm_weight": 0, "mlm_weight": 0, "filter_lambda": None}


class Witness(COTSTrainer):
    """Records the image ids of each micro-batch."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen: list[list[int]] = []

    def get_batch_samples(self, *args, **kwargs):
        batches, count = super().get_batch_samples(*args, **kwargs)
        self.seen += [batch["image_ids"].tolist() for batch in batches]
        return batches, count


def flat(batches):
    return [pair for batch in batches for pair in batch]


@pytest.fixture(scope="module")
def csv(world):
    """38 pairs, each with an image of its own."""
    path = world.root / "pairs.csv"
    rows = [f"{world.imagefolder.name}/{name},{caption}" for name, _, caption in all_pairs()[:PAIRS]]
    path.write_text("\n".join(["image,caption", *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def start(world, csv):
    """Make a trainer, and train it if `resume` is not "no"."""

    def make(folder, overrides=None, resume=None, dropout=0.0, trains=True, **settings):
        settings = {"train_data": csv, "image_tokenizer": None, "save_strategy": "steps"} | settings
        flags = world.flags(folder, OVERRIDES | (overrides or {}), dropout, **settings)
        trainer = build_trainer(*parse_arguments(flags), Witness)
        if trains:
            trainer.train(resume_from_checkpoint=resume)
        return trainer

    return make


def sizes(micro, accumulation):
    return {"per_device_train_batch_size": micro, "gradient_accumulation_steps": accumulation}


@pytest.fixture(scope="module")
def three_steps(start, world):
    """A checkpoint after three steps of eight."""
    start(world.root / "three", max_steps=3, save_steps=3)
    return world.root / "three" / "checkpoint-3"


# ---------------------------------------------------------------------- the next pair


WAYS = [((8, 1), (4, 2)), ((8, 2), (8, 1)), ((4, 2), (8, 1)), ((16, 1), (5, 1)), ((4, 3), (16, 1)), ((8, 1), (8, 3))]


@pytest.mark.parametrize(("before", "after"), WAYS)
def test_a_stream_goes_on_with_the_next_pair(start, tmp_path, before, after):
    stream = {"streaming": True, "shuffle_buffer_size": 10}
    one = start(tmp_path, max_steps=3, save_steps=3, **stream, **sizes(*before))
    two = start(tmp_path, resume=tmp_path / "checkpoint-3", max_steps=6, save_steps=6, **stream, **sizes(*after))
    seen, step = flat(one.seen) + flat(two.seen), after[0] * after[1]
    assert len(seen) == 3 * before[0] * before[1] + 3 * step
    assert min(map(len, two.seen)) == after[0]
    assert two.state.global_step == 6
    # What this run wrote is as good.
    three = start(tmp_path, resume=tmp_path / "checkpoint-6", max_steps=7, save_strategy="no", **stream, **sizes(2, 1))
    seen += flat(three.seen)
    whole = start(tmp_path / "whole", max_steps=1, save_strategy="no", **stream, **sizes(len(seen), 1))
    assert [seen] == whole.seen


@pytest.mark.parametrize(("before", "after"), WAYS)
@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_epochs_go_on_with_the_next_pair_and_end_with_the_last(start, tmp_path, before, after, stop):
    """Two epochs of 38 pairs, ragged batches included: each pair is seen twice, in the order of the seed."""
    settings = {"max_steps": None, "num_train_epochs": 2}
    one = start(tmp_path, save_steps=stop, **settings, **sizes(*before))
    if not (tmp_path / f"checkpoint-{stop}").is_dir():
        pytest.skip("the run is over by then")
    per_epoch = -(-PAIRS // before[0])
    steps_per_epoch = -(-per_epoch // before[1])
    epoch, steps = divmod(stop, steps_per_epoch)
    done = epoch * per_epoch + steps * before[1]
    two = start(tmp_path, resume=tmp_path / f"checkpoint-{stop}", save_strategy="no", **settings, **sizes(*after))
    seen = flat(one.seen[:done]) + flat(two.seen)
    assert seen == flat(one.seen)
    assert sorted(seen[:PAIRS]) == sorted(seen[PAIRS:]) == sorted(set(seen))
    assert two.state.global_step == two.state.max_steps
    assert two.state.epoch == 2
    assert all(two.seen)


def test_a_fraction_of_an_epoch_is_resumed(start, tmp_path):
    settings = {"max_steps": None, "num_train_epochs": 1.5}
    whole = start(tmp_path, save_steps=6, **settings)
    again = start(tmp_path, resume=tmp_path / "checkpoint-6", save_strategy="no", **settings)
    assert whole.state.max_steps == again.state.max_steps == 8
    assert flat(again.seen) == flat(whole.seen[6:])


def test_a_number_of_steps_may_need_more_epochs_than_at_first(start, tmp_path):
    """Six steps of 16 are in the third epoch; in batches of eight, eight steps would end in the second."""
    start(tmp_path, max_steps=6, save_steps=6, **sizes(8, 2))
    again = start(tmp_path, resume=tmp_path / "checkpoint-6", max_steps=8, save_strategy="no")
    assert again.state.global_step == 8
    assert list(map(len, again.seen)) == [8, 8]


@pytest.mark.parametrize("settings", [{}, {"streaming": True}])
def test_a_finished_run_that_is_resumed_trains_no_further(start, tmp_path, settings, caplog):
    done = start(tmp_path, max_steps=3, save_steps=3, **settings)
    again = start(tmp_path, resume="last", max_steps=3, **settings)
    assert again.seen == []
    assert_same_weights(again.model.state_dict(), done.model.state_dict())
    assert "nothing left to train: 3 of 3 steps are done" in caplog.text


@pytest.mark.parametrize("stop", [2, 5])
def test_a_run_with_cached_gradients_and_dropout_resumes_bit_for_bit(start, tmp_path, stop):
    """Its forwards begin before Trainer loads the random state. An epoch has three steps."""
    settings = {"gradient_cache": True, "max_steps": 6, "save_steps": 1, "dropout": 0.1, **sizes(8, 2)}
    whole = start(tmp_path, {"contrast": "in_batch"}, **settings)
    again = start(tmp_path / "again", {"contrast": "in_batch"}, resume=tmp_path / f"checkpoint-{stop}", **settings)
    assert_same_weights(again.model.state_dict(), whole.model.state_dict())


def test_a_stream_has_an_order_of_its_own_seed(start, tmp_path):
    settings = {"streaming": True, "max_steps": 1, "save_strategy": "no"}
    one, two = (start(tmp_path, data_seed=seed, **settings) for seed in (None, 8))
    assert one.seen != two.seen
    assert start(tmp_path, data_seed=7, **settings).seen == one.seen


def test_a_step_without_any_pair_is_an_error(start, tmp_path, world):
    """The second step's images are broken, behind a first one that is whole."""
    rows = [f"{world.imagefolder}/{name},{caption}" for name, _, caption in all_pairs()[:8]]
    (tmp_path / "broken.png").write_bytes(b"<html>")
    rows += ["broken.png,nothing to see"] * 8
    (tmp_path / "pairs.csv").write_text("\n".join(["image,caption", *rows]) + "\n")
    settings = {"train_data": tmp_path / "pairs.csv", "streaming": True, "shuffle_buffer_size": 1}
    with pytest.raises(ValueError, match=r"used|usable|read"):
        start(tmp_path / "run", max_steps=4, **settings)


# ---------------------------------------------------------------------- all of a checkpoint, or nothing


BEST = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "max_steps": 6}


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 2}, {"freeze": "vision"}])
def test_the_best_model_is_loaded_whole(start, world, tmp_path, settings):
    """Adapters, projections, queues, counters: all of the best step, which is not the last."""
    if "lora_rank" in settings:
        pytest.importorskip("peft")
    states, results = {}, iter([3.0, 1.0, 2.0])

    class Descending(Witness):
        def retrieval(self, pairs):
            states[self.state.global_step] = {n: t.clone() for n, t in self.model.state_dict().items()}
            return {"text_to_image": {"R@1": next(results)}}

    flags = BEST | {"learning_rate": 0.05, "eval_data": world.imagefolder, "image_tokenizer": None} | settings
    trainer = build_trainer(
        *parse_arguments(world.flags(tmp_path, OVERRIDES, **flags, save_strategy="steps")), Descending
    )
    trainer.train()
    assert trainer.state.best_global_step == 2
    assert_same_weights(trainer.model.state_dict(), states[2])
    moved = [name for name in states[2] if not torch.equal(states[2][name], states[6][name])]
    assert any("projection" in name for name in moved)
    assert any("queue" in name for name in moved)


def test_the_card_tells_the_steps_of_the_best_model(start, world, tmp_path):
    from hf_cots.training.publish import describe_training

    trainer = start(tmp_path, eval_data=world.imagefolder, learning_rate=0.3, **BEST)
    steps = trainer.state.best_global_step
    assert describe_training(trainer, "x", "pairs") == f"Trained on `x` for {steps} steps of 8 pairs."


def test_the_best_checkpoint_is_found_where_the_run_was_moved(start, world, tmp_path):
    settings = BEST | {"eval_data": world.imagefolder, "learning_rate": 0.3}
    first = start(tmp_path / "there", **settings)
    best = f"checkpoint-{first.state.best_global_step}"
    shutil.move(tmp_path / "there", tmp_path / "here")
    again = start(tmp_path / "here", resume="last", **settings)
    assert again.state.best_model_checkpoint == str(tmp_path / "here" / best)
    assert_same_weights(again.model.state_dict(), load_file(tmp_path / "here" / best / "model.safetensors"))
    if best != "checkpoint-6":
        shutil.rmtree(tmp_path / "here" / best)
        with pytest.raises(ValueError, match=f"the best checkpoint so far, .*{best}, is missing"):
            start(tmp_path / "here", resume=tmp_path / "here" / "checkpoint-6", **settings)


@pytest.mark.parametrize("resume", ["last", "checkpoint-2"])
def test_weights_alone_are_not_resumed_from(start, tmp_path, resume):
    start(tmp_path, max_steps=2, save_steps=2, save_only_model=True)
    assert not (tmp_path / "checkpoint-2" / "complete.json").exists()
    with pytest.raises(ValueError, match=r"checkpoint-2 has weights but no optimizer .*--save_only_model"):
        start(tmp_path, resume=resume if resume == "last" else tmp_path / resume, max_steps=4)


def test_weights_alone_of_an_older_version_are_not_resumed_from(three_steps, tmp_path):
    """There `complete.json` vouched for them."""
    folder = shutil.copytree(three_steps, tmp_path / "checkpoint-3")
    sizes = json.loads((folder / "complete.json").read_text())
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / name).unlink()
        del sizes[name]
    (folder / "complete.json").write_text(json.dumps(sizes))
    assert "--save_only_model" in find_problem(folder)
    with pytest.raises(ValueError, match="--save_only_model"):
        last_checkpoint(tmp_path)


def test_a_copy_without_one_of_its_files_is_refused_by_its_name(three_steps, tmp_path, caplog):
    folder = shutil.copytree(three_steps, tmp_path / "checkpoint-3")
    names = json.loads((folder / "complete.json").read_text())
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "position.json", "run.json"} <= set(
        names
    )
    for name in names:
        (folder / name).rename(tmp_path / "aside")
        assert f"checkpoint-3/{name} is missing" in find_problem(folder)
        assert last_checkpoint(tmp_path) is None
        assert f"skipping a checkpoint: {folder / name} is missing" in caplog.text
        (tmp_path / "aside").rename(folder / name)
    assert find_problem(folder) is None
    (folder / "complete.json").write_text('{"model.saf')
    assert find_problem(folder) == f"{folder / 'complete.json'} is damaged"


# ---------------------------------------------------------------------- another run


OTHER_RUNS = {
    "seed": ({"seed": 8}, r"--seed is 8 and was 7"),
    "order": ({"data_seed": 8}, r"--data_seed is 8 and was None"),
    "data": ({"train_data": "elsewhere"}, r"--train_data is other data than that of its run \(40 pairs and 38\)"),
    "captions": ({"train_data": "other"}, r"--train_data is other data than that of its run; "),
    "stream": ({"streaming": True}, r"its run did not use --streaming"),
    "rate": ({"learning_rate": 0.1}, r"--learning_rate is 0\.1 and was 0\.001"),
    "decay": ({"weight_decay": 0.1}, r"--weight_decay is 0\.1 and was 0"),
    "optimizer": ({"optim": "sgd"}, r"--optim is \S*sgd"),
    "tower rate": ({"text_learning_rate": 0.1}, r"--text_learning_rate is 0\.1 and was None"),
    "frozen": ({"freeze": "text"}, r"\d+ parameters that its run trained are not trained .*--freeze"),
    "adapters": ({"lora_rank": 2}, r"it contains no LoRA adapters"),
    "architecture": ({"architecture": "simla"}, r"it is of a model of type 'cots', and this run trains .*'simla'"),
    "queue": ({"overrides": {"queue_size": 32}}, r"its tensor key_queue\.\w+ has shape \[24.*\], and this run's \[32"),
    "width": ({"overrides": {"projection_dim": 8}}, r"its tensor \S+ has shape"),
    "contrast": ({"overrides": {"contrast": "in_batch"}}, r"its tensor key_queue\.\w+ is none of this run's model"),
}


@pytest.mark.parametrize("name", OTHER_RUNS)
def test_a_checkpoint_of_another_run_is_refused(start, world, three_steps, tmp_path, name):
    settings, message = OTHER_RUNS[name]
    settings = dict(settings)
    if "lora_rank" in settings:
        pytest.importorskip("peft")
    if settings.get("train_data") == "elsewhere":
        settings["train_data"] = world.imagefolder
    elif "train_data" in settings:
        settings["train_data"] = world.root / "other.csv"
        text = (world.root / "pairs.csv").read_text()
        settings["train_data"].write_text(text.replace("red", "crimson"))
    if settings.get("architecture") == "simla":
        settings |= {"overrides": {"mim_weight": 0}, "leave_out": True}
    overrides = settings.pop("overrides", None)
    if settings.pop("leave_out", False):
        flags = world.flags(tmp_path, None, train_data=world.root / "pairs.csv", image_tokenizer=None, **settings)
        flags[flags.index("--config_overrides") + 1] = json.dumps(overrides | {"projection_dim": 16, "queue_size": 24})
        trainer = build_trainer(*parse_arguments(flags), Witness)
    else:
        trainer = start(tmp_path, overrides, trains=False, **settings)
    with pytest.raises(ValueError, match=rf"cannot resume {three_steps}: {message}") as error:
        trainer.train(resume_from_checkpoint=three_steps)
    assert "\n" not in str(error.value)
    assert trainer.seen == []


def test_adapters_are_resumed_with_adapters_of_their_rank(start, tmp_path):
    pytest.importorskip("peft")
    start(tmp_path, max_steps=1, save_steps=1, lora_rank=2)
    folder = tmp_path / "checkpoint-1"
    for settings, message in (({}, "pass the --lora_rank"), ({"lora_rank": 4}, "--lora_rank is 4 and was 2")):
        with pytest.raises(ValueError, match=message):
            start(tmp_path, resume=folder, max_steps=2, **settings)
    names = json.loads((folder / "complete.json").read_text())
    (folder / "cots_state.safetensors").unlink()
    del names["cots_state.safetensors"]
    (folder / "complete.json").write_text(json.dumps(names))
    with pytest.raises(ValueError, match=r"checkpoint-1 has no cots_state\.safetensors"):
        start(tmp_path, resume=folder, max_steps=2, lora_rank=2)


def test_what_differs_and_may_is_said_in_one_line(start, three_steps, tmp_path, caplog):
    settings = {"max_steps": 5, "lr_scheduler_type": "cosine", "bf16": True, "flip": 0.5, **sizes(4, 1)}
    with caplog.at_level(logging.WARNING):
        start(tmp_path, {"momentum": 0.99}, resume=three_steps, save_strategy="no", **settings)
    (line,) = (record.getMessage() for record in caplog.records if "other settings" in record.getMessage())
    assert "\n" not in line
    for change in (
        *("max_steps 5 (was 3)", "lr_scheduler_type cosine (was linear)", "precision bf16 (was float32)"),
        *("pairs per step 4 (was 8)", "momentum 0.99 (was 0.9)", "flip 0.5 (was 0.0)"),
    ):
        assert change in line


def test_a_run_that_differs_in_nothing_is_resumed_without_a_word(start, three_steps, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        start(tmp_path, resume=three_steps, max_steps=3, save_steps=3)
    assert "other settings" not in caplog.text


def test_a_data_set_that_was_moved_is_the_same(start, world, csv, three_steps, tmp_path):
    shutil.copytree(world.imagefolder, tmp_path / world.imagefolder.name)
    shutil.copy(csv, tmp_path / "renamed.csv")
    again = start(tmp_path, train_data=tmp_path / "renamed.csv", resume=three_steps, max_steps=4, save_strategy="no")
    assert len(again.seen) == 1


def test_checkpoints_of_an_older_version_are_resumed(start, tmp_path, caplog):
    """Without `run.json` and `position.json`; with a position of the stream that counts batches."""
    for name, settings in (("pairs", {}), ("stream", {"streaming": True})):
        folder = tmp_path / name
        whole = start(folder, max_steps=7, save_steps=3, **settings)
        old = folder / "checkpoint-3"
        sizes = json.loads((old / "complete.json").read_text())
        for file in ("run.json", "position.json"):
            (old / file).unlink(missing_ok=True)
            sizes.pop(file, None)
        if name == "stream":
            path = old / "stream_position.json"
            position = json.loads(path.read_text())
            del position["block_size"]
            path.write_text(json.dumps({"batches": 3} | position) + "\n")
            sizes[path.name] = path.stat().st_size
        (old / "complete.json").write_text(json.dumps(sizes))
        again = start(tmp_path / f"{name}-again", resume=old, max_steps=7, save_steps=7, **settings)
        assert again.seen == whole.seen[3:]
        assert_same_weights(again.model.state_dict(), whole.model.state_dict())
    assert "has no position in the data" not in caplog.text
    start(
        tmp_path / "other",
        resume=tmp_path / "pairs" / "checkpoint-3",
        max_steps=4,
        **{"per_device_train_batch_size": 4},
    )
    assert "has no position in the data" in caplog.text


def test_an_optimizer_of_other_parameters_is_refused_though_nothing_else_tells(start, three_steps, tmp_path):
    """A checkpoint of an older version: as many parameters in each group, but of other shapes; or half a file."""
    folder = shutil.copytree(three_steps, tmp_path / "checkpoint-3")
    optimizer = torch.load(folder / "optimizer.pt", weights_only=True)
    first = next(iter(optimizer["state"].values()))
    first["exp_avg"] = torch.zeros(3, 5)
    torch.save(optimizer, folder / "optimizer.pt")
    (folder / "run.json").unlink()
    sizes = {name: (folder / name).stat().st_size for name in ("model.safetensors", "optimizer.pt")}
    (folder / "complete.json").write_text(json.dumps(sizes))
    with pytest.raises(ValueError, match=r"cannot resume .*checkpoint-3: its optimizer has a state of shape \[3, 5\]"):
        start(tmp_path, resume=folder, max_steps=4)
    (folder / "optimizer.pt").write_bytes(b"\x80" * sizes["optimizer.pt"])
    (folder / "complete.json").write_text(json.dumps({"optimizer.pt": sizes["optimizer.pt"]}))
    with pytest.raises(ValueError, match=r"cannot resume .*: its optimizer or scheduler state is damaged"):
        start(tmp_path, resume=folder, max_steps=4)


# ---------------------------------------------------------------------- settings


WITHOUT_EFFECT = [
    *({"label_smoothing_factor": 0.1}, {"train_sampling_strategy": "group_by_length"}, {"fp16": True}),
    *({"train_sampling_strategy": "sequential"}, {"length_column_name": "n"}, {"ignore_data_skip": True}),
    *({"auto_find_batch_size": True}, {"remove_unused_columns": True}, {"ddp_broadcast_buffers": True}),
    *({"dataloader_in_order": False}, {"use_cache": True}, {"do_predict": True}, {"prediction_loss_only": True}),
    *({"eval_accumulation_steps": 2}, {"include_for_metrics": "loss"}, {"batch_eval_metrics": True}),
    *({"bf16_full_eval": True}, {"eval_do_concat_batches": False}, {"hub_strategy": "end"}),
    *({"hub_always_push": True}, {"hub_revision": "x"}, {"accelerator_config": {"split_batches": True}}),
    *({"accelerator_config": {"even_batches": False}}, {"dataloader_drop_last": True, "streaming": True}),
    *({"vision_learning_rate": 0.1, "freeze": "vision"}, {"text_learning_rate": 0.1, "freeze": "text"}),
]


@pytest.mark.parametrize("settings", WITHOUT_EFFECT, ids=str)
def test_a_setting_without_effect_is_refused_by_name(start, tmp_path, settings):
    name = next(iter(settings))
    with pytest.raises(ValueError, match=rf"--{name}") as error:
        start(tmp_path, save_strategy="no", max_steps=1, **settings)
    assert "\n" not in str(error.value)


def test_a_tower_may_have_a_rate_of_zero(start, tmp_path):
    """Not the learning rate of the rest."""
    trainer = start(tmp_path, vision_learning_rate=0, save_strategy="no", max_steps=1, trains=False)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    moved = {name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not any(name.startswith("cots.vision_model") for name in moved)
    assert any(name.startswith("cots.text_model") for name in moved)


def test_the_best_model_is_chosen_by_retrieval(start, world, tmp_path):
    settings = {"eval_data": world.imagefolder, "trains": False}
    args = start(tmp_path, **BEST, **settings).args
    assert (args.metric_for_best_model, args.greater_is_better) == ("text_to_image_R@1", True)
    args = start(tmp_path, **BEST, **settings, metric_for_best_model="eval_image_to_text_median_rank").args
    assert args.greater_is_better is False
    assert start(tmp_path, **settings).args.metric_for_best_model is None
    args = DVAETrainingArguments(str(tmp_path), **BEST, save_strategy="steps", use_cpu=True)
    assert (args.metric_for_best_model, args.greater_is_better) == ("mse", False)


def test_evaluation_reports_what_it_says(start, world, tmp_path):
    trainer = start(tmp_path, eval_data=world.imagefolder, trains=False)
    assert {f"eval_{name}" for name in trainer.metric_names()} == set(trainer.evaluate())
    sets = {"one": trainer.eval_dataset, "two": trainer.eval_dataset}
    trainer.eval_dataset = sets
    assert {f"eval_{name}" for name in trainer.metric_names()} == set(trainer.evaluate())
    assert "one_text_to_image_R@1" in trainer.metric_names()


@pytest.mark.parametrize("metric", ["accuracy", "loss", "R@1", "eval_text_to_image_R@2"])
def test_a_metric_that_evaluation_does_not_report_is_refused(start, world, tmp_path, metric):
    with pytest.raises(ValueError, match=rf"--metric_for_best_model {metric} .*text_to_image_R@1"):
        start(tmp_path, eval_data=world.imagefolder, metric_for_best_model=metric, trains=False, **BEST)


def test_a_best_model_needs_evaluations(start, world, tmp_path):
    with pytest.raises(ValueError, match=r"--load_best_model_at_end needs .* --eval_strategy is no and .* steps"):
        start(tmp_path, load_best_model_at_end=True, trains=False)
    settings = BEST | {"eval_steps": 7, "save_steps": 7, "eval_data": world.imagefolder}
    with pytest.raises(ValueError, match=r"--eval_steps 7 exceeds the 6 steps"):
        start(tmp_path, **settings)


@pytest.mark.parametrize(("metric", "mode"), [(None, "max"), ("text_to_image_mean_rank", "min")])
def test_a_schedule_that_follows_a_metric_knows_which_way_is_better(start, world, tmp_path, metric, mode):
    settings = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 1, "max_steps": 2}
    trainer = start(
        tmp_path, eval_data=world.imagefolder, metric_for_best_model=metric, save_strategy="no", **settings
    )
    assert trainer.lr_scheduler.mode == mode
    best = trainer.lr_scheduler.best
    name = trainer.args.metric_for_best_model
    values = [line[f"eval_{name}"] for line in trainer.state.log_history if f"eval_{name}" in line]
    assert best == pytest.approx(max(values) if mode == "max" else min(values))


def test_image_tokenizers_report_what_they_say():
    assert {"mse", "psnr", "used_codes"} <= METRICS


def test_ids_of_this_world_are_those_of_paths(world):
    """Without which the comparisons of pairs above would prove nothing."""
    ids = {stable_id(f"{world.imagefolder.name}/{name}") for name, _, _ in all_pairs()[:PAIRS]}
    assert len(ids) == PAIRS


def test_a_checkpoint_holds_what_is_compared(three_steps):
    run = json.loads((three_steps / "run.json").read_text())
    assert run["settings"]["seed"] == 7
    assert run["data"]["pairs"] == PAIRS
    assert set(run["trained"]) <= set(checkpoint(three_steps.parent, 3))
    assert json.loads((three_steps / "position.json").read_text()) == {"epoch": 0, "offset": 24}
