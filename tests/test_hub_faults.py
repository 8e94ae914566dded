"""A Hub that fails: the user gets one line that says what to do, and nothing half stays."""

import json
import re
import shutil

import pytest
from safetensors.torch import load_file, save_file

from tests.support.dual_folders import write_sentence_clip
from tests.support.paths import ROOT, SCRIPTS
from tests.support.processes import ENVIRONMENT, run_python


LOG_IN = "log in with `hf auth login`, or set HF_TOKEN (--token)"
AGAIN = "then run it again; what came over whole is kept"
# What the last line says: of what, and what to do.
REFUSED = {
    "no repository": ("org/none is not a local folder and is not a valid model identifier", "hf auth login"),
    "private": ("org/private is not a local folder and is not a valid model identifier", "hf auth login"),
    "a wrong token": ("the Hub answers 401, Invalid credentials in Authorization header", f"not valid: {LOG_IN}"),
    "gated": ("You are trying to access a gated repo", f"it is gated: ask for access on its page, then {LOG_IN}"),
    "forbidden": (
        "the Hub answers 403, No, for http",
        f"the token has no right to this: take one that has, and {LOG_IN}",
    ),
    "no revision": ("v9 is not a valid git identifier", "see its page, and --revision"),
    "unavailable": ("the Hub answers 503, Service Unavailable, for http", AGAIN),
    "too many requests": ("the Hub answers 429, Too Many Requests", "wait some minutes"),
    "no answer": (
        "the connection to the Hub broke: Server disconnected",
        f"check the network (and HF_ENDPOINT, if it is set), {AGAIN}; HF_HUB_OFFLINE=1 takes it from the cache",
    ),
    # transformers asks for a list of files, with what is in the cache, too.
    "no answer, but cached": ("the connection to the Hub broke: Server disconnected", AGAIN),
    "weights unavailable": ("the Hub answers 503, Service Unavailable, for http://localhost", AGAIN),
    "cut always": ("the connection to the Hub broke: peer closed connection", AGAIN),
    "config cut": ("the connection to the Hub broke: peer closed connection", AGAIN),
    "other weights than announced": ("file should be of size", "run it again"),
    "a page of the network": ("file should be of size", "run it again"),
    "a pointer": ("model.safetensors is a git-lfs pointer", "git lfs pull"),
    "a data set is unavailable": ("org/down: no such file or folder, and the Hub cannot be reached", "run it again"),
    "a wrong token for a data set": (
        "org/token: no such file or folder, and the Hub answers 401, Invalid credentials in Authorization header",
        f"not valid: {LOG_IN}",
    ),
    "modules.json unavailable": ("cannot load the model 'org/sentence'", AGAIN),
}
ENDS_WELL = ("unavailable for a moment", "cut once", "unavailable, but cached", "a new commit")
LOCAL = {"modules.json unavailable": "sentence-clip", "a new commit": "model-2"}
UPLOADS = {
    "a wrong token": ("cannot write to the repository org/write-0: the Hub answers 401", f"not valid: {LOG_IN}"),
    "no rights": ("the Hub answers 403, You don't have the rights to create a model", "take one that has"),
    "no rights to write": (
        "nothing of it is there: the Hub answers 403, You don't have write access",
        "take one that has",
    ),
    "upload cut off": ("nothing of it is there: the Hub answers 503", AGAIN),
    "commit refused": ("nothing of it is there: the Hub answers 500", AGAIN),
    "at the end of a training": (
        "cannot write to the repository org/run: the Hub answers 401",
        f"not valid: {LOG_IN}",
    ),
}


@pytest.fixture(scope="module")
def report(world):
    """What `hub_faults.py` found."""
    folder = world.root / "user"
    shutil.copytree(world.imagefolder, folder / "images")
    for name in ("model", "model-2"):
        shutil.copytree(world.model, folder / name)
    weights = load_file(world.model / "model.safetensors")
    save_file(
        {name: -rows for name, rows in weights.items()}, folder / "model-2" / "model.safetensors", {"format": "pt"}
    )
    write_sentence_clip(folder / "sentence-clip")
    variables = ENVIRONMENT | {"HF_COTS_CACHE": str(folder / "cache"), "PYTHONPATH": f"{ROOT}/src:{ROOT}"}
    done = run_python(SCRIPTS / "hub_faults.py", folder, folder / "report.json", env=variables)
    assert (folder / "report.json").exists(), done.stderr[-3000:]
    return json.loads((folder / "report.json").read_text())


def check_refusal(found, *parts):
    assert found["code"] == 2, found["stderr"]
    assert "Traceback" not in found["stderr"]
    lines = found["stderr"].strip().splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert found["stdout"] == ""
    for part in parts:
        assert part in lines[-1]


def without_intervals(text):
    """The numbers of a table, or the whole of what is none: intervals depend on the paths of images in the cache."""
    return re.findall(r"[\d.]+", re.sub(r"\[[^\]]*\]", "", text)) if "intervals" in text else text


def test_all_scenarios_are_looked_at(report):
    reads = {name.removeprefix("read: ") for name in report if name.startswith("read: ")}
    writes = {name.removeprefix("write: ") for name in report if name.startswith("write: ")}
    assert reads == {*REFUSED, *ENDS_WELL}
    assert writes == {*UPLOADS, "unavailable for a moment"}


@pytest.mark.parametrize("scenario", REFUSED)
def test_a_download_that_fails_is_one_line(report, scenario):
    check_refusal(report[f"read: {scenario}"], *REFUSED[scenario])


@pytest.mark.parametrize("scenario", [*REFUSED, *ENDS_WELL])
def test_nothing_half_stays_and_the_next_run_is_right(report, scenario):
    found = report[f"read: {scenario}"]
    assert found["halves"] == []
    if scenario == "a pointer":  # which the repository holds
        return check_refusal(found["again"], *REFUSED[scenario])
    local = LOCAL.get(scenario, "images" if "data set" in scenario else "model")
    assert found["again"]["code"] == 0, found["again"]["stderr"]
    assert without_intervals(found["again"]["stdout"]) == without_intervals(report[local]["stdout"])
    return None


@pytest.mark.parametrize("scenario", ENDS_WELL)
def test_a_fault_that_passes_changes_nothing(report, scenario):
    found = report[f"read: {scenario}"]
    assert found["code"] == 0, found["stderr"]
    assert found["stdout"] == found["again"]["stdout"]


def test_a_cut_download_goes_on_where_it_was_cut(report):
    assert report["read: cut once"]["ranges"] == ["bytes=30000-"]
    assert report["model"]["stdout"] != report["model-2"]["stdout"]


def test_a_library_s_retries_are_told_once(report):
    lines = report["read: unavailable for a moment"]["stderr"].splitlines()
    assert len([line for line in lines if "HTTP Error 503" in line]) == 2  # the third try is the last of those


@pytest.mark.parametrize("scenario", UPLOADS)
def test_an_upload_that_fails_is_one_line_and_leaves_nothing(report, scenario):
    found = report[f"write: {scenario}"]
    check_refusal(found, *UPLOADS[scenario])
    assert found["files"] == []


@pytest.mark.parametrize("scenario", [*list(UPLOADS)[:-1], "unavailable for a moment"])
def test_the_next_upload_is_whole(report, scenario):
    found = report[f"write: {scenario}"]
    assert found["again"]["code"] == 0, found["again"]["stderr"]
    assert found["whole"]
