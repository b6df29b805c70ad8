"""Layout of the output folder, known before quantization: tensors, dtypes and config."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import filter as filter_names
from math import gcd
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from camelpress import __version__
from camelpress.core import llama
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.checkpoint_writer import TensorSpec
from camelpress.core.checkpoint.portable_config import portable_config
from camelpress.core.errors import NumericsProblem, RecipeProblem
from camelpress.core.files.json_files import write_json
from camelpress.core.packing.dynamic_config import dynamic_rules
from camelpress.core.packing.gptq_format import gptq_specs
from camelpress.core.packing.row_loss import require_row_loss, weight_loss
from camelpress.quantize.settings import QuantizeSettings

OUTPUT_DTYPE = torch.float16  # dtype of scales and unquantized tensors, required by kernels
LINEAR_WEIGHTS = tuple(f".{linear.name}.weight" for linear in llama.LINEARS)
LAYER_KEYS = {"bits", "group_size", "sym"}  # settings a loader needs for each layer
QUANTIZER = f"camelpress:{__version__}"
NATIVE_CONFIG: Mapping[str, Any] = MappingProxyType(
    {"static_groups": True, "true_sequential": True, "meta": {"quantizer": [QUANTIZER]}}
)


class Fp16View(Checkpoint):
    """View of a source with unquantized tensors rounded to fp16, as in the output.

    Calibration reads this view, so its hidden states equal those of the stored model.
    """

    def __init__(self, source: Checkpoint, settings: QuantizeSettings) -> None:
        super().__init__(
            source.folder,
            source.config,
            source.tensors,
            origin=source.source_name,
            file_config=source.file_config,
            changes=source.config_changes,
            files=source.file_states,
        )
        self._source = source
        self._settings = settings

    @classmethod
    def of(cls, source: Checkpoint, settings: QuantizeSettings | None = None) -> Fp16View:
        """Returns the view of a source; without settings, all linear layers count as quantized."""
        return cls(source, settings or QuantizeSettings())

    def read(self, name: str) -> torch.Tensor:
        """Reads one tensor."""
        return self._as_stored(name, self._source.read(name))

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Reads rows `start` to `stop` of a tensor."""
        return self._as_stored(name, self._source.read_rows(name, start, stop))

    def _as_stored(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name.endswith(LINEAR_WEIGHTS) and self._settings.for_layer(name.removesuffix(".weight")):
            return tensor
        return tensor.to(OUTPUT_DTYPE)


def layer_settings(blocks: int, settings: QuantizeSettings) -> dict[str, QuantizeSettings | None]:
    """Returns the settings of each linear layer by its full name, none for one kept in 16 bits.

    Raises:
        RecipeProblem: a pattern matches no layer.
    """
    names = llama.linear_names(blocks)
    for pattern in settings.modules:
        if not filter_names(names, pattern):
            raise RecipeProblem(
                f"no layer of {blocks} blocks matches the pattern {pattern!r} of quantize.modules",
                next_step=f"write it for names such as {names[-1]}, or remove it",
            )
    return {name: settings.for_layer(name) for name in names}


def plan_tensor_slots(
    source: Checkpoint, blocks: int, settings: QuantizeSettings
) -> dict[str, TensorSpec]:
    """Returns dtype and shape of every output tensor: packed layers, and the rest in 16 bits.

    Raises:
        RecipeProblem: a pattern matches no layer, or a group size does not divide a width.
    """
    specs: dict[str, TensorSpec] = {}
    packed_names = set()
    layers = layer_settings(blocks, settings)
    shapes = {name: source.tensor_info(f"{name}.weight").shape for name in layers}
    common = gcd(*(cols for _, cols in shapes.values()))
    for name, (rows, cols) in shapes.items():
        scheme = layers[name]
        if scheme is None:
            continue
        _require_packable(name, rows, cols, common, scheme)
        groups = 1 if scheme.group_size == -1 else cols // scheme.group_size
        specs |= gptq_specs(name, rows, cols, groups=groups, bits=scheme.bits)
        packed_names.add(f"{name}.weight")
    for name, info in source.tensors.items():
        if name not in packed_names and not llama.is_derived_buffer(name):
            specs[name] = TensorSpec(OUTPUT_DTYPE, info.shape)
    return dict(sorted(specs.items()))


def _require_packable(
    name: str, rows: int, cols: int, common: int, settings: QuantizeSettings
) -> None:
    if settings.group_size != -1 and cols % settings.group_size:
        sizes = [size for size in (128, 64, 32, 16) if common % size == 0]
        raise RecipeProblem(
            f"group size {settings.group_size} does not divide the {cols} columns of {name}",
            next_step=f"use --group-size {' or '.join(map(str, [*sizes, -1]))}",
        )
    if rows % 32 or cols % 32:
        raise RecipeProblem(
            f"{name} is {rows} x {cols}; packed words need multiples of 32",
            next_step="pad the widths with zeros first; --pad-ffn does it for gate, up and down",
        )


def read_fp16(source: Checkpoint, name: str) -> torch.Tensor:
    """Reads an unquantized tensor and rounds it to the output's fp16.

    Raises:
        NumericsProblem: the tensor overflows or vanishes in fp16.
    """
    exact = source.read(name)
    tensor = exact.to(OUTPUT_DTYPE)
    if not bool(tensor.isfinite().all()):
        raise NumericsProblem(
            f"{name!r} of {source.folder} has values that are not finite in {OUTPUT_DTYPE}",
            next_step="recover the checkpoint again, or check it for overflow",
        )
    if tensor.dtype != exact.dtype:
        require_row_loss(f"{name!r} of {source.folder}", weight_loss(exact, tensor), OUTPUT_DTYPE)
    return tensor


def write_quantization_config(
    folder: Path,
    source: Checkpoint,
    blocks: int,
    settings: QuantizeSettings,
    method: Mapping[str, Any] = NATIVE_CONFIG,
) -> None:
    """Writes config.json and quantize_config.json with the packing of the weights for loaders.

    Args:
        folder: output folder.
        source: checkpoint with the rest of the config.
        blocks: number of decoder blocks.
        settings: settings of the stage.
        method: entries about the quantization method, ignored by loaders, with the quantizer in
            `meta`.
    """
    layers = {
        name: scheme.model_dump(include=LAYER_KEYS) if scheme else None
        for name, scheme in layer_settings(blocks, settings).items()
    }
    rules = dynamic_rules(settings.model_dump(include=LAYER_KEYS), layers, blocks)
    quantization = {
        "quant_method": "gptq",
        "bits": settings.bits,
        "group_size": settings.group_size,
        "desc_act": False,
        "sym": settings.sym,
        "lm_head": False,
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
        "damp_percent": settings.damp_percent,
        **method,
    } | ({"dynamic": rules} if rules else {})
    config = portable_config(source.config, OUTPUT_DTYPE) | {"quantization_config": quantization}
    write_json(folder / "config.json", config)
    write_json(folder / "quantize_config.json", quantization)
