"""Rules for the base values of diff tensors that are larger than the base's, or not in it.

    sum         same shape: base + diff
    mean        added rows: mean of the base's rows + diff
    zero        added rows: 0 + diff
    prefix      leading rows and columns: base + diff; all others: 0 + diff
    absolute    no base: the diff holds the tuned tensor
    drop        no added rows in the output, and no tensors beyond the base's

Sources: mean: tatsu-lab/stanford_alpaca 7a95b21, weight_diff.py, and recover of
allenai/open-instruct 0d2e152d7, scripts/weight_diff.py (its make_diff draws a random row, so this
one row is lost). zero: lm-sys/FastChat v0.1.10, fastchat/model/apply_delta.py. prefix:
haotian-liu/LLaVA, llava/model/apply_delta.py. absolute: tatsu-lab/alpaca_farm 30717ddae.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from jaxtyping import Float32
from torch import Tensor

from camelpress.convert.inputs.base_sample import TensorSample
from camelpress.convert.inputs.tensor_pairs import TOKEN_TENSORS, TensorPair
from camelpress.core.errors import CheckpointProblem, RecipeProblem

WEIGHTS_REASON = "these are weights, not differences"


@dataclass(frozen=True)
class TensorPlan:
    """Rule and shape of one output tensor."""

    pair: TensorPair
    rule: str
    rows: int  # rows of the output: the diff's, or the base's if added rows are dropped
    extra_rows: str = "published"  # setting for added rows
    reason: str = ""  # reason for the rule; empty without a choice

    @property
    def name(self) -> str:
        """Name of the tensor in the output."""
        return self.pair.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor in the output."""
        return (self.rows, *self.pair.shape[1:]) if self.pair.shape else ()

    @property
    def shared_rows(self) -> int:
        """Number of leading rows with a counterpart in the base; the rest are added rows."""
        return self.pair.base_shape[0] if self.pair.base_shape else self.rows

    @property
    def uses_mean_row(self) -> bool:
        """True if the added rows are computed from the mean of the base's rows."""
        return self.rows > self.shared_rows and "mean" in (self.rule, self.extra_rows)


def plan_tensors(
    pairs: Sequence[TensorPair],
    samples: Mapping[str, TensorSample],
    rules: Sequence[str],
    extra_rows: str,
    recorded: str | None,
) -> list[TensorPlan]:
    """Chooses a rule for every tensor.

    Args:
        pairs: tensors of the diff with their counterparts.
        samples: name to sample of the tensor.
        rules: `RULE` or `PATTERN=RULE`; the last match wins. A rule without a pattern applies to
            tensors larger than the base's.
        extra_rows: setting for the rows of added tokens.
        recorded: rule in the diff's header, or None.
    Raises:
        RecipeProblem: a rule does not suit its tensor, or matches no tensor.
        CheckpointProblem: embedding and head would have different numbers of rows.
    """
    for rule in rules:
        pattern = rule.rpartition("=")[0]
        if pattern and not any(fnmatchcase(pair.name, pattern) for pair in pairs):
            raise RecipeProblem(
                f"--rule {rule} matches no tensor",
                next_step=f"name a tensor of the diff, such as {TOKEN_TENSORS[0]}",
            )
    choices = [
        _plan_tensor(
            pair, _requested_rule(pair, rules), samples.get(pair.name), extra_rows, recorded
        )
        for pair in pairs
    ]
    plans = [plan for plan in choices if plan is not None]
    rows = {plan.name: plan.rows for plan in plans if plan.pair.base_name in TOKEN_TENSORS}
    if len(set(rows.values())) > 1:
        sizes = ", ".join(f"{name!r} {count}" for name, count in rows.items())
        raise CheckpointProblem(
            f"embedding and head have different numbers of rows: {sizes}",
            next_step="give both the same rule",
        )
    return plans


def _requested_rule(pair: TensorPair, rules: Sequence[str]) -> str:
    rule_option = "auto"
    for rule in rules:
        pattern, _, option = rule.rpartition("=")
        if fnmatchcase(pair.name, pattern) if pattern else pair.is_larger:
            rule_option = option
    return rule_option


def _plan_tensor(
    pair: TensorPair,
    rule_option: str,
    sample: TensorSample | None,
    extra_rows: str,
    recorded: str | None,
) -> TensorPlan | None:
    rows = pair.shape[0] if pair.shape else 1
    if pair.base_name is None:
        if rule_option not in ("auto", "absolute", "drop"):
            raise RecipeProblem(
                f"--rule {rule_option} does not suit {pair.name!r}: the base has no such tensor",
                next_step=f"take --rule {pair.name}=absolute, or =drop to leave it out",
            )
        reason = "the base has no such tensor"
        return None if rule_option == "drop" else TensorPlan(pair, "absolute", rows, reason=reason)
    holds_weights = rule_option == "auto" and sample is not None and sample.holds_weights
    if not pair.is_larger and (holds_weights or rule_option == "absolute"):
        return TensorPlan(
            pair, "absolute", rows, reason=WEIGHTS_REASON if holds_weights else "asked for"
        )
    if not pair.is_larger:
        return TensorPlan(pair, "sum", rows)
    has_more_columns = pair.shape[1:] != pair.base_shape[1:]
    if rule_option == "drop" or extra_rows == "drop":
        rows, extra_rows = pair.base_shape[0], "drop"
    rule, reason = (rule_option, "asked for") if rule_option not in ("auto", "drop") else ("", "")
    if not rule and sample is not None and sample.holds_weights:
        rule, reason = "absolute", WEIGHTS_REASON
    if not rule and has_more_columns:
        rule, reason = "prefix", "it has more columns than the base's"
    if not rule and recorded in ("mean", "zero"):
        rule, reason = recorded, "the diff says so"
    if not rule:
        rule, reason = _rule_of_added_rows(sample)
    if has_more_columns and (rule not in ("prefix", "absolute") or extra_rows in ("mean", "drop")):
        raise RecipeProblem(
            f"{pair.name!r} has more columns than the base's",
            next_step="take --rule prefix or absolute, and --extra-rows published or zero",
        )
    if extra_rows == "drop" and rule != "absolute":
        rule, reason = "drop", "asked for"
    return TensorPlan(pair, rule, rows, extra_rows, reason)


def _rule_of_added_rows(sample: TensorSample | None) -> tuple[str, str]:
    """Returns the rule under which the added rows are 16-bit numbers, with its reason."""
    if sample is None:
        return "mean", "the published recipe; not tested"
    if sample.needs_float32:
        return "mean", "the published recipe; float32 rows fit every rule"
    if sample.diff_is_16bit and not sample.added_rows_fit:
        return "zero", "assumed: the published diffs of 16 bits that add rows hold them whole"
    for rule in ("zero", "mean"):
        if sample.added_rows_fit[rule]:
            return rule, "these rows are 16-bit numbers under it"
    return "mean", "the published recipe; these rows cannot be recovered, no rule explains them"


def widen_base_rows(
    plan: TensorPlan, base: Float32[Tensor, "common ..."]
) -> Float32[Tensor, "common ..."]:
    """Pads rows of the base with zero columns to the width of the output."""
    if base.shape[1:] == plan.pair.shape[1:]:
        return base
    padded = torch.zeros(len(base), *plan.pair.shape[1:])
    padded[:, : base.shape[1]] = base
    return padded
