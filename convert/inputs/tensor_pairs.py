"""Pairs the tensors of a diff or tuned model with those of the base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import TORCH_DTYPES, dtype_name
from camelpress.core.checkpoint.tensor_names import extra_tensor_advice
from camelpress.core.errors import CheckpointProblem, ShapeMismatch, UnknownTensor
from camelpress.core.llama import EMBEDDING_NAME, HEAD_NAME, is_derived_buffer, is_tied

# Tensors with a row per token; tuning may add tokens.
TOKEN_TENSORS = (f"{EMBEDDING_NAME}.weight", f"{HEAD_NAME}.weight")
# Name prefixes of the LLaMA inside another model: reward models of tatsu-lab/alpaca_farm 30717ddae.
NAME_PREFIXES = ("", "backbone_model.")
# Tensors beside those of LLaMA, published whole: LLaVA's projector, alpaca_farm's head.
EXTRA_TENSORS = ("model.mm_projector.*", "reward_head.*")


@dataclass(frozen=True)
class TensorPair:
    """One tensor of a diff or tuned model, and its counterpart in the base, if any."""

    name: str
    shape: tuple[int, ...]
    base_name: str | None
    base_shape: tuple[int, ...]

    @property
    def is_larger(self) -> bool:
        """True if the tensor is larger than its counterpart."""
        return self.base_name is not None and self.shape != self.base_shape


def pair_tensors(
    base: Checkpoint, tuned_or_diff: Checkpoint, rules: Sequence[str] = ()
) -> list[TensorPair]:
    """Pairs every tensor of a diff or tuned model with one of the base, in the order of files.

    Derived buffers are skipped on both sides, because they follow from the config. A tied base has
    one matrix for embedding and head; the second checkpoint may list both.

    Args:
        base: raw model.
        tuned_or_diff: diff, or tuned model.
        rules: requested rules, as `RULE` or `PATTERN=RULE`. A tensor matching a pattern needs no
            counterpart in the base; the rules prefix and absolute also allow more columns.
    Raises:
        CheckpointProblem: a checkpoint is quantized, of another family, or of another dtype.
        UnknownTensor: a tensor has no counterpart.
        ShapeMismatch: shapes differ by more than added tokens.
    """
    for checkpoint in (base, tuned_or_diff):
        if checkpoint.quantization is not None:
            raise CheckpointProblem(
                f"{checkpoint.folder} is quantized", next_step="give the 16-bit checkpoint"
            )
    base.tensor_info(TOKEN_TENSORS[0])
    prefix = _name_prefix(tuned_or_diff)
    pairs = [
        _pair_tensor(base, tuned_or_diff, name, prefix, rules)
        for name in sorted(
            tuned_or_diff.tensors, key=lambda name: _file_position(tuned_or_diff, name)
        )
        if not is_derived_buffer(name)
    ]
    base_names = {pair.base_name for pair in pairs}
    unpaired_names = sorted(
        name for name in base.tensors if name not in base_names and not is_derived_buffer(name)
    )
    if unpaired_names and not (
        unpaired_names == [TOKEN_TENSORS[1]] and _may_lack_head(tuned_or_diff, prefix)
    ):
        raise UnknownTensor(
            f"{tuned_or_diff.folder} lacks {unpaired_names[0]!r}, which the base {base.folder} "
            f"holds ({len(unpaired_names)} such tensors)",
            next_step="give a base and a diff of the same architecture",
        )
    return pairs


def derived_buffers(base: Checkpoint, tuned_or_diff: Checkpoint) -> list[str]:
    """Lists the derived buffers of both checkpoints, which the output leaves out."""
    return sorted(filter(is_derived_buffer, {*base.tensors, *tuned_or_diff.tensors}))


def _name_prefix(tuned_or_diff: Checkpoint) -> str:
    for prefix in NAME_PREFIXES:
        if prefix + TOKEN_TENSORS[0] in tuned_or_diff.tensors:
            return prefix
    unknown_names = [name for name in tuned_or_diff.tensors if name.endswith(TOKEN_TENSORS[0])]
    if unknown_names:
        raise UnknownTensor(
            f"{tuned_or_diff.folder} names its tensors "
            f"{unknown_names[0].removesuffix(TOKEN_TENSORS[0])}*, which no published diff does",
            next_step=f"rename them: they begin with {NAME_PREFIXES[1]} or with model.",
        )
    tuned_or_diff.tensor_info(TOKEN_TENSORS[0])
    return ""


def _may_lack_head(tuned_or_diff: Checkpoint, prefix: str) -> bool:
    """Returns True for a model with tied embeddings, and for a reward model, without logits."""
    return is_tied(tuned_or_diff.config) or prefix != ""


def _file_position(tuned_or_diff: Checkpoint, name: str) -> tuple[str, int, str]:
    info = tuned_or_diff.tensors[name]
    return info.shard, info.offset or 0, name


def _pair_tensor(
    base: Checkpoint, tuned_or_diff: Checkpoint, name: str, prefix: str, rules: Sequence[str]
) -> TensorPair:
    info = tuned_or_diff.tensor_info(name)
    base_name = _base_name(base, name.removeprefix(prefix))
    if base_name not in base.tensors:
        patterns = (*EXTRA_TENSORS, *(rule.rpartition("=")[0] for rule in rules))
        if not any(fnmatchcase(name, pattern) for pattern in patterns):
            raise UnknownTensor(
                f"{tuned_or_diff.folder} holds {name!r}, which the base {base.folder} lacks",
                next_step="give a base and a diff of the same architecture; "
                + extra_tensor_advice(name),
            )
        return TensorPair(name, info.shape, None, ())
    for checkpoint, dtype in (
        (tuned_or_diff, info.dtype),
        (base, base.tensor_info(base_name).dtype),
    ):
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
            f"{name!r} is {list(pair.shape)} in {tuned_or_diff.folder} but {list(pair.base_shape)} "
            f"in {base.folder}",
            next_step="give the base that the diff was made from",
        )
    return pair


def _base_name(base: Checkpoint, name: str) -> str:
    tied = is_tied(base.config) and name not in base.tensors
    return TOKEN_TENSORS[0] if tied and name == TOKEN_TENSORS[1] else name


def _fits_inside(pair: TensorPair, *, columns: bool) -> bool:
    shape, base_shape = pair.shape, pair.base_shape
    if len(shape) != len(base_shape) or not (columns or shape[1:] == base_shape[1:]):
        return False
    return all(size >= inner for size, inner in zip(shape, base_shape, strict=True))
