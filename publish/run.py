"""Writes a release folder from a quantized checkpoint and its validation report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem, ReleaseRefusal
from camelpress.core.file_names import CARD_FILE
from camelpress.core.files.file_hashes import (
    BOM_FILE,
    PROVENANCE_FILE,
    REPORT_SUFFIX,
    checkpoint_file_hashes,
    package_versions,
    sha256_json,
)
from camelpress.core.files.json_files import write_json
from camelpress.core.hub.repo_id import HUB_PREFIX
from camelpress.core.output.staged_output import require_separate_output, staged
from camelpress.core.progress import note
from camelpress.core.runtime.resource_usage import Stopwatch
from camelpress.publish.card import model_card
from camelpress.publish.card.caveats import require_publishable
from camelpress.publish.card.front_matter import EVAL_RESULTS, render_eval_results
from camelpress.publish.card.hub_access import (
    merge_access_fields,
    read_source_card,
    require_license_covers,
)
from camelpress.publish.card.release_quotes import (
    QUANTIZED,
    SOURCE_STAGES,
    ReleaseQuotes,
    release_shape,
)
from camelpress.publish.card.sbom import bill_of_materials
from camelpress.publish.destinations.destination import parse_destination, variant_name
from camelpress.publish.finalize import finalize_release
from camelpress.publish.license.license_profiles import (
    copy_license_files,
    license_profile,
    write_notice,
)
from camelpress.publish.release import model_files
from camelpress.publish.release.rebuild_recipe import rebuild_recipe, write_rebuild_recipe
from camelpress.publish.release.signing import write_public_key
from camelpress.publish.settings import PublishSettings
from camelpress.reporting.lineage import describe_foreign_report, matches_weights
from camelpress.reporting.plots import card_plots
from camelpress.reporting.report_classes import (
    PublishReport,
    QuantizeReport,
    RecoverReport,
    ValidationReport,
    read_report,
)

REPORT = PROVENANCE_FILE
HARDWARE_KEYS = ("device", "cpu", "threads")  # facts of a stage report


def run(
    candidate: Path,
    report_dir: Path,
    out: Path,
    settings: PublishSettings,
    *,
    force: bool = False,
    linked: bool = False,
) -> PublishReport:
    """Writes a release: the model, its card, licences, report, provenance and checksums.

    The same model, report and settings give the same bytes.

    Args:
        candidate: folder of the quantized checkpoint.
        report_dir: folder of the validation report for the candidate.
        out: new folder for the release.
        settings: licence, metadata and destination of the release.
        force: replace an existing `out`.
        linked: hard-link the weights of the candidate, for a temporary release folder.
    Returns:
        The report in `provenance.json`, with the files left out and the cost of the stage.
    Raises:
        ReleaseRefusal: the gate did not pass, judged no text or another model, or compared the
            model with itself.
        RecipeProblem: there is no licence profile, or `out` would replace an input.
        CheckpointProblem: the candidate is not a quantized safetensors checkpoint, or a licence
            file is missing.
        OutputProblem: a file holds a secret, or the release cannot be written.
    """
    watch = Stopwatch()
    profile = license_profile(settings.license)
    cards = [
        read_source_card(source)
        for source in settings.gated_like or _default_card_sources(settings)
    ]
    require_license_covers(cards, settings.license, profile)
    require_separate_output(out, candidate, report_dir)
    report = ValidationReport.read(report_dir / "report.json")
    require_publishable(report, report_dir, settings)
    checkpoint = _open_quantized(candidate)
    settings, variants = _resolve_destination(
        settings, variant_name(checkpoint.quantization or {}), force=force
    )
    with staged(out, force=force) as folder:
        hashes = _require_validated_model(candidate, report, report_dir)
        _require_described(candidate, hashes)
        skipped_files = model_files.copy_model_files(
            candidate, folder, linked=linked, recipe_only=settings.recipe_only
        )
        facts = ReleaseQuotes(
            name=settings.name or out.resolve().name,
            config=checkpoint.config,
            shape=release_shape(checkpoint),
            validation=model_files.copy_validation_report(
                report_dir, report, folder / model_files.VALIDATION_FOLDER
            ),
            quantize=model_files.read_stage_report(folder / QUANTIZED, QuantizeReport),
            recover=model_files.read_stage_report(folder / "recover-report.json", RecoverReport),
            settings=settings,
            variants=variants,
            gate=merge_access_fields(cards),
            cards={card.origin: card.sha256 for card in cards},
            licenses=copy_license_files(folder, profile, _license_folders(candidate, report)),
        )
        _require_matching_settings(checkpoint, facts)
        for sentence in facts.caveats:
            note(sentence)
        _write_documents(folder, facts)
        provenance = finalize_release(folder, facts, hashes, _stage_costs(candidate, report))
    if profile.restricted and settings.to is None:
        note(f"licence {settings.license}: keep {out.name} private or gated. {profile.terms}")
    update = {"facts": provenance.facts.updated(left_out=skipped_files), "cost": watch.cost()}
    return provenance.model_copy(update=update)


def _default_card_sources(settings: PublishSettings) -> list[str]:
    """Returns the hub names of base and diff for a release on the hub, else an empty list."""
    names = (settings.diff_model, settings.base_model)
    to_hub = (settings.to or "").startswith(HUB_PREFIX)
    return [f"{HUB_PREFIX}{name}" for name in names if name and "/" in name and to_hub]


def _stage_costs(candidate: Path, validation: ValidationReport) -> dict[str, Any]:
    """Reads seconds and hardware of each stage from the stage reports."""
    paths = [candidate / f"{name}{REPORT_SUFFIX}" for name in SOURCE_STAGES]
    reports = [*(read_report(path) for path in paths if path.is_file()), validation]
    return {
        report.stage: {"seconds": round(report.cost["seconds"], 1)}
        | {key: report.facts.record[key] for key in HARDWARE_KEYS if key in report.facts.record}
        for report in reports
        if "seconds" in report.cost
    }


def _write_documents(folder: Path, facts: ReleaseQuotes) -> None:
    """Writes card, plots, notice, rebuild recipe, benchmark results, public key and SBOM."""
    recipe = rebuild_recipe(facts.recover, facts.quantize)
    write_rebuild_recipe(folder, recipe, needed=facts.settings.recipe_only)
    write_notice(folder, facts.attribution)
    if card_plots.has_card_plots(facts.validation.facts):
        card_plots.draw_card_plots(
            facts.validation.facts,
            folder / model_files.VALIDATION_FOLDER / card_plots.PLOTS_FILE,
        )
    if (results := render_eval_results(facts)) is not None:
        path = folder / EVAL_RESULTS
        path.parent.mkdir()
        path.write_text(results, encoding="utf-8")
    if facts.settings.sign_with is not None:
        write_public_key(folder, facts.settings.sign_with)
    write_json(folder / BOM_FILE, bill_of_materials(facts, package_versions()))
    (folder / CARD_FILE).write_text(model_card.render_card(facts), encoding="utf-8")


def _resolve_destination(
    settings: PublishSettings, name: str, *, force: bool
) -> tuple[PublishSettings, tuple[str, ...]]:
    """Completes the settings with the destination, and lists its other variants."""
    destination = parse_destination(settings, name, force=force)
    if destination is None:
        return settings, ()
    update = {"to": str(destination), "name": settings.name or destination.title}
    return settings.model_copy(update=update), destination.require_ready()


def _require_validated_model(
    candidate: Path, report: ValidationReport, report_dir: Path
) -> dict[str, str]:
    files = checkpoint_file_hashes(candidate)
    digest, expected = sha256_json(files), report.inputs.get("candidate")
    if digest != expected:
        raise ReleaseRefusal(
            f"{candidate} is not the model that {report_dir} judged: its hash is {digest}, the "
            f"report has {expected}; it changed after validation, or was never validated",
            next_step="validate it again",
        )
    return files


def _require_described(candidate: Path, hashes: Mapping[str, str]) -> None:
    """Refuses a quantization report of another model, since the card would quote it."""
    path = candidate / QUANTIZED
    report = model_files.read_stage_report(path, QuantizeReport)
    if report is not None and not matches_weights(report, candidate, hashes):
        raise CheckpointProblem(
            describe_foreign_report(path),
            next_step="remove that report, or publish the folder that quantize wrote",
        )


def _open_quantized(candidate: Path) -> Checkpoint:
    checkpoint = Checkpoint.open(candidate)
    if not isinstance(checkpoint.quantization, Mapping):
        raise CheckpointProblem(
            f"{candidate} is not quantized", next_step="give the folder that quantize wrote"
        )
    if checkpoint.config_changes:
        raise CheckpointProblem(
            f"{candidate / 'config.json'}: {'; '.join(checkpoint.config_changes)}",
            next_step="correct config.json and quantize_config.json, so that loaders read the "
            "validated settings, and validate it again",
        )
    method = checkpoint.quantization.get("quant_method")
    if method != "gptq":
        raise CheckpointProblem(
            f"{candidate} is packed by {method}, and the card is written for GPTQ",
            next_step="publish the folder that quantize wrote, or export it --to gptq",
        )
    for path in checkpoint.weight_files():
        if path.suffix != ".safetensors":
            raise CheckpointProblem(
                f"{path} is a pickle, and loading a pickle is unsafe",
                next_step="publish safetensors",
            )
    return checkpoint


def _license_folders(candidate: Path, report: ValidationReport) -> list[Path]:
    """Returns the folders to search for licence files: candidate and reference model."""
    reference = report.facts.reference
    folders = [candidate]
    if reference is not None and reference.path:
        folders.append(candidate.resolve().parent / reference.path)
    return [folder for folder in folders if folder.is_dir()]


def _require_matching_settings(checkpoint: Checkpoint, facts: ReleaseQuotes) -> None:
    """Refuses a quantization report that contradicts config.json."""
    settings = facts.quantize.settings if facts.quantize else {}
    for key in ("bits", "group_size", "sym"):
        report_value, config_value = settings.get(key), facts.quantization.get(key)
        if report_value is not None and report_value != config_value:
            raise CheckpointProblem(
                f"{checkpoint.folder} has {key} {config_value} in config.json and "
                f"{report_value} in quantize-report.json",
                next_step="quantize again; one of them was changed or comes from another run",
            )
