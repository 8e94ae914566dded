"""The working folder that README, docs and examples assume, with tiny models in place of real ones."""

from pathlib import Path

import torch
import yaml

from hf_cots import COTSForPreTraining, COTSModel
from tests.support.clip import make_clip
from tests.support.simla_world import simla_folder
from tests.support.worlds import World, tiny_processor


RECIPE = {
    "vision": "google/vit-base-patch16-224",
    "text": "google-bert/bert-base-uncased",
    "image_tokenizer": "my_tokenizer",
    "train_data": "my_pairs",
    "output_dir": "runs/recipe",
    "max_steps": 2,
    "per_device_train_batch_size": 20,
}


def make_user_folder(world: World, folder: Path) -> None:
    """Link data and models into an empty folder, under the names that the texts use."""
    vision, text = world.towers()
    links = dict.fromkeys(("my_pairs", "my_test_pairs", "my_validation_pairs", "my_photos"), world.imagefolder)
    links |= {"my_model": world.model, "my_simla": simla_folder(world), "my_tokenizer": world.image_tokenizer}
    links |= {"google/vit-base-patch16-224": vision, "google-bert/bert-base-uncased": text}
    links |= {"openai/clip-vit-base-patch32": clip_folder(world), "my_checkpoint": checkpoint_folder(world)}
    links |= {"my_frozen_text_cots": mean_folder(world)}
    for name, target in links.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(target, target_is_directory=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (folder / "my_translations.tsv").write_text(
        "english\ttranslation\tlanguage\nred circle\troter Kreis\tde\nred circle\tcercle rouge\tfr\n"
    )
    (folder / "sts.csv").write_text(
        "sentence1,sentence2,score\na red circle,red circle,5\na red circle,black,1\nred,green,0\n"
    )
    first = sorted(world.imagefolder.glob("*.png"))
    (folder / "photo.png").symlink_to(first[0])
    for i, path in enumerate(first[:8]):
        link = folder / "images_by_class" / ("a", "b")[i % 2] / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)


def mean_folder(world: World) -> Path:
    """An untrained COTS that takes the mean of its text tower's tokens."""
    folder = world.root / "mean"
    if not folder.is_dir():
        towers = map(str, world.towers())
        COTSModel.from_vision_text_pretrained(*towers, text_pooling="mean", mask_token_id=4).save_pretrained(folder)
        tiny_processor().save_pretrained(folder)
    return folder


def checkpoint_folder(world: World) -> Path:
    """A COTS checkpoint of pre-training with all its heads."""
    folder = world.root / "checkpoint"
    if not folder.is_dir():
        ids = {"mask_token_id": 4, "special_token_ids": [0, 1, 2, 3, 4]}
        towers = map(str, world.towers())
        model = COTSForPreTraining.from_vision_text_pretrained(*towers, str(world.image_tokenizer), **ids)
        model.save_pretrained(folder)
        tiny_processor().save_pretrained(folder)
    return folder


def clip_folder(world: World) -> Path:
    """An untrained CLIP of transformers."""
    folder = world.root / "clip"
    if not folder.is_dir():
        torch.manual_seed(3)
        make_clip(folder)
    return folder
