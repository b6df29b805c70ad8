"""A figure passes only if its whole interval does, and nothing passes by being absent."""

from __future__ import annotations

from math import inf
from pathlib import Path

import pytest

from camelpress.core.errors import RecipeProblem
from camelpress.core.report import Check, Verdict
from camelpress.validate.gate import judge, read
from camelpress.validate.settings import Bound, Gate
from camelpress.validate.statistics import Estimate

ESTIMATES = {
    "perplexity_ratio": Estimate(1.01, 1.005, 1.015, 1000, 20),
    "kl_mean": Estimate(0.02, 0.01, 0.03, 1000, 20),
    "top1_agreement": Estimate(0.95, 0.945, 0.955, 1000, 20),
}


def only(estimate: Estimate, bound: Bound) -> Check:
    gate = Gate(perplexity_ratio=None, kl_mean=bound, top1_agreement=None)
    (check,) = judge({**ESTIMATES, "kl_mean": estimate}, gate)
    return check


def at(mean: float, reach: float) -> Estimate:
    return Estimate(mean, mean - reach, mean + reach, 1000, 20)


# fmt: off
@pytest.mark.parametrize(
    ("mean", "reach", "bound", "verdict", "reason"),
    [
        (0.020, 0.005, Bound(max=0.03), Verdict.PASS,
         "0.02 (95 % interval 0.015 to 0.025) is at most 0.03"),
        (0.040, 0.005, Bound(max=0.03), Verdict.FAIL,
         "0.04 (95 % interval 0.035 to 0.045) should be at most 0.03"),
        (0.028, 0.005, Bound(max=0.03), Verdict.INCONCLUSIVE,
         "0.028 (95 % interval 0.023 to 0.033) holds the threshold 0.03: give more text"),
        (0.032, 0.005, Bound(max=0.03), Verdict.INCONCLUSIVE,
         "0.032 (95 % interval 0.027 to 0.037) holds the threshold 0.03: give more text"),
        (0.960, 0.005, Bound(min=0.94), Verdict.PASS,
         "0.96 (95 % interval 0.955 to 0.965) is at least 0.94"),
        (0.920, 0.005, Bound(min=0.94), Verdict.FAIL,
         "0.92 (95 % interval 0.915 to 0.925) should be at least 0.94"),
        (0.942, 0.005, Bound(min=0.94), Verdict.INCONCLUSIVE,
         "0.942 (95 % interval 0.937 to 0.947) holds the threshold 0.94: give more text"),
        (0.250, 0.250, Bound(max=0.50), Verdict.PASS,
         "0.25 (95 % interval 0 to 0.5) is at most 0.5"),
        (0.750, 0.250, Bound(min=0.50), Verdict.PASS,
         "0.75 (95 % interval 0.5 to 1) is at least 0.5"),
        (0.750, 0.250, Bound(max=0.50), Verdict.INCONCLUSIVE,
         "0.75 (95 % interval 0.5 to 1) holds the threshold 0.5: give more text"),
        (0.100, 0.050, Bound(min=0.00), Verdict.PASS,
         "0.1 (95 % interval 0.05 to 0.15) is at least 0"),
        (0.100, 0.050, Bound(max=0.00), Verdict.FAIL,
         "0.1 (95 % interval 0.05 to 0.15) should be at most 0"),
    ],
)
# fmt: on
def test_the_whole_interval_decides(
    mean: float, reach: float, bound: Bound, verdict: Verdict, reason: str
) -> None:
    check = only(at(mean, reach), bound)
    assert (check.verdict, check.reason) == (verdict, reason)


@pytest.mark.parametrize("mean", [0.001, 0.9])
def test_one_piece_of_text_decides_nothing(mean: float) -> None:
    check = only(Estimate(mean, -inf, inf, 500, 1), Bound(max=0.03))
    assert (check.verdict, check.interval) == (Verdict.INCONCLUSIVE, None)
    assert check.reason == (
        f"{mean:g}, from one piece of text and so without an interval, holds the threshold 0.03: "
        "give more text"
    )


def test_no_tokens_are_an_error_and_never_a_pass() -> None:
    check = only(Estimate(0.0, 0.0, 0.0, 0, 0), Bound(max=0.03))
    assert (check.verdict, check.reason) == (Verdict.ERROR, "no tokens were scored")


def test_a_check_tells_what_it_held_against_what() -> None:
    check = only(at(0.5, 0.25), Bound(min=0.1))
    assert (check.name, check.estimate, check.interval) == ("kl_mean", 0.5, (0.25, 0.75))
    assert (check.threshold, check.direction, check.n, check.clusters) == (0.1, "min", 1000, 20)


def test_the_default_gate_holds_three_checks() -> None:
    checks = judge(ESTIMATES, Gate())
    assert [check.name for check in checks] == ["perplexity_ratio", "kl_mean", "top1_agreement"]
    assert {check.verdict for check in checks} == {Verdict.PASS}


def test_a_gate_without_checks_is_refused() -> None:
    gate = Gate(perplexity_ratio=None, kl_mean=None, top1_agreement=None)
    with pytest.raises(RecipeProblem, match="the gate holds no check") as told:
        judge(ESTIMATES, gate)
    assert told.value.next_step == "name at least one threshold"


def written(folder: Path, text: str) -> Path:
    path = folder / "gate.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_gate_file_changes_what_it_names(tmp_path: Path) -> None:
    gate = read(written(tmp_path, "kl_mean: {max: 0.5}\ntop1_agreement: null\n"))
    assert gate == Gate(kl_mean=Bound(max=0.5), top1_agreement=None)
    assert gate.perplexity_ratio == Gate().perplexity_ratio


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("kl_meen: {max: 0.5}\n", "kl_meen: Extra inputs are not permitted"),
        ("kl_mean: {max: 0.5, min: 0.1}\n", "kl_mean: Value error, give either max or min"),
        ("kl_mean: {}\n", "kl_mean: Value error, give either max or min"),
        ("kl_mean: {most: 1}\n", "kl_mean.most: Extra inputs are not permitted"),
        ("kl_mean: {max: 'a lot'}\n", "kl_mean.max: Input should be a valid number"),
        ("kl_mean: {max: .nan}\n", "kl_mean.max: Input should be a finite number"),
        ("kl_mean: 0.5\n", "kl_mean: Input should be"),
    ],
)
def test_an_impossible_gate_is_refused_by_the_name_of_the_entry(
    tmp_path: Path, text: str, fault: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(RecipeProblem) as told:
        read(path)
    assert f"{path}: {fault}" in told.value.what
    assert told.value.next_step == "correct these entries"


@pytest.mark.parametrize(
    ("verdicts", "worst"),
    [
        ([], Verdict.ERROR),
        ([Verdict.PASS, Verdict.PASS], Verdict.PASS),
        ([Verdict.PASS, Verdict.INCONCLUSIVE], Verdict.INCONCLUSIVE),
        ([Verdict.INCONCLUSIVE, Verdict.FAIL], Verdict.FAIL),
        ([Verdict.FAIL, Verdict.ERROR, Verdict.PASS], Verdict.ERROR),
    ],
)
def test_the_worst_check_is_the_verdict(verdicts: list[Verdict], worst: Verdict) -> None:
    assert Verdict.worst(verdicts) is worst
