"""The example for a browser, run in Node with the same packages: embeddings and rankings are those of Python.

Skipped without the packages, which `make test-browser` installs and names.
"""

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from hf_cots import load_encoder
from tests.support.paths import ROOT


MODULES = os.environ.get("HF_COTS_NODE_MODULES")
pytestmark = pytest.mark.skipif(MODULES is None, reason="make test-browser installs the packages for Node")
TEXTS = ["red", "a blue circle and a red square", "red blue " * 80, ""]
SCRIPT = """
import * as ort from "onnxruntime-web/wasm";
import { loadTextEncoder, search } from "./search_in_browser.mjs";
ort.env.wasm.numThreads = 1; // to count the cores it asks for a module of Node that its bundle cannot load
const [folder, texts, file] = process.argv.slice(2);
const encode = await loadTextEncoder(folder);
const bytes = await (await fetch(new URL(file, folder))).arrayBuffer();
const found = [];
for (const text of JSON.parse(texts)) {
  const embed = await encode(text);
  found.push({ embed: Array.from(embed), rows: search(embed, new Float32Array(bytes), 3).map(({ row }) => row) });
}
console.log(JSON.stringify(found));
"""


@pytest.fixture
def served(exported, tmp_path):
    """The URL of a server on this machine with the files of an export, and of image embeddings."""
    folder = tmp_path / "served"
    shutil.copytree(exported, folder)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def run_script(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the script beside the example and the packages."""
    shutil.copy(ROOT / "examples" / "search_in_browser.mjs", folder)
    (folder / "node_modules").symlink_to(Path(str(MODULES)).resolve())
    (folder / "script.mjs").write_text(SCRIPT, encoding="utf-8")
    command = ["node", str(folder / "script.mjs"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_browser_finds_what_python_finds(served, tmp_path):
    folder, url = served
    encoder = load_encoder(str(folder))
    expected = encoder.encode_texts(TEXTS)
    images = np.random.default_rng(0).standard_normal((20, expected.shape[1])).astype(np.float32)
    images.tofile(folder / "images.f32")
    done = run_script(tmp_path, url, json.dumps(TEXTS), "images.f32")
    assert done.returncode == 0, done.stderr[-1000:]
    for found, embed in zip(json.loads(done.stdout), expected, strict=True):
        np.testing.assert_allclose(found["embed"], embed, atol=1e-5)
        assert found["rows"] == np.argsort(-(images @ embed))[:3].tolist()


def test_a_missing_file_is_named(served, tmp_path):
    folder, url = served
    (folder / "tokenizer.json").unlink()
    done = run_script(tmp_path, url, "[]", "images.f32")
    assert done.returncode != 0
    assert f"{url}tokenizer.json: 404" in done.stderr
