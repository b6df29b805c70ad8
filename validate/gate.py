"""Thresholds to verdicts: a figure passes only if its whole interval does."""

from __future__ import annotations

from pathlib import Path

from camelpress.core.errors import RecipeProblem
from camelpress.core.report import Check, Verdict
from camelpress.core.yaml import read_yaml
from camelpress.validate.settings import Bound, Gate
from camelpress.validate.statistics import Estimate


def read(path: Path) -> Gate:
    """A gate from YAML; a check that is not named keeps its default.

    Raises:
        RecipeProblem: missing, not YAML, an unknown check or an impossible bound.
    """
    return Gate.parse(read_yaml(path), source=str(path))


def judge(estimates: dict[str, Estimate], gate: Gate) -> tuple[Check, ...]:
    """Hold each estimate against its bound.

    PASS: the whole 95 % interval is within the bound. FAIL: the whole interval is beyond it.
    INCONCLUSIVE: the interval holds the threshold, more text is needed. ERROR: no tokens.

    Raises:
        RecipeProblem: the gate leaves out every check.
    """
    bounds = {name: bound for name, bound in gate if bound is not None}
    if not bounds:
        raise RecipeProblem("the gate holds no check", next_step="name at least one threshold")
    return tuple(_check(name, estimates[name], bound) for name, bound in bounds.items())


def _check(name: str, estimate: Estimate, bound: Bound) -> Check:
    direction = "max" if bound.max is not None else "min"
    threshold = float(bound.max if bound.max is not None else bound.min or 0.0)
    verdict = _verdict(estimate, threshold, direction)
    limit = "at most" if direction == "max" else "at least"
    span = f"{estimate.mean:.5g} (95 % interval {estimate.low:.5g} to {estimate.high:.5g})"
    if estimate.interval is None:
        span = f"{estimate.mean:.5g}, from one piece of text and so without an interval,"
    reason = {
        Verdict.PASS: f"{span} is {limit} {threshold:g}",
        Verdict.FAIL: f"{span} should be {limit} {threshold:g}",
        Verdict.INCONCLUSIVE: f"{span} holds the threshold {threshold:g}: give more text",
        Verdict.ERROR: "no tokens were scored",
    }[verdict]
    return Check(
        name=name,
        verdict=verdict,
        estimate=estimate.mean,
        interval=estimate.interval,
        threshold=threshold,
        direction=direction,
        n=estimate.n,
        clusters=estimate.clusters,
        reason=reason,
    )


def _verdict(estimate: Estimate, threshold: float, direction: str) -> Verdict:
    if not estimate.n:
        return Verdict.ERROR
    low, high, limit = estimate.low, estimate.high, threshold
    if direction == "min":
        low, high, limit = -estimate.high, -estimate.low, -threshold
    if high <= limit:
        return Verdict.PASS
    return Verdict.FAIL if low > limit else Verdict.INCONCLUSIVE
