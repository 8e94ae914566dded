"""Programs in processes of their own."""

import os
import subprocess
import sys

from tests.support.paths import ROOT


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}/src:{ROOT}"}


def run_python(*arguments, timeout=280, **options):
    """A finished `python ARGUMENTS`, with its output as text."""
    command = [sys.executable, *map(str, arguments)]
    options = {"env": ENVIRONMENT, "capture_output": True, "text": True, "timeout": timeout} | options
    return subprocess.run(command, check=False, **options)


def torchrun(processes, *command):
    """What it printed; gloo may abort at exit, so that only the files tell how it went."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes)
    return run_python(*launcher, *command).stderr
