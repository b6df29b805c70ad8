"""A validation as JUnit XML, which every CI system shows: one test case a check."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from camelpress.reporting import sentences
from camelpress.reporting.model_precision import quantized_reference_caveat
from camelpress.reporting.number_format import check_title, format_points, format_points_interval
from camelpress.reporting.stage_report import Check, Report, Verdict
from camelpress.reporting.tables import preference_tables, validation_tables

ILLEGAL_XML = re.compile(
    "[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
)  # not even escaped
VERDICT_ELEMENTS = {Verdict.FAIL: "failure", Verdict.ERROR: "error"}


def render_junit(report: Report, *, inconclusive: str) -> str:
    """The whole file; the same report gives the same bytes.

    Args:
        report: of a validation.
        inconclusive: the element for a check that could not be decided: failure, error, skipped.
    Source:
        The elements that Jenkins, GitLab and GitHub's actions read in common; XML 1.0, section 2.2,
        has the characters that a document can hold.
    """
    about = quantized_reference_caveat(report.facts)
    cases = [_test_case(check, inconclusive, about) for check in report.checks] or [_empty_case()]
    suite = ElementTree.Element("testsuite", name=_name(report), tests=str(len(cases)))
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(sum(case.find(tag) is not None for case in cases)))
    properties = ElementTree.SubElement(suite, "properties")
    told = {"verdict": report.verdict or "NOT JUDGED", "camelpress": report.version}
    told |= {"caveat": about} if about else {}
    for name, value in (told | _benchmarks(report.facts) | report.inputs).items():
        ElementTree.SubElement(
            properties, "property", name=_legal_xml(name), value=_legal_xml(value)
        )
    suite.extend(cases)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _test_case(check: Check, inconclusive: str, about: str) -> ElementTree.Element:
    where = f"camelpress.validate.{check.part}" if check.part else "camelpress.validate"
    case = ElementTree.Element("testcase", classname=_legal_xml(where), name=check.name, time="0")
    reason = _legal_xml(f"{check_title(check)}: {check.reason}" + (f". {about}" if about else ""))
    if check.verdict is Verdict.PASS:
        ElementTree.SubElement(case, "system-out").text = reason
    else:
        tag = VERDICT_ELEMENTS.get(check.verdict, inconclusive)
        ElementTree.SubElement(case, tag, type=check.verdict.lower(), message=reason).text = reason
    return case


def _empty_case() -> ElementTree.Element:
    """A suite without a case counts as green."""
    case = ElementTree.Element("testcase", classname="camelpress.validate", name="gate", time="0")
    ElementTree.SubElement(case, "error", type="error", message=sentences.NO_CHECKS_SENTENCE)
    return case


def _benchmarks(facts: Mapping[str, Any]) -> dict[str, str]:
    """What no check is made of: the mean of benchmarks, and both models' outputs side by side."""
    found = {
        f"{task['name']}, direct": sentence
        for task in facts.get("tasks") or []
        for sentence in preference_tables.direct_preference_sentences(task)
    }
    mean = facts.get("averages")
    if mean:
        ends = format_points_interval(mean.get("delta_interval"), sign=True)
        scores = f"{format_points(mean['reference'])} to {format_points(mean['candidate'])} %"
        found[mean["name"]] = f"{scores}, difference {ends} points"
    return found


def _name(report: Report) -> str:
    sides = [
        validation_tables.model_folder_name(report.facts[side])
        for side in ("candidate", "reference")
    ]
    return _legal_xml(" against ".join(sides))


def _legal_xml(text: str) -> str:
    return ILLEGAL_XML.sub("\ufffd", text)
