"""Products keep their precision under every setting, and the setting of the program returns."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import elsewhere
from camelpress.inference.model.matmul_precision import exact_products, product_facts
from camelpress.inference.streaming.rounding_facts import rounding_facts

CUDA: Any = torch.backends.cuda.matmul
MKLDNN: Any = torch.backends.mkldnn
CPU = MKLDNN.matmul


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = CUDA.fp32_precision, CPU.fp32_precision
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision("highest")
    CUDA.fp32_precision, CPU.fp32_precision = before


def state() -> tuple[str, str, str]:
    try:
        legacy = torch.get_float32_matmul_precision()
    except RuntimeError:
        legacy = "refused"
    return legacy, CUDA.fp32_precision, CPU.fp32_precision


def choose_cuda(precision: str) -> None:
    CUDA.fp32_precision = precision


def choose_cpu(precision: str) -> None:
    CPU.fp32_precision = precision


def allow_tf32() -> None:
    CUDA.allow_tf32 = True


# fmt: off
SETTINGS = {
    "untouched": lambda: None,
    "high":      lambda: torch.set_float32_matmul_precision("high"),
    "medium":    lambda: torch.set_float32_matmul_precision("medium"),
    "allowed":   allow_tf32,
    "CUDA only": lambda: choose_cuda("tf32"),
    "CPU only":  lambda: choose_cpu("bf16"),
}
# fmt: on


@pytest.mark.parametrize("choose", SETTINGS.values(), ids=SETTINGS)
def test_products_are_in_ieee_fp32_and_the_setting_returns(choose: Callable[[], None]) -> None:
    choose()
    before = state()
    with exact_products():
        assert state() == ("highest", "ieee", "ieee")
    assert state() == before


def test_the_setting_returns_after_an_error() -> None:
    torch.set_float32_matmul_precision("high")
    before = state()
    with pytest.raises(ZeroDivisionError), exact_products():
        raise ZeroDivisionError
    assert state() == before


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
@pytest.mark.parametrize(
    ("dtypes", "device", "expected"),
    [
        ((torch.float16,), "cuda", "tf32"),
        ((torch.bfloat16, torch.float16), "cuda", "tf32"),
        ((torch.float32,), "cuda", "ieee"),
        ((torch.bfloat16, torch.float32), "cuda", "ieee"),
        ((torch.float16,), "cpu", "ieee"),
        ((), "cuda", "ieee"),
    ],
)
def test_tf32_is_allowed_where_it_is_exact(
    dtypes: tuple[torch.dtype, ...], device: str, expected: str
) -> None:
    with elsewhere.pretended():
        operands = [torch.ones(2, dtype=dtype, device=device) for dtype in dtypes]
        with exact_products(*operands):
            assert CUDA.fp32_precision == expected
            assert CPU.fp32_precision == "ieee"  # a pretended GPU computes on the CPU


def test_the_environment_changes_nothing_inside() -> None:
    program = (
        "import torch; from camelpress.inference.model.matmul_precision import exact_products\n"
        "matmul = torch.backends.cuda.matmul\n"
        "print(matmul.fp32_precision)\n"
        "with exact_products(): print(matmul.fp32_precision, matmul.allow_tf32)\n"
        "print(matmul.fp32_precision)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["tf32", "ieee", "False", "tf32"]


def test_facts_name_the_setting_of_the_program() -> None:
    assert product_facts() == {"fp32 products": "highest"}
    torch.set_float32_matmul_precision("high")
    with exact_products():
        pass
    assert rounding_facts(torch.device("cpu"))["fp32 products"] == "high"
    torch.set_float32_matmul_precision("highest")
    CUDA.fp32_precision = "tf32"
    assert product_facts() == {"fp32 products": "tf32 on CUDA, ieee on the CPU"}
    assert rounding_facts(torch.device("cuda"))["TF32"][0] is True
