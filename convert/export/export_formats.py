"""What a packed model can be exported to: the tensors of a layer, and the words of the config."""

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

CHUNK_WEIGHTS = 2**22  # weights that are dequantized for a comparison


@dataclass(frozen=True)
class PackedLayer:
    """A packed linear layer of the source, before its codes are read."""

    name: str
    scheme: QuantizationScheme
    extent: PackedShape

    @property
    def group_size(self) -> int:
        """Columns of a group, also where the config does not say; -1 for all of them."""
        if self.scheme.group_size is not None:
            return self.scheme.group_size
        return -1 if self.extent.groups == 1 else self.extent.cols // self.extent.groups

    @property
    def sym(self) -> bool:
        """Whether the config says so; what nobody claimed is not claimed."""
        return bool(self.scheme.sym)

    def config_entry(self) -> dict[str, Any]:
        """What a config has to say of it."""
        return {"bits": self.scheme.bits, "group_size": self.group_size, "sym": self.sym}


def packed_layers(source: Checkpoint) -> list[PackedLayer]:
    """The packed layers of a checkpoint, all seen to be readable.

    Raises:
        CheckpointProblem: one of them is not.
    """
    schemes = check_packed_linears(source)
    return [
        PackedLayer(name, scheme, extent_of(source, name, scheme))
        for name, scheme in schemes.items()
    ]


class ExportFormat(ABC):
    """Something to export to."""

    @abstractmethod
    def require_supported(self, source: Checkpoint, layer: PackedLayer) -> None:
        """See from scales, zero points and groups that it can hold a layer."""

    @abstractmethod
    def slots(self, layer: PackedLayer) -> dict[str, TensorSpec]:
        """The tensors of a layer, by their full names."""

    @abstractmethod
    def layer_tensors(self, codes: QuantizedWeight, layer: PackedLayer) -> dict[str, Tensor]:
        """The tensors of a layer, by the last part of their names."""

    @abstractmethod
    def unpacked_slot(self, info: TensorInfo) -> TensorSpec:
        """The place of a tensor that is not packed."""

    @abstractmethod
    def convert_unpacked(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor that is not packed, as it is written."""

    @abstractmethod
    def config_dtype(self, source: Checkpoint, layers: list[PackedLayer]) -> torch.dtype:
        """What the config calls the type of the model."""

    @abstractmethod
    def quantization_config(
        self, source: Checkpoint, layers: list[PackedLayer], blocks: int
    ) -> dict[str, Any] | None:
        """The quantization_config; None where nothing is packed."""

    def facts(self) -> dict[str, Any]:
        """What the report says of it."""
        return {"inexact": 0, "largest_error": 0.0}


class PackedFormat(ExportFormat):
    """A layout of codes: what is written is unpacked again, and compared."""

    @abstractmethod
    def pack(self, codes: QuantizedWeight, layer: PackedLayer) -> dict[str, Tensor]:
        """The tensors of a layer."""

    @abstractmethod
    def unpack(self, parts: Mapping[str, Tensor], layer: PackedLayer) -> QuantizedWeight:
        """The inverse."""

    def layer_tensors(self, codes: QuantizedWeight, layer: PackedLayer) -> dict[str, Tensor]:
        """The tensors of a layer, proved to stand for the same weights.

        Raises:
            NumericsProblem: they do not.
        """
        parts = self.pack(codes, layer)
        if not _is_equivalent(codes, self.unpack(parts, layer)):
            raise NumericsProblem(
                f"{layer.name!r} does not come back from what was to be written",
                next_step="keep the checkpoint as it is, and report this as a bug",
            )
        return parts

    def unpacked_slot(self, info: TensorInfo) -> TensorSpec:
        """As in the source."""
        return TensorSpec(info.dtype, info.shape)

    def convert_unpacked(self, name: str, tensor: Tensor) -> Tensor:
        """As in the source."""
        return tensor


class DenseFormat(ExportFormat):
    """Plain weights.

    A difference of codes has 8 bits, a 16-bit scale at most 11, and fp32 holds 24: every product
    is exact. In 16 bits most are rounded, and so are in fp32 those of scales that are fp32 numbers.

    Args:
        dtype: of all tensors.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._inexact = 0
        self._largest = 0.0

    def require_supported(self, source: Checkpoint, layer: PackedLayer) -> None:
        """Any layer has weights."""

    def slots(self, layer: PackedLayer) -> dict[str, TensorSpec]:
        """One weight."""
        shape = (layer.extent.rows, layer.extent.cols)
        return {f"{layer.name}.weight": TensorSpec(self._dtype, shape)}

    def layer_tensors(self, codes: QuantizedWeight, layer: PackedLayer) -> dict[str, Tensor]:
        """One weight.

        Raises:
            NumericsProblem: it does not fit the type, or vanishes in it.
        """
        name, sums = f"{layer.name}.weight", []
        weight = torch.empty(codes.codes.shape, dtype=self._dtype)
        for part in _row_chunks(codes):
            some = codes.slice_rows(part)
            weight[part] = some.dequantize().to(self._dtype)
            self._require_finite(name, weight[part])
            exact = some.dequantize(torch.float64)
            self._count(weight[part], exact)
            sums.append(row_error_energy(exact, weight[part]))
        loss = mean_row_loss(*(torch.cat(each) for each in zip(*sums, strict=True)))
        require_row_loss(repr(name), loss, self._dtype)
        return {"weight": weight}

    def unpacked_slot(self, info: TensorInfo) -> TensorSpec:
        """Of the one type."""
        return TensorSpec(self._dtype, info.shape)

    def convert_unpacked(self, name: str, tensor: Tensor) -> Tensor:
        """Of the one type.

        Raises:
            NumericsProblem: it does not fit, or vanishes.
        """
        stored = tensor.to(self._dtype)
        pairs = zip(
            stored.flatten().split(CHUNK_WEIGHTS),
            tensor.flatten().split(CHUNK_WEIGHTS),
            strict=True,
        )
        for some, exact in pairs:
            self._require_finite(name, some)
            self._count(some, exact.double())
        require_row_loss(repr(name), weight_loss(tensor, stored), self._dtype)
        return stored

    def config_dtype(self, source: Checkpoint, layers: list[PackedLayer]) -> torch.dtype:
        """That of all tensors."""
        return self._dtype

    def quantization_config(
        self, source: Checkpoint, layers: list[PackedLayer], blocks: int
    ) -> dict[str, Any] | None:
        """None: nothing is packed."""
        return None

    def facts(self) -> dict[str, Any]:
        """How many values are not the exact ones, and by how much at most."""
        return {"inexact": self._inexact, "largest_error": self._largest}

    def _count(self, stored: Tensor, exact: Tensor) -> None:
        error = (stored.double() - exact).abs()
        self._inexact += int(error.count_nonzero())
        self._largest = max(self._largest, float(error.max()) if error.numel() else 0.0)

    def _require_finite(self, name: str, tensor: Tensor) -> None:
        if not bool(tensor.isfinite().all()):
            raise NumericsProblem(
                f"{name!r} has values that are not finite in {dtype_name(self._dtype)}",
                next_step="use --dtype float32, or check the checkpoint for overflow",
            )


def _row_chunks(codes: QuantizedWeight) -> list[slice]:
    """Rows that are dequantized together."""
    rows, cols = codes.codes.shape
    step = max(1, CHUNK_WEIGHTS // max(1, cols))
    return [slice(start, start + step) for start in range(0, rows, step)]


def _is_equivalent(left: QuantizedWeight, right: QuantizedWeight) -> bool:
    """Whether two layers have the same codes and scales, and stand for the same weights."""
    return (
        torch.equal(left.codes, right.codes)
        and torch.equal(left.scales.float(), right.scales.float())
        and all(
            torch.equal(left.slice_rows(part).dequantize(), right.slice_rows(part).dequantize())
            for part in _row_chunks(left)
        )
    )
