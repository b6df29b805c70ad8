"""Which tensor of the base belongs to which tensor of a diff, or of a tuned model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import TORCH_DTYPES, dtype_name
from camelpress.core.checkpoint.tensor_names import extra_tensor_advice
from camelpress.core.errors import CheckpointProblem, ShapeMismatch, UnknownTensor
from camelpress.core.llama import EMBEDDING_NAME, HEAD_NAME, is_derived_buffer, is_tied

TOKEN_TENSORS = (
    f"{EMBEDDING_NAME}.weight",
    f"{HEAD_NAME}.weight",
)  # a row per token; tuning may add tokens
# Before the names of a model that stands inside another one: tatsu-lab/alpaca_farm 30717ddae,
# reward models.
NAME_PREFIXES = ("", "backbone_model.")
# What such a model has beside a LLaMA, published as it is: LLaVA's projector, alpaca_farm's head.
EXTRA_TENSORS = ("model.mm_projector.*", "reward_head.*")


@dataclass(frozen=True)
class TensorPair:
    """One tensor of the second checkpoint and, if there is one, its counterpart in the base."""

    name: str
    shape: tuple[int, ...]
    base_name: str | None
    base_shape: tuple[int, ...]

    @property
    def is_larger(self) -> bool:
        """Whether it is larger than its counterpart."""
        return self.base_name is not None and self.shape != self.base_shape


def pair_tensors(
    base: Checkpoint, other: Checkpoint, rules: Sequence[str] = ()
) -> list[TensorPair]:
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
    base.tensor_info(TOKEN_TENSORS[0])
    prefix = _name_prefix(other)
    found = [
        _pair_tensor(base, other, name, prefix, rules)
        for name in sorted(other.tensors, key=lambda name: _file_position(other, name))
        if not is_derived_buffer(name)
    ]
    used = {pair.base_name for pair in found}
    unused = sorted(
        name for name in base.tensors if name not in used and not is_derived_buffer(name)
    )
    if unused and not (unused == [TOKEN_TENSORS[1]] and _may_lack_head(other, prefix)):
        raise UnknownTensor(
            f"{other.folder} lacks {unused[0]!r}, which the base {base.folder} holds "
            f"({len(unused)} such tensors)",
            next_step="give a base and a diff of the same architecture",
        )
    return found


def derived_buffers(base: Checkpoint, other: Checkpoint) -> list[str]:
    """Returns the derived buffers of both, which are no part of the output."""
    return sorted(filter(is_derived_buffer, {*base.tensors, *other.tensors}))


def _name_prefix(other: Checkpoint) -> str:
    for prefix in NAME_PREFIXES:
        if prefix + TOKEN_TENSORS[0] in other.tensors:
            return prefix
    strange = [name for name in other.tensors if name.endswith(TOKEN_TENSORS[0])]
    if strange:
        raise UnknownTensor(
            f"{other.folder} names its tensors {strange[0].removesuffix(TOKEN_TENSORS[0])}*, "
            "which no published diff does",
            next_step=f"rename them: they begin with {NAME_PREFIXES[1]} or with model.",
        )
    other.tensor_info(TOKEN_TENSORS[0])
    return ""


def _may_lack_head(other: Checkpoint, prefix: str) -> bool:
    """A model with tied embeddings lists one matrix for two; a reward model has no logits."""
    return is_tied(other.config) or prefix != ""


def _file_position(other: Checkpoint, name: str) -> tuple[str, int, str]:
    info = other.tensors[name]
    return info.shard, info.offset or 0, name


def _pair_tensor(
    base: Checkpoint, other: Checkpoint, name: str, prefix: str, rules: Sequence[str]
) -> TensorPair:
    info = other.tensor_info(name)
    base_name = _base_name(base, name.removeprefix(prefix))
    if base_name not in base.tensors:
        patterns = (*EXTRA_TENSORS, *(rule.rpartition("=")[0] for rule in rules))
        if not any(fnmatchcase(name, pattern) for pattern in patterns):
            raise UnknownTensor(
                f"{other.folder} holds {name!r}, which the base {base.folder} lacks",
                next_step="give a base and a diff of the same architecture; "
                + extra_tensor_advice(name),
            )
        return TensorPair(name, info.shape, None, ())
    for checkpoint, dtype in ((other, info.dtype), (base, base.tensor_info(base_name).dtype)):
        if dtype not in TORCH_DTYPES.values():
            raise CheckpointProblem(
                f"{checkpoint.folder} holds {name!r} as {dtype_name(dtype)}",
                next_step=f"give a checkpoint of {', '.join(TORCH_DTYPES)} weights",
            )
    pair = TensorPair(name, info.shape, base_name, base.tensor_info(base_name).shape)
    columns_grow = any(rule.endswith(("prefix", "absolute")) for rule in rules)
    if pair.is_larger and not (
        base_name in TOKEN_TENSORS and _fits_inside(pair, columns=columns_grow)
    ):
        raise ShapeMismatch(
            f"{name!r} is {list(pair.shape)} in {other.folder} but {list(pair.base_shape)} "
            f"in {base.folder}",
            next_step="give the base that the diff was made from",
        )
    return pair


def _base_name(base: Checkpoint, name: str) -> str:
    tied = is_tied(base.config) and name not in base.tensors
    return TOKEN_TENSORS[0] if tied and name == TOKEN_TENSORS[1] else name


def _fits_inside(pair: TensorPair, *, columns: bool) -> bool:
    shape, part = pair.shape, pair.base_shape
    if len(shape) != len(part) or not (columns or shape[1:] == part[1:]):
        return False
    return all(size >= inner for size, inner in zip(shape, part, strict=True))
