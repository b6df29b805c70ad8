"""How fast this machine multiplies fp32 matrices: python -m benchmarks.validate.gemm OUT

Square matrices of 2,048, by the same library that models are run with; the best of several, which
is the limit. OUT gets operations a second as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

SIZE, TIMES = 2048, 30


def rate() -> float:
    """Floating-point operations a second."""
    left, right, out = (torch.rand(SIZE, SIZE) for _ in range(3))
    best = float("inf")
    for _ in range(TIMES):
        start = time.perf_counter()
        torch.mm(left, right, out=out)
        best = min(best, time.perf_counter() - start)
    return 2.0 * SIZE**3 / best


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(rate()), encoding="utf-8")
