"""A GPTQ folder made plain again, bit by bit in numpy; nothing shared with the package."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder of safetensors."""
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def unpack(words: NDArray[np.int32], bits: int) -> NDArray[np.int64]:
    """Each row's words as one stream of bits, low bits first, cut into numbers of `bits` bits."""
    rows = len(words)
    stream = np.unpackbits(
        np.ascontiguousarray(words).view(np.uint8).reshape(rows, -1), axis=1, bitorder="little"
    )
    numbers: NDArray[np.int64] = stream.reshape(rows, -1, bits) @ (1 << np.arange(bits))
    return numbers


def quantization(folder: Path) -> dict[str, Any]:
    """What the config says of it."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return dict(found["quantization_config"])


def bits_of(config: dict[str, Any], linear: str) -> int | None:
    """Bits of one layer: of the rules in `dynamic`, the first that matches; None if it is plain."""
    for rule, own in config.get("dynamic", {}).items():
        if re.match(rule[2:], linear):
            return own["bits"] if rule[:2] == "+:" else None
    return config["bits"]


def zeros(stored: dict[str, Tensor], linear: str, bits: int) -> NDArray[np.int64]:
    """The zero points of one layer of a v1 folder, [groups outputs]."""
    return unpack(stored[f"{linear}.qzeros"].numpy(), bits) + 1  # v1 stores them one short


def dequantize(stored: dict[str, Tensor], linear: str, bits: int) -> NDArray[np.float32]:
    """The weight of one linear layer of a v1 folder, [outputs inputs]."""
    codes = unpack(stored[f"{linear}.qweight"].numpy().T, bits)
    zero = zeros(stored, linear, bits).T
    scales = stored[f"{linear}.scales"].numpy().astype(np.float32).T
    group = stored[f"{linear}.g_idx"].numpy()
    weight: NDArray[np.float32] = (codes - zero[:, group]).astype(np.float32) * scales[:, group]
    return weight


def write_plain(folder: Path, out: Path) -> Path:
    """The same model with plain fp32 weights, for any loader that knows nothing of GPTQ."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    packing = config.pop("quantization_config")
    stored = tensors(folder)
    plain = {
        name: tensor.float()
        for name, tensor in stored.items()
        if not name.endswith((".qweight", ".qzeros", ".scales", ".g_idx"))
    }
    for name in stored:
        if name.endswith(".qweight"):
            linear = name.removesuffix(".qweight")
            bits = bits_of(packing, linear)
            if bits is None:
                raise ValueError(f"{linear} is packed, but a rule says that it is plain")
            plain[f"{linear}.weight"] = torch.from_numpy(dequantize(stored, linear, bits).copy())
    out.mkdir()
    save_file(plain, out / "model.safetensors", metadata={"format": "pt"})
    config |= {"dtype": "float32", "torch_dtype": "float32"}
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for path in folder.glob("tokenizer*"):
        shutil.copyfile(path, out / path.name)
    return out
