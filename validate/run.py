"""The stage: reference and candidate in, a report with verdicts and a page to look at out."""

from __future__ import annotations

from pathlib import Path

from camelpress.core.checkpoint import Checkpoint
from camelpress.core.output import keep_apart, require_free
from camelpress.core.report import Report, Stopwatch, Verdict
from camelpress.validate import outputs
from camelpress.validate.figures import figures
from camelpress.validate.gate import judge
from camelpress.validate.measure import Measured, against_model, against_store
from camelpress.validate.settings import Validate
from camelpress.validate.store import Store
from camelpress.validate.workplace import Workplace, fingerprint

REPORT = outputs.REPORT


def run(
    reference: Checkpoint | Store,
    candidate: Checkpoint,
    out: Path,
    settings: Validate,
    *,
    force: bool = False,
) -> Report:
    """Score both models on the same tokens and hold the differences against the gate.

    Several processes that `torchrun` starts share the text and give the same report.

    Args:
        reference: the 16-bit model, whose tokenizer is used, or a store of its predictions.
        candidate: 16-bit or GPTQ, with the same tokenizer.
        out: a folder for report.json, report.md, report.html and junit.xml.
        settings: texts, protocol, gate.
        force: replace `out`.
    Raises:
        Interrupted: somebody asked for the end; the same call goes on.
        RecipeProblem: no text, an empty one, or one that overlaps the candidate's calibration.
        CheckpointProblem: the models cannot be compared, or the store is of something else.
        NumericsProblem: logits that are not finite.
    """
    watch = Stopwatch()
    keep_apart(out, reference.folder, candidate.folder)
    require_free(out, force=force)
    made_from = fingerprint(settings, (reference.folder, candidate.folder))
    with Workplace.staged(out, made_from, force=force) as work:
        measured = (
            against_store(reference, candidate, settings, work)
            if isinstance(reference, Store)
            else against_model(reference, candidate, settings, work)
        )
        report = _report(measured, settings, watch)
        if work.team.leads:
            outputs.write(report, work.folder, settings)
    return work.team.share(lambda: report)


def _report(measured: Measured, settings: Validate, watch: Stopwatch) -> Report:
    facts = measured.facts | figures(measured.scores, measured.texts)
    checks = judge(facts, settings.gate)
    return Report(
        stage="validate",
        inputs=measured.inputs,
        settings=settings.model_dump(mode="json", exclude={"text", "device"})
        | measured.settings
        | {"text": [text.name for text in measured.texts]},
        facts=facts,
        checks=checks,
        verdict=Verdict.worst([check.verdict for check in checks]),
        cost=watch.cost(),
    )
