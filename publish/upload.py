"""From a folder to the place that it is meant for."""

from __future__ import annotations

from pathlib import Path

from camelpress.core.errors import RecipeProblem, ReleaseRefused
from camelpress.core.files.file_hashes import MANIFEST, PROVENANCE, sha256_file, sha256_json
from camelpress.core.output.durable_writes import disk_errors
from camelpress.core.output.output_replacement import remove_output
from camelpress.core.output.staged_output import staged
from camelpress.publish.destinations.destination import Target, target
from camelpress.publish.run import run
from camelpress.publish.settings import Publish
from camelpress.publish.verify_release import verify
from camelpress.reporting.stage_report import Report, Stopwatch, Verdict

REPORT = "upload-report.json"


def publish(candidate: Path, report_dir: Path, settings: Publish, *, force: bool) -> Report:
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
    if target(settings, "", force=force) is None:
        here = settings.model_copy(update={"to": None})
        return run(candidate, report_dir, Path(settings.to), here, force=force)
    mark = sha256_json(settings.to)[:8]  # uploads to two places at once do not meet
    aside = Path(f"{candidate.absolute()}.uploading-{mark}")
    report = run(candidate, report_dir, aside, settings, force=True, linked=True)
    try:
        delivered = _destination(aside, force=force).deliver(aside)
    finally:
        with disk_errors(aside):
            remove_output(aside)
    return report.model_copy(update={"facts": report.facts | {"delivered": delivered}})


def upload(release: Path, out: Path, *, replace: bool, force: bool) -> Report:
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
    checked = verify(release)
    if checked.verdict is not Verdict.PASS:
        raise ReleaseRefused(
            f"{release} is not as it was made: {checked.facts['problems'][0]}",
            next_step="publish it again",
        )
    with staged(out, force=force, writes=(REPORT,)) as folder:
        report = Report(
            stage="upload",
            files=(REPORT,),
            inputs={MANIFEST: sha256_file(release / MANIFEST)},
            settings={},
            facts=_destination(release, force=replace).deliver(release),
        )
        report.write(folder / REPORT)
    return report.model_copy(update={"cost": watch.cost()})


def _destination(release: Path, *, force: bool) -> Target:
    """The place that stands in a release's own provenance, its branch included."""
    path = release / PROVENANCE
    settings = Publish.parse(Report.read(path).settings, source=str(path))
    found = target(settings, "", force=force)
    if found is None:
        raise RecipeProblem(
            f"{release} was made to stay here", next_step="publish it with --to hf:org/name"
        )
    return found
