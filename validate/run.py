"""The stage: reference and candidate in, a report with verdicts and a page to look at out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import RecipeProblem
from camelpress.core.files.file_hashes import checkpoint_hashes
from camelpress.core.output.staged_output import keep_apart, require_free
from camelpress.core.progress import note
from camelpress.inference.streaming.process_group import Team
from camelpress.reporting.checkpoint_summary import summary
from camelpress.reporting.model_precision import caveat
from camelpress.reporting.rendering import html_page
from camelpress.reporting.stage_report import Report, Stopwatch, Verdict
from camelpress.validate.benchmarks import samples
from camelpress.validate.benchmarks.run_benchmarks import (
    Answered,
    Ready,
    answered,
    note_unread_data,
    ready,
)
from camelpress.validate.comparison.model_comparison import against_model, against_store
from camelpress.validate.comparison.reference_check import require_sound_reference
from camelpress.validate.gate import report_files
from camelpress.validate.gate.gate_judge import judge
from camelpress.validate.scoring.workspace import Workplace, fingerprint
from camelpress.validate.settings import Gate, TaskBound, Validate
from camelpress.validate.statistics.figures import figures, untold
from camelpress.validate.store.prediction_store import Store

REPORT = report_files.REPORT
FLIPS = "flips.html"
ANSWERS = "answers"  # in an output that is being made
WRITES = (*report_files.FORMS, FLIPS, f"{samples.FOLDER}/*.jsonl")
PLACES: Any = {  # of a machine, not of what was asked
    **dict.fromkeys(("text", "device", "data_dir", "answers"), True),
    "judge": {"url", "local", "annotations"},
}
TASK_GATE = Gate(  # where no text is scored and no gate given
    perplexity_ratio=None,
    kl_mean=None,
    top1_agreement=None,
    non_finite=None,
    tasks={"*": TaskBound(margin=0.02, significance=0.05)},
)


def run(
    reference: Checkpoint | Store,
    candidate: Checkpoint,
    out: Path,
    settings: Validate,
    *,
    force: bool = False,
    restart: bool = False,
) -> Report:
    """Score both models on the same tokens and tasks, and hold the differences against the gate.

    Several processes that `torchrun` starts share the text and give the same report.

    Args:
        reference: the model before it was quantized, whose tokenizer is used, or a store of its
            predictions.
        candidate: plain or packed, with the same tokenizer.
        out: a folder for report.json, report.md, report.html and junit.xml.
        settings: texts, protocol, tasks, gate.
        force: replace `out`.
        restart: begin again, whatever an unfinished run left; answers to tasks are kept.
    Raises:
        Interrupted: somebody asked for the end, or a judge cannot be reached; the same call goes
            on.
        RecipeProblem: neither text nor task, an empty text, one that overlaps the candidate's
            calibration, or no such task; both models are the same, or the reference is quantized
            and the settings do not allow that.
        CheckpointProblem: the models cannot be compared, or the store is of something else.
        DataProblem: the data of a task are not there, or damaged.
        EngineProblem: tasks are asked for without lm-evaluation-harness.
        NumericsProblem: logits that are not finite.
    """
    watch = Stopwatch()
    keep_apart(out, reference.folder, candidate.folder)
    require_free(out, force=force)
    require_sound_reference(reference, candidate, settings)
    if settings.allow_quantized_reference:
        _note_caveat(reference)
    tasks = _ready(reference, candidate, settings, out)
    models = {"reference": reference, "candidate": candidate}
    hashes = {role: checkpoint_hashes(model.folder) for role, model in models.items()}
    with Workplace.staged(
        out,
        lambda: fingerprint("validate", settings, hashes),
        force=force,
        restart=restart,
        writes=WRITES,
    ) as work:
        only_tasks = bool(tasks) and not settings.text
        told = _scored(reference, candidate, settings, work, only_tasks=only_tasks)
        asked = None
        if tasks and isinstance(reference, Checkpoint):
            asked = answered(tasks, reference, candidate, _keeping(settings, work))
            told = told.with_tasks(asked)
            samples.write(asked.samples, asked.models, work.folder)
        shutil.rmtree(work.folder / ANSWERS, ignore_errors=True)
        for role, model in models.items():
            model.require_unchanged(hashes[role])
        given = "gate" in settings.model_fields_set
        gate = TASK_GATE if only_tasks and not given else settings.gate
        report = _report(told, samples.hashes(work.folder), settings, gate, watch)
        if asked:
            changed = html_page.flips(report, samples.flips(report, work.folder))
            (work.folder / FLIPS).write_text(changed, encoding="utf-8", errors="backslashreplace")
        if work.team.leads:
            report_files.write(report, work.folder, settings)
    return work.team.share(lambda: report)


class _Told(NamedTuple):
    """What the parts of a validation come to."""

    inputs: dict[str, str]
    settings: dict[str, Any]
    facts: dict[str, Any]

    def with_tasks(self, asked: Answered) -> _Told:
        """And what the tasks came to."""
        return _Told(asked.inputs | self.inputs, self.settings, self.facts | asked.facts)


def _ready(
    reference: Checkpoint | Store, candidate: Checkpoint, settings: Validate, out: Path
) -> Ready | None:
    if not settings.tasks:
        note_unread_data(settings.data_dir, ())
        return None
    if isinstance(reference, Store):
        raise RecipeProblem(
            f"{reference.folder} is a store of predictions, which answers no tasks",
            next_step="give the model itself",
        )
    if Team.join().size > 1:
        raise RecipeProblem(
            "tasks are answered by one process",
            next_step="start it without torchrun, or score texts alone",
        )
    return ready(reference, candidate, settings, out)


def _note_caveat(reference: Checkpoint | Store) -> None:
    facts = reference.facts.reference if isinstance(reference, Store) else summary(reference)
    if sentence := caveat({"reference": facts}):
        note(sentence)


def _keeping(settings: Validate, work: Workplace) -> Validate:
    """Answers outlive a run that is stopped or killed, also where no folder is named for them."""
    folder = settings.answers or work.folder / ANSWERS
    return settings.model_copy(update={"answers": folder})


def _scored(
    reference: Checkpoint | Store,
    candidate: Checkpoint,
    settings: Validate,
    work: Workplace,
    *,
    only_tasks: bool,
) -> _Told:
    if isinstance(reference, Store):
        measured = against_store(reference, candidate, settings, work)
    elif only_tasks:
        models = {"reference": summary(reference), "candidate": summary(candidate)}
        return _Told({}, {"text": []}, untold() | models | {"protocol": "no text was scored"})
    else:
        measured = against_model(reference, candidate, settings, work)
    return _Told(
        measured.inputs,
        measured.settings | {"text": [text.name for text in measured.texts]},
        measured.facts | figures(measured.scores, measured.texts),
    )


def _report(
    told: _Told, written: dict[str, str], settings: Validate, gate: Gate, watch: Stopwatch
) -> Report:
    checks = judge(told.facts, gate)
    return Report(
        stage="validate",
        inputs=told.inputs,
        outputs=written,
        settings=settings.model_dump(mode="json", exclude=PLACES)
        | {"gate": gate.model_dump(mode="json")}
        | told.settings,
        facts=told.facts,
        checks=checks,
        verdict=Verdict.worst([check.verdict for check in checks]),
        cost=watch.cost(),
    )
