"""Runs the validation stage: compares a candidate with its reference and writes a report."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import RecipeProblem
from camelpress.core.files.file_hashes import checkpoint_file_hashes
from camelpress.core.output.staged_output import require_free_output, require_separate_output
from camelpress.core.progress import note
from camelpress.core.runtime.resource_usage import Stopwatch
from camelpress.inference.streaming.process_group import ProcessGroup
from camelpress.reporting.checkpoint_summary import summarize_checkpoint
from camelpress.reporting.facts.validation_facts import ValidateFacts
from camelpress.reporting.model_precision import quantized_reference_caveat
from camelpress.reporting.rendering import html_page
from camelpress.reporting.report_classes import ValidationReport
from camelpress.reporting.verdict import Verdict
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
from camelpress.validate.scoring.score_aggregation import aggregate_scores, empty_figures
from camelpress.validate.scoring.workspace import Workspace, resume_key
from camelpress.validate.settings import DEFAULT_LIMITS, Gate, TaskGate, ValidateSettings
from camelpress.validate.store.prediction_store import PredictionStore

REPORT = report_files.REPORT_FILE
FLIPS_PAGE = "flips.html"
CACHE_FOLDER = "answers"  # subfolder of the unfinished output
OUTPUT_PATTERNS = (*report_files.REPORT_FILES, FLIPS_PAGE, f"{samples.SAMPLES_FOLDER}/*.jsonl")
MACHINE_PATHS: Any = {  # fields of the machine, left out of the report
    **dict.fromkeys(("text", "device", "data_dir", "answers"), True),
    "judge": {"url", "local", "annotations"},
}
DEFAULT_TASK_GATE = Gate(  # for runs without text and without a gate in the settings
    **dict.fromkeys(DEFAULT_LIMITS), tasks={"*": TaskGate(margin=0.02, significance=0.05)}
)


def run(
    reference: Checkpoint | PredictionStore,
    candidate: Checkpoint,
    out: Path,
    settings: ValidateSettings,
    *,
    force: bool = False,
    restart: bool = False,
) -> ValidationReport:
    """Compares both models on the same tokens and tasks, and judges the differences by the gate.

    Several processes started by `torchrun` share the text and return the same report.

    Args:
        reference: the model before quantization, whose tokenizer is used, or a store of its
            predictions.
        candidate: a plain or packed model with the same tokenizer.
        out: output folder for report.json, report.md, report.html and junit.xml.
        settings: texts, protocol, tasks and gate.
        force: replace an earlier output in `out`.
        restart: discard an unfinished run; cached answers to tasks are kept.
    Returns:
        the report of the validation, equal on every rank.
    Raises:
        Interruption: the user asked to stop, or a judge is unreachable; the same call resumes.
        RecipeProblem: there is neither text nor task, a text is empty or overlaps the candidate's
            calibration, or a task is unknown; or both models are the same, or the reference is
            quantized without permission in the settings.
        CheckpointProblem: the models cannot be compared, or the store does not match the settings.
        DataProblem: the data of a task is missing or damaged.
        ToolProblem: tasks need lm-evaluation-harness, and it is not installed.
        NumericsProblem: logits are not finite.
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
        parts = _compare(reference, candidate, settings, work, only_tasks=only_tasks)
        benchmarks = None
        if tasks and isinstance(reference, Checkpoint):
            benchmarks = run_tasks(tasks, reference, candidate, _with_cache_folder(settings, work))
            parts = parts.with_benchmarks(benchmarks)
            samples.write_samples(benchmarks.samples, benchmarks.models, work.folder)
        shutil.rmtree(work.folder / CACHE_FOLDER, ignore_errors=True)
        for role, model in models.items():
            model.require_unchanged(hashes[role])
        has_gate = "gate" in settings.model_fields_set
        gate = DEFAULT_TASK_GATE if only_tasks and not has_gate else settings.gate
        report = _build_report(parts, samples.sample_hashes(work.folder), settings, gate, watch)
        if benchmarks:
            flips_html = html_page.render_flips(report, samples.read_flips(report, work.folder))
            (work.folder / FLIPS_PAGE).write_text(
                flips_html, encoding="utf-8", errors="backslashreplace"
            )
        if work.team.is_main:
            report_files.write_report_files(report, work.folder, settings)
    return work.team.broadcast(lambda: report)


class _ValidationParts(NamedTuple):
    """Inputs, settings and facts of the report, before the gate judges them."""

    inputs: dict[str, str]
    settings: dict[str, Any]
    facts: dict[str, Any]

    def with_benchmarks(self, results: BenchmarkResults) -> _ValidationParts:
        """Adds the inputs and facts of the benchmarks."""
        return _ValidationParts(
            results.inputs | self.inputs, self.settings, self.facts | results.facts
        )


def _prepare_benchmarks(
    reference: Checkpoint | PredictionStore,
    candidate: Checkpoint,
    settings: ValidateSettings,
    out: Path,
) -> PreparedTasks | None:
    if not settings.tasks:
        note_unread_data(settings.data_dir, ())
        return None
    if isinstance(reference, PredictionStore):
        raise RecipeProblem(
            f"{reference.folder} is a store of predictions and cannot answer tasks",
            next_step="give the model itself",
        )
    if ProcessGroup.join().size > 1:
        raise RecipeProblem(
            "tasks run in one process only",
            next_step="start it without torchrun, or score texts alone",
        )
    return prepare_tasks(reference, candidate, settings, out)


def _note_quantized_reference(reference: Checkpoint | PredictionStore) -> None:
    facts = (
        reference.header.reference
        if isinstance(reference, PredictionStore)
        else summarize_checkpoint(reference)
    )
    if sentence := quantized_reference_caveat(facts):
        note(sentence)


def _with_cache_folder(settings: ValidateSettings, work: Workspace) -> ValidateSettings:
    """Sets the folder of cached answers; the default lies in the unfinished output.

    So answers survive a stopped or killed run without a folder in the settings.
    """
    folder = settings.answers or work.folder / CACHE_FOLDER
    return settings.model_copy(update={"answers": folder})


def _compare(
    reference: Checkpoint | PredictionStore,
    candidate: Checkpoint,
    settings: ValidateSettings,
    work: Workspace,
    *,
    only_tasks: bool,
) -> _ValidationParts:
    if isinstance(reference, PredictionStore):
        comparison = compare_with_store(reference, candidate, settings, work)
    elif only_tasks:
        models = {
            "reference": summarize_checkpoint(reference).record,
            "candidate": summarize_checkpoint(candidate).record,
        }
        return _ValidationParts(
            {}, {"text": []}, empty_figures() | models | {"protocol": "no text was scored"}
        )
    else:
        comparison = compare_models(reference, candidate, settings, work)
    return _ValidationParts(
        comparison.inputs,
        comparison.settings | {"text": [text.name for text in comparison.texts]},
        comparison.facts | aggregate_scores(comparison.scores, comparison.texts),
    )


def _build_report(
    parts: _ValidationParts,
    outputs: dict[str, str],
    settings: ValidateSettings,
    gate: Gate,
    watch: Stopwatch,
) -> ValidationReport:
    facts = ValidateFacts.build(parts.facts)
    checks = judge_facts(facts, gate)
    return ValidationReport(
        stage="validate",
        inputs=parts.inputs,
        outputs=outputs,
        settings=settings.model_dump(mode="json", exclude=MACHINE_PATHS)
        | {"gate": gate.model_dump(mode="json")}
        | parts.settings,
        facts=facts,
        checks=checks,
        verdict=Verdict.combine([check.verdict for check in checks]),
        cost=watch.cost(),
    )
