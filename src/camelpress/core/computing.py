"""How sums come about on a processor, on which their last bits depend."""

from __future__ import annotations

from typing import Any

import torch


def computing() -> dict[str, Any]:
    """Threads of an operation, and the instructions that torch chose for this processor."""
    return {
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
