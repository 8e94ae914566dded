"""A Hub that fails in every way, and what `hf-cots` says: `python hub_faults.py FOLDER OUTPUT`.

FOLDER holds `model`, `model-2` (other weights), `sentence-clip` and `images`. Each scenario is a repository, a fault
and a command; the command runs with the fault, and once more after it. OUTPUT tells for each what was printed, and
what was left on the disk. Waits between retries are skipped.
"""

import hashlib
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.support.hub_stub import Fault, hub


folder, output = Path(sys.argv[1]), Path(sys.argv[2])
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 12345\n" % (b"a" * 64)
CDN, WEIGHTS = r"GET /cdn/", r"/resolve/.*/model\.safetensors"
PAGE = b"<!DOCTYPE html><html><body>Log in to this network</body></html>"


def search(name, *options):
    return ("search", name, folder / "images", "a red square", "--json", *options)


def evaluate(data):
    columns = ("--split", "train", "--caption-column", "caption", "--resamples", "9")
    return ("evaluate", folder / "model", data, *columns)


def publish(name):
    return ("publish", folder / "model", name)


def train(name):
    """With towers that do not exist: what is said of the Hub is said before them."""
    towers = ("--vision", "org/none", "--text", "org/none", "--train_data", folder / "images", "--use_cpu", "True")
    return ("train", *towers, "--output_dir", folder / "run", "--push_to_hub", "True", "--hub_model_id", name)


SOURCES = {"org/sentence": "sentence-clip"}
# name: repository, what is wrong, command
READS = {
    "no repository": ("org/none", [], search("org/none")),
    "private": ("org/private", [], search("org/private", "--token", "hf_other")),
    "a wrong token": (
        "org/token",
        [Fault("org/token", 401, message="Invalid credentials in Authorization header")],
        search("org/token"),
    ),
    "gated": ("org/gated", [Fault("org/gated", 403, "GatedRepo", "Access is restricted")], search("org/gated")),
    "forbidden": ("org/forbidden", [Fault("org/forbidden", 403, message="No")], search("org/forbidden")),
    "no revision": ("org/revision", [], search("org/revision", "--revision", "v9")),
    "unavailable": ("org/down", [Fault("org/down", 503)], search("org/down")),
    "unavailable for a moment": ("org/moment", [Fault("org/moment.*" + WEIGHTS, 503, times=3)], search("org/moment")),
    "too many requests": ("org/many", [Fault("org/many", 429)], search("org/many")),
    "no answer": ("org/silent", [Fault("org/silent", 0)], search("org/silent")),
    "weights unavailable": ("org/cdn-down", [Fault(CDN, 503)], search("org/cdn-down")),
    "cut once": ("org/cut-once", [Fault(CDN, keep=30_000, times=1)], search("org/cut-once")),
    "cut always": ("org/cut", [Fault(CDN, keep=30_000)], search("org/cut")),
    "config cut": ("org/cut-config", [Fault("resolve-cache.*config.json", keep=40)], search("org/cut-config")),
    "other weights than announced": ("org/changed", [Fault(CDN, body=b"x" * 999)], search("org/changed")),
    "a page of the network": ("org/page", [Fault("GET /(cdn|api/resolve-cache)", body=PAGE)], search("org/page")),
    "a pointer": ("org/pointer", [], search("org/pointer")),
    "unavailable, but cached": ("org/moment", [Fault("org/moment", 503)], search("org/moment")),
    "no answer, but cached": ("org/moment", [Fault("org/moment", 0)], search("org/moment")),
    "a new commit": ("org/moment", [], search("org/moment")),
    "a data set is unavailable": ("datasets/org/down", [Fault("org/down", 503)], evaluate("org/down")),
    "a wrong token for a data set": (
        "datasets/org/token",
        [Fault("org/token", 401, message="Invalid credentials in Authorization header")],
        evaluate("org/token"),
    ),
    "modules.json unavailable": (
        "org/sentence",
        [Fault("resolve.*modules.json", 503, times=7)],
        search("org/sentence"),
    ),
}
WRITES = {
    "a wrong token": [Fault("POST", 401, message="Invalid username or password.")],
    "no rights": [Fault("POST /api/repos/create", 403, message="You don't have the rights to create a model")],
    "no rights to write": [Fault("POST .*/preupload/", 403, message="You don't have write access")],
    "upload cut off": [Fault("PUT", 503)],
    "commit refused": [Fault("POST .*/commit/", 500)],
    "unavailable for a moment": [Fault("PUT", 503, times=2)],
}


def captured(arguments):
    """Run `hf-cots ARGUMENTS`; returns its exit code and all that reached the two outputs, from whatever library."""
    from hf_cots.cli import app

    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        kept = [os.dup(1), os.dup(2)]
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        code: object = 0
        try:
            app([str(argument) for argument in arguments], standalone_mode=False)
        except SystemExit as leaving:
            code = leaving.code
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in zip((1, 2), kept):
            os.dup2(copy, number)
            os.close(copy)
        out.seek(0)
        err.seek(0)
        return {"code": code, "stdout": out.read(), "stderr": err.read()}


def halves(cache, server, name):
    """Files in the cache that are not, byte by byte, a file of the repository."""
    files = [data for files in server.repositories[name].commits.values() for data in files.values()]
    whole = {hashlib.sha256(data).hexdigest() for data in files}
    blobs = [path for path in cache.rglob("*") if path.is_file() and "blobs" in path.parts]
    return [str(path) for path in blobs if hashlib.sha256(path.read_bytes()).hexdigest() not in whole]


def read_scenarios(server, home):
    for name, (repository, faults, command) in READS.items():
        source = folder / SOURCES.get(repository, "images" if repository.startswith("datasets/") else "model")
        if repository not in ("org/none", *server.repositories):
            replaced = {"model.safetensors": POINTER} if repository == "org/pointer" else {}
            server.add(repository, source, **replaced).private = repository == "org/private"
        if name == "a new commit":
            weights = (folder / "model-2" / "model.safetensors").read_bytes()
            server.repositories[repository].commit(server.files(repository) | {"model.safetensors": weights})
        server.faults, server.log[:] = faults, []
        found = captured(command)
        found["ranges"] = [wanted for _, path, wanted in server.log if wanted and path.startswith("/cdn/")]
        server.faults = []
        if repository == "org/none":
            server.add(repository, source)
        kind = "" if repository.startswith("datasets/") else "models--"
        found["halves"] = halves(home / "hub" / f"{kind}{repository.replace('/', '--')}", server, repository)
        again = [word for word in command if word not in ("--revision", "v9", "--token", "hf_other")]
        found["again"] = captured(again)
        yield f"read: {name}", found


def write_scenarios(server):
    import hf_cots.training.publish

    hf_cots.training.publish.check_folder = lambda folder: []  # which has tests of its own, and takes seconds
    for i, (name, faults) in enumerate(WRITES.items()):
        repository = f"org/write-{i}"
        server.faults = faults
        server.objects.clear()
        found = captured(publish(repository))
        server.faults = []
        there = server.repositories.get(repository)
        found["files"] = [] if there is None else sorted(set(there.files()) - {".gitattributes"})
        found["again"] = captured(publish(repository))
        found["whole"] = server.files(repository).items() >= whole_folder().items()
        yield f"write: {name}", found
    server.faults = WRITES["a wrong token"]
    yield "write: at the end of a training", captured(train("org/run")) | {"files": []}


def whole_folder():
    return {path.name: path.read_bytes() for path in (folder / "model").iterdir()}


def main():
    with hub() as server, tempfile.TemporaryDirectory() as home:
        os.environ.update(server.variables(home))
        time.sleep = lambda seconds: None
        import huggingface_hub.constants
        import torch

        torch.set_num_threads(1)
        huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 10_000  # what arrives in parts of 10 MB counts as a whole
        results = dict(read_scenarios(server, Path(home))) | dict(write_scenarios(server))
        for name in ("model", "model-2", "sentence-clip"):
            results[name] = captured(search(folder / name))
        server.add("datasets/org/images", folder / "images")
        results["images"] = captured(evaluate("org/images"))
    output.write_text(json.dumps(results, indent=1))


main()
