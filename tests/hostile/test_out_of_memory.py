"""A device that is too small for a block."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import stages
from camelpress.core.errors import OutOfMemory
from camelpress.quantize import block_quantizer
from refusal import refusal


def too_much() -> None:
    """More than any machine has."""
    torch.empty(2**55)


def on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("fail", [too_much, on_a_gpu])
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
