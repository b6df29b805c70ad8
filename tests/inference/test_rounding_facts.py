"""A run resumes on another index of the same GPU, and on no other GPU, library or precision."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata

import pytest
import torch

from camelpress.inference.streaming import rounding_facts as module
from camelpress.inference.streaming.rounding_facts import rounding_facts, torch_threads

CPU, FIRST, SECOND = (torch.device(name) for name in ("cpu", "cuda:0", "cuda:1"))
Patch = pytest.MonkeyPatch


def test_the_index_of_a_gpu_and_the_threads_beside_it_change_no_byte() -> None:
    facts = rounding_facts(FIRST)
    with torch_threads(torch.get_num_threads() + 1):
        assert rounding_facts(SECOND) == facts


def test_threads_change_the_bytes_of_a_cpu() -> None:
    with torch_threads(3):
        assert rounding_facts(CPU)["threads"] == 3
    assert rounding_facts(CPU) != {**rounding_facts(CPU), "threads": 3}


def replace_gpu(patch: Patch) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "get_device_name", lambda _: "another GPU")


def replace_package(name: str) -> Callable[[Patch], None]:
    def replace(patch: Patch) -> None:
        patch.setattr(module, "version", lambda key: "0" if key == name else metadata.version(key))

    return replace


def round_products_to_tf32(patch: Patch) -> None:
    patch.setattr(torch, "get_float32_matmul_precision", lambda: "high")


# fmt: off
CHANGES: dict[str, Callable[[Patch], None]] = {
    "GPU":              replace_gpu,
    "CUDA":             lambda patch: patch.setattr(torch.version, "cuda", "99.0"),
    "cuBLAS":           replace_package("nvidia-cublas-cu12"),
    "triton":           replace_package("triton"),
    "fp32 products":    round_products_to_tf32,
    "cuBLAS variables": lambda patch: patch.setenv("NVIDIA_TF32_OVERRIDE", "1"),
}
# fmt: on


@pytest.mark.parametrize("name", CHANGES)
def test_a_fact_of_a_gpu_that_changes_rounding_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = rounding_facts(FIRST)
    CHANGES[name](monkeypatch)
    after = rounding_facts(FIRST)
    assert name in {key for key in after if after[key] != before[key]}
