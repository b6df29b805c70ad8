"""Precision of fp32 matrix products, whatever the environment says.

TF32 rounds the operands of a product to 11 bits and is several times as fast. Numbers of fp16 and
bf16 have at most 11 bits, so their products are exact in it, and the sums are in fp32 as before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

SHORT_DTYPES = (torch.float16, torch.bfloat16)  # dtypes without more bits than TF32
EXACT_PRODUCTS = "ieee, on CUDA tf32 for 16-bit operands"  # name of this choice in facts

_CPU: Any = torch.backends.mkldnn  # torch declares no type for its settings


@contextmanager
def exact_products(*operands: Tensor) -> Iterator[None]:
    """Computes products in IEEE fp32, or in TF32 where it is exact for all operands.

    The earlier settings return at the end.

    Args:
        operands: factors of the products in the block, before a conversion to fp32; without any,
            products are in IEEE fp32.
    """
    earlier = _read_settings()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = _allows_tf32(operands)
    try:
        yield
    finally:
        _restore_settings(earlier)


def product_facts() -> dict[str, Any]:
    """Returns the precision of fp32 products outside of `exact_products`."""
    legacy, cuda, cpu = _read_settings()
    return {"fp32 products": legacy or f"{cuda} on CUDA, {cpu} on the CPU"}


def _allows_tf32(operands: tuple[Tensor, ...]) -> bool:
    return bool(operands) and all(
        operand.device.type == "cuda" and operand.dtype in SHORT_DTYPES for operand in operands
    )


def _read_settings() -> tuple[str, str, str]:
    """Returns the legacy precision, empty if torch refuses it, and those of CUDA and the CPU."""
    try:
        legacy = torch.get_float32_matmul_precision()
    except RuntimeError:  # somebody set the precision of one backend only
        legacy = ""
    return legacy, torch.backends.cuda.matmul.fp32_precision, _CPU.matmul.fp32_precision


def _restore_settings(settings: tuple[str, str, str]) -> None:
    legacy, cuda, cpu = settings
    if legacy:
        torch.set_float32_matmul_precision(legacy)
    torch.backends.cuda.matmul.fp32_precision = cuda
    _CPU.matmul.fp32_precision = cpu
