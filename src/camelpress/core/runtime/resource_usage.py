"""Measures the time and the memory that this program uses."""

from __future__ import annotations

import re
import resource
import sys
import time
from pathlib import Path


class Stopwatch:
    """Measures the seconds since its creation and the peak memory of this process."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def cost(self) -> dict[str, float]:
        """Returns the seconds and the peak resident memory in bytes."""
        return {
            "seconds": round(time.monotonic() - self._start, 3),
            "peak_bytes": peak_bytes(),
        }


def peak_bytes() -> int:
    """Returns the peak resident memory of this program, in bytes.

    Linux counts it per program. The count of `getrusage` starts from the parent's memory.
    """
    peak = _status("VmHWM")
    if peak is not None:
        return peak
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_bytes() -> int:
    """Returns the resident memory of this program in bytes, or its peak outside Linux."""
    resident = _status("VmRSS")
    return peak_bytes() if resident is None else resident


def _status(key: str) -> int | None:
    status = Path("/proc/self/status")
    if status.is_file():
        text = status.read_text(encoding="utf-8")
        if match := re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE):
            return int(match[1]) * 1024
    return None
