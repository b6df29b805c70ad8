"""llm-compressor's 4-bit layout, read as a checkpoint of plain weights.

    weight_packed Int32[rows, cols/8]    codes of neighbouring columns in one word, low bits first
    weight_scale  Float[rows, groups]
    weight[row, col] = weight_scale[row, col // group] * (code[row, col] - 8)

Source: neuralmagic/compressed-tensors 0.19.0, compressors/pack_quantized.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Float32, Int32
from torch import Tensor

from camelpress.core.checkpoint import Checkpoint

BITS, ZERO = 4, 8
METHOD = "compressed-tensors"


def dequantize(
    packed: Int32[Tensor, "rows words"], scale: Float[Tensor, "rows groups"]
) -> Float32[Tensor, "rows cols"]:
    """The weight of a symmetric layer whose groups are neighbouring columns."""
    shifts = torch.arange(0, 32, BITS, dtype=torch.int32)
    codes = ((packed[:, :, None] >> shifts) & (2**BITS - 1)).flatten(1).float() - ZERO
    width = codes.shape[1] // scale.shape[1]
    return codes * scale.float().repeat_interleave(width, dim=1)


class PackQuantized(Checkpoint):
    """Such a folder; its packed layers are read as their weights."""

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> PackQuantized:
        """The same folder.

        Raises:
            SystemExit: the layout is another one of this tool.
        """
        for group in checkpoint.config["quantization_config"]["config_groups"].values():
            held = {key: group["weights"][key] for key in ("num_bits", "symmetric", "strategy")}
            if held != {"num_bits": BITS, "symmetric": True, "strategy": "group"}:
                raise SystemExit(f"{checkpoint.folder} is quantized as {held}")
            if group["weights"]["actorder"] == "group":
                raise SystemExit(f"{checkpoint.folder} has columns in another order")
        return cls(checkpoint.folder, checkpoint.config, checkpoint.tensors)

    @property
    def quantization(self) -> Mapping[str, Any] | None:
        """None: what is read is not packed."""
        return None

    def read(self, name: str) -> Tensor:
        """A tensor by the name that it has in a model."""
        if f"{name}_packed" not in self.tensors:
            return super().read(name)
        return dequantize(super().read(f"{name}_packed"), super().read(f"{name}_scale"))
