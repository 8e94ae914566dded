"""One boundary for every entry point: what a user can mend is one line and exit code 2, a bug keeps its traceback."""

import errno
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import datasets
import huggingface_hub.errors as hub
import pyarrow
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image
from tokenizers import Tokenizer
from torch.utils.data import DataLoader

from hf_cots import COTSConfig, _errors
from hf_cots._errors import check_output_file, check_output_folder, explain, naming, note_on_interrupt, one_line_errors
from hf_cots.training.arguments import read_recipe, to_flags
from tests.support.cli import call, error_of
from tests.support.paths import ROOT


def caught(function):
    """The error that a call raises."""
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def raise_from(error, cause):
    raise error from cause


class Broken:
    """A data set whose rows fail in the process that loads them."""

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 2

    def __getitem__(self, row):
        raise self.error


def load_in_a_worker(error):
    next(iter(DataLoader(Broken(error), num_workers=1)))


def opened(read, path):
    """What a library does with a file's name."""
    return read(str(path))


def hub_error(kind, status=404):
    response = hub.Response(status, request=None)
    response._request = type("Request", (), {"url": "https://huggingface.co/api/models/org/hidden", "method": "GET"})()
    text = f"{status} Client Error. (Request ID: abc)\n\nNot found for url: https://huggingface.co/org/hidden."
    return kind(text, response=response)


def write(path, data):
    path.write_bytes(data)
    return path


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
LIBRARIES = {
    "datasets": (
        lambda p: raise_from(datasets.exceptions.DatasetGenerationError("An error occurred"), ValueError("line 3: x")),
        "line 3: x",
    ),
    "datasets, of a key": (
        lambda p: raise_from(datasets.exceptions.DatasetGenerationError("An error occurred"), KeyError("image")),
        "KeyError: 'image'",
    ),
    "a config's field": (lambda p: COTSConfig(projection_dim="many"), "Field 'projection_dim' expected int, got str"),
    "a config's rule": (lambda p: COTSConfig(momentum=2.0), "momentum"),
    "a private repository": (lambda p: raise_from(hub_error(hub.RepositoryNotFoundError, 401), None), "hf auth login"),
    "a gated repository": (lambda p: raise_from(hub_error(hub.GatedRepoError, 403), None), "ask for access"),
    "a revision": (lambda p: raise_from(hub_error(hub.RevisionNotFoundError), None), "--revision"),
    "a private repository, wrapped": (
        lambda p: raise_from(OSError("cannot load 'org/hidden'"), hub_error(hub.RepositoryNotFoundError, 401)),
        "cannot load 'org/hidden'; if it is private or gated, log in with `hf auth login`",
    ),
    "offline": (lambda p: raise_from(hub.OfflineModeIsEnabled("no"), None), "HF_HUB_OFFLINE"),
    "half a safetensors": (
        lambda p: safetensors.torch.load_file(write(p / "half.safetensors", b"\x10\0\0\0\0\0\0\0{}")),
        "half.safetensors: ",
    ),
    "a header that claims too much": (
        lambda p: safetensors.torch.load_file(write(p / "w.safetensors", b"\xff" * 7 + b"\x00{}")),
        "w.safetensors: ",
    ),
    "git-lfs": (
        lambda p: safetensors.torch.load_file(write(p / "model.safetensors", LFS)),
        "model.safetensors is a git-lfs pointer and not the file itself: run `git lfs pull`",
    ),
    "a tokenizer": (lambda p: opened(Tokenizer.from_file, write(p / "tokenizer.json", b"{")), "tokenizer.json"),
    "torch.load": (lambda p: torch.load(write(p / "w.bin", b"PK\3\4" + bytes(40)), weights_only=True), "w.bin"),
    "pyarrow": (lambda p: pyarrow.parquet.read_table(write(p / "t.parquet", b"PAR1 no")), "t.parquet"),
    "pyarrow, of a type": (lambda p: raise_from(pyarrow.lib.ArrowNotImplementedError("no cast"), None), "no cast"),
    "a picture": (lambda p: Image.open(write(p / "a.png", b"none")), "a.png"),
    "a picture bomb": (lambda p: raise_from(Image.DecompressionBombError("178956970 pixels"), None), "pixels"),
    "yaml": (lambda p: read_recipe(write(p / "r.yaml", b"vision: [a, b\ntext: {")), "r.yaml: "),
    "yaml with code": (
        lambda p: read_recipe(write(p / "r.yaml", b"a: !!python/object/apply:os.abort []")),
        "r.yaml: ",
    ),
    "yaml, nested": (lambda p: read_recipe(write(p / "r.yaml", b"[" * 100_000)), "r.yaml: "),
    "yaml that multiplies": (
        lambda p: read_recipe(
            write(
                p / "r.yaml",
                b"".join(
                    b"a%d: &a%d [%s]\n" % (i, i, b",".join([b"*a%d" % (i - 1)] * 9 if i else [b"x"])) for i in range(9)
                ),
            )
        ),
        "r.yaml: its YAML aliases expand to more than",
    ),
    "json": (
        lambda p: opened(lambda path: json.loads(Path(path).read_text()), write(p / "c.json", b"{")),
        "c.json: Expecting property name",
    ),
    "bytes that are no text": (
        lambda p: opened(lambda path: Path(path).read_text("utf-8"), write(p / "c.txt", b"\xe9")),
        "c.txt: ",
    ),
    "a zip": (lambda p: zipfile.ZipFile(write(p / "a.zip", b"PK")), "a.zip: "),
    "a tar": (lambda p: opened(tarfile.open, write(p / "a.tar", b"no tar")), "a.tar: "),
    "zlib": (lambda p: zlib.decompress(b"no"), "incorrect header check"),
    "memory of an accelerator": (
        lambda p: raise_from(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has"), None),
        "out of memory: CUDA out of memory. Tried to allocate 2 GiB; lower --batch-size; in training --per_device",
    ),
    "memory": (lambda p: torch.empty(1 << 60), "lower --batch-size"),
    "a full disk": (lambda p: raise_from(OSError(errno.ENOSPC, "No space left on device"), None), "No space left"),
    "a file that is not there": (lambda p: opened(open, p / "gone.csv"), "gone.csv: No such file or directory"),
    "a folder for a file": (lambda p: opened(open, p), "Is a directory"),
    "an error in a worker": (lambda p: load_in_a_worker(ValueError("row 7: no picture")), "row 7: no picture"),
    "a missing package": (lambda p: raise_from(ModuleNotFoundError("No module named 'x'", name="x"), None), "'x'"),
    "a package of transformers": (lambda p: raise_from(ImportError("needs sentencepiece"), None), "sentencepiece"),
    "a command": (lambda p: subprocess.run([sys.executable, "-c", "exit(3)"], check=True), "exit status 3"),
    "another process that has ended": (
        lambda p: raise_from(
            RuntimeError("[/a/gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]"), None
        ),
        "Connection closed by peer",
    ),
    "a process group": (lambda p: raise_from(torch.distributed.DistNetworkError("port is taken"), None), "port"),
}


@pytest.mark.parametrize("kind", LIBRARIES)
def test_an_error_of_a_library_is_one_line_with_its_cause(tmp_path, kind, capsys):
    fail, said = LIBRARIES[kind]
    error = caught(lambda: fail(tmp_path))
    line = explain(error)
    assert line is not None, repr(error)
    assert said in line
    assert len(line.splitlines()) == 1
    assert len(line) < 700
    with pytest.raises(SystemExit) as stop, one_line_errors():
        raise error
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {line}\n"


BUGS = [
    IndexError(),
    KeyError("x"),
    TypeError("x"),
    AttributeError("x"),
    AssertionError(),
    RuntimeError("mat1 and mat2"),
]
BUGS += [
    ZeroDivisionError(),
    RecursionError(),
    NotImplementedError(),
    ModuleNotFoundError("x", name="hf_cots.nonsense"),
]
BUGS += [ImportError("cannot import name 'x' from 'hf_cots'", name="hf_cots"), UnboundLocalError()]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: type(bug).__name__)
def test_a_bug_keeps_its_traceback(bug):
    with pytest.raises(type(bug)), one_line_errors():
        raise bug
    expected = ValueError if isinstance(bug, RecursionError) else type(bug)  # a file that is nested too deeply
    with pytest.raises(expected), naming("a.json"):
        raise bug


def test_the_file_is_named_once(tmp_path):
    with pytest.raises(ValueError, match=r"^a\.json: Expecting value: line 1") as found, naming("a.json"):
        json.loads("")
    assert isinstance(found.value.__cause__, json.JSONDecodeError)
    with pytest.raises(ValueError, match=r"^a\.json has no pairs$"), naming("a.json"):
        raise ValueError("a.json has no pairs")
    with pytest.raises(FileNotFoundError, match=r"^no such file: .*gone\.json$"), naming("the mask"):
        (tmp_path / "gone.json").read_text()


def test_ctrl_c_says_what_is_saved(capsys):
    with pytest.raises(SystemExit) as stop, one_line_errors(), note_on_interrupt(lambda: "one in runs/a"):
        raise KeyboardInterrupt
    assert stop.value.code == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C; one in runs/a\n"
    with pytest.raises(SystemExit) as stop, one_line_errors():
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "stopped by Ctrl-C; nothing was saved\n"


def test_an_output_is_checked_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("kept")
    check_output_file(tmp_path / "new" / "results.json")
    assert not (tmp_path / "new" / "results.json").exists()
    check_output_file(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"
    for path, reason in ((tmp_path, "it is a folder"), (tmp_path / "file" / "a.json", "cannot write to the folder")):
        with pytest.raises(OSError, match=reason):
            check_output_file(path)
    with pytest.raises(OSError, match="it is a file"):
        check_output_folder(tmp_path / "file")
    monkeypatch.setattr(_errors.os, "access", lambda path, mode: False)
    with pytest.raises(OSError, match="Permission denied"):
        check_output_file(tmp_path / "file")


COMMANDS = {
    "evaluate": ["evaluate", "MODEL", "DATA", "--split", "train", "--resamples", "9", "--output", "FILE/r.json"],
    "classify": ["classify", "MODEL", "DATA", "--output", "FILE/r.json"],
    "audit": ["audit", "MODEL", "DATA", "--output", "FILE"],
    "inspect": ["inspect", "MODEL", "PICTURE", "--output", "FILE/a.png"],
    "inspect, another format": ["inspect", "MODEL", "PICTURE", "--output", "sheet.nonsense"],
    "convert": ["convert", "dalle", "PICTURE", "--output", "FILE"],
    "tokenize": ["tokenize", "PICTURE", "--output", "FILE"],
    "demo": ["demo", "--output", "FILE"],
    "openclipart": ["openclipart", "FILE"],
    "train": ["train", "--train_data", "DATA", "--output_dir", "FILE"],
    "train-tokenizer": ["train-tokenizer", "--train_data", "DATA", "--output_dir", "FILE"],
}


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_refuses_an_output_that_cannot_be_written_before_anything_else(verb, world, tmp_path, monkeypatch):
    """The model does not exist: the output is looked at first."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("")
    picture = min(world.imagefolder.glob("*.png"))
    names = {"MODEL": tmp_path / "gone", "DATA": world.imagefolder, "PICTURE": picture}
    message = error_of(call(*(names.get(word, word) for word in COMMANDS[verb])))
    assert message.startswith("error: cannot write ")


def test_results_are_shown_even_if_they_cannot_be_written(world, tmp_path):
    for i, path in enumerate(sorted(world.imagefolder.glob("*.png"))[:8]):
        link = tmp_path / "classes" / ("a", "b")[i % 2] / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    (tmp_path / "full.json").symlink_to("/dev/full")
    result = call("classify", world.model, tmp_path / "classes", "--output", tmp_path / "full.json")
    assert "No space left on device" in error_of(result)
    assert "full.json" in error_of(result)
    assert "zero shot" in result.stdout


SCRIPTS = {
    "hf_cots": ["evaluate", "gone-model", "gone.csv"],
    "hf_cots.train": ["gone.yaml"],
    "hf_cots.train_dvae": ["gone.yaml"],
    "hf_cots.distill_text": ["gone.yaml"],
    "conversion/convert_simla.py": ["gone.pth", "--output", "o"],
    "conversion/convert_flava_codebook.py": ["./gone", "--output", "o"],
    "conversion/convert_dalle_dvae.py": ["gone.pkl", "--output", "o"],
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_entry_point_has_the_same_boundary(script, tmp_path):
    start = [str(ROOT / script)] if script.endswith(".py") else ["-m", script]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", *start, *SCRIPTS[script]]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert "gone" in lines[-1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"per_device_train_batch_size": 0}, "--per_device_train_batch_size must be at least 1, got 0"),
        ({"gradient_accumulation_steps": -1}, "--gradient_accumulation_steps must be at least 1, got -1"),
        ({"flip": 2}, "--flip must be at least 0 and at most 1, got 2.0"),
        ({"flip": "nan"}, "--flip must be at least 0 and at most 1, got nan"),
        ({"min_scale": 0}, "--min_scale must be above 0 and at most 1, got 0.0"),
        ({"max_text_length": 0}, "--max_text_length must be at least 1, got 0"),
        ({"shuffle_buffer_size": 0}, "--shuffle_buffer_size must be at least 1, got 0"),
        ({"lora_rank": -1}, "--lora_rank must be at least 0, got -1"),
        ({"vision": '{"model_type": "vit"'}, "the config of a tower (--vision or --text) is not valid JSON"),
        ({"license": "my own: terms"}, "--license 'my own: terms' is not a license identifier of the Hub"),
    ],
)
def test_numbers_out_of_range_are_refused_by_flag(world, tmp_path, flags, message):
    assert message in error_of(call("train", *world.flags(tmp_path, **flags)))


def test_a_stopped_training_names_its_checkpoint(world, tmp_path):
    """A signal in the middle of training: exit code 130, and where to go on from."""
    code = (
        "import sys, hf_cots.train as t\n"
        "from hf_cots import COTSTrainer as T\n"
        "step = T.training_step\n"
        "def interrupted(self, *a, **k):\n"
        "    if self.state.global_step == 2: raise KeyboardInterrupt\n"
        "    return step(self, *a, **k)\n"
        "T.training_step = interrupted\n"
        "t.main(sys.argv[1:])\n"
    )
    flags = world.flags(tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
    done = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True, timeout=200)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    found = tmp_path / "checkpoint-2"
    assert done.stderr.splitlines()[-1] == (
        f"stopped by Ctrl-C; the last complete checkpoint is {found}: go on with --resume_from_checkpoint {found}"
    )


def test_a_token_is_for_one_command(monkeypatch, world):
    seen = []
    monkeypatch.setenv("HF_TOKEN", "mine")
    monkeypatch.setattr("hf_cots.search.index.load_encoder", lambda *a: seen.append((a, os.environ["HF_TOKEN"])))
    call("search", "org/hidden", world.imagefolder, "red", "--token", "hf_other", "--revision", "v2")
    assert seen == [(("org/hidden", None, "v2"), "hf_other")]
    assert os.environ["HF_TOKEN"] == "mine"


@pytest.mark.parametrize(
    "verb", ["search", "evaluate", "classify", "text-matching", "image-retrieval", "audit", "inspect"]
)
def test_every_verb_that_loads_a_model_takes_revision_and_token(verb):
    text = call(verb, "--help").output
    assert "--revision" in text
    assert "--token" in text


def test_flags_of_a_recipe_survive(tmp_path):
    shared = io.StringIO()
    yaml.safe_dump({"freeze": ["vision", "text"], "config_overrides": {"queue_size": 8}}, shared)
    (tmp_path / "r.yaml").write_text(shared.getvalue())
    assert to_flags(read_recipe(tmp_path / "r.yaml")) == [
        *("--config_overrides", '{"queue_size": 8}'),
        *("--freeze", "vision", "text"),
    ]
