"""The card of a model: with a license, without this machine's paths, and on the Hub whichever way it goes there."""

import re
import tempfile
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModel

from hf_cots import COTSForPreTraining, COTSModel
from hf_cots.models.cards import make_card, read_card
from hf_cots.train import train
from hf_cots.training.names import data_name, loadable_name
from tests.support.hub_stub import hub
from tests.support.processes import ENVIRONMENT, run_python


@pytest.fixture(scope="module")
def trained(world):
    """A model that was trained and evaluated on this machine's files."""
    folder = world.root / "private" / "run"
    train(world.flags(folder, eval_data=world.imagefolder, max_steps=1))
    return folder / "model"


def test_the_card_tells_no_path_and_has_a_license(trained, world):
    for path in trained.glob("*"):
        assert str(world.root).encode() not in path.read_bytes(), path.name
    text = (trained / "README.md").read_text()
    assert "private" not in text
    assert not re.search(r"[\"'` (]/\w", text)
    card = ModelCard(text)
    assert card.data.license == "unknown"
    assert "**None was chosen.**" in text
    assert {result.dataset_name for result in card.data.eval_results} == {world.imagefolder.name}
    assert f"Trained on `{world.imagefolder.name}` for 1 steps" in text


def test_a_license_that_was_chosen(world, tmp_path):
    train(world.flags(tmp_path, max_steps=1, license="cc-by-4.0"))
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert "## License\n\nThe weights: cc-by-4.0." in card.text
    assert "None was chosen" not in card.text


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("org/pairs", "org/pairs"),
        ("emoji", "emoji"),
        ("/home/me/x", "x"),
        ("/home/me/x/", "x"),
        ("../me/pairs.csv", "pairs.csv"),
        ("./pairs.csv", "pairs.csv"),
        ("~/data/shards-{000..100}.tar", "shards-{000..100}.tar"),
        ("data/train-*.parquet", "train-*.parquet"),
        (r"C:\Users\me\pairs.csv", "pairs.csv"),
        ("https://host/private/pairs.csv?token=secret", "pairs.csv"),
        ("the emoji set, training concepts", "the emoji set, training concepts"),
    ],
)
def test_the_name_of_data(data, name):
    assert data_name(data) == name


def test_a_relative_folder_is_no_hub_id(tmp_path, monkeypatch):
    (tmp_path / "me" / "pairs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert data_name("me/pairs") == "pairs"
    assert data_name(".") == tmp_path.name


def test_the_name_in_the_example_loads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = SimpleNamespace(hub_model_id=None)
    assert loadable_name(args, tmp_path / "runs" / "demo" / "model") == "runs/demo/model"
    assert loadable_name(args, tmp_path.parent / "elsewhere" / "model") == "model"
    assert loadable_name(SimpleNamespace(hub_model_id="org/tiny"), tmp_path / "model") == "org/tiny"


PUSH = """
import sys
import hf_cots
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1])
if len(sys.argv) > 2:
    model.save_pretrained(sys.argv[2], push_to_hub=True, repo_id='org/tiny')
else:
    model.push_to_hub('org/tiny')
"""


def pushed(*arguments):
    """The card on the Hub after [`PUSH`]."""
    with hub() as server, tempfile.TemporaryDirectory() as home:
        done = run_python("-c", PUSH, *arguments, env=ENVIRONMENT | server.variables(home))
    assert done.returncode == 0, done.stderr[-3000:]
    return server.files("org/tiny")["README.md"].decode()


def test_push_to_hub_publishes_our_card(trained, tmp_path):
    own = (trained / "README.md").read_text()
    wanted = re.sub(r'from_pretrained\("[^"]*"', 'from_pretrained("org/tiny"', own)
    assert pushed(trained) == wanted
    assert pushed(trained, tmp_path / "copy") == wanted
    assert pushed(trained, trained) == wanted  # onto itself


def test_a_model_without_a_card_gets_a_short_one(trained, tmp_path):
    model = AutoModel.from_pretrained(trained)
    assert type(model) is COTSModel
    model.name_or_path = ""
    model.save_pretrained(tmp_path / "mine")
    card = ModelCard.load(tmp_path / "mine" / "README.md")
    assert card.data.license == "unknown"
    assert "COTS model" in card.text
    assert "**None was chosen.**" in card.text
    (tmp_path / "mine" / "README.md").write_text("my own")
    model.save_pretrained(tmp_path / "mine")
    assert read_card(tmp_path / "mine") == "my own"
    assert 'from_pretrained("org/x"' in make_card(model, "org/x")


def test_a_loaded_model_is_saved_with_its_card_and_a_checkpoint_without(trained, tmp_path):
    AutoModel.from_pretrained(trained).save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / "README.md").read_text() == (trained / "README.md").read_text()
    COTSForPreTraining.from_pretrained(trained).save_pretrained(tmp_path / "checkpoint-100")
    assert not (tmp_path / "checkpoint-100" / "README.md").exists()
