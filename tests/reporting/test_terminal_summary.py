"""Rows of reports on the terminal, with and without facts that earlier versions lack."""

from __future__ import annotations

from typing import Any

import pytest

from camelpress.reporting.facts.recover_facts import MakeDiffFacts
from camelpress.reporting.facts.release_facts import ProblemFacts, PublishFacts
from camelpress.reporting.facts.validation_facts import ValidateFacts
from camelpress.reporting.facts_model import FactsModel
from camelpress.reporting.rendering.terminal_summary import terminal_rows
from camelpress.reporting.report_classes import (
    MakeDiffReport,
    ProblemReport,
    PublishReport,
    ValidationReport,
)
from camelpress.reporting.stage_report import Report

TASK = {
    "name": "gsm", "title": "GSM", "n": 40, "lost": 3, "won": 1,
    "reference_accuracy": 0.5, "candidate_accuracy": 0.45,
}  # fmt: skip
SCORES = "50.00% to 45.00%, 3 lost, 1 won of 40"
MEAN = {"name": "Average", "reference": 0.5, "candidate": 0.45}


def report(kind: type[Report], facts: FactsModel) -> Report:
    return kind(stage="test", inputs={}, settings={}, facts=facts)


def rows_of(**facts: Any) -> list[tuple[str, str]]:
    return terminal_rows(report(ValidationReport, ValidateFacts.read({"tokens": 0, **facts})))


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        ({}, ""),
        ({"detectable_loss": 0.2}, "; a loss of 20.0% would be found"),
        ({"detectable_loss": None}, "; no loss would be found"),
    ],
)
def test_a_detectable_loss_is_shown_if_the_report_has_it(
    loss: dict[str, Any], sentence: str
) -> None:
    assert rows_of(tasks=[TASK | loss]) == [("GSM", SCORES + sentence)]


def test_a_mean_without_an_interval_has_no_difference() -> None:
    assert rows_of(averages=MEAN) == [("Average", "50.00% to 45.00%")]
    ends = MEAN | {"delta_interval": [-0.15, 0.05], "missing": ["BBH"]}
    assert rows_of(averages=ends) == [
        ("Average", "50.00% to 45.00%, difference -15.00 to +5.00 points"),
        ("", "The mean is without BBH: a column of it is not there."),
    ]


def test_facts_of_later_versions_are_not_required() -> None:
    diff = MakeDiffFacts.read({"tensors": [], "dtype": "float16", "inexact": 0})
    assert terminal_rows(report(MakeDiffReport, diff))[1] == (
        "lost", "nothing: every bit comes back"
    )  # fmt: skip
    problems = ProblemFacts.read({"problems": ["a is not listed"]})
    assert terminal_rows(report(ProblemReport, problems)) == [("problem", "a is not listed")]
    files = ("files", "0, sealed by provenance.json and SHA256SUMS")
    assert terminal_rows(report(PublishReport, PublishFacts.read({}))) == [files]


def test_a_report_of_an_unknown_stage_has_no_rows() -> None:
    assert terminal_rows(report(Report, FactsModel.build({"a": 1}))) == []
