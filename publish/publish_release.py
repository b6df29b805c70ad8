"""Publishes a release: builds it, and has the class of its destination upload it."""

from __future__ import annotations

from pathlib import Path

from camelpress.core.errors import RecipeProblem, ReleaseRefusal
from camelpress.core.files.file_hashes import (
    CHECKSUM_FILE,
    PROVENANCE_FILE,
    sha256_file,
    sha256_json,
)
from camelpress.core.output.durable_writes import disk_errors
from camelpress.core.output.output_replacement import remove_output
from camelpress.core.output.staged_output import staged
from camelpress.core.runtime.resource_usage import Stopwatch
from camelpress.publish.destinations.destination import Destination, parse_destination
from camelpress.publish.run import run
from camelpress.publish.settings import PublishSettings
from camelpress.publish.verify_release import verify_release
from camelpress.reporting.facts.release_facts import UploadFacts
from camelpress.reporting.report_classes import PublishReport, UploadReport, read_report
from camelpress.reporting.verdict import Verdict

UPLOAD_REPORT = "upload-report.json"


def publish_release(
    candidate: Path, report_dir: Path, settings: PublishSettings, *, force: bool
) -> PublishReport:
    """Publishes a release to `settings.to`: a local folder or a remote destination.

    A remote release is built in a temporary folder beside the candidate. A folder left over by a
    killed run is built again.

    Raises:
        RecipeProblem: the settings have no destination.
        Problem: as `run` and the `upload` of the destination.
    """
    if settings.to is None:
        raise RecipeProblem(
            "a release needs a destination", next_step="give --to with a folder, or hf:org/name"
        )
    if parse_destination(settings, "", force=force) is None:
        local_settings = settings.model_copy(update={"to": None})
        return run(candidate, report_dir, Path(settings.to), local_settings, force=force)
    tag = sha256_json(settings.to)[:8]  # keeps parallel uploads to two destinations apart
    staging_folder = Path(f"{candidate.absolute()}.uploading-{tag}")
    report = run(candidate, report_dir, staging_folder, settings, force=True, linked=True)
    try:
        upload_facts = _release_destination(staging_folder, force=force).upload(staging_folder)
    finally:
        with disk_errors(staging_folder):
            remove_output(staging_folder)
    return report.model_copy(update={"facts": report.facts.updated(delivered=upload_facts)})


def upload_release(release: Path, out: Path, *, replace: bool, force: bool) -> UploadReport:
    """Uploads a release folder to the destination in its provenance.

    Args:
        release: folder written by `run`.
        out: folder for the upload report.
        replace: replace an earlier release at the destination.
        force: replace an existing `out`.
    Raises:
        ReleaseRefusal: a file of the release has changed.
        Problem: as the `upload` of the destination.
    """
    watch = Stopwatch()
    verification = verify_release(release)
    if verification.verdict is not Verdict.PASS:
        raise ReleaseRefusal(
            f"{release} has changed since it was made: {verification.facts.problems[0]}",
            next_step="publish it again",
        )
    with staged(out, force=force, writes=(UPLOAD_REPORT,)) as folder:
        report = UploadReport(
            stage="upload",
            files=(UPLOAD_REPORT,),
            inputs={CHECKSUM_FILE: sha256_file(release / CHECKSUM_FILE)},
            settings={},
            facts=UploadFacts.build(_release_destination(release, force=replace).upload(release)),
        )
        report.write(folder / UPLOAD_REPORT)
    return report.model_copy(update={"cost": watch.cost()})


def _release_destination(release: Path, *, force: bool) -> Destination:
    """Returns the destination in the provenance of a release, with its branch."""
    path = release / PROVENANCE_FILE
    settings = PublishSettings.parse(read_report(path).settings, source=str(path))
    destination = parse_destination(settings, "", force=force)
    if destination is None:
        raise RecipeProblem(
            f"{release} has no remote destination", next_step="publish it with --to hf:org/name"
        )
    return destination
