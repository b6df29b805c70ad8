"""Reads and checks the header of a safetensors file without mapping the file into memory.

The safetensors library maps the whole file and fails for files larger than memory. The rules are
those of the library; in addition, duplicate keys are refused, and counts and sizes are bounded.

Source: huggingface/safetensors 24b0b28, README.md (format) and safetensors/src/tensor.rs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from camelpress.core.files.json_files import parse_json
from camelpress.core.files.regular_files import open_regular
from camelpress.core.input_limits import (
    MAX_DIMENSIONS,
    MAX_ELEMENTS,
    MAX_HEADER_BYTES,
    MAX_TENSOR_NAME_CHARACTERS,
    MAX_TENSORS,
)

METADATA = "__metadata__"
# fmt: off
DTYPE_BITS = {  # dtype of the format: bits per element
    "BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
    "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}
# fmt: on


class TensorEntry(NamedTuple):
    """Dtype, shape and position of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    offset: int  # position of the first byte in the file
    nbytes: int  # size in bytes


class SafetensorsHeader(NamedTuple):
    """Tensors of a file in header order, and the metadata."""

    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]


def read_safetensors_header(path: Path) -> SafetensorsHeader:
    """Reads and checks the header of a file.

    Raises:
        ValueError: The header is damaged, contradicts the file, leaves gaps, or exceeds a bound.
        OSError: The file cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {length:,} bytes, the limit is {MAX_HEADER_BYTES:,}")
        if 8 + length > size:
            raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
        text = file.read(length)
    if text.count(b'"data_offsets"') > MAX_TENSORS:
        raise ValueError(f"more than {MAX_TENSORS:,} tensors")
    content = parse_json(text)
    if not isinstance(content, dict):
        raise ValueError("the header is no JSON object")
    metadata = _parse_metadata(content.pop(METADATA, {}))
    entries = {name: _parse_entry(name, value, 8 + length) for name, value in content.items()}
    _require_no_gaps(entries, 8 + length, size)
    return SafetensorsHeader(entries, metadata)


def _parse_metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError(f"{METADATA} is no object of texts")
    return value


def _parse_entry(name: str, value: Any, begin: int) -> TensorEntry:
    if len(name) > MAX_TENSOR_NAME_CHARACTERS:
        raise ValueError(f"the name of a tensor has {len(name):,} characters")
    if not isinstance(value, dict):
        raise ValueError(f"{name!r} is no JSON object")
    dtype, shape, offsets = (value.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise ValueError(f"{name!r} has the unknown type {dtype!r}")
    if not _is_sizes(shape) or len(shape) > MAX_DIMENSIONS or prod(shape) > MAX_ELEMENTS:
        raise ValueError(f"{name!r} has the shape {shape!r}")
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{name!r} has the offsets {offsets!r}")
    nbytes = offsets[1] - offsets[0]
    if 8 * nbytes != prod(shape) * DTYPE_BITS[dtype]:
        raise ValueError(f"{name!r} has {nbytes:,} bytes, not those of {shape} in {dtype}")
    return TensorEntry(dtype, tuple(shape), begin + offsets[0], nbytes)


def _is_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        type(size) is int and 0 <= size <= MAX_ELEMENTS for size in value
    )


def _require_no_gaps(entries: Mapping[str, TensorEntry], begin: int, end: int) -> None:
    """Raises ValueError unless the tensors fill the file without a gap or an overlap."""
    offset = begin
    for name, entry in sorted(entries.items(), key=_entry_offset):
        if entry.offset != offset:
            raise ValueError(f"{name!r} begins at byte {entry.offset:,}, not at {offset:,}")
        offset += entry.nbytes
    if offset != end:
        raise ValueError(f"the tensors end at byte {offset:,}, the file has {end:,}")


def _entry_offset(item: tuple[str, TensorEntry]) -> tuple[int, int]:
    return item[1].offset, item[1].nbytes
