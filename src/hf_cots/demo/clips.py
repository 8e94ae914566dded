"""The clip demo: an image model searches clips of unseen concepts, zero-shot and fine-tuned on other clips."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ..data.frozen_features import store_features
from ..data.sets.clips import ROWS_IN_GROUP
from ..data.sources import PairDataset, load_pairs
from ..evaluation.retrieval.directions import rank_both
from ..evaluation.retrieval.report import RetrievalResult, evaluate_encoder
from ..models.losses import l2_normalize
from ..search.encoders import EncodedPairs
from ..search.loading import load_encoder
from ..search.torch_encoders import DualEncoder, to_numpy
from ..train import build_trainer
from ..training.arguments import parse_recipe, read_recipe
from ..training.trainer import COTSTrainer
from .recipe import RECIPES
from .training import is_faster_in_bfloat16


CLIPS = "clips.yaml"
FRAMES = (1, 4, 8, 12)
ZERO_SHOT = "zero-shot"


# Flags for also training the image tower, on crops of the frames.
IMAGE_TOWER = {
    "freeze": ["text"],
    "min_scale": 0.5,
    "flip": 0.0,
    "max_steps": 30,
    "per_device_train_batch_size": 16,
    "vision_learning_rate": 3.0e-5,
}


@dataclass(frozen=True)
class Setting:
    """How clips are read and what is trained on them.

    Args:
        num_frames: frames per clip.
        pooling: "mean" or "attention" over frames; "zero-shot" is the mean with the image model as it is, untrained.
        image_tower: whether the image tower is trained in addition to the projections.
    """

    num_frames: int
    pooling: str
    image_tower: bool = False

    def __str__(self) -> str:
        frames = f"{self.num_frames} frame{'s' if self.num_frames > 1 else ''}"
        if self.pooling == ZERO_SHOT:
            return f"{frames}, {ZERO_SHOT}"
        return f"{frames}, {'image tower and ' if self.image_tower else ''}projections, {self.pooling}"


# With a single frame there is nothing to attend over.
SETTINGS = tuple(
    Setting(frames, pooling)
    for pooling in (ZERO_SHOT, "mean", "attention")
    for frames in FRAMES
    if frames > 1 or pooling != "attention"
)


def load_clips(path: Path, num_frames: int) -> PairDataset:
    """Load the clips of a parquet file of the clip set, with one name each."""
    return load_pairs(path, video_column="video", caption_column="text", image_id_column="text", num_frames=num_frames)


def build_clip_trainer(
    model: str, train_data: Path, folder: Path, setting: Setting, seed: int = 0, **changes: Any
) -> COTSTrainer:
    """Build the trainer of one setting, ready to start.

    Args:
        model: the image model.
        train_data: parquet file of the clip set.
        folder: output folder of all settings, which share the cached frame features in `features/`.
        setting: the setting.
        seed: random seed of the run.
        changes: flags of `hf_cots.train` that replace the recipe's.
    """
    recipe = read_recipe(RECIPES / CLIPS)
    flags: dict[str, Any] = {
        "model": model,
        "train_data": str(train_data),
        "eval_data": None,
        "num_frames": setting.num_frames,
        "output_dir": str(folder / f"{setting.num_frames}-{setting.pooling}"),
        "feature_cache": str(folder / "features"),
        "config_overrides": recipe["config_overrides"] | {"frame_pooling": setting.pooling},
        "seed": seed,
    }
    if setting.image_tower:
        flags |= IMAGE_TOWER | {"bf16": is_faster_in_bfloat16()}
    return build_trainer(*parse_recipe(recipe, **(flags | changes)))


def measure(
    model: str, train_data: Path, test_data: Path, folder: Path, setting: Setting, seed: int = 0, **changes: Any
) -> tuple[RetrievalResult, COTSTrainer | None]:
    """Fine-tune as the setting says (unless it is zero-shot), and evaluate retrieval on the test data in both
    directions.

    Args:
        model, train_data, folder, setting, seed, changes: as for [`build_clip_trainer`].
        test_data: parquet file of the clip set, with concepts that are not in the training data.

    Returns:
        The results, and the finished trainer, if there was any training.
    """
    pairs, trainer = load_clips(test_data, setting.num_frames), None
    if setting.pooling == ZERO_SHOT:
        encoder: Any = load_encoder(model, device="cpu")
    else:
        trainer = build_clip_trainer(model, train_data, folder, setting, seed, **changes)
        trainer.train()
        encoder = DualEncoder(trainer.model.eval().encoder, trainer.processing_class, str(setting))
    if setting.image_tower:
        return evaluate_encoder(encoder, pairs), trainer
    return evaluate_stored(encoder, pairs, folder / "features"), trainer


@torch.no_grad()
def evaluate_stored(encoder: DualEncoder, pairs: PairDataset, folder: Path) -> RetrievalResult:
    """Evaluate as [`evaluate_encoder`], for clips with one name each, from cached features of frames and names, which
    models with the same towers share."""
    model = encoder.model
    features = store_features(model, encoder.processor, pairs, folder).all_features()
    clips = model.visual_projection(model.pool_frames(features["frame_features"]))
    texts, ids = model.text_projection(features["text_features"]), features["image_ids"].numpy()
    rows = list(range(len(ids)))
    images, words = to_numpy(l2_normalize(clips)), to_numpy(l2_normalize(texts))
    encoded = EncodedPairs(images, words, ids, ids, rows, rows, broken=[])
    return RetrievalResult(encoder.name, encoder.fingerprint(), rank_both(encoded), [encoded])


def write_rows(path: Path, table: pa.Table) -> None:
    """Write rows of the clip set as a parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=ROWS_IN_GROUP)
