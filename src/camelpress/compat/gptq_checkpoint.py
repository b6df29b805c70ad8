"""A GPTQ checkpoint as an engine meets it: its config, its layers with their sizes and values."""

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
    """A packed layer: what its config says, and the sizes of its tensors."""

    name: str
    bits: int
    group_size: int  # -1: one group
    sym: bool
    inputs: int
    outputs: int

    @property
    def columns(self) -> int:
        """Inputs that share a scale."""
        return self.inputs if self.group_size == -1 else self.group_size

    @property
    def block_name(self) -> str:
        """Its name in a block: layers of all blocks are alike, mostly."""
        return self.name.split(".", 3)[-1]


class GptqCheckpoint:
    """A checkpoint to be held against engines.

    Args:
        checkpoint: quantized as GPTQ.
    Raises:
        CheckpointProblem: it is not, or its config cannot be read as one that is.
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
                f"{checkpoint.folder} is quantized as {method}, and engines are asked about GPTQ",
                next_step="give a GPTQ checkpoint, such as camelpress quantize writes",
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
        """All packed layers.

        Raises:
            CheckpointProblem: the config gives a layer bits or groups that cannot be.
        """
        ends = ".qweight"
        names = [name.removesuffix(ends) for name in self.checkpoint.tensors if name.endswith(ends)]
        return tuple(self._layer(name) for name in sorted(names, key=_by_number))

    @property
    def packed_head(self) -> bool:
        """Whether the output projection is packed, too."""
        return f"{HEAD}.qweight" in self.checkpoint.tensors

    @cached_property
    def plain_linears(self) -> list[str]:
        """Linear layers of blocks that are not packed."""
        packed = {layer.name for layer in self.layers}
        return [name for name in self.linears if name not in packed]

    @cached_property
    def missing_tensors(self) -> list[str]:
        """Tensors that a layer of the model should have, and has not."""
        held = self.checkpoint.tensors
        wanted = [f"{layer.name}.{part}" for layer in self.layers for part in GPTQ_TENSORS]
        wanted += [f"{name}.weight" for name in self.plain_linears]
        return [name for name in wanted if name not in held]

    @property
    def is_uniform(self) -> bool:
        """Whether all layers have the settings that the config gives at its top, and are packed."""
        common = {(each.bits, each.group_size, each.sym) for each in self.layers}
        return len(common) <= 1 and not self.plain_linears and not self.quantization.get("dynamic")

    @cached_property
    def mismatched_tensors(self) -> list[str]:
        """Parts of packed layers whose type or shape is not what the others ask for."""
        found = []
        for layer in self.layers:
            groups = -(-layer.inputs // layer.columns)
            wanted = gptq_specs(
                layer.name, layer.outputs, layer.inputs, groups=groups, bits=layer.bits
            )
            for name, slot in wanted.items():
                info = self.checkpoint.tensor_info(name)
                floats = name.endswith(".scales") and info.dtype.is_floating_point
                if info.shape != slot.shape or not (floats or info.dtype == slot.dtype):
                    found.append(name)
        return found

    @cached_property
    def values(self) -> tuple[LayerValues, ...]:
        """What stands in scales, zero points and group indices, layer by layer."""
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
        """What stored zero points lack: 1 in v1, 0 in v2."""
        return 0 if self.quantization.get("checkpoint_format") == "gptq_v2" else 1

    def _layer(self, name: str) -> GptqLayer:
        own = dynamic_settings(self.quantization, name)
        if own is None:
            raise CheckpointProblem(
                f"{self.checkpoint.folder} holds {name!r} packed, and its dynamic says that it is "
                "plain",
                next_step="compare config.json with that of the original checkpoint",
            )
        words, outputs = self._shape(f"{name}.qweight")
        bits = own.get("bits", self._bits(name, words))
        group_size = own.get("group_size", self._group_size(name, words, bits))
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
                "number of columns) "
                "into its quantization_config",
            )
        return GptqLayer(
            name, bits, group_size, bool(own.get("sym", False)), words * WORD_BITS // bits, outputs
        )

    def _bits(self, name: str, words: int) -> int | None:
        """What the tensors say where the config does not."""
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
                f"{self.checkpoint.folder} holds {name!r} as {list(shape)}, which is no matrix",
                next_step=REPLACEMENT_ADVICE,
            )
        return shape

    def _size(self, key: str, default: int | None = None) -> int:
        found = self.config.get(key)
        found = default if found is None else found
        if type(found) is not int or found < 1:
            raise CheckpointProblem(
                f"{self.checkpoint.folder / 'config.json'} has {key} {found!r}",
                next_step="compare it with the config of the original model",
            )
        return found


def _by_number(name: str) -> list[tuple[int, str]]:
    """Block 2 before block 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
