"""Hardware facts of this machine for reports and releases.

The facts come from `/proc` of Linux; no GPU driver is initialized.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")
GPU_FOLDER = Path("/proc/driver/nvidia/gpus")  # one folder per GPU with a file `information`


def describe_hardware() -> dict[str, Any]:
    """Returns the machine type, processor name, logical core count and GPU names."""
    return {
        "machine": platform.machine(),
        "processor": next(_values_of_key(CPUINFO, "model name"), platform.processor()),
        "cores": os.cpu_count(),
        "gpus": [
            name
            for path in sorted(GPU_FOLDER.glob("*/information"))
            for name in _values_of_key(path, "Model")
        ],
    }


def _values_of_key(path: Path, key: str) -> Iterator[str]:
    """Yields the values of one key from a file of `key: value` lines."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for match in re.finditer(rf"^{key}[ \t]*:[ \t]*(.+)$", text, re.MULTILINE):
        yield match[1].strip()
