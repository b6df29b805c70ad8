"""Session of one benchmark part: device, sizes, folder, clock and JSON lines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.shapes import VOCABULARY
from camelpress.core.runtime.resource_usage import peak_bytes

COPY_NAMES = ("Memcpy", "Memset")  # beginnings of the names of copies in a profile


@dataclass(frozen=True)
class Session:
    """Device and folder of a part; a CPU gets tiny sizes, for a dry run.

    Args:
        part: name of the part.
        device: device of all work.
        folder: folder for models and outputs; parts share its models.
    """

    part: str
    device: torch.device
    folder: Path
    differences: list[dict[str, Any]] = field(default_factory=list)  # reports that are not ok

    @property
    def is_gpu(self) -> bool:
        """True on a GPU, where all sizes are real."""
        return self.device.type == "cuda"

    @property
    def vocabulary(self) -> int:
        """Rows of embedding and head."""
        return VOCABULARY if self.is_gpu else 512

    def width(self, hidden: int) -> int:
        """Returns a hidden size on a GPU, and a tiny one elsewhere."""
        return hidden if self.is_gpu else hidden // 32

    def count(self, gpu: int, cpu: int) -> int:
        """Returns a count by device."""
        return gpu if self.is_gpu else cpu

    def report(self, **facts: Any) -> None:
        """Prints one JSON line."""
        line = {"part": self.part, "device": str(self.device), **facts}
        if facts.get("ok") is False:
            self.differences.append(line)
        print(json.dumps(line, default=str), flush=True)

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object]) -> float:
        """Returns the seconds of one call, the device waited for on both sides."""
        self.synchronize()
        start = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - start

    def median_seconds(self, work: Callable[[], object], *, rounds: int = 5) -> float:
        """Returns the median seconds of a call after a first one that is not counted."""
        work()
        return sorted(self.seconds(work) for _ in range(rounds))[rounds // 2]

    def launches(self, work: Callable[[], object]) -> int | None:
        """Counts the kernels that a call starts on a GPU, without copies; none elsewhere."""
        if not self.is_gpu:
            return None
        with profile(activities=[ProfilerActivity.CUDA]) as recording:
            work()
            self.synchronize()
        names = [event.name for event in recording.events() if event.device_type.name == "CUDA"]
        return sum(not name.startswith(COPY_NAMES) for name in names)

    def reset_peak(self) -> None:
        """Begins a new peak of the device memory."""
        if self.is_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)

    def peaks(self) -> dict[str, int | None]:
        """Returns the peak bytes of the device since `reset_peak`, and of this process."""
        device_bytes = torch.cuda.max_memory_allocated(self.device) if self.is_gpu else None
        return {"device_peak_bytes": device_bytes, "host_peak_bytes": peak_bytes()}
