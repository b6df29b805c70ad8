"""Formats of an exported model: tensors of a layer, and entries of the config."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.checkpoint_writer import TensorSpec
from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.checkpoint.shards import TensorInfo
from camelpress.core.errors import NumericsProblem
from camelpress.core.packing.linear_layers import check_packed_linears
from camelpress.core.packing.linear_layers import packed_shape as extent_of
from camelpress.core.packing.quantization_schemes import QuantizationScheme
from camelpress.core.packing.quantized_weight import PackedShape, QuantizedWeight
from camelpress.core.packing.row_loss import (
    mean_row_loss,
    require_row_loss,
    row_error_energy,
    weight_loss,
)

CHUNK_WEIGHTS = 2**22  # weights dequantized at a time for a comparison


@dataclass(frozen=True)
class PackedLayer:
    """A packed linear layer of the source, before its codes are read."""

    name: str
    scheme: QuantizationScheme
    extent: PackedShape

    @property
    def group_size(self) -> int:
        """Columns per group, from the config or the shapes; -1 for one group per row."""
        if self.scheme.group_size is not None:
            return self.scheme.group_size
        return -1 if self.extent.groups == 1 else self.extent.cols // self.extent.groups

    @property
    def sym(self) -> bool:
        """True if the config states symmetric quantization; False if it states nothing."""
        return bool(self.scheme.sym)

    def config_entry(self) -> dict[str, Any]:
        """Returns bits, group size and symmetry for a config."""
        return {"bits": self.scheme.bits, "group_size": self.group_size, "sym": self.sym}


def packed_layers(source: Checkpoint) -> list[PackedLayer]:
    """Returns the packed layers of a checkpoint, after checking that each is readable.

    Raises:
        CheckpointProblem: a layer is not readable.
    """
    schemes = check_packed_linears(source)
    return [
        PackedLayer(name, scheme, extent_of(source, name, scheme))
        for name, scheme in schemes.items()
    ]


class ExportFormat(ABC):
    """Base class of export formats."""

    @abstractmethod
    def require_supported(self, source: Checkpoint, layer: PackedLayer) -> None:
        """Raises a Problem if the format cannot hold a layer's scales, zero points or groups."""

    @abstractmethod
    def slots(self, layer: PackedLayer) -> dict[str, TensorSpec]:
        """Returns full name to dtype and shape of a layer's tensors."""

    @abstractmethod
    def layer_tensors(self, codes: QuantizedWeight, layer: PackedLayer) -> dict[str, Tensor]:
        """Returns last part of the name to tensor for a layer."""

    @abstractmethod
    def unpacked_slot(self, info: TensorInfo) -> TensorSpec:
        """Returns dtype and shape of an unpacked tensor in the output."""

    @abstractmethod
    def convert_unpacked(self, name: str, tensor: Tensor) -> Tensor:
        """Converts an unpacked tensor to its form in the output."""

    @abstractmethod
    def config_dtype(self, source: Checkpoint, layers: list[PackedLayer]) -> torch.dtype:
        """Returns the model dtype for the config."""

    @abstractmethod
    def quantization_config(
        self, source: Checkpoint, layers: list[PackedLayer], blocks: int
    ) -> dict[str, Any] | None:
        """Returns the quantization_config; None for a dense output."""

    def facts(self) -> dict[str, Any]:
        """Returns the facts for the report: number of rounded values, largest error."""
        return {"inexact": 0, "largest_error": 0.0}


class PackedFormat(ExportFormat):
    """Base class of packed formats; unpacks and compares every layer before writing it."""

    @abstractmethod
    def pack(self, codes: QuantizedWeight, layer: PackedLayer) -> dict[str, Tensor]:
        """Packs a layer; returns last part of the name to tensor."""

    @abstractmethod
    def unpack(self, parts: Mapping[str, Tensor], layer: PackedLayer) -> QuantizedWeight:
        """Unpacks the tensors of `pack`."""

    def layer_tensors(self, codes: QuantizedWeight, layer: PackedLayer) -> dict[str, Tensor]:
        """Packs a layer, and checks that unpacking gives the same weights.

        Raises:
            NumericsProblem: unpacking gives other weights.
        """
        parts = self.pack(codes, layer)
        if not _is_equivalent(codes, self.unpack(parts, layer)):
            raise NumericsProblem(
                f"{layer.name!r} has other weights after packing and unpacking",
                next_step="keep the checkpoint as it is, and report this as a bug",
            )
        return parts

    def unpacked_slot(self, info: TensorInfo) -> TensorSpec:
        """Returns dtype and shape of the source."""
        return TensorSpec(info.dtype, info.shape)

    def convert_unpacked(self, name: str, tensor: Tensor) -> Tensor:
        """Returns the tensor unchanged."""
        return tensor


class DenseFormat(ExportFormat):
    """Dense weights without packing.

    A difference of codes has 8 bits, a 16-bit scale at most 11, and fp32 holds 24, so every product
    is exact. A 16-bit dtype rounds most products; fp32 rounds products with fp32 scales.

    Args:
        dtype: dtype of all tensors.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._inexact = 0
        self._largest_error = 0.0

    def require_supported(self, source: Checkpoint, layer: PackedLayer) -> None:
        """Accepts any layer."""

    def slots(self, layer: PackedLayer) -> dict[str, TensorSpec]:
        """Returns name, dtype and shape of the dense weight."""
        shape = (layer.extent.rows, layer.extent.cols)
        return {f"{layer.name}.weight": TensorSpec(self._dtype, shape)}

    def layer_tensors(self, codes: QuantizedWeight, layer: PackedLayer) -> dict[str, Tensor]:
        """Returns the dense weight.

        Raises:
            NumericsProblem: weights overflow the dtype, or vanish in it.
        """
        name, sums = f"{layer.name}.weight", []
        weight = torch.empty(codes.codes.shape, dtype=self._dtype)
        for part in _row_chunks(codes):
            chunk = codes.slice_rows(part)
            weight[part] = chunk.dequantize().to(self._dtype)
            self._require_finite(name, weight[part])
            exact = chunk.dequantize(torch.float64)
            self._count(weight[part], exact)
            sums.append(row_error_energy(exact, weight[part]))
        loss = mean_row_loss(*(torch.cat(column) for column in zip(*sums, strict=True)))
        require_row_loss(repr(name), loss, self._dtype)
        return {"weight": weight}

    def unpacked_slot(self, info: TensorInfo) -> TensorSpec:
        """Returns the shape of the source with the format's dtype."""
        return TensorSpec(self._dtype, info.shape)

    def convert_unpacked(self, name: str, tensor: Tensor) -> Tensor:
        """Converts a tensor to the format's dtype.

        Raises:
            NumericsProblem: values overflow the dtype, or vanish in it.
        """
        stored = tensor.to(self._dtype)
        pairs = zip(
            stored.flatten().split(CHUNK_WEIGHTS),
            tensor.flatten().split(CHUNK_WEIGHTS),
            strict=True,
        )
        for chunk, exact in pairs:
            self._require_finite(name, chunk)
            self._count(chunk, exact.double())
        require_row_loss(repr(name), weight_loss(tensor, stored), self._dtype)
        return stored

    def config_dtype(self, source: Checkpoint, layers: list[PackedLayer]) -> torch.dtype:
        """Returns the dtype of all tensors."""
        return self._dtype

    def quantization_config(
        self, source: Checkpoint, layers: list[PackedLayer], blocks: int
    ) -> dict[str, Any] | None:
        """Returns None, because nothing is packed."""
        return None

    def facts(self) -> dict[str, Any]:
        """Returns the number of rounded values and the largest error."""
        return {"inexact": self._inexact, "largest_error": self._largest_error}

    def _count(self, stored: Tensor, exact: Tensor) -> None:
        error = (stored.double() - exact).abs()
        self._inexact += int(error.count_nonzero())
        self._largest_error = max(self._largest_error, float(error.max()) if error.numel() else 0.0)

    def _require_finite(self, name: str, tensor: Tensor) -> None:
        if not bool(tensor.isfinite().all()):
            raise NumericsProblem(
                f"{name!r} has values that are not finite in {dtype_name(self._dtype)}",
                next_step="use --dtype float32, or check the checkpoint for overflow",
            )


def _row_chunks(codes: QuantizedWeight) -> list[slice]:
    """Returns slices of rows to dequantize at a time."""
    rows, cols = codes.codes.shape
    step = max(1, CHUNK_WEIGHTS // max(1, cols))
    return [slice(start, start + step) for start in range(0, rows, step)]


def _is_equivalent(left: QuantizedWeight, right: QuantizedWeight) -> bool:
    """Returns True if two layers have the same codes, scales and weights."""
    return (
        torch.equal(left.codes, right.codes)
        and torch.equal(left.scales.float(), right.scales.float())
        and all(
            torch.equal(left.slice_rows(part).dequantize(), right.slice_rows(part).dequantize())
            for part in _row_chunks(left)
        )
    )
