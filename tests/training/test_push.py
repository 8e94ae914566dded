"""`--push_to_hub` uploads the deployable model, card included, and none of the training state."""

import os
import subprocess
import sys

from tests.models.hub_stub import hub
from tests.worlds import World


def test_training_ends_with_the_model_on_the_hub(tmp_path):
    world = World(tmp_path)
    flags = world.flags(tmp_path / "run", max_steps=1, push_to_hub=True, hub_model_id="org/tiny")
    with hub() as (endpoint, uploaded):
        settings = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_test", "NO_PROXY": "127.0.0.1"}
        done = subprocess.run(
            [sys.executable, "-m", "hf_cots.train", *flags],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            timeout=200,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    local = {path.name: path.read_bytes() for path in (tmp_path / "run" / "model").iterdir()}
    assert uploaded["org/tiny"].items() >= local.items()
    assert {"README.md", "model.safetensors", "modeling_cots.py", "processor_config.json"} <= set(local)
    assert list(uploaded) == ["org/tiny"]
    assert not any("checkpoint" in name or "optimizer" in name for name in uploaded["org/tiny"])
