"""Packed export formats: GPTQ and compressed-tensors."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from camelpress import __version__
from camelpress.convert.export.export_formats import PackedFormat, PackedLayer
from camelpress.core import llama
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.checkpoint_writer import TensorSpec
from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.errors import CheckpointProblem, NumericsProblem
from camelpress.core.packing import compressed_tensors_format, gptq_format
from camelpress.core.packing.dynamic_config import dynamic_rules, layer_pattern
from camelpress.core.packing.gptq_format import GptqTensors
from camelpress.core.packing.linear_layers import read_quantization_params
from camelpress.core.packing.quantization_schemes import (
    COMPRESSED_TENSORS,
    GPTQ_V1,
    PACK_QUANTIZED,
    REGEX_PREFIX,
)
from camelpress.core.packing.quantized_weight import QuantizedWeight, contiguous_groups

SCALE_DTYPE = torch.float16  # dtype of GPTQ scales; loaders silently round others to it


class GptqFormat(PackedFormat):
    """GPTQ format.

    Args:
        layout: gptq or gptq_v2; they store zero points differently.
    """

    def __init__(self, layout: str) -> None:
        self._layout = layout
        self._offset = gptq_format.ZERO_OFFSET[layout]

    def require_supported(self, source: Checkpoint, layer: PackedLayer) -> None:
        """Checks that the scales are fp16 numbers, and that v1 can store the zero points.

        Raises:
            NumericsProblem: a scale is no fp16 number, or a zero point is 0 in v1.
        """
        scales, zeros, _ = read_quantization_params(source, layer.name, layer.scheme)
        lost = int((scales.to(SCALE_DTYPE).float() != scales.float()).sum())
        if lost:
            raise NumericsProblem(
                f"{source.folder}: of the {scales.numel()} scales of {layer.name!r}, which are "
                f"{dtype_name(scales.dtype)}, {lost} are no {dtype_name(SCALE_DTYPE)} "
                "numbers, and GPTQ stores those",
                next_step="export it --to dense, or quantize again in float16",
            )
        if self._layout == GPTQ_V1 and not bool(zeros.all()):
            raise NumericsProblem(
                f"{source.folder}: {layer.name!r} has zero points of 0, which GPTQ v1 stores as "
                f"{2**layer.scheme.bits - 1} and not every loader undoes",
                next_step="export it --to gptq-v2",
            )

    def slots(self, layer: PackedLayer) -> dict[str, TensorSpec]:
        """Returns the specs of qweight, qzeros, scales and g_idx."""
        rows, cols, groups, _ = layer.extent
        return gptq_format.gptq_specs(layer.name, rows, cols, groups=groups, bits=layer.scheme.bits)

    def pack(self, codes: QuantizedWeight, layer: PackedLayer) -> dict[str, Tensor]:
        """Packs qweight, qzeros, scales and g_idx."""
        group_index, scales = codes.group_index.to(torch.int32), codes.scales.to(SCALE_DTYPE)
        return vars(
            gptq_format.pack_gptq(
                codes.codes,
                scales,
                codes.zeros,
                group_index,
                bits=codes.bits,
                zero_offset=self._offset,
            )
        )

    def unpack(self, parts: Mapping[str, Tensor], layer: PackedLayer) -> QuantizedWeight:
        """Unpacks the tensors of `pack`."""
        return gptq_format.unpack_gptq(
            GptqTensors(**parts), bits=layer.scheme.bits, zero_offset=self._offset
        )

    def config_dtype(self, source: Checkpoint, layers: list[PackedLayer]) -> torch.dtype:
        """Returns the dtype of the embedding."""
        return source.tensor_info(f"{llama.EMBEDDING_NAME}.weight").dtype

    def quantization_config(
        self, source: Checkpoint, layers: list[PackedLayer], blocks: int
    ) -> dict[str, Any]:
        """Returns the source's config if that is GPTQ, too; else a new one from its layers."""
        entries = {layer.name: layer.config_entry() for layer in layers}
        ((common, _),) = Counter(tuple(entry.items()) for entry in entries.values()).most_common(1)
        facts = dict(common) | {"desc_act": any(layer.scheme.desc_act for layer in layers)}
        source_config = dict(source.quantization or {})
        if source_config.get("quant_method") == "gptq":
            layout_keys = [key for key in ("checkpoint_format", "format") if key in source_config]
            layout = dict.fromkeys(layout_keys or ["checkpoint_format"], self._layout)
            head = {"lm_head": llama.HEAD_NAME in entries}
            return (
                facts
                | source_config
                | (head if "lm_head" in source_config or llama.HEAD_NAME in entries else {})
                | layout
            )
        rules = dynamic_rules(
            dict(common), {name: entries.get(name) for name in llama.linear_names(blocks)}, blocks
        )
        return {
            "quant_method": "gptq",
            **facts,
            "lm_head": llama.HEAD_NAME in entries,
            "checkpoint_format": self._layout,
            "pack_dtype": "int32",
            "meta": {"exporter": [f"camelpress:{__version__}"]},
        } | ({"dynamic": rules} if rules else {})


class CompressedTensorsFormat(PackedFormat):
    """Format `pack-quantized` of compressed-tensors; scales keep their dtype."""

    def require_supported(self, source: Checkpoint, layer: PackedLayer) -> None:
        """Checks that groups are contiguous columns, all of one size.

        Raises:
            CheckpointProblem: the columns are in activation order, or the last group is smaller.
        """
        group_index = read_quantization_params(source, layer.name, layer.scheme).group_index
        contiguous = contiguous_groups(layer.extent.cols, layer.extent.groups, layer.group_size)
        if contiguous is None or not torch.equal(group_index.to(contiguous.dtype), contiguous):
            raise CheckpointProblem(
                f"{source.folder} has the columns of {layer.name!r} in an activation order "
                "(desc_act), which compressed-tensors no longer reads",
                next_step="export it --to gptq-v2 or dense, or quantize again without desc_act",
            )
        if layer.group_size != -1 and layer.extent.cols % layer.group_size:
            raise CheckpointProblem(
                f"{source.folder}: the last group of {layer.name!r} has fewer columns than "
                f"{layer.group_size}, which compressed-tensors does not read",
                next_step="export it --to gptq-v2 or dense",
            )

    def slots(self, layer: PackedLayer) -> dict[str, TensorSpec]:
        """Returns the specs of three tensors, or of four for an asymmetric layer."""
        rows, cols, groups, scales = layer.extent
        bits = layer.scheme.bits
        return compressed_tensors_format.compressed_specs(
            layer.name, rows, cols, groups=groups, bits=bits, scales=scales, sym=layer.sym
        )

    def pack(self, codes: QuantizedWeight, layer: PackedLayer) -> dict[str, Tensor]:
        """Packs three tensors, or four for an asymmetric layer."""
        return compressed_tensors_format.pack_compressed(codes, sym=layer.sym)

    def unpack(self, parts: Mapping[str, Tensor], layer: PackedLayer) -> QuantizedWeight:
        """Unpacks the tensors of `pack`."""
        _, cols, _, _ = layer.extent
        size = cols if layer.group_size == -1 else layer.group_size
        return compressed_tensors_format.unpack_compressed(
            parts, torch.arange(cols) // size, bits=layer.scheme.bits
        )

    def config_dtype(self, source: Checkpoint, layers: list[PackedLayer]) -> torch.dtype:
        """Returns the dtype of the scales, as loaders round scales to the model dtype."""
        dtypes = {layer.extent.scale_dtype for layer in layers}
        return dtypes.pop() if len(dtypes) == 1 else torch.float32

    def quantization_config(
        self, source: Checkpoint, layers: list[PackedLayer], blocks: int
    ) -> dict[str, Any]:
        """Returns a config group per kind of layer; several groups name each layer.

        A loader with fused q, k and v would match the class `Linear` before any layer name.
        """
        names_by_entry: dict[tuple[tuple[str, Any], ...], list[str]] = defaultdict(list)
        for layer in layers:
            names_by_entry[tuple(layer.config_entry().items())].append(layer.name)
        packed_names = {layer.name for layer in layers}
        unpacked_names = [
            name
            for name in [*llama.linear_names(blocks), llama.HEAD_NAME]
            if name not in packed_names
        ]
        return {
            "quant_method": COMPRESSED_TENSORS,
            "format": PACK_QUANTIZED,
            "quantization_status": "compressed",
            "config_groups": {
                f"group_{number}": _config_group(
                    ["Linear"] if len(names_by_entry) == 1 else _target_patterns(names, blocks),
                    **dict(kind),
                )
                for number, (kind, names) in enumerate(names_by_entry.items())
            },
            "ignore": _target_patterns(unpacked_names, blocks),
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
        }


def _config_group(targets: list[str], *, bits: int, group_size: int, sym: bool) -> dict[str, Any]:
    per_row = group_size == -1
    return {
        "targets": targets,
        "weights": {
            "num_bits": bits,
            "type": "int",
            "symmetric": sym,
            "strategy": "channel" if per_row else "group",
            "group_size": None if per_row else group_size,
            "actorder": None,
            "dynamic": False,
        },
        "input_activations": None,
        "output_activations": None,
        "format": PACK_QUANTIZED,
    }


def _target_patterns(names: Collection[str], blocks: int) -> list[str]:
    """Returns regular expressions for the layers of blocks, and the name of the head."""
    patterns = [llama.HEAD_NAME] if llama.HEAD_NAME in names else []
    for linear in llama.LINEARS:
        numbers = [
            number
            for number in range(blocks)
            if f"{llama.BLOCK_NAME.format(number)}.{linear.name}" in names
        ]
        if numbers:
            patterns.append(REGEX_PREFIX + layer_pattern(linear.name, numbers, blocks))
    return patterns
