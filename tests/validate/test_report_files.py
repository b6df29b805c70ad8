"""One report in four forms, judged again without its models, and what is refused as one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from camelpress.core.errors import CheckpointProblem, RecipeProblem
from camelpress.reporting import validation_report
from camelpress.reporting.facts.validation_facts import ValidateFacts
from camelpress.reporting.rendering.junit_xml import render_junit
from camelpress.reporting.report_classes import ValidationReport, read_report
from camelpress.reporting.stage_report import SCHEMA_VERSION
from camelpress.reporting.verdict import Check, Verdict
from camelpress.validate.gate.report_files import regate_report, save_report
from camelpress.validate.settings import Gate, MaxLimit, MinLimit, ReportSettings, TextGate
from refusal import refusal, starting

LOOSE = Gate(
    perplexity_ratio=MaxLimit(max=2.0),
    kl_mean=MaxLimit(max=2.0),
    top1_agreement=MinLimit(min=0.001),
)


def test_another_gate_gives_another_verdict_from_the_same_figures(validation: Path) -> None:
    before = regate_report(validation, LOOSE)
    gate = Gate(texts={"*": TextGate(non_finite=MaxLimit(max=0.0))})
    after = regate_report(validation, gate)
    assert (before.verdict, after.verdict) == (Verdict.PASS, Verdict.ERROR)
    assert after.facts == before.facts and after.inputs == before.inputs
    assert Gate.parse(after.settings["gate"], source="test") == gate
    assert after.settings | {"gate": None} == before.settings | {"gate": None}


def test_without_a_gate_the_reports_own_is_taken(validation: Path, tmp_path: Path) -> None:
    again = regate_report(validation / "report.json", None)
    assert again == read_report(validation / "report.json")
    save_report(
        regate_report(validation, LOOSE),
        tmp_path / "new",
        ReportSettings(),
        source=validation,
        force=False,
    )
    assert regate_report(tmp_path / "new", None).checks[0].threshold == 2.0


def test_all_forms_are_written_anew(validation: Path, tmp_path: Path) -> None:
    judged = regate_report(validation, LOOSE)
    save_report(judged, tmp_path / "new", ReportSettings(), source=validation, force=False)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        *("report.json", "report.md", "report.html", "junit.xml")
    }
    assert read_report(tmp_path / "new" / "report.json") == judged
    assert "| ≤ 2 |" in (tmp_path / "new" / "report.md").read_text(encoding="utf-8")


def test_the_report_that_is_judged_is_not_replaced(validation: Path) -> None:
    with refusal(
        RecipeProblem,
        f"the output {validation} is, holds or lies in the input {validation}",
        next_step="name another output",
        exit_code=2,
        out=None,
    ):
        save_report(
            regate_report(validation, LOOSE),
            validation,
            ReportSettings(),
            source=validation,
            force=True,
        )


def test_what_validate_writes_is_what_the_schema_says(validation: Path) -> None:
    told = json.loads((validation / "report.json").read_text(encoding="utf-8"))
    schema = validation_report.validation_schema()
    assert (
        told["schema_version"]
        == SCHEMA_VERSION
        == schema["properties"]["schema_version"]["default"]
    )
    assert set(told) == set(schema["properties"])
    described = schema["$defs"]["ValidateFacts"]["properties"]
    assert set(told["facts"]) - {"vocabulary", "overlap"} <= set(described)
    assert set(schema["$defs"]["ValidateFacts"]["required"]) <= set(told["facts"])
    assert schema["$defs"]["ValidateFacts"]["additionalProperties"] is True
    validation_report.read_validation(validation)


def changed(folder: Path, validation: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    told = json.loads((validation / "report.json").read_text(encoding="utf-8"))
    change(told)
    path = folder / "report.json"
    path.write_text(json.dumps(told), encoding="utf-8")
    return path


def task(**changes: Any) -> dict[str, Any]:
    """A task of four items that both models answer."""
    told = {"name": "gsm", "n": 4, "lost": 0, "won": 0}
    return told | {"reference_accuracy": 0.5, "candidate_accuracy": 0.5} | changes


# fmt: off
@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda told: told.update(stage="quantize"), "{} is a report of quantize"),
        (lambda told: told["facts"].pop("texts"),
         "{} is damaged (facts: texts: Field required)"),
        (lambda told: told["facts"].update(kl_mean="0.1", tokens=-1),
         "{} is damaged (facts: tokens: Input should be greater than or equal to 0, kl_mean: Input "
         "should be a valid number)"),
        (lambda told: told["facts"]["texts"].append(7), "{} is damaged (facts: texts.2: "),
        (lambda told: told.update(facts={}), "{} is damaged (facts: tokens: Field required, "),
        (lambda told: told.update(schema_version=2), "{} is a report of version 2, and this is "),
        (lambda told: told.update(schema_version="one"), "{} is a report of version 'one', and "),
        (lambda told: told.pop("verdict") and told.update(verdict="FINE"),
         "{} is not a report (verdict: Input should be"),
        (lambda told: told["facts"].update(tasks=[{"name": "a", "n": 1}]),
         "{} is damaged (facts: tasks.0.lost: Field required"),
        (lambda told: told["facts"].update(tasks=[task(lost=3, won=2)]),
         "{} is damaged (facts: tasks.0: Value error, more items are lost and won than there are"),
        (lambda told: told["facts"].update(tasks=[task(distinct={"n": 5, "lost": 0, "won": 0})]),
         "{} is damaged (facts: tasks.0: Value error, distinct.n is not among the items"),
        (lambda told: told["facts"].update(tasks=[task(), task()]),
         "{} is damaged (facts: file: Value error, two texts or two tasks have one name"),
        (lambda told: told["facts"]["texts"].append(told["facts"]["texts"][0]),
         "{} is damaged (facts: file: Value error, two texts or two tasks have one name"),
    ],
)
# fmt: on
def test_a_report_of_another_kind_or_damaged_is_told_in_one_line(
    validation: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], what: str
) -> None:
    path = changed(tmp_path, validation, change)
    with pytest.raises(CheckpointProblem) as told:
        regate_report(path, LOOSE)
    assert told.value.message.startswith(what.format(path))
    assert (told.value.exit_code, len(str(told.value).splitlines())) == (3, 1)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"7", b"\xff\xfe", b'{"stage": "validate"}', b"[" * 9999]
)
def test_what_is_no_report_is_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointProblem) as told:
        regate_report(tmp_path, LOOSE)
    assert str(path) in told.value.message
    assert (told.value.exit_code, len(str(told.value).splitlines())) == (3, 1)


def test_a_missing_report_is_told(tmp_path: Path) -> None:
    with refusal(
        CheckpointProblem,
        f"{tmp_path / 'report.json'} cannot be read",
        next_step="run the stage that writes it",
        out=None,
    ):
        regate_report(tmp_path / "report.json", LOOSE)


def test_a_report_without_a_gate_needs_one(validation: Path, tmp_path: Path) -> None:
    path = changed(tmp_path, validation, lambda told: told["settings"].pop("gate"))
    with refusal(
        RecipeProblem, f"{path} has no gate", next_step="give --gate FILE", exit_code=2, out=None
    ):
        regate_report(path, None)
    path = changed(tmp_path, validation, lambda told: told["settings"].update(gate={"x": 1}))
    with refusal(
        RecipeProblem,
        starting(f"the gate in {path}: x: Extra inputs"),
        next_step="correct these entries",
        exit_code=2,
        out=None,
    ):
        regate_report(path, None)


def test_older_reports_without_a_version_are_of_the_first(validation: Path, tmp_path: Path) -> None:
    path = changed(tmp_path, validation, lambda told: told.pop("schema_version"))
    assert regate_report(path, LOOSE).verdict is Verdict.PASS


def check(verdict: Verdict, **changes: Any) -> Check:
    content: dict[str, Any] = {
        "name": "kl_mean",
        "verdict": verdict,
        "estimate": 0.02,
        "interval": (0.01, 0.03),
        "threshold": 0.05,
        "direction": "max",
        "n": 100,
        "clusters": 10,
        "reason": "because",
    }
    return Check(**{**content, **changes})


def told_by(
    *checks: Check, inconclusive: str = "failure", name: str = "model"
) -> ElementTree.Element:
    report = ValidationReport(
        stage="validate",
        inputs={"candidate": "ab" * 32},
        settings={},
        facts=ValidateFacts.read(
            {"candidate": {"path": name}, "reference": {"path": "reference"}}
        ),
        checks=checks,
        verdict=Verdict.combine([each.verdict for each in checks]),
    )
    return ElementTree.fromstring(render_junit(report, inconclusive=inconclusive))


def counts(root: ElementTree.Element) -> tuple[str | None, ...]:
    suite = root.find("testsuite")
    assert suite is not None
    return tuple(suite.get(name) for name in ("tests", "failures", "errors", "skipped"))


@pytest.mark.parametrize(
    ("inconclusive", "expected"),
    [
        ("failure", ("4", "2", "1", "0")),
        ("error", ("4", "1", "2", "0")),
        ("skipped", ("4", "1", "1", "1")),
    ],
)
def test_each_check_is_one_test_case(inconclusive: str, expected: tuple[str, ...]) -> None:
    root = told_by(*map(check, Verdict), inconclusive=inconclusive)
    assert counts(root) == expected
    cases = root.findall(".//testcase")
    assert [case.get("name") for case in cases] == ["kl_mean"] * 4
    tags = [[child.tag for child in case] for case in cases]
    assert tags == [["system-out"], ["failure"], [inconclusive], ["error"]]
    types = [child.get("type") for case in cases for child in case]
    assert types == [None, "fail", "inconclusive", "error"]
    assert cases[1][0].get("message") == "Mean KL divergence: because"


def test_texts_and_tasks_are_classes() -> None:
    root = told_by(check(Verdict.PASS, part="wiki.txt"), check(Verdict.PASS))
    names = [case.get("classname") for case in root.findall(".//testcase")]
    assert names == ["camelpress.validate.wiki.txt", "camelpress.validate"]


def test_no_check_is_an_error_and_not_an_empty_green_suite() -> None:
    assert counts(told_by()) == ("1", "0", "1", "0")


def test_words_from_outside_stay_words_in_xml() -> None:
    hostile = 'a\x00\x1b]0;x\x07<b>&amp;"\ud800\ufffe]]> 数'
    root = told_by(check(Verdict.FAIL, part=hostile, reason=hostile), name=hostile)
    (failure,) = root.findall(".//failure")
    assert failure.text is not None and "<b>&amp;" in failure.text and "数" in failure.text
    assert re.search("[\x00-\x08\x0b-\x1f\ud800\ufffe]", failure.text) is None
    assert len(root.findall(".//*")) == 7  # none was made of words
