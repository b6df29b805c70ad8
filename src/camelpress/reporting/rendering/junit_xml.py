"""A validation as JUnit XML, which every CI system shows: one test case a check."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from camelpress.reporting import sentences
from camelpress.reporting.model_precision import caveat
from camelpress.reporting.number_format import points, span, title
from camelpress.reporting.stage_report import Check, Report, Verdict
from camelpress.reporting.tables import preference_tables, validation_tables

NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # not even escaped
OUTCOMES = {Verdict.FAIL: "failure", Verdict.ERROR: "error"}


def junit(report: Report, *, inconclusive: str) -> str:
    """The whole file; the same report gives the same bytes.

    Args:
        report: of a validation.
        inconclusive: the element for a check that could not be decided: failure, error, skipped.
    Source:
        The elements that Jenkins, GitLab and GitHub's actions read in common; XML 1.0, section 2.2,
        has the characters that a document can hold.
    """
    about = caveat(report.facts)
    cases = [_case(check, inconclusive, about) for check in report.checks] or [_nothing()]
    suite = ElementTree.Element("testsuite", name=_name(report), tests=str(len(cases)))
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(sum(case.find(tag) is not None for case in cases)))
    properties = ElementTree.SubElement(suite, "properties")
    told = {"verdict": report.verdict or "NOT JUDGED", "camelpress": report.version}
    told |= {"caveat": about} if about else {}
    for name, value in (told | _benchmarks(report.facts) | report.inputs).items():
        ElementTree.SubElement(properties, "property", name=_legal(name), value=_legal(value))
    suite.extend(cases)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _case(check: Check, inconclusive: str, about: str) -> ElementTree.Element:
    where = f"camelpress.validate.{check.part}" if check.part else "camelpress.validate"
    case = ElementTree.Element("testcase", classname=_legal(where), name=check.name, time="0")
    reason = _legal(f"{title(check)}: {check.reason}" + (f". {about}" if about else ""))
    if check.verdict is Verdict.PASS:
        ElementTree.SubElement(case, "system-out").text = reason
    else:
        tag = OUTCOMES.get(check.verdict, inconclusive)
        ElementTree.SubElement(case, tag, type=check.verdict.lower(), message=reason).text = reason
    return case


def _nothing() -> ElementTree.Element:
    """A suite without a case counts as green."""
    case = ElementTree.Element("testcase", classname="camelpress.validate", name="gate", time="0")
    ElementTree.SubElement(case, "error", type="error", message=sentences.NOTHING_JUDGED)
    return case


def _benchmarks(facts: Mapping[str, Any]) -> dict[str, str]:
    """What no check is made of: the mean of benchmarks, and both models' outputs side by side."""
    found = {
        f"{task['name']}, direct": sentence
        for task in facts.get("tasks") or []
        for sentence in preference_tables.direct(task)
    }
    mean = facts.get("averages")
    if mean:
        ends = span(mean.get("delta_interval"), sign=True)
        scores = f"{points(mean['reference'])} to {points(mean['candidate'])} %"
        found[mean["name"]] = f"{scores}, difference {ends} points"
    return found


def _name(report: Report) -> str:
    sides = [
        validation_tables.model_name(report.facts[side]) for side in ("candidate", "reference")
    ]
    return _legal(" against ".join(sides))


def _legal(text: str) -> str:
    return NO_XML.sub("\ufffd", text)
