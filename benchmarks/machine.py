"""The machine a benchmark runs on, as far as it matters to reading and writing large files."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

from camelpress.core.runtime.hardware import describe_hardware

IN_MEMORY = ("tmpfs", "ramfs")
PACKAGES = ("camelpress", "torch", "transformers", "safetensors")


def available_memory() -> int:
    """Bytes that processes could still take, page cache that can be dropped included."""
    return int(_said("/proc/meminfo", r"MemAvailable:\s+(\d+) kB") or 0) * 1024


def facts(folder: Path) -> list[str]:
    """Processor, memory, the file system of a folder, and versions, a line each."""
    processor = describe_hardware()["processor"]
    memory = int(_said("/proc/meminfo", r"MemTotal:\s+(\d+) kB") or 0) * 1024
    stat = ["stat", "--file-system", "--format=%T", str(folder)]
    kind = subprocess.run(stat, capture_output=True, text=True, check=True).stdout.strip()
    warning = ", WHICH IS MEMORY AND NO DISK" if kind in IN_MEMORY else ""
    return [
        f"{len(os.sched_getaffinity(0))} cores, {processor}, {memory / 1e9:.1f} GB of memory",
        f"file system: {kind}{warning}",
        f"Python {platform.python_version()}, "
        + ", ".join(f"{package} {version(package)}" for package in PACKAGES),
    ]


def _said(path: str, pattern: str) -> str | None:
    found = re.search(f"^{pattern}$", Path(path).read_text(encoding="utf-8"), re.MULTILINE)
    return found and found[1]
