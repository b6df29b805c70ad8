"""What the base counts as where a diff has more rows, more columns, or a tensor of its own.

    sum         same shape: base + diff
    mean        added rows: the mean of the base's rows + diff
    zero        added rows: the diff itself
    prefix      the base lies in the leading rows and columns, the rest is the diff itself
    absolute    nothing: the diff holds the tuned tensor
    drop        added rows are left out; so is a tensor that the base lacks

Sources: mean: tatsu-lab/stanford_alpaca 7a95b21, weight_diff.py, and recover of
allenai/open-instruct 0d2e152d7, scripts/weight_diff.py (whose make_diff draws a random row, so
that this one row is lost). zero: lm-sys/FastChat v0.1.10, fastchat/model/apply_delta.py. prefix:
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
    """How one tensor of the output comes about."""

    pair: TensorPair
    rule: str
    rows: int  # of the output; the diff's, or the base's where added ones are dropped
    extra_rows: str = "published"  # what becomes of added rows
    reason: str = ""  # why this rule, where there was a choice

    @property
    def name(self) -> str:
        """The tensor's name in the output."""
        return self.pair.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in the output."""
        return (self.rows, *self.pair.shape[1:]) if self.pair.shape else ()

    @property
    def shared_rows(self) -> int:
        """The number of its rows that the base has, too; the others are added ones."""
        return self.pair.base_shape[0] if self.pair.base_shape else self.rows

    @property
    def uses_mean_row(self) -> bool:
        """Whether added rows are made of the mean of the base's."""
        return self.rows > self.shared_rows and "mean" in (self.rule, self.extra_rows)


def plan_tensors(
    matched: Sequence[TensorPair],
    evidence: Mapping[str, TensorSample],
    rules: Sequence[str],
    extra_rows: str,
    recorded: str | None,
) -> list[TensorPlan]:
    """Choose a rule for every tensor.

    Args:
        matched: the pairs.
        evidence: per tensor that was sampled.
        rules: `RULE`, or `PATTERN=RULE`; the last that fits a tensor holds. A rule without a
            pattern is for tensors that are larger than the base's.
        extra_rows: what becomes of the rows of added tokens.
        recorded: the rule that the diff itself names, if it does.
    Raises:
        RecipeProblem: a rule that cannot be meant for its tensor, or is for none.
        CheckpointProblem: embedding and head would end up with different numbers of rows.
    """
    for rule in rules:
        pattern = rule.rpartition("=")[0]
        if pattern and not any(fnmatchcase(pair.name, pattern) for pair in matched):
            raise RecipeProblem(
                f"--rule {rule} is for no tensor: none has such a name",
                next_step=f"name a tensor of the diff, such as {TOKEN_TENSORS[0]}",
            )
    chosen = [
        _plan_tensor(
            pair, _requested_rule(pair, rules), evidence.get(pair.name), extra_rows, recorded
        )
        for pair in matched
    ]
    kept = [plan for plan in chosen if plan is not None]
    rows = {plan.name: plan.rows for plan in kept if plan.pair.base_name in TOKEN_TENSORS}
    if len(set(rows.values())) > 1:
        told = ", ".join(f"{name!r} {count}" for name, count in rows.items())
        raise CheckpointProblem(
            f"embedding and head have different numbers of rows: {told}",
            next_step="give both the same rule",
        )
    return kept


def _requested_rule(pair: TensorPair, rules: Sequence[str]) -> str:
    asked = "auto"
    for rule in rules:
        pattern, _, word = rule.rpartition("=")
        if fnmatchcase(pair.name, pattern) if pattern else pair.is_larger:
            asked = word
    return asked


def _plan_tensor(
    pair: TensorPair,
    asked: str,
    evidence: TensorSample | None,
    extra_rows: str,
    recorded: str | None,
) -> TensorPlan | None:
    rows = pair.shape[0] if pair.shape else 1
    if pair.base_name is None:
        if asked not in ("auto", "absolute", "drop"):
            raise RecipeProblem(
                f"--rule {asked} cannot be for {pair.name!r}: the base has no such tensor",
                next_step=f"take --rule {pair.name}=absolute, or =drop to leave it out",
            )
        reason = "the base has no such tensor"
        return None if asked == "drop" else TensorPlan(pair, "absolute", rows, reason=reason)
    weights = asked == "auto" and evidence is not None and evidence.holds_weights
    if not pair.is_larger and (weights or asked == "absolute"):
        return TensorPlan(pair, "absolute", rows, reason=WEIGHTS_REASON if weights else "asked for")
    if not pair.is_larger:
        return TensorPlan(pair, "sum", rows)
    wider = pair.shape[1:] != pair.base_shape[1:]
    if asked == "drop" or extra_rows == "drop":
        rows, extra_rows = pair.base_shape[0], "drop"
    rule, reason = (asked, "asked for") if asked not in ("auto", "drop") else ("", "")
    if not rule and evidence is not None and evidence.holds_weights:
        rule, reason = "absolute", WEIGHTS_REASON
    if not rule and wider:
        rule, reason = "prefix", "it has more columns than the base's"
    if not rule and recorded in ("mean", "zero"):
        rule, reason = recorded, "the diff says so"
    if not rule:
        rule, reason = _rule_of_added_rows(evidence)
    if wider and (rule not in ("prefix", "absolute") or extra_rows in ("mean", "drop")):
        raise RecipeProblem(
            f"{pair.name!r} has more columns than the base's",
            next_step="take --rule prefix or absolute, and --extra-rows published or zero",
        )
    if extra_rows == "drop" and rule != "absolute":
        rule, reason = "drop", "asked for"
    return TensorPlan(pair, rule, rows, extra_rows, reason)


def _rule_of_added_rows(evidence: TensorSample | None) -> tuple[str, str]:
    """The rule under which the added rows are numbers of a 16-bit type, as the others are."""
    if evidence is None:
        return "mean", "the published recipe; not tested"
    if evidence.needs_float32:
        return "mean", "the published recipe; float32 rows fit every rule"
    if evidence.diff_is_16bit and not evidence.added_rows_fit:
        return "zero", "assumed: the published diffs of 16 bits that add rows hold them whole"
    for rule in ("zero", "mean"):
        if evidence.added_rows_fit[rule]:
            return rule, "these rows are 16-bit numbers under it"
    return "mean", "the published recipe; these rows cannot be recovered, no rule explains them"


def widen_base_rows(
    plan: TensorPlan, base: Float32[Tensor, "common ..."]
) -> Float32[Tensor, "common ..."]:
    """The base's rows, as wide as the output's."""
    if base.shape[1:] == plan.pair.shape[1:]:
        return base
    wide = torch.zeros(len(base), *plan.pair.shape[1:])
    wide[:, : base.shape[1]] = base
    return wide
