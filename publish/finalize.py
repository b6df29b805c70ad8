"""Finishes a release folder: provenance, secret scan, signature and checksums."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from camelpress.core.errors import CheckpointProblem
from camelpress.core.files.file_hashes import (
    CHECKSUM_FILE,
    PROVENANCE_FILE,
    camelpress_commit,
    checksum_lines,
    file_manifest,
    package_versions,
)
from camelpress.core.output.staged_output import output_files
from camelpress.core.runtime.hardware import describe_hardware
from camelpress.publish.card import card_tables
from camelpress.publish.card.release_quotes import ReleaseQuotes
from camelpress.publish.release import model_files
from camelpress.publish.release.rebuild_recipe import rebuild_recipe
from camelpress.publish.release.secret_scan import require_no_secrets
from camelpress.publish.release.signing import SIGNATURE_FILE, sign_release
from camelpress.reporting.facts.release_facts import PublishFacts
from camelpress.reporting.report_classes import PublishReport


def finalize_release(
    folder: Path, facts: ReleaseQuotes, model_hashes: Mapping[str, str], costs: Mapping[str, Any]
) -> PublishReport:
    """Writes `provenance.json`, a signature if the settings name a key, and `SHA256SUMS` last.

    Args:
        folder: release folder, complete except for these files.
        facts: facts on the card of the release.
        model_hashes: mapping of model file names to SHA-256 at validation.
        costs: seconds and hardware of the earlier stages.
    Returns:
        The report in `provenance.json`; its outputs are all files except these.
    Raises:
        OutputProblem: a file holds a secret.
        CheckpointProblem: a model file changed after validation.
    """
    paths = [folder / name for name in output_files(folder)]
    file_hashes = file_manifest(paths, relative_to=folder)
    changed_files = model_files.changed_model_files(
        model_hashes, file_hashes, recipe_only=facts.settings.recipe_only
    )
    if changed_files:
        raise CheckpointProblem(
            f"{changed_files[0]} of the candidate changed while it was copied",
            next_step="let nothing write to the candidate, and run again",
        )
    report = _provenance_report(facts, model_hashes, costs, file_hashes)
    report.write(folder / PROVENANCE_FILE)
    require_no_secrets([*paths, folder / PROVENANCE_FILE], relative_to=folder)
    late_files = [PROVENANCE_FILE]
    if facts.settings.sign_with is not None:
        sign_release(folder, facts.settings.sign_with)
        late_files.append(SIGNATURE_FILE)
    file_hashes |= file_manifest([folder / name for name in late_files], relative_to=folder)
    (folder / CHECKSUM_FILE).write_text(
        checksum_lines(dict(sorted(file_hashes.items()))), encoding="utf-8"
    )
    return report


def _provenance_report(
    facts: ReleaseQuotes,
    model_hashes: Mapping[str, str],
    costs: Mapping[str, Any],
    file_hashes: Mapping[str, str],
) -> PublishReport:
    return PublishReport(
        stage="publish",
        inputs=card_tables.input_hashes(facts.validation, facts.quantize, facts.recover),
        outputs=dict(file_hashes),
        settings=facts.settings.model_dump(mode="json", exclude={"gated_like", "sign_with"}),
        facts=PublishFacts.build(
            {
                **facts.card_fields(),
                "verdict": facts.validation.verdict,
                "caveats": facts.caveats,
                "restricted": facts.profile.restricted,
                "versions": package_versions(),
                "commit": camelpress_commit(),
                "hardware": describe_hardware(),
                "recipe": rebuild_recipe(facts.recover, facts.quantize),
                "made": dict(costs),
                "model": dict(model_hashes),
            }
        ),
    )
