"""Report class of each stage, and the reader that picks it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from camelpress.reporting.facts.quantize_facts import QuantizeFacts
from camelpress.reporting.facts.recover_facts import ExportFacts, MakeDiffFacts, RecoverFacts
from camelpress.reporting.facts.release_facts import (
    GenerationFacts,
    ProblemFacts,
    PublishFacts,
    ReleaseDiffFacts,
    UploadFacts,
)
from camelpress.reporting.facts.store_facts import StoreFacts
from camelpress.reporting.facts.validation_facts import ValidateFacts
from camelpress.reporting.stage_report import Report


class RecoverReport(Report):
    """Report of recover."""

    facts: RecoverFacts


class MakeDiffReport(Report):
    """Report of make-diff."""

    facts: MakeDiffFacts


class ExportReport(Report):
    """Report of export."""

    facts: ExportFacts


class QuantizeReport(Report):
    """Report of quantize."""

    facts: QuantizeFacts


class StoreReport(Report):
    """Report of store."""

    facts: StoreFacts


class ValidationReport(Report):
    """Report of validate, in report.json."""

    facts: ValidateFacts


class PublishReport(Report):
    """Report of publish: the provenance of a release."""

    facts: PublishFacts


class UploadReport(Report):
    """Report of upload."""

    facts: UploadFacts


class ProblemReport(Report):
    """Report of verify, card or rebuild."""

    facts: ProblemFacts


class ReleaseDiffReport(Report):
    """Report of diff."""

    facts: ReleaseDiffFacts


class GenerationReport(Report):
    """Report of generate."""

    facts: GenerationFacts


REPORTS: Mapping[str, type[Report]] = {
    "recover": RecoverReport,
    "make-diff": MakeDiffReport,
    "export": ExportReport,
    "quantize": QuantizeReport,
    "store": StoreReport,
    "validate": ValidationReport,
    "publish": PublishReport,
    "upload": UploadReport,
    "verify": ProblemReport,
    "card": ProblemReport,
    "rebuild": ProblemReport,
    "diff": ReleaseDiffReport,
    "generate": GenerationReport,
}


def read_report(path: Path) -> Report:
    """Reads the report of any stage as the class of its stage.

    Raises:
        CheckpointProblem: The file is missing, is no report, or has another version.
    """
    report = Report.read(path)
    return REPORTS.get(report.stage, Report).model_validate(
        dict(report) | {"facts": report.facts.record}, context="lenient"
    )
