"""The machine that this program runs on, as a release tells of it."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

CPUINFO = Path("/proc/cpuinfo")  # of Linux; elsewhere the name that Python has


def hardware() -> dict[str, Any]:
    """Kind of machine, processor, its cores as the system counts them, and GPUs by name."""
    text = CPUINFO.read_text(encoding="utf-8", errors="replace") if CPUINFO.is_file() else ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return {
        "machine": platform.machine(),
        "processor": named[1] if named else platform.processor(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(each) for each in range(torch.cuda.device_count())],
    }
