"""What a user does with saved folders, in a process of its own: `python hub_user.py FOLDER with|without OUTPUT`.

`without` makes the package impossible to import: everything must come from the code that lies beside the weights. Each
check that passes or fails is written to OUTPUT, so that one slow process serves many tests.
"""

import json
import sys
import traceback
from pathlib import Path


folder, mode, output = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])


if mode == "without":
    sys.modules["hf_cots"] = None  # an import of it fails

import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoProcessor, pipeline  # noqa: E402


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


def check_class(model, name=expected["class"]):
    assert type(model).__name__ == name
    assert type(model).__module__.startswith("hf_cots." if mode == "with" else "transformers_modules.")


def check_embeddings(path, auto=AutoModel):
    model, processor = auto.from_pretrained(path, **trust), AutoProcessor.from_pretrained(path, **trust)
    inputs = processor(images=[image()], text=expected["texts"], return_tensors="pt")
    with torch.no_grad():
        result = inputs | model(**inputs)
        if "match" in expected:
            cache = model.cache_image(inputs["pixel_values"])
            result["match"] = model.match(inputs["input_ids"], inputs["attention_mask"], image_cache=cache)
            result["keywords"] = model.predict_keywords(inputs["pixel_values"])
    for name in {"pixel_values", "input_ids", "image_embeds", "text_embeds", "match", "keywords"} & expected.keys():
        assert torch.equal(result[name], expected[name]), name
    check_class(model)


def embeddings():
    for auto in (AutoModel, transformers.AutoModelForZeroShotImageClassification):
        check_embeddings(folder / "model", auto)


def zero_shot():
    task = pipeline("zero-shot-image-classification", model=str(folder / "model"), **trust)
    found = task(image(), candidate_labels=["dog", "cat"], hypothesis_template="a photo of the {}")
    assert {entry["label"] for entry in found} == {"dog", "cat"}
    assert abs(sum(entry["score"] for entry in found) - 1) < 1e-4
    check_class(task.model)


def feature_extraction():
    task = pipeline("image-feature-extraction", model=str(folder / "model"), **trust)
    found = torch.tensor(task(image()))
    torch.testing.assert_close(found, expected["image_embeds"])


def cached_hub_id():
    check_embeddings("org/base")


def pretraining():
    model = AutoModelForPreTraining.from_pretrained(folder / "pretraining", **trust).eval()
    with torch.no_grad():
        losses = model(**expected["batch"])
    for name, value in expected["losses"].items():
        assert torch.equal(losses[name], value), name
    plain, whole = AutoModel.from_pretrained(folder / "pretraining", **trust), model.encoder.state_dict()
    check_class(plain)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, whole[name]), name


def image_tokenizer():
    if "codes" in expected:
        model = AutoModel.from_pretrained(folder / "image_tokenizer", **trust)
        assert type(model).__name__ == "COTSImageTokenizer"
        assert torch.equal(model.get_codebook_indices(expected["pixels"]), expected["codes"])


def clips():
    """Frames of an animated image, by the code that lies beside the weights."""
    if "video_embeds" in expected:
        model, processor = (
            AutoModel.from_pretrained(folder / "model", **trust),
            AutoProcessor.from_pretrained(folder / "model", **trust),
        )
        with torch.no_grad():
            found = model(**processor(videos=[folder / "clip.gif"], return_tensors="pt"))
        assert torch.equal(found.video_embeds, expected["video_embeds"])
        check_class(processor.video_processor, "COTSVideoProcessor")


def saved_again():
    """What was loaded can be saved and loaded once more, code and all."""
    again = folder / f"again-{mode}"
    for auto in (AutoModel, AutoProcessor):
        auto.from_pretrained(folder / "model", **trust).save_pretrained(again)
    names = {f"{kind}_{expected['kind']}.py" for kind in ("modeling", "configuration")}
    assert names | {"processing_cots.py"} <= {f.name for f in again.iterdir()}
    check_embeddings(again)


def untrusted():
    """Without the package and without trust nothing is run."""
    if mode == "without":
        try:
            AutoConfig.from_pretrained(folder / "model", trust_remote_code=False)
        except ValueError:
            return
        raise AssertionError("code from a folder ran without trust")


CHECKS = (package, embeddings, zero_shot, feature_extraction, cached_hub_id)
CHECKS += (pretraining, image_tokenizer, clips, saved_again, untrusted)
results = {}
for check in CHECKS:
    try:
        check()
        results[check.__name__] = "ok"
    except Exception:
        results[check.__name__] = traceback.format_exc()[-3000:]
output.write_text(json.dumps(results))
