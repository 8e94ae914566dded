"""`--push_to_hub` uploads the model for inference, card included, and none of the training state."""

from hf_cots.training.arguments import to_flags
from tests.support.hub_stub import hub
from tests.support.processes import ENVIRONMENT, run_python
from tests.support.tiny import TINY_IMAGE_TOKENIZER


def push(module, flags, folder):
    """Run a program and return the names of the files in `folder/model`, all of which must be on the Hub unchanged."""
    with hub() as server:
        flags = (*flags, "--push_to_hub", "--hub_model_id", "org/tiny")
        done = run_python("-m", module, *flags, env=ENVIRONMENT | server.variables(folder / "home"))
    assert done.returncode == 0, done.stderr[-3000:]
    local = {path.name: path.read_bytes() for path in (folder / "model").iterdir()}
    assert server.files("org/tiny").items() >= local.items()
    assert list(server.repositories) == ["org/tiny"]
    assert not any("checkpoint" in name or "optimizer" in name for name in server.files("org/tiny"))
    return set(local)


def test_training_ends_with_the_model_on_the_hub(world, tmp_path):
    files = push("hf_cots.train", world.flags(tmp_path, max_steps=1), tmp_path)
    assert {"README.md", "model.safetensors", "modeling_cots.py", "processor_config.json"} <= files


def test_an_image_tokenizer_goes_to_the_hub_too(world, tmp_path):
    settings = {
        "config": TINY_IMAGE_TOKENIZER,
        "train_data": world.imagefolder,
        "eval_data": world.imagefolder,
        "max_steps": 1,
    }
    settings |= {"output_dir": tmp_path, "report_to": "none", "use_cpu": True}
    files = push("hf_cots.train_dvae", to_flags(settings), tmp_path)
    assert {"README.md", "model.safetensors", "modeling_dvae.py", "reconstructions.png"} <= files
