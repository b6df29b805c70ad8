"""The machine that this program runs on, as a release tells of it.

What Linux says in `/proc` is read; no driver is woken for it.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")
GPU_FOLDER = Path("/proc/driver/nvidia/gpus")  # a folder for each, with a file `information`


def describe_hardware() -> dict[str, Any]:
    """Kind of machine, processor, its cores as the system counts them, and GPUs by name."""
    return {
        "machine": platform.machine(),
        "processor": next(_values_of_key(CPUINFO, "model name"), platform.processor()),
        "cores": os.cpu_count(),
        "gpus": [
            name
            for place in sorted(GPU_FOLDER.glob("*/information"))
            for name in _values_of_key(place, "Model")
        ],
    }


def _values_of_key(path: Path, key: str) -> Iterator[str]:
    """The values of a key in lines of `key: value`."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for found in re.finditer(rf"^{key}[ \t]*:[ \t]*(.+)$", text, re.MULTILINE):
        yield found[1].strip()
