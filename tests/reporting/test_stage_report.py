"""A report comes back from disk as it was, and a verdict is never better than its worst check."""

from __future__ import annotations

from pathlib import Path

import pytest

from camelpress.core.errors import CheckpointProblem
from camelpress.core.runtime.resource_usage import Stopwatch
from camelpress.reporting.facts_model import FactsModel
from camelpress.reporting.stage_report import Report
from camelpress.reporting.verdict import Check, Verdict

PASS, FAIL, INCONCLUSIVE, ERROR = Verdict
CHECK = Check(
    name="kl_mean",
    verdict=PASS,
    estimate=0.1 + 0.2,
    interval=(1e-17, 0.3),
    threshold=0.5,
    direction="max",
    n=1000,
    clusters=3,
    reason="naïve",
)


def report(*checks: Check) -> Report:
    return Report(
        stage="validate",
        inputs={"reference": "0" * 64},
        settings={"text": ["a.txt"], "max_tokens": None},
        facts=FactsModel.build({"interval": None, "shares": [0.1, 1], "nested": {"on": True}}),
        checks=checks,
        verdict=PASS,
        cost={"seconds": 1.5},
    )


# --- on disk ------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [None, (0.0, 1.0), (1e-17, 0.30000000000000004)])
def test_a_report_comes_back_as_it_was(
    tmp_path: Path, interval: tuple[float, float] | None
) -> None:
    written = report(CHECK, CHECK.model_copy(update={"interval": interval}))
    written.write(tmp_path / "report.json")
    assert Report.read(tmp_path / "report.json") == written


def test_a_report_without_checks_comes_back(tmp_path: Path) -> None:
    written = Report(stage="recover", inputs={}, settings={}, facts=FactsModel())
    written.write(tmp_path / "report.json")
    assert Report.read(tmp_path / "report.json") == written
    assert written.verdict is None


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    report(CHECK).write(tmp_path / "a")
    Report.read(tmp_path / "a").write(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes().endswith(b"}\n")


def test_a_report_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointProblem) as told:
        Report.read(tmp_path / "report.json")
    assert str(told.value) == (
        f"{tmp_path / 'report.json'} cannot be read; run the stage that writes it"
    )


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_not_json_is_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(CheckpointProblem) as told:
        Report.read(tmp_path / "report.json")
    assert len(str(told.value).splitlines()) == 1
    assert str(told.value).startswith(f"{tmp_path / 'report.json'} ")


def test_all_that_a_report_lacks_is_named(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"stage": 3, "colour": "red"}')
    with pytest.raises(CheckpointProblem) as told:
        Report.read(tmp_path / "report.json")
    assert told.value.message == (
        f"{tmp_path / 'report.json'} is not a report (stage: Input should be a valid string, "
        "inputs: Field required, settings: Field required, facts: Field required, "
        "colour: Extra inputs are not permitted)"
    )
    assert told.value.next_step == "run the stage that writes it again"


def test_an_unknown_verdict_is_refused(tmp_path: Path) -> None:
    report(CHECK).write(tmp_path / "report.json")
    text = (tmp_path / "report.json").read_text().replace('"PASS"', '"FINE"')
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(CheckpointProblem, match=r"checks.0.verdict: Input should be 'PASS'"):
        Report.read(tmp_path / "report.json")


# --- verdicts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdicts", "worst"),
    [
        ([], ERROR),
        ([PASS], PASS),
        ([PASS, PASS], PASS),
        ([PASS, INCONCLUSIVE], INCONCLUSIVE),
        ([INCONCLUSIVE, FAIL], FAIL),
        ([FAIL, ERROR, PASS], ERROR),
        ([ERROR], ERROR),
    ],
)
def test_the_worst_verdict_counts(verdicts: list[Verdict], worst: Verdict) -> None:
    assert Verdict.combine(verdicts) is worst
    assert Verdict.combine(verdicts[::-1]) is worst


def test_exit_codes() -> None:
    assert {verdict.value: verdict.exit_code for verdict in Verdict} == {
        "PASS": 0,
        "FAIL": 1,
        "ERROR": 3,
        "INCONCLUSIVE": 4,
    }


# --- cost ---------------------------------------------------------------------------------------


def test_cost_is_seconds_and_bytes() -> None:
    watch = Stopwatch()
    first, second = watch.cost(), watch.cost()
    assert first.keys() == {"seconds", "peak_bytes"}
    assert 0 <= first["seconds"] <= second["seconds"] < 60
    assert 2**24 < first["peak_bytes"] <= second["peak_bytes"]
