"""Facts of the machine, and the speeds it reaches at best: products and copies."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.session import Session
from camelpress.core.runtime.hardware import describe_hardware
from camelpress.inference.streaming.rounding_facts import rounding_facts

PACKAGES = ("camelpress", "torch", "triton", "transformers", "numba", "numpy")
DRIVER_QUERY = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def machine_facts(session: Session) -> None:
    """Reports GPU, memory, driver, libraries and everything that changes rounding."""
    facts: dict[str, Any] = {
        "hardware": describe_hardware(),
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": {name: _package_version(name) for name in PACKAGES},
        "rounding": rounding_facts(session.device),
    }
    if session.is_gpu:
        gpu = torch.cuda.get_device_properties(session.device)
        facts["gpu"] = {
            "name": gpu.name,
            "capability": f"{gpu.major}.{gpu.minor}",
            "bytes": gpu.total_memory,
            "free_bytes": torch.cuda.mem_get_info(session.device)[0],
            "driver": _driver(),
            "cuda": torch.version.cuda,
        }
    session.report(**facts)


def ceilings(session: Session) -> None:
    """Measures TFLOP/s of square products, and GB/s of copies."""
    facts = {}
    size = session.count(8192, 256)
    for name, dtype, precision in _products(session):
        first, second = (torch.randn(size, size, device=session.device).to(dtype) for _ in "ab")
        with matmul_precision(precision):
            seconds = session.median_seconds(partial(torch.matmul, first, second))
        facts[f"{name}_tflops"] = 2 * size**3 / seconds / 1e12
    copied_bytes = session.count(2**30, 2**20)
    host = torch.ones(copied_bytes // 4)
    device = host.to(session.device)
    facts["device_copy_gbps"] = _gbps(session, device, device.clone(), 2 * copied_bytes)
    if session.is_gpu:
        pinned = host.pin_memory()
        facts["h2d_pinned_gbps"] = _gbps(session, pinned, device, copied_bytes)
        facts["d2h_pinned_gbps"] = _gbps(session, device, pinned, copied_bytes)
        facts["h2d_pageable_gbps"] = _gbps(session, host, device, copied_bytes)
        facts["d2h_pageable_gbps"] = _gbps(session, device, host, copied_bytes)
    session.report(**facts, **({} if session.is_gpu else {"needs_gpu": ["fp16", "tf32", "h2d"]}))


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Sets the precision of fp32 products: `highest`, or `high` for TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _products(session: Session) -> list[tuple[str, torch.dtype, str]]:
    fp32 = ("fp32", torch.float32, "highest")
    if not session.is_gpu:
        return [fp32]
    return [("fp16", torch.float16, "highest"), ("tf32", torch.float32, "high"), fp32]


def _gbps(session: Session, source: Tensor, target: Tensor, moved_bytes: int) -> float:
    return moved_bytes / session.median_seconds(lambda: target.copy_(source)) / 1e9


def _package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    try:
        lines = subprocess.run(DRIVER_QUERY, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return lines.strip().splitlines()[0] if lines.strip() else None
