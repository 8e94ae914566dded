"""What a training leaves beside its model for the card, and the card that is made of it."""

import json
import shutil
import sys
from types import SimpleNamespace

import datasets
import pytest
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoModel

from hf_cots.data.sources import PairDataset
from hf_cots.evaluation.rendering.panels import RIGHT, draw_queries
from hf_cots.evaluation.rendering.training_curves import draw_losses
from hf_cots.models.cards import RECORDS
from hf_cots.train import train
from hf_cots.training.model_card import refresh_results
from hf_cots.training.publish import forget_origin
from hf_cots.training.record import find_license, write_record
from tests.support.cli import succeed


@pytest.fixture(scope="module")
def run(world):
    """A run with evaluation, and what it returned."""
    folder = world.root / "run"
    results = train(world.flags(folder, max_steps=4, eval_data=world.imagefolder))
    return SimpleNamespace(folder=folder / "model", results=results)


@pytest.fixture
def model(run, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(run.folder, tmp_path / "model")


def test_the_card_tells_what_was_recorded(run, world):
    record = json.loads((run.folder / "training.json").read_text())
    text = (run.folder / "README.md").read_text()
    assert record["data"] | {"dropped": {}} == {
        **{"name": world.imagefolder.name, "license": None, "pairs": 40, "images": 40},
        **{"captions_per_image": 1.0, "dropped": {}},
    }
    assert record["overlap"] == {"pairs": 40, "captions": 40, "images": 40, "streamed": False}
    assert (record["seed"], record["precision"], record["processes"]) == (7, "float32", 1)
    assert 0 <= record["filter"] <= 1
    for told in (
        f"| data | `{world.imagefolder.name}`: 40 pairs of 40 images |",
        "| overlap | 40 of 40 evaluation pairs have a caption of the training data, 40 an image |",
        f"| left out by the filter | {100 * record['filter']:.1f}% of the pairs at the end |",
        f"| precision, seed | float32, {record['seed']} |",
        f"torch {record['packages']['torch']}, transformers {record['packages']['transformers']}",
        "`hf-cots train recipe.yaml` trains it again",
        "(losses.png)",
        "(queries.png)",
        "they name no license",
    ):
        assert told in text, told


def test_results_have_the_intervals_of_an_evaluation(run, world, tmp_path):
    """The same figures as of `hf-cots evaluate` with the saved model."""
    report = json.loads((run.folder / "results.json").read_text())
    succeed("evaluate", run.folder, world.imagefolder, "--split", "train", "--output", tmp_path / "results.json")
    again = json.loads((tmp_path / "results.json").read_text())
    for direction in ("text_to_image", "image_to_text"):
        assert report[direction] == again[direction]
        assert {name: report[direction][name] for name in run.results[direction]} == run.results[direction]
        row = report[direction]
        cell = f"{row['R@5']:.1f} [{row['intervals']['R@5'][0]:.1f}, {row['intervals']['R@5'][1]:.1f}]"
        assert f"| {direction.replace('_', ' ')} | " in (run.folder / "README.md").read_text()
        assert cell in (run.folder / "README.md").read_text()
    assert report["chance"] == again["chance"]


def test_a_later_evaluation_goes_into_the_card(model, world):
    before = (model / "README.md").read_text()
    refresh_results(model)
    assert (model / "README.md").read_text() == before
    succeed(
        "evaluate", model, world.parquet, "--split", "train", "--resamples", "9", "--output", model / "results.json"
    )
    refresh_results(model)
    card = ModelCard.load(model / "README.md")
    assert "On `pairs.parquet`, in percent" in card.text
    assert {result.dataset_name for result in card.data.eval_results} == {"pairs.parquet"}
    assert str(world.root) not in (model / "README.md").read_text()


def test_a_card_without_marks_stays(model):
    (model / "README.md").write_text("---\nlicense: mit\n---\n\nmy own\n")
    refresh_results(model)
    assert (model / "README.md").read_text() == "---\nlicense: mit\n---\n\nmy own\n"


@pytest.mark.parametrize("text", ["{", "{}", '{"accuracy": 1}'])
def test_results_of_something_else_are_named(model, text):
    (model / "results.json").write_text(text)
    with pytest.raises(ValueError, match=r"results\.json"):
        refresh_results(model)


def test_a_run_without_evaluation_shows_none_of_an_earlier_one(run, world, tmp_path):
    shutil.copytree(run.folder, tmp_path / "model")
    train(world.flags(tmp_path, max_steps=1))
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert files >= {"training.json", "losses.png", "recipe.yaml"}
    assert not files & {"results.json", "queries.png"}
    assert "Not evaluated." in (tmp_path / "model" / "README.md").read_text()


def test_records_go_with_a_copy_of_the_card_and_not_with_what_is_trained_on(run, tmp_path):
    model = AutoModel.from_pretrained(run.folder)
    model.save_pretrained(tmp_path / "copy")
    for name in set(RECORDS) - {"reconstructions.png"}:
        assert (tmp_path / "copy" / name).read_bytes() == (run.folder / name).read_bytes()
    forget_origin(model, tmp_path / "trained")
    model.save_pretrained(tmp_path / "trained")
    assert not {path.name for path in (tmp_path / "trained").iterdir()} & set(RECORDS)


def test_a_truncated_model_has_no_results(run, tmp_path):
    succeed("convert", "truncate", run.folder, "--dim", "8", "--output", tmp_path / "small")
    refresh_results(tmp_path / "small")
    card = ModelCard.load(tmp_path / "small" / "README.md")
    assert card.data.eval_results is None
    assert "Embeddings of the first 8 of 16 dimensions" in card.text


def test_without_matplotlib_there_are_no_curves(run, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "hf_cots.evaluation.rendering.training_curves", None)
    history = [{"step": 1, "loss_instance": 1.0}, {"step": 1, "train_runtime": 2.0}]
    args = SimpleNamespace(output_dir=tmp_path, resume_from_checkpoint=None, seed=0, bf16=True, fp16=False)
    args.world_size, args.device = 2, "cpu"
    trainer = SimpleNamespace(args=args, state=SimpleNamespace(log_history=history), train_dataset=None)
    record = write_record(tmp_path, trainer, "x")
    assert not (tmp_path / "losses.png").exists()
    assert "no loss curves" in caplog.text
    assert (record["seconds"], record["precision"], record["processes"]) == (2.0, "bfloat16", 2)
    assert "filter" not in record
    args.resume_from_checkpoint = "checkpoint-1"
    assert write_record(tmp_path, trainer, "x")["seconds"] is None


def test_the_license_of_data(tmp_path, monkeypatch):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    rows = {"image": ["a.png"], "caption": ["a"]}
    table = datasets.Dataset.from_dict(rows)
    assert find_license(PairDataset(table, root=tmp_path)) is None
    (tmp_path / "LICENSES.md").write_text("many")
    assert find_license(PairDataset(table, root=tmp_path)) == "see LICENSES.md of the data"
    named = datasets.Dataset.from_dict(rows, info=datasets.DatasetInfo(license="cc-by-4.0"))
    assert find_license(PairDataset(named, root=tmp_path)) == "cc-by-4.0"
    monkeypatch.chdir(tmp_path)  # where a program's own license may lie
    assert find_license(PairDataset(table)) is None
    assert find_license(None) is None


@pytest.mark.parametrize(
    "terms", [["loss_itc", "loss_itm"], ["reconstruction_loss", "kl", "used_codes"], ["loss_visual"]]
)
def test_curves_of_every_kind_of_run(tmp_path, terms):
    history = [{"step": step, **dict.fromkeys(terms, 1.0 / step), "loss_mvm": 0.0} for step in (1, 2, 3)]
    assert draw_losses(history, tmp_path / "a.png")
    columns = Image.open(tmp_path / "a.png").width / (13.3 / 4 * 150)
    assert columns == pytest.approx(len(terms), abs=0.05)
    assert not draw_losses([{"step": 1, "loss_mvm": 0.0}], tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()


def test_a_sheet_frames_what_is_right():
    red = Image.new("RGB", (10, 20), "red")
    sheet = draw_queries(
        [("a text", [("1", red, False), ("2", red, True)]), ("b", [("1", red, False)])], side=50, gap=8
    )
    columns = {x for x in range(sheet.width) for y in range(sheet.height) if sheet.getpixel((x, y)) == RIGHT}
    assert (min(columns), max(columns)) == (260 + 58 - 3, 260 + 58 + 52)
