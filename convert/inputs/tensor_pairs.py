"""Which tensor of the base belongs to which tensor of a diff, or of a tuned model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import DTYPES, dtype_name
from camelpress.core.checkpoint.tensor_names import extra_tensor_advice
from camelpress.core.errors import CheckpointProblem, ShapeMismatch, UnknownTensor
from camelpress.core.llama import EMBEDDING, HEAD, is_derived_buffer, is_tied

GROWING = (f"{EMBEDDING}.weight", f"{HEAD}.weight")  # a row per token; tuning may add tokens
# Before the names of a model that stands inside another one: tatsu-lab/alpaca_farm 30717ddae,
# reward models.
PREFIXES = ("", "backbone_model.")
# What such a model has beside a LLaMA, published as it is: LLaVA's projector, alpaca_farm's head.
ADDITIONS = ("model.mm_projector.*", "reward_head.*")


@dataclass(frozen=True)
class Pair:
    """One tensor of the second checkpoint and, if there is one, its counterpart in the base."""

    name: str
    shape: tuple[int, ...]
    base_name: str | None
    base_shape: tuple[int, ...]

    @property
    def grown(self) -> bool:
        """Whether it is larger than its counterpart."""
        return self.base_name is not None and self.shape != self.base_shape


def pairs(base: Checkpoint, other: Checkpoint, rules: Sequence[str] = ()) -> list[Pair]:
    """Match every tensor of a diff or a tuned model with one of the base, in the order of files.

    Derived buffers are left out on both sides: they follow from the config. A tied base has
    one matrix where the other side may list two.

    Args:
        base: the raw model.
        other: the diff, or the tuned model.
        rules: that were asked for, as `RULE` or `PATTERN=RULE`. A tensor whose name a pattern
            fits may stand in `other` alone; with prefix or absolute, columns may grow, too.
    Raises:
        CheckpointProblem: one of them is quantized, of another family, or of another type.
        UnknownTensor: a tensor stands on one side only.
        ShapeMismatch: shapes differ by more than added tokens.
    """
    for checkpoint in (base, other):
        if checkpoint.quantization is not None:
            raise CheckpointProblem(
                f"{checkpoint.folder} is quantized", next_step="give the 16-bit checkpoint"
            )
    base.info(GROWING[0])
    prefix = _prefix(other)
    found = [
        _pair(base, other, name, prefix, rules)
        for name in sorted(other.tensors, key=lambda name: _place(other, name))
        if not is_derived_buffer(name)
    ]
    used = {pair.base_name for pair in found}
    unused = sorted(
        name for name in base.tensors if name not in used and not is_derived_buffer(name)
    )
    if unused and not (unused == [GROWING[1]] and _may_lack_head(other, prefix)):
        raise UnknownTensor(
            f"{other.folder} lacks {unused[0]!r}, which the base {base.folder} holds "
            f"({len(unused)} such tensors)",
            next_step="give a base and a diff of the same architecture",
        )
    return found


def left_out(base: Checkpoint, other: Checkpoint) -> list[str]:
    """Returns the derived buffers of both, which are no part of the output."""
    return sorted(filter(is_derived_buffer, {*base.tensors, *other.tensors}))


def _prefix(other: Checkpoint) -> str:
    for prefix in PREFIXES:
        if prefix + GROWING[0] in other.tensors:
            return prefix
    strange = [name for name in other.tensors if name.endswith(GROWING[0])]
    if strange:
        raise UnknownTensor(
            f"{other.folder} names its tensors {strange[0].removesuffix(GROWING[0])}*, "
            "which no published diff does",
            next_step=f"rename them: they begin with {PREFIXES[1]} or with model.",
        )
    other.info(GROWING[0])
    return ""


def _may_lack_head(other: Checkpoint, prefix: str) -> bool:
    """A model with tied embeddings lists one matrix for two; a reward model has no logits."""
    return is_tied(other.config) or prefix != ""


def _place(other: Checkpoint, name: str) -> tuple[str, int, str]:
    info = other.tensors[name]
    return info.shard, info.offset or 0, name


def _pair(
    base: Checkpoint, other: Checkpoint, name: str, prefix: str, rules: Sequence[str]
) -> Pair:
    info = other.info(name)
    base_name = _base_name(base, name.removeprefix(prefix))
    if base_name not in base.tensors:
        patterns = (*ADDITIONS, *(rule.rpartition("=")[0] for rule in rules))
        if not any(fnmatchcase(name, pattern) for pattern in patterns):
            raise UnknownTensor(
                f"{other.folder} holds {name!r}, which the base {base.folder} lacks",
                next_step="give a base and a diff of the same architecture; "
                + extra_tensor_advice(name),
            )
        return Pair(name, info.shape, None, ())
    for checkpoint, dtype in ((other, info.dtype), (base, base.info(base_name).dtype)):
        if dtype not in DTYPES.values():
            raise CheckpointProblem(
                f"{checkpoint.folder} holds {name!r} as {dtype_name(dtype)}",
                next_step=f"give a checkpoint of {', '.join(DTYPES)} weights",
            )
    pair = Pair(name, info.shape, base_name, base.info(base_name).shape)
    columns_grow = any(rule.endswith(("prefix", "absolute")) for rule in rules)
    if pair.grown and not (base_name in GROWING and _contains(pair, columns=columns_grow)):
        raise ShapeMismatch(
            f"{name!r} is {list(pair.shape)} in {other.folder} but {list(pair.base_shape)} "
            f"in {base.folder}",
            next_step="give the base that the diff was made from",
        )
    return pair


def _base_name(base: Checkpoint, name: str) -> str:
    tied = is_tied(base.config) and name not in base.tensors
    return GROWING[0] if tied and name == GROWING[1] else name


def _contains(pair: Pair, *, columns: bool) -> bool:
    shape, part = pair.shape, pair.base_shape
    if len(shape) != len(part) or not (columns or shape[1:] == part[1:]):
        return False
    return all(size >= inner for size, inner in zip(shape, part, strict=True))
