"""Packed layers and whole models of random codes, laid down bit by bit by the twin of the packer.

What they stand for is known before they are packed, so no reader is needed to tell.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import packing_oracle as oracle
import pico
from camelpress.core import llama

ZERO_STORED_MINUS = {"gptq": 1, "gptq_v2": 0}


class Drawn(NamedTuple):
    """A layer as numbers."""

    bits: int
    codes: Tensor  # [rows cols]
    scales: Tensor  # [rows groups]
    zeros: Tensor  # [rows groups]
    group_of: Tensor  # [cols]

    @property
    def weight(self) -> Tensor:
        """What it stands for, [rows cols]: fp64 holds every product, whatever the scales are."""
        group = self.group_of.long()
        zeros, scales = self.zeros.double()[:, group], self.scales.double()[:, group]
        return (self.codes.double() - zeros) * scales


def draw(
    rows: int,
    cols: int,
    *,
    bits: int = 4,
    group_size: int = 32,
    sym: bool = True,
    any_order: bool = False,
    scales: torch.dtype = torch.float16,
    seed: int = 0,
) -> Drawn:
    """Random codes, scales of either sign, and zero points of 1 and more where not symmetric."""
    random = torch.Generator().manual_seed(seed)
    size = cols if group_size == -1 else group_size
    groups = -(-cols // size)
    group_of = torch.arange(cols) // size
    if any_order:
        group_of = group_of[torch.randperm(cols, generator=random)]
    steps = 1e-3 + 1e-2 * torch.rand(rows, groups, generator=random)
    signs = 2.0 * torch.randint(0, 2, (rows, groups), generator=random) - 1
    drawn = torch.randint(1, 2**bits, (rows, groups), generator=random)
    return Drawn(
        bits,
        torch.randint(0, 2**bits, (rows, cols), generator=random),
        (steps * signs).to(scales),
        torch.full((rows, groups), 2 ** (bits - 1)) if sym else drawn,
        group_of,
    )


def gptq(layer: Drawn, version: str = "gptq") -> dict[str, Tensor]:
    """Its parts in the GPTQ layout."""
    packed = oracle.pack_layer(
        layer.codes.tolist(),
        [],
        layer.zeros.tolist(),
        layer.group_of.tolist(),
        bits=layer.bits,
        stored_minus=ZERO_STORED_MINUS[version],
    )
    return {
        "qweight": torch.tensor(packed.qweight, dtype=torch.int32),
        "qzeros": torch.tensor(packed.qzeros, dtype=torch.int32),
        "scales": layer.scales.T.contiguous(),
        "g_idx": torch.tensor(packed.g_idx, dtype=torch.int32),
    }


def compressed(layer: Drawn, *, sym: bool) -> dict[str, Tensor]:
    """Its parts in the layout of compressed-tensors."""
    zeros = None if sym else layer.zeros.tolist()
    parts = oracle.pack_compressed(layer.codes.tolist(), [], zeros, bits=layer.bits)
    found = {"weight_scale": layer.scales, "weight_shape": torch.tensor(parts["weight_shape"])}
    return found | {
        name: torch.tensor(parts[name], dtype=torch.int32)
        for name in ("weight_packed", "weight_zero_point")
        if name in parts
    }


def names() -> list[str]:
    """The linear layers of the pico model."""
    return llama.linear_names(pico.PICO.layers)


def write_model(
    folder: Path,
    base: Path,
    quantization: dict[str, Any],
    lay: Callable[[str, Drawn], dict[str, Tensor] | None],
    own: Mapping[str, dict[str, Any]] | None = None,
    **common: Any,
) -> dict[str, Drawn]:
    """A copy of a model whose linear layers are random codes; returns them by name.

    Args:
        folder: to be made.
        base: a plain model in one file.
        quantization: of the config.
        lay: the parts of a layer; None leaves it plain.
        own: what differs from `common` for a layer, by name.
        common: as for `draw`.
    """
    shutil.copytree(base, folder)
    tensors = load_file(base / "model.safetensors")
    drawn = {}
    for seed, name in enumerate(names()):
        rows, cols = tensors[f"{name}.weight"].shape
        layer = draw(rows, cols, seed=seed, **common | (own or {}).get(name, {}))
        parts = lay(name, layer)
        if parts is not None:
            del tensors[f"{name}.weight"]
            tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
            drawn[name] = layer
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return drawn
