"""What a user does with saved folders, in a process of its own: `python hub_user.py FOLDER with|without OUTPUT`.

`without` makes the package impossible to import: everything must come from the code that lies beside the weights. Each
check that passes or fails is written to OUTPUT, so that one slow process serves many tests.
"""

import json
import sys
import traceback
from pathlib import Path


folder, mode, output = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])


class Blocker:
    """An import hook that denies the package."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_cots":
            raise ImportError("hf_cots is not installed here")
        return None


if mode == "without":
    sys.meta_path.insert(0, Blocker())

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    pipeline,
)


torch.set_num_threads(1)
trust = {"trust_remote_code": True} if mode == "without" else {}
expected = torch.load(folder / "expected.pt")


def package():
    try:
        import hf_cots  # noqa: F401
    except ImportError:
        assert mode == "without"
    else:
        assert mode == "with"


def image():
    return Image.open(folder / "image.png")


def check_embeddings(model, processor):
    inputs = processor(images=[image()], text=expected["texts"], return_tensors="pt")
    assert torch.equal(inputs["pixel_values"], expected["pixel_values"])
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    with torch.no_grad():
        result = model(**inputs)
    assert torch.equal(result.image_embeds, expected["image_embeds"])
    assert torch.equal(result.text_embeds, expected["text_embeds"])
    assert type(model).__name__ == "COTSModel"
    assert type(model).__module__.startswith("hf_cots." if mode == "with" else "transformers_modules.")


def embeddings():
    for auto in (AutoModel, AutoModelForZeroShotImageClassification):
        path = folder / "model"
        check_embeddings(auto.from_pretrained(path, **trust), AutoProcessor.from_pretrained(path, **trust))


def zero_shot():
    task = pipeline("zero-shot-image-classification", model=str(folder / "model"), **trust)
    found = task(image(), candidate_labels=["dog", "cat"], hypothesis_template="a photo of the {}")
    assert {entry["label"] for entry in found} == {"dog", "cat"}
    assert abs(sum(entry["score"] for entry in found) - 1) < 1e-4
    assert task.model.__class__.__name__ == "COTSModel"


def feature_extraction():
    task = pipeline("image-feature-extraction", model=str(folder / "model"), **trust)
    found = torch.tensor(task(image()))
    torch.testing.assert_close(found, expected["image_embeds"])


def cached_hub_id():
    path = "org/cots-base"
    check_embeddings(AutoModel.from_pretrained(path, **trust), AutoProcessor.from_pretrained(path, **trust))


def pretraining():
    model = AutoModelForPreTraining.from_pretrained(folder / "pretraining", **trust)
    with torch.no_grad():
        loss = model.eval()(expected["pixel_values"].repeat(2, 1, 1, 1), expected["input_ids"][:2]).loss
    assert torch.equal(loss, expected["pretraining_loss"])
    plain = AutoModel.from_pretrained(folder / "pretraining", **trust)
    assert type(plain).__name__ == "COTSModel"
    assert torch.equal(plain.visual_projection.weight, model.cots.visual_projection.weight)


def image_tokenizer():
    model = AutoModel.from_pretrained(folder / "image_tokenizer", **trust)
    assert type(model).__name__ == "COTSImageTokenizer"
    assert torch.equal(model.get_codebook_indices(expected["pixels"]), expected["codes"])


def saved_again():
    """What was loaded can be saved and loaded once more, code and all."""
    again = folder / f"again-{mode}"
    AutoModel.from_pretrained(folder / "model", **trust).save_pretrained(again)
    AutoProcessor.from_pretrained(folder / "model", **trust).save_pretrained(again)
    assert {"modeling_cots.py", "configuration_cots.py", "processing_cots.py"} <= {f.name for f in again.iterdir()}
    check_embeddings(AutoModel.from_pretrained(again, **trust), AutoProcessor.from_pretrained(again, **trust))


def untrusted():
    """Without the package and without trust nothing is run."""
    if mode == "without":
        try:
            AutoConfig.from_pretrained(folder / "model", trust_remote_code=False)
        except ValueError:
            return
        raise AssertionError("code from a folder ran without trust")


results = {}
for check in (
    package,
    embeddings,
    zero_shot,
    feature_extraction,
    cached_hub_id,
    pretraining,
    image_tokenizer,
    saved_again,
    untrusted,
):
    try:
        check()
        results[check.__name__] = "ok"
    except Exception:
        results[check.__name__] = traceback.format_exc()[-3000:]
output.write_text(json.dumps(results))
