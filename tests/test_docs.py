"""README and docs: marked blocks run on a tiny world, and every verb and flag that the texts name exists."""

import re
import shlex
from functools import cache

import pytest
from transformers import HfArgumentParser
from typer.main import get_command

from hf_cots import distill_text, train, train_dvae
from hf_cots.cli import app
from hf_cots.training import arguments
from tests.support.cli import succeed
from tests.support.paths import ROOT
from tests.support.user_folder import make_user_folder


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [*PAGES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "model_cards").glob("*/README.md"))]
RECIPES = sorted((ROOT / "model_cards").glob("*/*.yaml"))
BLOCK = re.compile(r"(<!-- run -->\n)?```(python|bash)\n(.*?)```", re.DOTALL)
FLAG = re.compile(r"(?<![\w-])--[a-zA-Z][\w-]*")
PROGRAMS = {"hf_cots.train": train, "hf_cots.train_dvae": train_dvae, "hf_cots.distill_text": distill_text}
NOT_OURS = {"--nproc-per-node", "--no-deps"}  # torchrun's, pip's


def page_name(path):
    return path.relative_to(ROOT).as_posix()


def commands(text):
    """The commands of a bash block, each as a list of words."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def run_command(words):
    """Run `hf-cots ...` or `python -m hf_cots.train ...` in this process, which has imported everything already."""
    if words[0] == "hf-cots":
        succeed(*words[1:])
    else:
        assert words[:2] == ["python", "-m"], f"this test cannot run {words}"
        PROGRAMS[words[2]].main(words[3:])


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_the_marked_blocks_run(page, world, tmp_path, monkeypatch):
    """Blocks of a page run in order, in one folder, and share their Python variables."""
    make_user_folder(world, tmp_path)
    monkeypatch.chdir(tmp_path)
    variables = {}
    for marked, language, code in BLOCK.findall(page.read_text()):
        if marked and language == "python":
            exec(compile(code, page_name(page), "exec"), variables)
        elif marked:
            for words in commands(code):
                run_command(words)


def test_every_page_of_use_has_a_block_that_runs():
    without = {page.name for page in PAGES if "<!-- run -->" not in page.read_text()}
    assert without == {"results.md"}


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("page", TEXTS, ids=page_name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_contributing_names_files_that_exist():
    """`data/sources.py` below the package or the repository; a bare `losses.py` anywhere in the package."""
    package = ROOT / "src" / "hf_cots"
    names = set(re.findall(r"`([\w/]+\.py)`", (ROOT / "CONTRIBUTING.md").read_text()))
    missing = {name for name in names if not (package / name).is_file() and not (ROOT / name).is_file()}
    assert {name for name in missing if "/" in name or not list(package.rglob(name))} == set()
    assert len(names) > 20


# ---------------------------------------------------------------------- verbs and flags


TRAIN = (arguments.ModelArguments, arguments.DataArguments, arguments.COTSTrainingArguments)
TRAIN_DVAE = (arguments.ImageTokenizerArguments, arguments.ImageArguments, arguments.DVAETrainingArguments)
DISTILL = (arguments.TeacherArguments, arguments.TranslationArguments, arguments.DistillationTrainingArguments)
COMMAND = re.compile(r"(hf-cots|(?:python|torchrun\b.*?) -m hf_cots(?:\.\w+)?)\b((?: [^`#\n]*)?)")


@cache
def known_flags():
    """The flags of every command of ours, by the words that call it."""
    flags = {}

    def add(name, command):
        given = [flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)]
        flags[name] = {"--help", *given}
        for verb, below in getattr(command, "commands", {}).items():
            add(f"{name} {verb}", below)

    add("hf-cots", get_command(app))
    train_flags, dvae_flags = (set(HfArgumentParser(kinds)._option_string_actions) for kinds in (TRAIN, TRAIN_DVAE))
    flags |= {"hf-cots train": train_flags, "hf_cots.train": train_flags}
    flags |= {"hf-cots train-tokenizer": dvae_flags, "hf_cots.train_dvae": dvae_flags}
    distill_flags = set(HfArgumentParser(DISTILL)._option_string_actions)
    flags |= {"hf-cots distill-text": distill_flags, "hf_cots.distill_text": distill_flags}
    flags["hf-cots tokenize"] |= train_flags  # after a training recipe
    return flags


def named_commands(path):
    """Every command of ours in a text, or in the comments of a recipe: its name, and the words after it."""
    text = path.read_text()
    if path.suffix == ".yaml":
        text = "\n".join(line[1:] for line in text.splitlines() if line.startswith("#"))
    for program, rest in COMMAND.findall(text.replace("\\\n", " ")):
        name, words = program.split(" -m ")[-1].replace("hf_cots", "hf-cots", "." not in program), rest.split()
        while words and f"{name} {words[0]}" in known_flags():
            name += f" {words.pop(0)}"
        yield name, words


@pytest.mark.parametrize("path", [*TEXTS, *RECIPES], ids=page_name)
def test_every_verb_and_flag_exists(path):
    for name, words in named_commands(path):
        assert set(FLAG.findall(" ".join(words))) <= known_flags()[name], f"{name} {words}"
        assert name != "hf-cots" or not words or words == ["--help"], f"no such verb: {words[0]}"


@pytest.mark.parametrize("page", TEXTS, ids=page_name)
def test_every_flag_in_running_text_exists(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    pieces = [piece for piece in re.findall(r"`([^`\n]+)`", text) if "benchmarks" not in piece]
    assert set(FLAG.findall(" ".join(pieces))) <= set.union(NOT_OURS, *known_flags().values())
