"""CPU and GPU facts that change rounding: thread count, instruction set, GPU and libraries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from camelpress.inference.model.batch_sizes import batch_sizes


def cpu_facts() -> dict[str, Any]:
    """Returns torch's thread count per operation and its CPU instruction set."""
    return {
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def rounding_facts(device: torch.device) -> dict[str, Any]:
    """Returns all facts of a device that change rounding; the device index is not among them."""
    sizes = batch_sizes(device)
    facts = {
        "device": device.type,
        "fp32 products": torch.get_float32_matmul_precision(),
        "batch tokens": sizes.batch,
        "lane tokens": sizes.shard,
    }
    return facts | (_gpu_facts(device) if device.type == "cuda" else cpu_facts())


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Sets the thread count of torch operations for the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _gpu_facts(device: torch.device) -> dict[str, Any]:
    products = torch.backends.cuda.matmul
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = None
    return {
        "GPU": torch.cuda.get_device_name(device) if torch.cuda.is_available() else None,
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
        "triton": triton,
        "TF32": [products.allow_tf32, torch.backends.cudnn.allow_tf32],
        "16-bit sums": [
            products.allow_bf16_reduced_precision_reduction,
            products.allow_fp16_reduced_precision_reduction,
        ],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
