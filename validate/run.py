"""The stage: reference and candidate in, a report with verdicts and a page to look at out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import RecipeProblem
from camelpress.core.files.file_hashes import checkpoint_file_hashes
from camelpress.core.output.staged_output import require_free_output, require_separate_output
from camelpress.core.progress import note
from camelpress.inference.streaming.process_group import ProcessGroup
from camelpress.reporting.checkpoint_summary import summarize_checkpoint
from camelpress.reporting.model_precision import quantized_reference_caveat
from camelpress.reporting.rendering import html_page
from camelpress.reporting.stage_report import Report, Stopwatch, Verdict
from camelpress.validate.benchmarks import samples
from camelpress.validate.benchmarks.run_benchmarks import (
    BenchmarkResults,
    PreparedTasks,
    note_unread_data,
    prepare_tasks,
    run_tasks,
)
from camelpress.validate.comparison.model_comparison import compare_models, compare_with_store
from camelpress.validate.comparison.reference_check import require_valid_reference
from camelpress.validate.gate import report_files
from camelpress.validate.gate.gate_judge import judge_facts
from camelpress.validate.scoring.workspace import Workspace, resume_key
from camelpress.validate.settings import Gate, TaskGate, Validate
from camelpress.validate.statistics.figures import aggregate_scores, empty_figures
from camelpress.validate.store.prediction_store import PredictionStore

REPORT = report_files.REPORT_FILE
FLIPS_PAGE = "flips.html"
CACHE_FOLDER = "answers"  # in an output that is being made
OUTPUT_PATTERNS = (*report_files.REPORT_FILES, FLIPS_PAGE, f"{samples.SAMPLES_FOLDER}/*.jsonl")
MACHINE_PATHS: Any = {  # of a machine, not of what was asked
    **dict.fromkeys(("text", "device", "data_dir", "answers"), True),
    "judge": {"url", "local", "annotations"},
}
DEFAULT_TASK_GATE = Gate(  # where no text is scored and no gate given
    perplexity_ratio=None,
    kl_mean=None,
    top1_agreement=None,
    non_finite=None,
    tasks={"*": TaskGate(margin=0.02, significance=0.05)},
)


def run(
    reference: Checkpoint | PredictionStore,
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
    require_separate_output(out, reference.folder, candidate.folder)
    require_free_output(out, force=force)
    require_valid_reference(reference, candidate, settings)
    if settings.allow_quantized_reference:
        _note_quantized_reference(reference)
    tasks = _prepare_benchmarks(reference, candidate, settings, out)
    models = {"reference": reference, "candidate": candidate}
    hashes = {role: checkpoint_file_hashes(model.folder) for role, model in models.items()}
    with Workspace.staged(
        out,
        lambda: resume_key("validate", settings, hashes),
        force=force,
        restart=restart,
        writes=OUTPUT_PATTERNS,
    ) as work:
        only_tasks = bool(tasks) and not settings.text
        told = _compare(reference, candidate, settings, work, only_tasks=only_tasks)
        asked = None
        if tasks and isinstance(reference, Checkpoint):
            asked = run_tasks(tasks, reference, candidate, _with_cache_folder(settings, work))
            told = told.with_benchmarks(asked)
            samples.write_samples(asked.samples, asked.models, work.folder)
        shutil.rmtree(work.folder / CACHE_FOLDER, ignore_errors=True)
        for role, model in models.items():
            model.require_unchanged(hashes[role])
        given = "gate" in settings.model_fields_set
        gate = DEFAULT_TASK_GATE if only_tasks and not given else settings.gate
        report = _build_report(told, samples.sample_hashes(work.folder), settings, gate, watch)
        if asked:
            changed = html_page.render_flips(report, samples.read_flips(report, work.folder))
            (work.folder / FLIPS_PAGE).write_text(
                changed, encoding="utf-8", errors="backslashreplace"
            )
        if work.team.is_main:
            report_files.write_report_files(report, work.folder, settings)
    return work.team.broadcast(lambda: report)


class _ValidationParts(NamedTuple):
    """What the parts of a validation come to."""

    inputs: dict[str, str]
    settings: dict[str, Any]
    facts: dict[str, Any]

    def with_benchmarks(self, asked: BenchmarkResults) -> _ValidationParts:
        """And what the tasks came to."""
        return _ValidationParts(asked.inputs | self.inputs, self.settings, self.facts | asked.facts)


def _prepare_benchmarks(
    reference: Checkpoint | PredictionStore, candidate: Checkpoint, settings: Validate, out: Path
) -> PreparedTasks | None:
    if not settings.tasks:
        note_unread_data(settings.data_dir, ())
        return None
    if isinstance(reference, PredictionStore):
        raise RecipeProblem(
            f"{reference.folder} is a store of predictions, which answers no tasks",
            next_step="give the model itself",
        )
    if ProcessGroup.join().size > 1:
        raise RecipeProblem(
            "tasks are answered by one process",
            next_step="start it without torchrun, or score texts alone",
        )
    return prepare_tasks(reference, candidate, settings, out)


def _note_quantized_reference(reference: Checkpoint | PredictionStore) -> None:
    facts = (
        reference.header.reference
        if isinstance(reference, PredictionStore)
        else summarize_checkpoint(reference)
    )
    if sentence := quantized_reference_caveat({"reference": facts}):
        note(sentence)


def _with_cache_folder(settings: Validate, work: Workspace) -> Validate:
    """Answers outlive a run that is stopped or killed, also where no folder is named for them."""
    folder = settings.answers or work.folder / CACHE_FOLDER
    return settings.model_copy(update={"answers": folder})


def _compare(
    reference: Checkpoint | PredictionStore,
    candidate: Checkpoint,
    settings: Validate,
    work: Workspace,
    *,
    only_tasks: bool,
) -> _ValidationParts:
    if isinstance(reference, PredictionStore):
        measured = compare_with_store(reference, candidate, settings, work)
    elif only_tasks:
        models = {
            "reference": summarize_checkpoint(reference),
            "candidate": summarize_checkpoint(candidate),
        }
        return _ValidationParts(
            {}, {"text": []}, empty_figures() | models | {"protocol": "no text was scored"}
        )
    else:
        measured = compare_models(reference, candidate, settings, work)
    return _ValidationParts(
        measured.inputs,
        measured.settings | {"text": [text.name for text in measured.texts]},
        measured.facts | aggregate_scores(measured.scores, measured.texts),
    )


def _build_report(
    told: _ValidationParts,
    written: dict[str, str],
    settings: Validate,
    gate: Gate,
    watch: Stopwatch,
) -> Report:
    checks = judge_facts(told.facts, gate)
    return Report(
        stage="validate",
        inputs=told.inputs,
        outputs=written,
        settings=settings.model_dump(mode="json", exclude=MACHINE_PATHS)
        | {"gate": gate.model_dump(mode="json")}
        | told.settings,
        facts=told.facts,
        checks=checks,
        verdict=Verdict.combine([check.verdict for check in checks]),
        cost=watch.cost(),
    )
