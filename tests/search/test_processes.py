"""Two processes that make an index together, against one."""

import json
import shutil

import numpy as np
import pytest

from hf_cots import ImageIndex
from tests.support.embeddings import assert_close
from tests.support.paths import SCRIPTS
from tests.support.pixel_encoder import change_folder, write_folder
from tests.support.processes import torchrun


@pytest.mark.timeout(120)
def test_two_processes_make_the_index_of_one(world, tmp_path):
    """Bit for bit where their batches are those of one process, as they are where all images are new and readable."""
    photos = write_folder(tmp_path / "photos", 30)
    alone, output = shutil.copytree(photos, tmp_path / "alone"), tmp_path / "output"
    output.mkdir()
    errors = torchrun(2, SCRIPTS / "index_ranks.py", world.model, photos, output)
    assert (output / "counts.json").is_file(), errors[-4000:]
    counts = json.loads((output / "counts.json").read_text())
    for i, step in enumerate(("build", "update")):
        if step == "update":
            change_folder(alone)
        index = ImageIndex.build(str(world.model), alone, tmp_path / "index", batch_size=4, device="cpu")
        assert counts[i] == index.summary.counts()
        for rank in (0, 1):
            embeds = np.load(output / f"{step}-{rank}.npy")
            assert_close(embeds, index.embeds, rtol=0, atol=0 if step == "build" else 1e-6)
    assert counts[0]["encoded"] == 30
    expected = {"added": 10, "changed": 1, "moved": 1, "deleted": 1, "encoded": 10, "unchanged": 27, "broken": 1}
    assert counts[1] == expected
    both = ImageIndex.open(output / "index", device="cpu")
    assert [path.relative_to(photos) for path in both.paths] == [path.relative_to(alone) for path in index.paths]
    assert [image.reason for image in both.broken] == [image.reason for image in index.broken]


@pytest.mark.timeout(60)
def test_what_only_the_first_process_finds_ends_both(world, tmp_path):
    """Promptly, with the same line, though neither process ends; and the next call is in step again."""
    torchrun(2, SCRIPTS / "index_refused_ranks.py", world.model, world.imagefolder, tmp_path)
    told = [(tmp_path / f"{rank}.txt").read_text().splitlines() for rank in (0, 1)]
    assert told[0] == told[1]
    assert (
        told[0][0]
        == f"the index {tmp_path / 'index'} stores float32 vectors, not int8: choose another index with --to"
    )
    assert "was encoded in float32, not in bfloat16" in told[0][1]
    assert told[0][2:] == ["the disk is full", "40"]
