"""Renders a validation as JUnit XML for CI systems, one test case per check."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from camelpress.reporting import sentences
from camelpress.reporting.facts.validation_facts import ValidateFacts
from camelpress.reporting.model_precision import quantized_reference_caveat
from camelpress.reporting.number_format import check_title, format_points, format_points_interval
from camelpress.reporting.report_classes import ValidationReport
from camelpress.reporting.tables import preference_tables, validation_tables
from camelpress.reporting.verdict import Check, Verdict

ILLEGAL_XML = re.compile(
    "[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
)  # characters that XML cannot hold, escaped or not
VERDICT_ELEMENTS = {Verdict.FAIL: "failure", Verdict.ERROR: "error"}


def render_junit(report: ValidationReport, *, inconclusive: str) -> str:
    """Renders the whole file; equal reports give equal bytes.

    Args:
        report: report of a validation.
        inconclusive: element of an INCONCLUSIVE check: failure, error or skipped.
    Source:
        Elements common to Jenkins, GitLab and GitHub's actions; characters of XML 1.0, section 2.2.
    """
    caveat = quantized_reference_caveat(report.facts.reference)
    cases = [_test_case(check, inconclusive, caveat) for check in report.checks] or [_empty_case()]
    suite = ElementTree.Element("testsuite", name=_name(report), tests=str(len(cases)))
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(sum(case.find(tag) is not None for case in cases)))
    properties = ElementTree.SubElement(suite, "properties")
    summary = {"verdict": report.verdict or "NOT JUDGED", "camelpress": report.version}
    summary |= {"caveat": caveat} if caveat else {}
    for name, value in (summary | _benchmarks(report.facts) | report.inputs).items():
        ElementTree.SubElement(
            properties, "property", name=_legal_xml(name), value=_legal_xml(value)
        )
    suite.extend(cases)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _test_case(check: Check, inconclusive: str, caveat: str) -> ElementTree.Element:
    classname = f"camelpress.validate.{check.part}" if check.part else "camelpress.validate"
    case = ElementTree.Element(
        "testcase", classname=_legal_xml(classname), name=check.name, time="0"
    )
    reason = _legal_xml(f"{check_title(check)}: {check.reason}" + (f". {caveat}" if caveat else ""))
    if check.verdict is Verdict.PASS:
        ElementTree.SubElement(case, "system-out").text = reason
    else:
        tag = VERDICT_ELEMENTS.get(check.verdict, inconclusive)
        ElementTree.SubElement(case, tag, type=check.verdict.lower(), message=reason).text = reason
    return case


def _empty_case() -> ElementTree.Element:
    """Returns an error, because a suite without a case counts as green."""
    case = ElementTree.Element("testcase", classname="camelpress.validate", name="gate", time="0")
    ElementTree.SubElement(case, "error", type="error", message=sentences.NO_CHECKS_SENTENCE)
    return case


def _benchmarks(facts: ValidateFacts) -> dict[str, str]:
    """Returns properties outside all checks: the mean of benchmarks, direct preferences."""
    properties = {
        f"{task.name}, direct": sentence
        for task in facts.tasks
        for sentence in preference_tables.direct_preference_sentences(task)
    }
    mean = facts.averages
    if mean:
        ends = format_points_interval(mean.delta_interval, sign=True)
        scores = f"{format_points(mean.reference)} to {format_points(mean.candidate)} %"
        properties[mean.name] = f"{scores}, difference {ends} points"
    return properties


def _name(report: ValidationReport) -> str:
    models = (report.facts.candidate, report.facts.reference)
    return _legal_xml(" against ".join(map(validation_tables.model_folder_name, models)))


def _legal_xml(text: str) -> str:
    return ILLEGAL_XML.sub("\ufffd", text)
