"""A corpus with damaged images trains to the end, and its report names each of them once."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest
from PIL import Image

import hf_cots.train
from hf_cots.data.hashes import stable_id
from hf_cots.training.trainer import COTSTrainer
from tests.support.worlds import all_pairs, draw, log_history, write_broken_images


def write_odd_images(folder: Path) -> dict[str, str]:
    """Two images that are not what they seem, but can be used."""
    frames = [draw(color, "square", "left") for color in ("red", "green", "black")]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "photo.jpg", "PNG")
    return {"animated.gif": "animated: the first of 3 frames is used", "photo.jpg": "PNG under the name of .jpg"}


@pytest.fixture
def unreadable(monkeypatch):
    """For root, who may read everything: an `Image.open` that respects the permissions."""
    original = Image.open

    def strict_open(source, *args, **kwargs):
        if isinstance(source, Path) and source.is_file() and not source.stat().st_mode & 0o444:
            raise PermissionError(13, "Permission denied", str(source))
        return original(source, *args, **kwargs)

    if os.geteuid() == 0:
        monkeypatch.setattr(Image, "open", strict_open)


class Witness(COTSTrainer):
    """Records the ids of the images that it trains on."""

    shown: set[int]

    def get_batch_samples(self, *args, **kwargs):
        batches, count = super().get_batch_samples(*args, **kwargs)
        for batch in batches:
            type(self).shown |= set(batch["image_ids"].tolist())
        return batches, count


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corpus_with_ten_kinds_of_damage_trains_to_the_end(world, tmp_path, monkeypatch, unreadable, workers):
    """500 images, of which 10 are damaged, each in its own way."""
    if workers and os.geteuid() == 0 and multiprocessing.get_start_method() != "fork":
        pytest.skip("root's workers would not inherit the permissions that the test sets")
    folder = tmp_path / "corpus"
    folder.mkdir()
    damaged = write_broken_images(folder)
    del damaged["folder.png"]
    draw("red", "circle", "top").save(folder / "secret.png")
    (folder / "secret.png").chmod(0)
    damaged["secret.png"] = "Permission"
    odd = write_odd_images(folder)
    assert len(damaged) + len(odd) == 10
    names = []
    for i in range(490):
        name, image, _ = all_pairs()[i % 40]
        names.append(f"{i}-{name}")
        image.save(folder / names[-1])
    for i, name in enumerate([*damaged, *odd]):
        names.insert(47 * i + 20, name)
    lines = [f"{name},image {i}" for i, name in enumerate(names)]
    (folder / "pairs.csv").write_text("\n".join(["image,caption", *lines]) + "\n")

    monkeypatch.setattr(hf_cots.train, "COTSTrainer", Witness)
    Witness.shown = set()
    out = tmp_path / "out"
    settings = {"train_data": folder / "pairs.csv", "num_train_epochs": 2, "max_steps": None, "logging_steps": 5}
    settings |= {"per_device_train_batch_size": 50, "dataloader_num_workers": workers, "save_strategy": "epoch"}
    hf_cots.train.train(world.flags(out, **settings))

    report = [json.loads(line) for line in (out / "broken_images.jsonl").read_text().splitlines()]
    assert sorted(Path(line["image"]).name for line in report) == sorted([*damaged, *odd])
    for line in report:
        name = Path(line["image"]).name
        assert line["used"] == (name in odd)
        assert (damaged | odd)[name] in line["reason"]
    assert Witness.shown == {stable_id(name) for name in names if name not in damaged}
    assert log_history(out, 20)[-1]["epoch"] == 2
    assert [line["broken_images"] for line in log_history(out, 20) if "loss" in line][-1] == len(damaged)
