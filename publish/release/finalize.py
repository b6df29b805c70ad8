"""The last steps of a release: provenance, a look for secrets, and the checksums over it all."""

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
from camelpress.reporting.stage_report import Report


def finalize_release(
    folder: Path, facts: ReleaseQuotes, judged: Mapping[str, str], made: Mapping[str, Any]
) -> Report:
    """Write `provenance.json`, a signature if there is a key, and last of all `SHA256SUMS`.

    Args:
        folder: a release that is complete but for these files.
        facts: what its card quotes.
        judged: name to hash of the model files as they were validated.
        made: how the stages before ran.
    Returns:
        What `provenance.json` says; its outputs are all files but these.
    Raises:
        OutputProblem: a file holds a secret.
        CheckpointProblem: a model file is not the one that was validated.
    """
    paths = [folder / name for name in output_files(folder)]
    hashes = file_manifest(paths, relative_to=folder)
    changed = model_files.changed_model_files(
        judged, hashes, recipe_only=facts.settings.recipe_only
    )
    if changed:
        raise CheckpointProblem(
            f"{changed[0]} of the candidate changed while it was copied",
            next_step="let nothing write there, and run again",
        )
    report = _provenance_report(facts, judged, made, hashes)
    report.write(folder / PROVENANCE_FILE)
    require_no_secrets([*paths, folder / PROVENANCE_FILE], relative_to=folder)
    sealed = [PROVENANCE_FILE]
    if facts.settings.sign_with is not None:
        sign_release(folder, facts.settings.sign_with)
        sealed.append(SIGNATURE_FILE)
    hashes |= file_manifest([folder / name for name in sealed], relative_to=folder)
    (folder / CHECKSUM_FILE).write_text(
        checksum_lines(dict(sorted(hashes.items()))), encoding="utf-8"
    )
    return report


def _provenance_report(
    facts: ReleaseQuotes,
    judged: Mapping[str, str],
    made: Mapping[str, Any],
    hashes: Mapping[str, str],
) -> Report:
    return Report(
        stage="publish",
        inputs=card_tables.input_hashes(facts.validation, facts.quantize, facts.recover),
        outputs=dict(hashes),
        settings=facts.settings.model_dump(mode="json", exclude={"gated_like", "sign_with"}),
        facts={
            **facts.card_fields(),
            "verdict": facts.validation.verdict,
            "caveats": facts.caveats,
            "restricted": facts.profile.restricted,
            "versions": package_versions(),
            "commit": camelpress_commit(),
            "hardware": describe_hardware(),
            "recipe": rebuild_recipe(facts.recover, facts.quantize),
            "made": dict(made),
            "model": dict(judged),
        },
    )
