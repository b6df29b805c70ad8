"""The stage: a checkpoint and the report that judged it in, a release folder out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem, ReleaseRefusal
from camelpress.core.files.file_hashes import (
    BOM_FILE,
    PROVENANCE_FILE,
    REPORT_SUFFIX,
    checkpoint_file_hashes,
    package_versions,
    sha256_json,
)
from camelpress.core.files.json_files import write_json
from camelpress.core.hub.model_location import CARD_FILE, HUB_PREFIX
from camelpress.core.output.staged_output import require_separate_output, staged
from camelpress.core.progress import note
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
from camelpress.publish.destinations.destination import parse_destination, variant_name
from camelpress.publish.license.license_profiles import (
    copy_license_files,
    license_profile,
    write_notice,
)
from camelpress.publish.release import model_files
from camelpress.publish.release.finalize import finalize_release
from camelpress.publish.release.rebuild_recipe import rebuild_recipe, write_rebuild_recipe
from camelpress.publish.release.sbom import bill_of_materials
from camelpress.publish.release.signing import write_public_key
from camelpress.publish.settings import Publish
from camelpress.reporting import quoted_values
from camelpress.reporting.lineage import describes, foreign_report
from camelpress.reporting.plots import card_plots
from camelpress.reporting.stage_report import Report, Stopwatch

REPORT = PROVENANCE_FILE
HARDWARE_KEYS = ("device", "cpu", "threads")  # of a stage, as its report tells it


def run(
    candidate: Path,
    report_dir: Path,
    out: Path,
    settings: Publish,
    *,
    force: bool = False,
    linked: bool = False,
) -> Report:
    """Write a release: the model, its card, licences, report, provenance and checksums.

    The same model, report and settings give the same bytes.

    Args:
        candidate: the quantized checkpoint.
        report_dir: what `validate` wrote of it.
        out: a folder that does not exist.
        settings: licence and metadata; where the release shall go afterwards, if elsewhere.
        force: replace `out`.
        linked: let the weights be the candidate's own files, for a release that does not stay.
    Returns:
        What `provenance.json` says, and what was left out of the release and what it cost.
    Raises:
        ReleaseRefused: the gate did not pass, judged no text or another model, or held the model
            against itself.
        RecipeProblem: no licence profile, or `out` would replace an input.
        CheckpointProblem: not a quantized safetensors checkpoint, or a licence file is missing.
        OutputProblem: a file holds a secret, or the release cannot be written.
    """
    watch = Stopwatch()
    chosen = license_profile(settings.license)
    cards = [
        read_source_card(place) for place in settings.gated_like or _default_card_sources(settings)
    ]
    require_license_covers(cards, settings.license, chosen)
    require_separate_output(out, candidate, report_dir)
    report = Report.read_report(report_dir / "report.json")
    require_publishable(report, report_dir, settings)
    checkpoint = _open_quantized(candidate)
    settings, others = _resolve_destination(
        settings, variant_name(checkpoint.quantization or {}), force=force
    )
    with staged(out, force=force) as folder:
        judged = _require_validated_model(candidate, report, report_dir)
        _require_described(candidate, judged)
        left_out = model_files.copy_model_files(
            candidate, folder, linked=linked, recipe_only=settings.recipe_only
        )
        facts = ReleaseQuotes(
            name=settings.name or out.resolve().name,
            config=checkpoint.config,
            shape=release_shape(checkpoint),
            validation=model_files.copy_validation_report(
                report_dir, report, folder / model_files.VALIDATION_FOLDER
            ),
            quantize=model_files.read_stage_report(folder / QUANTIZED),
            recover=model_files.read_stage_report(folder / "recover-report.json"),
            settings=settings,
            variants=others,
            gate=merge_access_fields(cards),
            cards={each.origin: each.sha256 for each in cards},
            licenses=copy_license_files(folder, chosen, _license_folders(candidate, report)),
        )
        _require_matching_settings(checkpoint, facts)
        for sentence in facts.caveats:
            note(sentence)
        _write_documents(folder, facts)
        shipped = finalize_release(folder, facts, judged, _stage_costs(candidate, report))
    if chosen.restricted and settings.to is None:
        note(f"licence {settings.license}: keep {out.name} private or gated. {chosen.terms}")
    told = {"facts": shipped.facts | {"left_out": left_out}, "cost": watch.cost()}
    return shipped.model_copy(update=told)


def _default_card_sources(settings: Publish) -> list[str]:
    """The models that the settings name on the hub, if the release goes there, too."""
    names = (settings.diff_model, settings.base_model)
    to_hub = (settings.to or "").startswith(HUB_PREFIX)
    return [f"{HUB_PREFIX}{name}" for name in names if name and "/" in name and to_hub]


def _stage_costs(candidate: Path, validation: Report) -> dict[str, Any]:
    """How long each stage took, in seconds, and on what hardware, as the reports here say."""
    stages = [
        model_files.read_stage_report(candidate / f"{name}{REPORT_SUFFIX}")
        for name in SOURCE_STAGES
    ]
    return {
        each.stage: {"seconds": round(each.cost["seconds"], 1)}
        | {key: each.facts[key] for key in HARDWARE_KEYS if key in each.facts}
        for each in (*stages, validation)
        if each is not None and "seconds" in each.cost
    }


def _write_documents(folder: Path, facts: ReleaseQuotes) -> None:
    """All that is written about the model and not by a stage before."""
    made_by = rebuild_recipe(facts.recover, facts.quantize)
    write_rebuild_recipe(folder, made_by, needed=facts.settings.recipe_only)
    write_notice(folder, facts.attribution)
    if card_plots.has_card_plots(facts.validation.facts):
        card_plots.draw_card_plots(
            facts.validation.facts, folder / model_files.VALIDATION_FOLDER / card_plots.PLOTS_FILE
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
    settings: Publish, name: str, *, force: bool
) -> tuple[Publish, tuple[str, ...]]:
    """The settings with all that their target adds, and the other variants that are there."""
    place = parse_destination(settings, name, force=force)
    if place is None:
        return settings, ()
    found = {"to": str(place), "name": settings.name or place.title}
    return settings.model_copy(update=found), place.require_ready()


def _require_validated_model(candidate: Path, report: Report, report_dir: Path) -> dict[str, str]:
    files = checkpoint_file_hashes(candidate)
    found, judged = sha256_json(files), report.inputs.get("candidate")
    if found != judged:
        raise ReleaseRefusal(
            f"{candidate} is not the model that {report_dir} judged: its hash is {found}, the "
            f"report has {judged}; the candidate changed after validation, or was never validated",
            next_step="validate it again",
        )
    return files


def _require_described(candidate: Path, hashes: Mapping[str, str]) -> None:
    """Refuses the report of `quantize` of another model, which the card would quote."""
    path = candidate / QUANTIZED
    report = model_files.read_stage_report(path)
    if report is not None and not describes(report, candidate, hashes):
        raise CheckpointProblem(
            foreign_report(path),
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
            next_step="correct that in config.json and quantize_config.json, so that loaders read "
            "what was judged, and validate it again",
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
                f"{path} is a pickle, which nobody should have to load",
                next_step="publish safetensors",
            )
    return checkpoint


def _license_folders(candidate: Path, report: Report) -> list[Path]:
    """Where licence files may lie: beside the model, or beside the reference next to it."""
    reference = quoted_values.value_at(report.facts, "reference.path")
    folders = [candidate]
    if isinstance(reference, str) and reference:
        folders.append(candidate.resolve().parent / reference)
    return [folder for folder in folders if folder.is_dir()]


def _require_matching_settings(checkpoint: Checkpoint, facts: ReleaseQuotes) -> None:
    """What the quantizer reported must be what the config says, or the card would contradict."""
    for key in ("bits", "group_size", "sym"):
        reported = quoted_values.value_at(facts.quantize.settings if facts.quantize else None, key)
        said = quoted_values.value_at(facts.quantization, key)
        if reported is not None and reported != said:
            raise CheckpointProblem(
                f"{checkpoint.folder} has {key} {said} in config.json and {reported} in "
                "quantize-report.json",
                next_step="quantize again; one of them was changed or comes from another run",
            )
