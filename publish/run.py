"""The stage: a checkpoint and the report that judged it in, a release folder out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from camelpress.core.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem, ReleaseRefused
from camelpress.core.output import keep_apart, staged
from camelpress.core.progress import note
from camelpress.core.provenance import PROVENANCE, checkpoint_hashes, sha256_json
from camelpress.core.report import Report, Stopwatch, Verdict
from camelpress.publish import card, release, tables
from camelpress.publish.license import add_licenses, profile, write_notice
from camelpress.publish.seal import seal
from camelpress.publish.settings import Publish

REPORT = PROVENANCE


def run(
    candidate: Path, report_dir: Path, out: Path, settings: Publish, *, force: bool = False
) -> Report:
    """Write a release: the model, its card, licences, report, provenance and checksums.

    The same model, report and settings give the same bytes.

    Args:
        candidate: the quantized checkpoint.
        report_dir: what `validate` wrote of it.
        out: a folder that does not exist.
        settings: licence and metadata.
        force: replace `out`.
    Returns:
        What `provenance.json` says, and what was left out of the release and what it cost.
    Raises:
        ReleaseRefused: the gate did not pass, or it judged another model.
        RecipeProblem: no licence profile, or `out` would replace an input.
        CheckpointProblem: not a quantized safetensors checkpoint, or a licence file is missing.
        OutputProblem: a file holds a secret, or the release cannot be written.
    """
    watch = Stopwatch()
    chosen = profile(settings.license)
    keep_apart(out, candidate, report_dir)
    report = Report.read(report_dir / "report.json")
    _require_pass(report, report_dir, settings)
    checkpoint = _quantized(candidate)
    with staged(out, force=force) as folder:
        judged = _require_judged(candidate, report, report_dir)
        left_out = release.copy_model(candidate, folder)
        facts = card.Facts(
            name=settings.name or out.resolve().name,
            checkpoint=checkpoint,
            validation=release.copy_validation(report_dir, report, folder / release.VALIDATION),
            quantize=release.stage_report(folder / "quantize-report.json"),
            recover=release.stage_report(folder / "recover-report.json"),
            settings=settings,
            profile=chosen,
            licenses=add_licenses(folder, chosen, _licensed(candidate, report)),
        )
        _require_agreement(facts)
        write_notice(folder, facts.attribution)
        (folder / card.CARD).write_text(card.render(facts), encoding="utf-8")
        shipped = seal(folder, facts, judged)
    if chosen.restricted:
        note(f"licence {settings.license}: keep {out.name} private or gated. {chosen.terms}")
    told = {"facts": shipped.facts | {"left_out": left_out}, "cost": watch.cost()}
    return shipped.model_copy(update=told)


def _require_pass(report: Report, report_dir: Path, settings: Publish) -> None:
    if report.verdict is Verdict.PASS or settings.allow_failed_gate:
        return
    reasons = [
        f"{check.name}: {check.reason}" for check in report.checks if check.verdict != Verdict.PASS
    ]
    verdict = report.verdict.value if report.verdict else "that nothing was judged"
    raise ReleaseRefused(
        f"{report_dir} says {verdict}" + (f" ({', '.join(reasons)})" if reasons else ""),
        next_step="publish a model that passes its gate, or give the reason to publish this one "
        "with --allow-failed-gate",
    )


def _require_judged(candidate: Path, report: Report, report_dir: Path) -> dict[str, str]:
    files = checkpoint_hashes(candidate)
    found, judged = sha256_json(files), report.inputs.get("candidate")
    if found != judged:
        raise ReleaseRefused(
            f"{candidate} is not the model that {report_dir} judged: its hash is {found}, the "
            f"report has {judged}; the candidate changed after validation, or was never validated",
            next_step="validate it again",
        )
    return files


def _quantized(candidate: Path) -> Checkpoint:
    checkpoint = Checkpoint.open(candidate)
    if not isinstance(checkpoint.quantization, Mapping):
        raise CheckpointProblem(
            f"{candidate} is not quantized", next_step="give the folder that quantize wrote"
        )
    method = checkpoint.quantization.get("quant_method")
    if method != "gptq":
        raise CheckpointProblem(
            f"{candidate} is packed by {method}, and the card is written for GPTQ",
            next_step="publish the folder that quantize wrote, or export it --to gptq",
        )
    for path in checkpoint.files():
        if path.suffix != ".safetensors":
            raise CheckpointProblem(
                f"{path} is a pickle, which nobody should have to load",
                next_step="publish safetensors",
            )
    return checkpoint


def _licensed(candidate: Path, report: Report) -> list[Path]:
    """Where licence files may lie: beside the model, or beside the 16-bit one next to it."""
    reference = tables.dig(report.facts, "reference.path")
    folders = [candidate]
    if isinstance(reference, str) and reference:
        folders.append(candidate.resolve().parent / reference)
    return [folder for folder in folders if folder.is_dir()]


def _require_agreement(facts: card.Facts) -> None:
    """What the quantizer reported must be what the config says, or the card would contradict."""
    for key in ("bits", "group_size", "sym"):
        reported = tables.dig(facts.quantize.settings if facts.quantize else None, key)
        said = tables.dig(facts.checkpoint.quantization, key)
        if reported is not None and reported != said:
            raise CheckpointProblem(
                f"{facts.checkpoint.folder} has {key} {said} in config.json and {reported} in "
                "quantize-report.json",
                next_step="quantize again; one of them was changed or comes from another run",
            )
