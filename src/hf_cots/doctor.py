"""Findings for `hf-cots doctor`: versions, devices, extras, the Hub, and caches."""

import os
import platform
import shutil
import statistics
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from huggingface_hub import constants, get_token
from packaging.requirements import Requirement

from .data.folders import cache_folder


PACKAGE = "hf-cots"
NOT_FOR_USE = ("dev",)  # extras that nobody but a developer needs
HUB_SECONDS = 5.0


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        name: what was checked.
        value: what was found.
        advice: what to do about it; empty if nothing is wrong.
        wrong: whether hf_cots cannot work like this.
    """

    name: str
    value: str
    advice: str = ""
    wrong: bool = field(default=False, kw_only=True)


def examine() -> dict[str, list[Finding]]:
    """Collect all findings, by section."""
    return {
        "versions": find_versions(),
        "devices": find_devices(),
        "extras": find_extras(),
        "hub": find_hub(),
        "caches": find_caches(),
    }


# ---------------------------------------------------------------------- packages


def find_versions() -> list[Finding]:
    """Versions of Python, of the package and of what it requires."""
    own = [Finding("Python", platform.python_version()), Finding(PACKAGE, version(PACKAGE))]
    return own + [check_requirement(each) for each in read_requirements("")]


def read_requirements(extra: str) -> list[Requirement]:
    """The package's requirements, or, given the name of an extra, those that the extra adds."""
    parsed = [Requirement(text) for text in requires(PACKAGE) or []]
    if not extra:
        return [each for each in parsed if each.marker is None or each.marker.evaluate({"extra": ""})]
    return [
        each
        for each in parsed
        if each.marker and "extra" in str(each.marker) and each.marker.evaluate({"extra": extra})
    ]


def check_requirement(requirement: Requirement) -> Finding:
    """The installed version of a required package."""
    install = f"pip install '{requirement.name}{requirement.specifier}'"
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return Finding(requirement.name, "missing", install, wrong=True)
    fits = requirement.specifier.contains(found, prereleases=True)
    return Finding(requirement.name, found, "" if fits else install, wrong=not fits)


def find_extras() -> list[Finding]:
    """Report which extras are complete, and which packages the others are missing."""
    findings = []
    for extra in metadata(PACKAGE).get_all("Provides-Extra") or []:
        needed = [each for each in read_requirements(extra) if each.name != PACKAGE]
        lacking = [each.name for each in needed if check_requirement(each).wrong]
        if extra in NOT_FOR_USE or not needed:
            continue
        value = f"missing: {', '.join(lacking)}" if lacking else "complete"
        findings.append(Finding(extra, value, f"pip install '{PACKAGE}[{extra}]'" if lacking else ""))
    return findings


# ---------------------------------------------------------------------- machine


def find_devices() -> list[Finding]:
    """Report processor, memory and accelerators, and the speedup of bfloat16 on each."""
    threads = torch.get_num_threads()
    findings = [
        Finding("CPU", f"{os.cpu_count()} cores, {threads} threads in use, {memory_in_gib():.0f} GiB of memory")
    ]
    ratio = bfloat16_gain(torch.device("cpu"))
    advice = "--bf16 --use_cpu trains faster here" if ratio > 1.2 else ""
    findings.append(Finding("CPU, bfloat16", f"{ratio:.1f} times as fast as float32 in matrix products", advice))
    if not torch.accelerator.is_available():
        return [*findings, Finding("accelerator", "none that this build of torch can use")]
    for index in range(torch.accelerator.device_count()):
        device = torch.device(torch.accelerator.current_accelerator().type, index)
        findings.append(Finding(str(device), describe_accelerator(device)))
    return findings


def describe_accelerator(device: torch.device) -> str:
    """Name, memory and bfloat16 support of a GPU; the type of other accelerators."""
    if device.type != "cuda":
        return device.type
    properties = torch.cuda.get_device_properties(device)
    gain = (
        f"bfloat16 {bfloat16_gain(device):.1f} times as fast as float32"
        if torch.cuda.is_bf16_supported()
        else "no bfloat16"
    )
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {gain}"


def memory_in_gib() -> float:
    """Memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def bfloat16_gain(device: torch.device, size: int = 768, rounds: int = 5) -> float:
    """The speedup of matrix products in bfloat16 over float32 on a device: the ratio of medians of alternating
    runs."""
    taken: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for _ in range(rounds + 1):
        for dtype, seconds in taken.items():
            left = torch.ones(size, size, dtype=dtype, device=device)
            start = time.perf_counter()
            for _ in range(4):
                left @ left
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
    return statistics.median(taken[torch.float32][1:]) / statistics.median(taken[torch.bfloat16][1:])


# ---------------------------------------------------------------------- Hub and caches


def find_hub() -> list[Finding]:
    """Report whether the Hub answers and whether a token is set. Sends one request, for the Hub's front page."""
    token = Finding("token", "set" if get_token() else "not set; private and gated repositories need one")
    if constants.HF_HUB_OFFLINE:
        return [Finding(constants.ENDPOINT, "not contacted: HF_HUB_OFFLINE is set"), token]
    try:
        with urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_SECONDS):
            value, advice = "answers", ""
    except HTTPError as error:
        value, advice = f"answers with {error.code}", "see its status page"
    except OSError as error:
        value, advice = f"not reached: {error}", "cached models and local folders still load"
    return [Finding(constants.ENDPOINT, value, advice), token]


def find_caches() -> list[Finding]:
    """Report the sizes of the caches, and the free disk space."""
    datasets_cache = os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets"
    folders = {"Hub": Path(constants.HF_HUB_CACHE), "datasets": Path(datasets_cache), "hf_cots": cache_folder()}
    findings = [Finding(name, f"{folder}: {describe_size(folder)}") for name, folder in folders.items()]
    free = shutil.disk_usage(Path.cwd()).free
    return [*findings, Finding("free here", f"{free / 2**30:.0f} GiB")]


def describe_size(folder: Path) -> str:
    """The size of a folder's files, each counted once even if several links point to it; "none" if it does not
    exist."""
    if not folder.is_dir():
        return "none"
    files = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            status = path.stat()
            files[status.st_dev, status.st_ino] = status.st_size
    return f"{sum(files.values()) / 2**30:.2f} GiB in {len(files):,} files"
