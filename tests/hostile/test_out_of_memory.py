"""A device that is too small for a block."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import stages
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import OutOfMemory
from camelpress.core.runtime.out_of_memory import is_out_of_memory
from camelpress.inference.model.streamed_model import StreamedModel
from camelpress.quantize import block_quantizer
from refusal import refusal


def too_much() -> None:
    """More than any machine has."""
    torch.empty(2**55)


def raising(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


# fmt: off
LIBRARIES: dict[str, Callable[[], None]] = {
    "torch on a CPU": too_much,
    "torch on a GPU": raising(torch.OutOfMemoryError("CUDA out of memory. Tried to")),
    "cuBLAS":         raising(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling "
                                           "`cublasCreate(handle)`")),
    "cuSOLVER":       raising(RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED")),
    "CUDA":           raising(RuntimeError("CUDA driver error: out of memory")),
    "numpy":          raising(MemoryError("Unable to allocate 1 GiB")),
    "the system":     raising(OSError(12, "Cannot allocate memory")),
}
# fmt: on


@pytest.mark.parametrize("fail", LIBRARIES.values(), ids=LIBRARIES.keys())
def test_a_block_that_does_not_fit_is_named(
    base: Path, chat: Path, out: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[[], None]
) -> None:
    monkeypatch.setattr(block_quantizer, "round_layer", lambda *_: fail())
    with refusal(
        OutOfMemory,
        "model.layers.0: cpu has too little memory",
        next_step="use a shorter --sequence-length, or a device with the memory forecast",
        exit_code=3,
        out=out,
    ):
        stages.quantize(base, out, chat)


def test_another_error_stays_what_it_is(
    base: Path, chat: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_quantizer, "round_layer", lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size mismatch|inconsistent tensor size"):
        stages.quantize(base, out, chat)


def test_a_full_gpu_is_no_fault_of_the_config(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = raising(RuntimeError("CUDA error: out of memory"))
    monkeypatch.setattr(torch.nn.Module, "to", lambda *_: full())
    with pytest.raises(RuntimeError, match="out of memory"):
        StreamedModel(Checkpoint.open(base), device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), OSError(28, "No space left"),
     ValueError("out of memory")],
)  # fmt: skip
def test_another_fault_is_no_lack_of_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)
