"""Facts of a processor or a GPU on which the last bits of sums depend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from camelpress.inference.model import token_batches
from camelpress.inference.streaming import token_shards


def computing() -> dict[str, Any]:
    """Threads of an operation, and the instructions that torch chose for this processor."""
    return {
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def rounding(device: torch.device) -> dict[str, Any]:
    """Everything that decides how results are rounded on a device, without the device's index."""
    sizes = {"batch tokens": token_batches.BATCH_TOKENS, "lane tokens": token_shards.LANE_TOKENS}
    facts = {"device": device.type, "fp32 products": torch.get_float32_matmul_precision(), **sizes}
    return facts | (_of_gpu(device) if device.type == "cuda" else computing())


@contextmanager
def thread_count(count: int) -> Iterator[None]:
    """Let operations of torch have so many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _of_gpu(device: torch.device) -> dict[str, Any]:
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
