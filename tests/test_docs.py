"""README and docs: marked blocks run on a tiny world, and every verb and flag that the texts name exists."""

import re
import shlex
from functools import cache

import pytest
from transformers import HfArgumentParser
from typer.main import get_command
from typer.testing import CliRunner

from hf_cots import train, train_dvae
from hf_cots.cli import app
from hf_cots.training import arguments
from tests.support.paths import ROOT
from tests.support.user_folder import make_user_folder


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [*PAGES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "model_cards").glob("*/README.md"))]
RECIPES = sorted((ROOT / "model_cards").glob("*/recipe.yaml"))
BLOCK = re.compile(r"(<!-- run -->\n)?```(python|bash)\n(.*?)```", re.DOTALL)
FLAG = re.compile(r"(?<![\w-])--[a-zA-Z][\w-]*")
PROGRAMS = {"hf_cots.train": train, "hf_cots.train_dvae": train_dvae}
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
        result = CliRunner().invoke(app, words[1:], catch_exceptions=False)
        assert result.exit_code == 0, result.output
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
    assert without == {"cli.md", "design.md", "results.md"}


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("page", TEXTS, ids=page_name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


# ---------------------------------------------------------------------- verbs and flags


@cache
def program_flags(program):
    kinds = {
        "hf_cots.train": (arguments.ModelArguments, arguments.DataArguments, arguments.COTSTrainingArguments),
        "hf_cots.train_dvae": (
            arguments.ImageTokenizerArguments,
            arguments.ImageArguments,
            arguments.DVAETrainingArguments,
        ),
    }[program]
    return set(HfArgumentParser(kinds)._option_string_actions)


@cache
def verbs():
    """The flags of each verb, `convert dalle` and its like included."""
    found = {}
    for name, command in get_command(app).commands.items():
        for path, one in {
            name: command,
            **{f"{name} {sub}": c for sub, c in getattr(command, "commands", {}).items()},
        }.items():
            found[path] = {flag for parameter in one.params for flag in parameter.opts} | {"--help"}
    found["train"], found["train-tokenizer"] = program_flags("hf_cots.train"), program_flags("hf_cots.train_dvae")
    found["tokenize"] |= program_flags("hf_cots.train")  # it takes a training recipe and flags after it
    return found


def named_commands(path):
    """Every command of ours in a text: in blocks, in backticks, and in the comments at the head of a recipe."""
    text = path.read_text()
    if path.suffix == ".yaml":
        text = "\n".join(line[1:] for line in text.splitlines() if line.startswith("#"))
        pieces = [text]
    else:
        pieces = [code for _, _, code in BLOCK.findall(text)]
        pieces += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        pieces += re.findall(r"^    (\S.*)$", text, re.MULTILINE)
    for piece in pieces:
        for line in piece.replace("\\\n", " ").splitlines():
            found = re.search(r"(?:hf-cots|(?:python|torchrun\b.*) -m (hf_cots\.\w+|hf_cots))\b(.*)", line)
            if found:
                yield (found[1] or "hf_cots"), found[2].partition("   #")[0]


@pytest.mark.parametrize("path", [*TEXTS, *RECIPES], ids=page_name)
def test_every_verb_and_flag_exists(path):
    for program, rest in named_commands(path):
        if program == "hf_cots":
            words = rest.split()
            verb = next((v for v in (" ".join(words[:2]), *words[:1]) if v in verbs()), None)
            assert verb is not None or not words or words[0].startswith(("-", "VERB")), f"no verb: hf-cots{rest}"
            known = verbs()[verb] if verb else {"--help"}
        else:
            known = program_flags(program)
        unknown = set(FLAG.findall(rest)) - known
        assert not unknown, f"{program}{rest}"


@pytest.mark.parametrize("page", TEXTS, ids=page_name)
def test_every_flag_in_running_text_exists(page):
    known = set.union(*verbs().values(), program_flags("hf_cots.train"), program_flags("hf_cots.train_dvae"), NOT_OURS)
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    pieces = [
        piece for piece in re.findall(r"`([^`\n]+)`", text) if not piece.startswith(("python -m benchmarks", "make"))
    ]
    assert {flag for piece in pieces for flag in FLAG.findall(piece)} - known == set()
