"""GPTQ checkpoint as loaded by an engine: config, and layers with their sizes and values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from camelpress.compat.layer_values import LayerValues, read_layer_values
from camelpress.core import llama
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.config_repair import QUANTIZATION_CONFIG
from camelpress.core.errors import CheckpointProblem
from camelpress.core.packing.bitpacking import WORD_BITS
from camelpress.core.packing.dynamic_config import dynamic_settings
from camelpress.core.packing.gptq_format import GPTQ_TENSORS, gptq_specs
from camelpress.core.packing.packed_checks import REPLACEMENT_ADVICE
from camelpress.core.packing.quantization_schemes import SUPPORTED_BITS
from camelpress.core.progress import track

HEAD = llama.HEAD_NAME


@dataclass(frozen=True)
class GptqLayer:
    """A packed layer: its settings in the config and the sizes of its tensors."""

    name: str
    bits: int
    group_size: int  # columns that share a scale; -1 for one group a row
    sym: bool
    inputs: int
    outputs: int

    @property
    def columns(self) -> int:
        """Number of inputs that share a scale."""
        return self.inputs if self.group_size == -1 else self.group_size

    @property
    def block_name(self) -> str:
        """Name within a block, such as `mlp.up_proj`."""
        return self.name.split(".", 3)[-1]


class GptqCheckpoint:
    """A checkpoint to check against engines.

    Args:
        checkpoint: GPTQ checkpoint.
    Raises:
        CheckpointProblem: the checkpoint is not GPTQ, or its config is invalid.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        packing = checkpoint.quantization or {}
        self.quantization: Mapping[str, Any] = (
            checkpoint.file_config[QUANTIZATION_CONFIG] if packing else {}
        )
        if packing.get("quant_method") != "gptq":
            method = packing.get("quant_method", "nothing")
            raise CheckpointProblem(
                f"{checkpoint.folder} is quantized as {method}; engines are checked for GPTQ only",
                next_step="give a GPTQ checkpoint, such as one from camelpress quantize",
            )
        llama.model_classes(self.config, checkpoint.folder)
        self.heads = self._size("num_attention_heads")
        self.kv_heads = self._size("num_key_value_heads", self.heads)
        self.hidden = self._size("hidden_size")
        self.head_dim = self._size("head_dim", self.hidden // self.heads)
        self.ffn = self._size("intermediate_size")
        self.vocabulary = self._size("vocab_size")
        self.blocks = self._size("num_hidden_layers")
        self.linears = [
            f"{llama.BLOCK_NAME.format(number)}.{linear.name}"
            for number in range(self.blocks)
            for linear in llama.LINEARS
        ]

    @cached_property
    def layers(self) -> tuple[GptqLayer, ...]:
        """All packed layers in block order.

        Raises:
            CheckpointProblem: the config gives a layer invalid bits or groups.
        """
        suffix, tensors = ".qweight", self.checkpoint.tensors
        names = [name.removesuffix(suffix) for name in tensors if name.endswith(suffix)]
        return tuple(self._layer(name) for name in sorted(names, key=_natural_key))

    @property
    def packed_head(self) -> bool:
        """True if the output projection is packed, too."""
        return f"{HEAD}.qweight" in self.checkpoint.tensors

    @cached_property
    def plain_linears(self) -> list[str]:
        """Names of the blocks' unpacked linear layers."""
        packed = {layer.name for layer in self.layers}
        return [name for name in self.linears if name not in packed]

    @cached_property
    def missing_tensors(self) -> list[str]:
        """Names of missing tensors of the model's linear layers."""
        names = [f"{layer.name}.{part}" for layer in self.layers for part in GPTQ_TENSORS]
        names += [f"{name}.weight" for name in self.plain_linears]
        return [name for name in names if name not in self.checkpoint.tensors]

    @property
    def is_uniform(self) -> bool:
        """True if all layers are packed with the same settings."""
        settings = {(layer.bits, layer.group_size, layer.sym) for layer in self.layers}
        return (
            len(settings) <= 1 and not self.plain_linears and not self.quantization.get("dynamic")
        )

    @cached_property
    def mismatched_tensors(self) -> list[str]:
        """Names of packed tensors with an unexpected dtype or shape."""
        mismatches = []
        for layer in self.layers:
            groups = -(-layer.inputs // layer.columns)
            specs = gptq_specs(
                layer.name, layer.outputs, layer.inputs, groups=groups, bits=layer.bits
            )
            for name, spec in specs.items():
                info = self.checkpoint.tensor_info(name)
                is_float_scale = name.endswith(".scales") and info.dtype.is_floating_point
                if info.shape != spec.shape or not (is_float_scale or info.dtype == spec.dtype):
                    mismatches.append(name)
        return mismatches

    @cached_property
    def values(self) -> tuple[LayerValues, ...]:
        """Statistics of scales, zero points and group indices, layer by layer."""
        return tuple(
            read_layer_values(
                self.checkpoint,
                layer.name,
                bits=layer.bits,
                columns=layer.columns,
                zero_offset=self.zero_offset,
            )
            for layer in track(self.layers, "inspect")
        )

    @property
    def zero_offset(self) -> int:
        """Amount to add to stored zero points: 1 in v1, 0 in v2."""
        return 0 if self.quantization.get("checkpoint_format") == "gptq_v2" else 1

    def _layer(self, name: str) -> GptqLayer:
        settings = dynamic_settings(self.quantization, name)
        if settings is None:
            raise CheckpointProblem(
                f"{self.checkpoint.folder} holds {name!r} packed, but dynamic lists it as plain",
                next_step="compare config.json with that of the original checkpoint",
            )
        words, outputs = self._shape(f"{name}.qweight")
        bits = settings.get("bits", self._bits(name, words))
        group_size = settings.get("group_size", self._group_size(name, words, bits))
        if (
            type(bits) is not int
            or bits not in SUPPORTED_BITS
            or type(group_size) is not int
            or group_size < -1
            or not group_size
        ):
            raise CheckpointProblem(
                f"{self.checkpoint.folder} gives {name!r} {bits} bits in groups of {group_size}",
                next_step=f"write bits (one of {SUPPORTED_BITS}) and group_size (-1, or a "
                "number of columns) into its quantization_config",
            )
        return GptqLayer(
            name,
            bits,
            group_size,
            bool(settings.get("sym", False)),
            words * WORD_BITS // bits,
            outputs,
        )

    def _bits(self, name: str, words: int) -> int | None:
        """Returns the bits inferred from tensor sizes, for a config without them."""
        order = self.checkpoint.tensors.get(f"{name}.g_idx")
        return (
            words * WORD_BITS // order.shape[0]
            if order and order.shape and order.shape[0]
            else None
        )

    def _group_size(self, name: str, words: int, bits: Any) -> int | None:
        scales = self.checkpoint.tensors.get(f"{name}.scales")
        if not (scales and scales.shape and scales.shape[0] and bits in SUPPORTED_BITS):
            return None
        return -1 if scales.shape[0] == 1 else words * WORD_BITS // bits // scales.shape[0]

    def _shape(self, name: str) -> Sequence[int]:
        shape = self.checkpoint.tensor_info(name).shape
        if len(shape) != 2:
            raise CheckpointProblem(
                f"{self.checkpoint.folder} holds {name!r} with shape {list(shape)}, no matrix",
                next_step=REPLACEMENT_ADVICE,
            )
        return shape

    def _size(self, key: str, default: int | None = None) -> int:
        size = self.config.get(key)
        size = default if size is None else size
        if type(size) is not int or size < 1:
            raise CheckpointProblem(
                f"{self.checkpoint.folder / 'config.json'} has {key} {size!r}",
                next_step="compare it with the config of the original model",
            )
        return size


def _natural_key(name: str) -> list[tuple[int, str]]:
    """Returns a sort key with block 2 before block 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
