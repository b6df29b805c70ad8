"""The last steps of a release: provenance, a look for secrets, and the checksums over it all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from camelpress.core.errors import CheckpointProblem
from camelpress.core.provenance import MANIFEST, PROVENANCE, manifest, manifest_text, versions
from camelpress.core.report import Report
from camelpress.publish import release, tables
from camelpress.publish.card import Facts
from camelpress.publish.scan import require_no_secrets


def seal(folder: Path, facts: Facts, judged: Mapping[str, str]) -> Report:
    """Write `provenance.json` and, last of all, `SHA256SUMS`.

    Args:
        folder: a release that is complete but for these two files.
        facts: what its card quotes.
        judged: name to hash of the model files as they were validated.
    Returns:
        What `provenance.json` says; its outputs are all files but these two.
    Raises:
        OutputProblem: a file holds a secret.
        CheckpointProblem: a model file is not the one that was validated.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    hashes = manifest(paths, relative_to=folder)
    changed = release.differing(judged, hashes)
    if changed:
        raise CheckpointProblem(
            f"{facts.checkpoint.folder / changed[0]} changed while it was copied",
            next_step="let nothing write there, and run again",
        )
    report = _provenance(facts, judged, hashes)
    report.write(folder / PROVENANCE)
    require_no_secrets([*paths, folder / PROVENANCE], relative_to=folder)
    hashes |= manifest([folder / PROVENANCE], relative_to=folder)
    (folder / MANIFEST).write_text(manifest_text(dict(sorted(hashes.items()))), encoding="utf-8")
    return report


def _provenance(facts: Facts, judged: Mapping[str, str], hashes: Mapping[str, str]) -> Report:
    return Report(
        stage="publish",
        inputs=tables.inputs(facts.validation, facts.quantize, facts.recover),
        outputs=dict(hashes),
        settings=facts.settings.model_dump(mode="json"),
        facts={
            "name": facts.name,
            "verdict": facts.validation.verdict,
            "restricted": facts.profile.restricted,
            "licenses": list(facts.licenses),
            "versions": versions(),
            "model": dict(judged),
        },
    )
