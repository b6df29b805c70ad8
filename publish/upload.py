"""From a folder to the place that it is meant for."""

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
from camelpress.publish.destinations.destination import Destination, parse_destination
from camelpress.publish.run import run
from camelpress.publish.settings import Publish
from camelpress.publish.verify_release import verify_release
from camelpress.reporting.stage_report import Report, Stopwatch, Verdict

UPLOAD_REPORT = "upload-report.json"


def publish_release(candidate: Path, report_dir: Path, settings: Publish, *, force: bool) -> Report:
    """A release where `settings.to` says: a folder here, or elsewhere.

    What goes elsewhere is made in a folder beside the candidate first, which is removed at the end;
    one that a killed run has left is made anew.

    Raises:
        RecipeProblem: no place is given.
        Problem: as `run.run` and the `deliver` of the target.
    """
    if settings.to is None:
        raise RecipeProblem(
            "a release needs a place", next_step="give --to with a folder, or hf:org/name"
        )
    if parse_destination(settings, "", force=force) is None:
        here = settings.model_copy(update={"to": None})
        return run(candidate, report_dir, Path(settings.to), here, force=force)
    mark = sha256_json(settings.to)[:8]  # uploads to two places at once do not meet
    aside = Path(f"{candidate.absolute()}.uploading-{mark}")
    report = run(candidate, report_dir, aside, settings, force=True, linked=True)
    try:
        delivered = _release_destination(aside, force=force).upload(aside)
    finally:
        with disk_errors(aside):
            remove_output(aside)
    return report.model_copy(update={"facts": report.facts | {"delivered": delivered}})


def upload_release(release: Path, out: Path, *, replace: bool, force: bool) -> Report:
    """Bring a release to the place that it was made for.

    Args:
        release: a folder that `run` wrote, with the place in its provenance.
        out: a folder for the report of it.
        replace: an earlier release there.
        force: replace `out`.
    Raises:
        ReleaseRefused: the folder is not as it was made.
        Problem: as the `deliver` of the target.
    """
    watch = Stopwatch()
    checked = verify_release(release)
    if checked.verdict is not Verdict.PASS:
        raise ReleaseRefusal(
            f"{release} is not as it was made: {checked.facts['problems'][0]}",
            next_step="publish it again",
        )
    with staged(out, force=force, writes=(UPLOAD_REPORT,)) as folder:
        report = Report(
            stage="upload",
            files=(UPLOAD_REPORT,),
            inputs={CHECKSUM_FILE: sha256_file(release / CHECKSUM_FILE)},
            settings={},
            facts=_release_destination(release, force=replace).upload(release),
        )
        report.write(folder / UPLOAD_REPORT)
    return report.model_copy(update={"cost": watch.cost()})


def _release_destination(release: Path, *, force: bool) -> Destination:
    """The place that stands in a release's own provenance, its branch included."""
    path = release / PROVENANCE_FILE
    settings = Publish.parse(Report.read_report(path).settings, source=str(path))
    found = parse_destination(settings, "", force=force)
    if found is None:
        raise RecipeProblem(
            f"{release} was made to stay here", next_step="publish it with --to hf:org/name"
        )
    return found
