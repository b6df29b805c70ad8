"""Small checkpoints of every kind that this project writes, for other people's loaders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import pico
import stages
from camelpress.convert.export.export_checkpoint import export
from camelpress.convert.settings import ExportSettings
from camelpress.core import llama
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.packing.gptq_format import GPTQ_TENSORS, pack_gptq

ENVIRONMENTS = Path(__file__).parents[2] / ".venv-clients"
SIZES = pico.Sizes(hidden=128, ffn=256)
GROUPS = (32, 64, 128, -1)
MODELS: dict[str, dict[str, Any]] = {
    "gqa": {"sizes": SIZES},
    "mha": {"sizes": SIZES._replace(kv_heads=4)},
    "tied": {"sizes": SIZES, "tied": True, "seed": 1},
    "mistral": {"sizes": SIZES, "family": "mistral"},
    "qwen2": {"sizes": SIZES, "family": "qwen2"},
}
OWN: dict[str, dict[str, Any]] = {
    "8 bits and other groups in some layers": {
        "*.down_proj": {"bits": 8, "group_size": 32},
        "model.layers.0.self_attn.[qkv]_proj": {"group_size": 64},
    },
    "some layers in 16 bits": {"model.layers.1.mlp.*": {"keep": True}},
    "q unlike k and v, gate unlike up": {
        "*.q_proj": {"bits": 8},
        "model.layers.0.mlp.gate_proj": {"keep": True},
    },
}


@dataclass(frozen=True)
class Kind:
    """One checkpoint.

    Args:
        row: what a table calls all that differ in the group size alone.
        model: one of `MODELS`.
        options: of the stage.
        positive: packed here with scales above 0, as other quantizers write them.
    """

    row: str
    model: str
    options: dict[str, Any] = field(hash=False)
    positive: bool = False
    engine: str = ""  # environment of the other tool that quantizes

    @property
    def group(self) -> int:
        """Neighbouring columns that share a scale."""
        size: int = self.options["group_size"]
        return size

    @property
    def bits(self) -> int:
        """Per weight."""
        bits: int = self.options["bits"]
        return bits

    @property
    def sym(self) -> bool:
        """Whether zero is in the middle."""
        return bool(self.options["sym"])

    @property
    def name(self) -> str:
        """As a file may be called."""
        return "-".join([*self.row.replace(",", "").replace("/", "-").split(), f"g{self.group}"])

    def write(self, folder: Path, source: Path, text: Path) -> Path:
        """The checkpoint, by the real stage."""
        out = folder / self.name
        python = {"engine_python": ENVIRONMENTS / self.engine / "bin" / "python"}
        options = self.options | (python if self.engine else {})
        stages.quantize(source, out, text, dtype="float32", **options)
        if self.positive:
            _make_positive(out, source, self.group)
        return out


def kinds() -> Iterator[Kind]:
    """Every kind, all names different."""
    for bits, sym in product((4, 8, 3, 2), (True, False)):
        yield from _groups(f"GQA, {bits} bits", "gqa", bits=bits, sym=sym)
    for model, sym in product(("mha", "tied"), (True, False)):
        title = {"mha": "no GQA", "tied": "tied head"}[model]
        yield from _groups(f"{title}, 4 bits", model, sym=sym)
    for size in GROUPS:
        options = {"bits": 4, "group_size": size, "sym": True}
        yield Kind("GQA, 4 bits, sym, positive scales", "gqa", options, positive=True)
    four = {"bits": 4, "group_size": 32, "sym": True}
    for name, modules in OWN.items():
        yield Kind(f"GQA, 4 bits, sym, {name}", "gqa", four | {"modules": modules})
    for model in ("mistral", "qwen2"):
        yield Kind(f"{model}, 4 bits, sym", model, four)
    for engine, environment, sym in (
        ("gptqmodel", "gptqmodel", True),
        ("gptqmodel", "gptqmodel", False),
        ("optimum", "gptqmodel", True),
        ("auto-gptq", "autogptq", True),
    ):
        if is_made(environment):
            row = f"GQA, 4 bits, {'sym' if sym else 'asym'}, by {engine}"
            yield Kind(row, "gqa", four | {"engine": engine, "sym": sym}, engine=environment)


def _groups(row: str, model: str, *, sym: bool, bits: int = 4) -> Iterator[Kind]:
    for size in GROUPS:
        options = {"bits": bits, "group_size": size, "sym": sym}
        yield Kind(f"{row}, {'sym' if sym else 'asym'}", model, options)


def is_made(environment: str) -> bool:
    """Whether `make_env.sh` has made an environment."""
    return (ENVIRONMENTS / environment / "requirements.sha256").exists()


def write_models(folder: Path) -> dict[str, Path]:
    """The 16-bit models by their names."""
    return {name: pico.write_model(folder / name, **given) for name, given in MODELS.items()}


def write_dense(packed: Path, out: Path) -> Path:
    """The same model with plain fp32 weights, by our own dequantization."""
    export(Checkpoint.open(packed), out, ExportSettings.parse({"to": "dense"}, source="test"))
    return out


def _make_positive(folder: Path, source: Path, group: int) -> None:
    """The source again, rounded to nearest with scales above 0: codes -7 to 7."""
    tensors = load_file(folder / "model.safetensors")
    plain = Checkpoint.open(source)
    for number, linear in product(range(SIZES.layers), llama.LINEARS):
        name = f"{llama.BLOCK_NAME.format(number)}.{linear.name}"
        weight = plain.read(f"{name}.weight").float()
        rows, cols = weight.shape
        size = cols if group == -1 else group
        scales = (weight.reshape(rows, -1, size).abs().amax(2) / 7).half()
        steps = (weight / scales.float().repeat_interleave(size, 1)).round().clamp(-8, 7)
        packed = pack_gptq(
            (steps + 8).to(torch.uint8),
            scales,
            torch.full_like(scales, 8, dtype=torch.uint8),
            (torch.arange(cols) // size).to(torch.int32),
            bits=4,
        )
        tensors |= {f"{name}.{part}": getattr(packed, part) for part in GPTQ_TENSORS}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
