"""`exported_verbs.py EXPORT PHOTOS PAIRS OUTPUT [hide]`: index, search, evaluate and serve with an exported model.

What they give lies in OUTPUT, for a comparison. With `hide`, as where torch is not installed. Needs hf_cots alone.
"""

import contextlib
import io
import json
import sys
from importlib.machinery import PathFinder
from pathlib import Path


class WithoutTorch(PathFinder):
    """Finds what `PathFinder` finds, except torch and what needs it."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if fullname.partition(".")[0] in ("torch", "torchvision", "accelerate", "sentence_transformers"):
            return None
        return super().find_spec(fullname, path, target)


def hide_torch():
    """Let imports find no torch from now on."""
    sys.meta_path[:] = [WithoutTorch if finder is PathFinder else finder for finder in sys.meta_path]


def call(*arguments):
    """What `hf-cots ARGUMENTS` prints on stdout."""
    from hf_cots.cli import app

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        app([str(argument) for argument in arguments], standalone_mode=False)
    return printed.getvalue()


def run(export, photos, pairs, output):
    """Run each verb; write what it gives below `output`."""
    output.mkdir()
    call("index", export, photos, "--to", output / "index", "--json")
    image = min(photos.glob("*.png"))
    call("evaluate", export, pairs, "--output", output / "report.json", "--resamples", 20, "--dual-softmax")
    found = {
        "text": call("search", output / "index", "a red circle", "--json", "-k", 40),
        "both": call("search", output / "index", "a red circle", "--image", image, "--minus", "blue", "--json"),
        "folder": call("search", export, photos, "a red circle", "--json"),
    }
    found = {name: json.loads(printed) for name, printed in found.items()} | {"served": serve(output / "index")}
    (output / "found.json").write_text(json.dumps(found))


def serve(folder):
    """The answers of a server over an index."""
    from fastapi.testclient import TestClient

    from hf_cots import ImageIndex
    from hf_cots.serve import create_app

    client = TestClient(create_app(ImageIndex.open(folder)), base_url="http://127.0.0.1")
    answers = [client.get("/api/search", params={"text": "a red circle"}).json()]
    answers.append(client.get("/api/similar", params={"id": answers[0]["results"][0]["id"]}).json())
    return [answer["results"] for answer in answers]


if __name__ == "__main__":
    if "hide" in sys.argv:
        hide_torch()
    run(*map(Path, sys.argv[1:5]))
    print(*sorted({"torch", "accelerate"} & sys.modules.keys()))
