"""A safetensors header that says what the file does not hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import damage
from camelpress.core.errors import CheckpointProblem
from camelpress.reporting.stage_report import Report
from refusal import refusal, starting

Stage = Callable[[Path], Report]

BODY = bytes(16)


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def framed(header: object, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + BODY


LIES = {
    "a shape larger than its bytes": framed({"a": entry([100], 0, 16)}),
    "a shape smaller than its bytes": framed({"a": entry([1], 0, 16)}),
    "offsets beyond the file": framed({"a": entry([1000], 0, 4000)}),
    "offsets that overlap": framed({"a": entry([4], 0, 16), "b": entry([2], 8, 16)}),
    "a gap between offsets": framed({"a": entry([1], 0, 4), "b": entry([2], 8, 16)}),
    "offsets backwards": framed({"a": entry([4], 16, 0)}),
    "bytes that nobody owns": framed({"a": entry([1], 0, 4)}),
    "a shape that overflows": framed({"a": entry([2**62, 2**62], 0, 16)}),
    "a negative size": framed({"a": entry([-4], 0, 16)}),
    "an unknown dtype": framed({"a": entry([4], 0, 16, "F33")}),
    "a header longer than the file": framed({"a": entry([4], 0, 16)}, length=10_000),
    "a header of 2**63 bytes": framed({"a": entry([4], 0, 16)}, length=2**63),
    "a header that is not JSON": framed(b'{"a": '),
    "a header that is not UTF-8": framed(b"\xff\xff"),
    "a header that is a list": framed([1, 2]),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_header_that_lies_is_refused(
    stage: Stage, base: Path, tmp_path: Path, out: Path, lie: bytes
) -> None:
    broken = damage.copied(base, tmp_path / "broken")
    file = broken / "model.safetensors"
    file.write_bytes(lie)
    with refusal(
        CheckpointProblem,
        starting(f"{file} is not a complete safetensors file ("),
        next_step="download it again",
        out=out,
    ):
        stage(broken)
