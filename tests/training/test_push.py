"""`--push_to_hub` uploads the deployable model, card included, and none of the training state."""

import json
import os
import subprocess
import sys

from tests.support.hub_stub import hub
from tests.support.worlds import World


def run(module, flags):
    """What is on the Hub afterwards."""
    with hub() as (endpoint, uploaded):
        settings = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_test", "NO_PROXY": "127.0.0.1"}
        done = subprocess.run(
            [sys.executable, "-m", module, *flags],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            timeout=200,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    return uploaded


def test_training_ends_with_the_model_on_the_hub(tmp_path):
    world = World(tmp_path)
    flags = world.flags(tmp_path / "run", max_steps=1, push_to_hub=True, hub_model_id="org/tiny")
    uploaded = run("hf_cots.train", flags)
    local = {path.name: path.read_bytes() for path in (tmp_path / "run" / "model").iterdir()}
    assert uploaded["org/tiny"].items() >= local.items()
    assert {"README.md", "model.safetensors", "modeling_cots.py", "processor_config.json"} <= set(local)
    assert list(uploaded) == ["org/tiny"]
    assert not any("checkpoint" in name or "optimizer" in name for name in uploaded["org/tiny"])


def test_an_image_tokenizer_goes_to_the_hub_too(tmp_path):
    pictures = World(tmp_path).imagefolder
    config = {"image_size": 32, "codebook_size": 16, "hidden_size": 4, "decoder_input_size": 4, "blocks_per_group": 1}
    settings = {"config": json.dumps(config), "train_data": pictures, "eval_data": pictures, "max_steps": 1}
    settings |= {"output_dir": tmp_path / "run", "report_to": "none", "use_cpu": True}
    settings |= {"push_to_hub": True, "hub_model_id": "org/tiny-dvae"}
    uploaded = run(
        "hf_cots.train_dvae", [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    )
    local = {path.name: path.read_bytes() for path in (tmp_path / "run" / "model").iterdir()}
    assert {"README.md", "model.safetensors", "modeling_dvae.py", "reconstructions.png"} <= set(local)
    assert uploaded["org/tiny-dvae"].items() >= local.items()
    assert list(uploaded) == ["org/tiny-dvae"]
    assert not any("checkpoint" in name or "optimizer" in name for name in uploaded["org/tiny-dvae"])
