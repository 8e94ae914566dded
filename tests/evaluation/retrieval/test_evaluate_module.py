"""The metric module, loaded as a user loads it, offline, and as a Space would have it."""

import os
import re
import shutil

import evaluate
import pytest
import yaml

from tests.support.paths import ROOT
from tests.support.processes import run_python
from tests.support.table_model import expected, pairs


FOLDER = ROOT / "metrics" / "retrieval"


@pytest.fixture(scope="module")
def metric(tmp_path_factory):
    return evaluate.load(str(FOLDER), cache_dir=str(tmp_path_factory.mktemp("cache")))


def test_results_are_those_of_the_package_and_batches_add_up(metric):
    images, texts, ids = (each.numpy() for each in pairs())
    whole = metric.compute(image_embeds=images, text_embeds=texts, image_ids=ids)
    wanted = {name: value for name, value in expected().items() if not name.endswith(("queries", "gallery"))}
    assert whole == pytest.approx(wanted)
    lists = {"image_embeds": images.tolist(), "text_embeds": texts.tolist(), "image_ids": ids.tolist()}
    assert metric.compute(**lists) == whole
    for part in (slice(0, 5), slice(5, 6), slice(6, 13)):
        metric.add_batch(image_embeds=images[part], text_embeds=texts[part], image_ids=ids[part])
    assert metric.compute() == whole


def test_lengths_do_not_count_and_every_pair_can_have_its_own_image(metric):
    images, texts, ids = (each.numpy() for each in pairs())
    whole = metric.compute(image_embeds=images, text_embeds=texts, image_ids=ids, one_image_per_id=False)
    scaled = metric.compute(image_embeds=4 * images, text_embeds=texts / 2, image_ids=ids, one_image_per_id=False)
    assert scaled == whole
    assert whole["rsum"] != metric.compute(image_embeds=images, text_embeds=texts, image_ids=ids)["rsum"]


def test_the_example_of_its_documentation(metric):
    call = re.search(r"retrieval\.compute\((.*)\)", metric.inputs_description).group(1)
    results = eval(f"compute({call})", {"compute": metric.compute})
    assert results["text_to_image_R@1"] == 75.0


def test_errors(metric):
    with pytest.raises(ValueError, match="1 gallery embeddings are not finite"):
        metric.compute(image_embeds=[[0.0, 0.0], [0.0, 1.0]], text_embeds=[[1.0, 0.0], [1.0, 1.0]], image_ids=[0, 1])
    with pytest.raises(ValueError, match="differ in dimension"):
        metric.compute(image_embeds=[[1.0], [0.0, 1.0]], text_embeds=[[1.0, 0.0], [1.0, 1.0]], image_ids=[0, 1])


def test_the_folder_is_a_space_without_the_package(tmp_path):
    """What an upload would hold, links followed, in a process that cannot import hf_cots."""
    space = tmp_path / "retrieval"
    shutil.copytree(FOLDER, space, ignore=shutil.ignore_patterns("__pycache__"))  # reads through links, as hf upload
    names = {path.name for path in space.iterdir()}
    assert names == {"README.md", "app.py", "metrics.py", "ranking.py", "requirements.txt", "retrieval.py"}
    card = yaml.safe_load((space / "README.md").read_text().split("---")[1])
    assert (card["sdk"], card["app_file"]) == ("gradio", "app.py")
    script = (
        "import sys; sys.modules['hf_cots'] = None\n"
        "import evaluate\n"
        f"metric = evaluate.load({str(space)!r}, cache_dir={str(tmp_path)!r})\n"
        "vectors = [[1, 0], [0, 1]]\n"
        "print(metric.compute(image_embeds=vectors, text_embeds=vectors, image_ids=[3, 4])['rsum'])\n"
    )
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_EVALUATE_OFFLINE": "1"}
    done = run_python("-c", script, env=environment, cwd=tmp_path)
    assert done.stdout.strip() == "600.0", done.stderr[-3000:]
