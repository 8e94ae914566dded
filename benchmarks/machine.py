"""The machine that a result was measured on."""

import os
import platform
import re
from pathlib import Path

import torch
import transformers


def machine(device: str = "cpu") -> dict[str, str | int]:
    """Describe processor, cores, threads, the GPU if one is used, and versions."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    model = re.search(r"model name\s*: (.+)", text)
    facts: dict[str, str | int] = {
        "processor": model[1] if model else platform.processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name()
    return facts
