"""CPU and GPU facts that change rounding: thread count, instruction set, GPU and libraries."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from camelpress.inference.model.batch_sizes import batch_sizes
from camelpress.inference.model.matmul_precision import EXACT_PRODUCTS, product_facts

CUBLAS_PACKAGES = ("nvidia-cublas", "nvidia-cublas-cu12", "nvidia-cublas-cu13")  # name by CUDA
CUBLAS_VARIABLES = ("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE")  # change its algorithms


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
        **product_facts(),
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
    return {
        "GPU": torch.cuda.get_device_name(device) if torch.cuda.is_available() else None,
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
        "cuBLAS": _package_version(*CUBLAS_PACKAGES),
        "cuBLAS variables": [os.environ.get(name) for name in CUBLAS_VARIABLES],
        "triton": _package_version("triton"),
        "linear algebra": str(torch.backends.cuda.preferred_linalg_library()),
        "TF32": [products.fp32_precision == "tf32", torch.backends.cudnn.allow_tf32],
        "solver products": EXACT_PRODUCTS,
        "16-bit sums": [
            products.allow_bf16_reduced_precision_reduction,
            products.allow_fp16_reduced_precision_reduction,
        ],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def _package_version(*names: str) -> str | None:
    """Returns the version of the first package that is installed."""
    for name in names:
        with suppress(PackageNotFoundError):
            return version(name)
    return None
