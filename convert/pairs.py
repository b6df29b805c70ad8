"""Which tensor of the base belongs to which tensor of the diff, and what grows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor

from camelpress.core.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem, ShapeMismatch, UnknownTensor
from camelpress.core.llama import EMBEDDING, HEAD, ROTARY_BUFFER

GROWING = (f"{EMBEDDING}.weight", f"{HEAD}.weight")  # a row per token; tuning may add tokens


@dataclass(frozen=True)
class Pair:
    """One tensor of the second checkpoint and its counterpart in the base."""

    name: str
    base_name: str
    shape: tuple[int, ...]
    extra_rows: int

    @property
    def rule(self) -> str:
        """How the base is extended to the second checkpoint's rows."""
        return "mean" if self.extra_rows else "sum"


def pairs(base: Checkpoint, other: Checkpoint) -> list[Pair]:
    """Match every tensor of a diff or a tuned model with one of the base.

    Rotary frequencies are left out on both sides: they follow from the config. A tied base has
    one matrix where the other side may list two.

    Raises:
        CheckpointProblem: one of them is quantized, or of another family.
        UnknownTensor: a tensor stands on one side only.
        ShapeMismatch: shapes differ by more than added tokens.
    """
    for checkpoint in (base, other):
        if checkpoint.quantization is not None:
            raise CheckpointProblem(
                f"{checkpoint.folder} is quantized", next_step="give the 16-bit checkpoint"
            )
        checkpoint.info(GROWING[0])
    names = sorted(name for name in other.tensors if ROTARY_BUFFER not in name)
    used = {_base_name(base, name) for name in names}
    unused = sorted(name for name in base.tensors if name not in used and ROTARY_BUFFER not in name)
    if unused and not (unused == [f"{HEAD}.weight"] and other.config.get("tie_word_embeddings")):
        raise UnknownTensor(
            f"{other.folder} lacks {unused[0]!r}, which the base {base.folder} holds "
            f"({len(unused)} such tensors)",
            next_step="give a base and a diff of the same architecture",
        )
    return [_pair(base, other, name) for name in names]


def extended(rows: Float32[Tensor, "rows ..."], extra: int) -> Float32[Tensor, "grown ..."]:
    """The base's rows followed by their mean, once per added token.

    Source: allenai/open-instruct 0d2e152d7, scripts/weight_diff.py, recover. Its make_diff draws
    a random row instead, so the added row of a diff made by it cannot be recovered; ours takes
    the mean on both sides.
    """
    if not extra:
        return rows
    mean = rows.mean(dim=0, keepdim=True)
    return torch.cat([rows, mean.expand(extra, *mean.shape[1:])])


def _base_name(base: Checkpoint, name: str) -> str:
    tied = base.config.get("tie_word_embeddings") and name not in base.tensors
    return f"{EMBEDDING}.weight" if tied and name == f"{HEAD}.weight" else name


def _pair(base: Checkpoint, other: Checkpoint, name: str) -> Pair:
    base_name = _base_name(base, name)
    if base_name not in base.tensors:
        raise UnknownTensor(
            f"{other.folder} holds {name!r}, which the base {base.folder} lacks",
            next_step="give a base and a diff of the same architecture",
        )
    shape, base_shape = other.info(name).shape, base.info(base_name).shape
    extra = shape[0] - base_shape[0] if shape and base_shape else 0
    same = len(shape) == len(base_shape) and shape[1:] == base_shape[1:]
    if not same or extra < 0 or (extra and name not in GROWING):
        raise ShapeMismatch(
            f"{name!r} is {list(shape)} in {other.folder} but {list(base_shape)} in {base.folder}",
            next_step="give the base that the diff was made from",
        )
    return Pair(name, base_name, shape, extra)
