"""What users do with a model on the Hub, in a process of its own: `python hub_client.py FOLDER with|without OUTPUT`.

FOLDER holds `model`, `sentence-clip`, `images`, which a data set names, and `train.json`, a recipe whose run ends with
an upload. `with` publishes in three ways, then reads with every client; `without` makes the package impossible to
import and reads what was published. OUTPUT says for each client by how much its embeddings, or what it makes of them,
differ from the local folder's at most.
"""

import json
import sys
import traceback
from pathlib import Path


folder, mode, output = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])


if mode == "without":
    sys.modules["hf_cots"] = None  # an import of it fails
else:
    import hf_cots  # noqa: F401

import numpy as np  # noqa: E402
import torch  # noqa: E402
from huggingface_hub import snapshot_download  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import AutoModel, AutoProcessor, pipeline  # noqa: E402


torch.set_num_threads(1)
TEXTS = ["a red square", "the light blue circle on the left", "black"]
NAMES = sorted(path.name for path in (folder / "images").glob("*.png"))[:4]
IMAGES = [Image.open(folder / "images" / name).convert("RGB") for name in NAMES]
PLACES = ("org/published", folder / "model")
TRUST = {"trust_remote_code": True} if mode == "without" else {}


def run_model(place, **options):
    """All outputs of the model and its processor as transformers loads them."""
    model = AutoModel.from_pretrained(place, **options).eval()
    assert type(model).__module__.startswith("transformers_modules." if options else "hf_cots.")
    processor = AutoProcessor.from_pretrained(place, **options)
    with torch.no_grad():
        return model(**processor(images=IMAGES, text=TEXTS, return_tensors="pt"))


expected = run_model(folder / "model", **TRUST)


def largest(found, wanted):
    """The largest difference of numbers that must have the same shape."""
    found, wanted = torch.as_tensor(found), torch.as_tensor(wanted)
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max())


def compare(images, texts):
    return {"images": largest(images, expected.image_embeds), "texts": largest(texts, expected.text_embeds)}


def call(*arguments):
    """`hf-cots ARGUMENTS`."""
    from hf_cots.cli import app

    app([str(argument) for argument in arguments], standalone_mode=False)


def read_json(*arguments):
    """The JSON that `hf-cots ARGUMENTS` prints or writes."""
    from typer.testing import CliRunner

    from hf_cots.cli import app

    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


# ---------------------------------------------------------------------- uploads


def publish():
    call("publish", folder / "model", "org/published")


def hf_upload():
    from huggingface_hub.cli.hf import app

    app(["upload", "org/uploaded", str(folder / "model")], standalone_mode=False)


def push_to_hub():
    """`--push_to_hub` in training."""
    from hf_cots import train

    train.main([str(folder / "train.json")])


# ---------------------------------------------------------------------- downloads


def auto_model():
    found = run_model("org/published", **TRUST)
    return compare(found.image_embeds, found.text_embeds)


def auto_model_of_an_upload():
    found = run_model("org/uploaded", **TRUST)
    return compare(found.image_embeds, found.text_embeds)


def auto_model_of_a_trained_one():
    local, online = (run_model(place, **TRUST) for place in (folder / "trained" / "model", "org/trained"))
    names = {"images": "image_embeds", "texts": "text_embeds"}
    return {kind: largest(online[name], local[name]) for kind, name in names.items()}


def snapshot():
    found = run_model(snapshot_download("org/published", local_dir=folder / f"snapshot-{mode}"), **TRUST)
    return compare(found.image_embeds, found.text_embeds)


def feature_extraction():
    tasks = [pipeline("image-feature-extraction", model=str(place), **TRUST) for place in PLACES]
    return {"images": largest(*([task(image) for image in IMAGES] for task in tasks))}


def zero_shot():
    rows = []
    for place in PLACES:
        task = pipeline("zero-shot-image-classification", model=str(place), **TRUST)
        found = {entry["label"]: entry["score"] for entry in task(IMAGES[0], candidate_labels=TEXTS)}
        rows.append([found[text] for text in TEXTS])
    return {"probabilities": largest(*rows)}


def load_encoder():
    import hf_cots

    encoder = hf_cots.load_encoder("org/published")
    return compare(encoder.encode_images(IMAGES), encoder.encode_texts(TEXTS))


def image_index():
    from hf_cots import ImageIndex

    online, local = (ImageIndex.from_folder(place, folder / "images") for place in PLACES)
    queries = [np.stack([index.embed_query(text) for text in TEXTS]) for index in (online, local)]
    return {"images": largest(online.embeds, local.embeds), "texts": largest(*queries)}


def hf_cots_index():
    from hf_cots import ImageIndex

    call("index", "org/published", folder / "images", "--to", folder / "index")
    index = ImageIndex.open(folder / "index")
    rows = [[path.name for path in index.paths].index(name) for name in NAMES]
    return {"images": largest(index.embeds[rows], expected.image_embeds)}


def hf_cots_search():
    scores = []
    for model in PLACES:
        found = [json.loads(read_json("search", model, folder / "images", text, "--json")) for text in TEXTS]
        scores.append([entry["score"] for matches in found for entry in matches])
    return {"scores": largest(*scores)}


def evaluate(model, data):
    """The report's two directions."""
    result, columns = folder / "results.json", ("--split", "train", "--caption-column", "caption", "--resamples", "20")
    call("evaluate", model, data, *columns, "--output", result)
    report = json.loads(result.read_text())
    return [report[name] for name in ("text_to_image", "image_to_text")]


def hf_cots_evaluate():
    """All metrics with their intervals; and of a data set on the Hub, whose images have other ids, the metrics."""
    local, online = (evaluate(place, folder / "images") for place in PLACES)
    differences = {"metrics": largest(flatten(online), flatten(local))}
    for report in (local, fetched := evaluate("org/published", "org/pairs")):
        for direction in report:
            del direction["intervals"]
    return differences | {"data set": largest(flatten(fetched), flatten(local))}


def flatten(value):
    if isinstance(value, dict):
        return [number for entry in value.values() for number in flatten(entry)]
    if isinstance(value, list):
        return [number for entry in value for number in flatten(entry)]
    return [float(value)] if isinstance(value, (int, float)) else []


def sentence_transformers():
    """Another model: one that sentence-transformers has saved."""
    from sentence_transformers import SentenceTransformer

    import hf_cots

    local, online = (SentenceTransformer(str(name)) for name in (folder / "sentence-clip", "org/sentence-clip"))
    encoder = hf_cots.load_encoder("org/sentence-clip")
    differences = {}
    for kind, items, encode in (("images", IMAGES, encoder.encode_images), ("texts", TEXTS, encoder.encode_texts)):
        wanted = local.encode(items, convert_to_tensor=True)
        differences[kind] = largest(online.encode(items, convert_to_tensor=True), wanted)
        differences[f"{kind}, load_encoder"] = largest(encode(items), torch.nn.functional.normalize(wanted))
    return differences


ANYBODY = (auto_model, auto_model_of_an_upload, auto_model_of_a_trained_one, snapshot, feature_extraction, zero_shot)
OWNERS = (publish, hf_upload, push_to_hub, *ANYBODY, load_encoder, image_index)
OWNERS += (hf_cots_index, hf_cots_search, hf_cots_evaluate, sentence_transformers)
results = {}
for client in OWNERS if mode == "with" else ANYBODY:
    try:
        results[client.__name__] = client() or {}
    except Exception:
        results[client.__name__] = traceback.format_exc()[-3000:]
output.write_text(json.dumps(results))
