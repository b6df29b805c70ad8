"""Runs benchmarks on both models; lm-evaluation-harness builds, filters and scores.

A model receives the requests of all tasks at once, so a streamed model is read once for all of
them. The harness then scores each task separately from stored answers: a failed task is reported
and does not affect the others.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.errors import DataProblem, RecipeProblem, ToolProblem
from camelpress.core.files.file_hashes import checkpoint_digest, sha256_json
from camelpress.core.progress import note
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.generation.generator import GenerationModel, Generator, LocalGenerator
from camelpress.inference.generation.sampling import max_new_tokens
from camelpress.inference.generation.stop_tokens import stop_token_ids
from camelpress.inference.generation.vllm_generator import VllmGenerator, require_vllm
from camelpress.validate.benchmarks import item_scores, task_catalogue, time_budget
from camelpress.validate.benchmarks.averages import average_benchmarks
from camelpress.validate.benchmarks.judge_session import JudgeSession
from camelpress.validate.benchmarks.judged_scores import score_with_judge
from camelpress.validate.benchmarks.response_cache import ResponseCache
from camelpress.validate.benchmarks.samples import ItemRecord, influences_by_item, pair_samples
from camelpress.validate.benchmarks.task_catalogue import (
    BenchmarkSpec,
    LoadedTasks,
    Task,
    require_lm_eval,
    silence_lm_eval,
)
from camelpress.validate.scoring.model_pair import open_streamed_model, require_same_tokenizer
from camelpress.validate.settings import ValidateSettings

LoggedSamples = Sequence[Mapping[str, Any]]
LMAdapter = Any  # `CamelpressLM`, importable only with lm-evaluation-harness


@dataclass(frozen=True)
class PreparedTasks:
    """Loaded tasks, and the session of the judge if one is set."""

    tasks: LoadedTasks
    judge_session: JudgeSession | None


@dataclass(frozen=True)
class BenchmarkResults:
    """Task facts for the report, the item records and the model hashes."""

    facts: dict[str, Any]
    samples: dict[str, list[ItemRecord]]
    models: dict[str, str]

    @property
    def inputs(self) -> dict[str, str]:
        """Returns hashes of both models and of the items of each task."""
        items = {
            f"task:{name}": sha256_json([sample.line["doc_hash"] for sample in records])
            for name, records in self.samples.items()
        }
        return self.models | items


def prepare_tasks(
    reference: Checkpoint, candidate: Checkpoint, settings: ValidateSettings, out: Path
) -> PreparedTasks:
    """Loads tasks and judge, and checks their requirements before any model answers.

    Args:
        reference: the 16-bit model; its tokenizer is used for both models.
        candidate: a plain or packed checkpoint.
        settings: tasks, data and judge.
        out: folder of the report.
    Raises:
        ToolProblem: lm-evaluation-harness is missing, or vLLM if selected.
        RecipeProblem: A task is unknown, the budget is not a time, or the judge is unusable.
        DataProblem: The data of a task are missing or malformed.
        CheckpointProblem: The models have different tokenizers.
        Interruption: The judge cannot be reached.
    """
    require_lm_eval()
    if settings.completions == "vllm":
        require_vllm()
    if settings.budget is not None:
        time_budget.parse_duration(settings.budget)
    require_same_tokenizer(reference.folder, candidate.folder)
    session = JudgeSession.open(settings, out)
    task_set = task_catalogue.load_tasks(
        settings.tasks,
        data_dir=settings.data_dir,
        tokenizer=reference.folder,
        judged=session is not None,
    )
    note_unread_data(settings.data_dir, task_set.specs.values())
    if session is not None:
        session.require_budget(task_set, all_items=settings.budget is None)
        session.probe_endpoint(task_set)
    return PreparedTasks(task_set, session)


def note_unread_data(folder: Path | None, specs: Iterable[BenchmarkSpec]) -> None:
    """Logs a note if no task reads the folder of `--data-dir`."""
    if folder is not None and not any(spec.benchmark for spec in specs):
        note(f"{folder} is not read: only tasks of tulu and tulu-fixed take data from --data-dir")


def run_tasks(
    tasks: PreparedTasks, reference: Checkpoint, candidate: Checkpoint, settings: ValidateSettings
) -> BenchmarkResults:
    """Runs the tasks on both models and judges the completions of judged tasks.

    Args:
        tasks: loaded tasks and the judge.
        reference, candidate, settings: the arguments of `prepare_tasks`.
    Raises:
        RecipeProblem: A model has too few positions for the only task.
        NumericsProblem: Logits are not finite.
        Interruption: The judge cannot be reached.
    """
    task_set = tasks.tasks
    checkpoints = {"reference": reference, "candidate": candidate}
    models = {
        role: checkpoint_digest(checkpoint.folder) for role, checkpoint in checkpoints.items()
    }
    reference_adapter, candidate_adapter = (
        _open_model_adapter(role, checkpoint, models[role], reference, settings, task_set.specs)
        for role, checkpoint in checkpoints.items()
    )
    failures: dict[str, str] = {}
    selection = _select_items(task_set, settings, candidate_adapter, failures)
    _build_all_requests(task_set, selection, [reference_adapter, candidate_adapter], failures)
    active_tasks = {name: task for name, task in task_set.tasks.items() if name not in failures}
    sample_logs = [
        _log_samples(adapter, active_tasks, selection, failures)
        for adapter in (reference_adapter, candidate_adapter)
    ]
    judge_facts = _judge_outputs(tasks, sample_logs, failures)
    samples = {
        name: pair_samples(
            task_set.specs[name], *(samples_by_task[name] for samples_by_task in sample_logs)
        )
        for name in active_tasks
        if name not in failures
    }
    task_records = [
        item_scores.task_facts(
            task_set.specs[name],
            [record.scores for record in records],
            total_items=len(active_tasks[name].eval_docs),
        )
        | judge_facts.get(name, {})
        for name, records in samples.items()
    ]
    averages = average_benchmarks(
        task_records,
        {name: influences_by_item(task_set.specs[name], samples[name]) for name in samples},
    )
    facts = {
        "tasks": task_records,
        "tasks_missing": task_set.missing | failures,
        "averages": averages,
    }
    return BenchmarkResults(facts, samples, models)


def _open_model_adapter(
    label: str,
    checkpoint: Checkpoint,
    digest: str,
    reference: Checkpoint,
    settings: ValidateSettings,
    specs: Mapping[str, BenchmarkSpec],
) -> LMAdapter:
    from camelpress.validate.benchmarks.lm_eval_adapter import CamelpressLM

    model = open_streamed_model(checkpoint, settings)
    tokenizer = Tokenizer.load(reference.folder)
    identity = {"model": digest, "dtype": dtype_name(model.dtype), "device": model.device.type}
    generation_model = GenerationModel(
        label, checkpoint, model, tokenizer, stop_token_ids(reference, tokenizer)
    )
    generator: Generator = LocalGenerator(generation_model)
    if settings.completions == "vllm":
        generator = VllmGenerator(
            generation_model, tokenizer=reference.folder, gpus=settings.vllm_gpus
        )
        identity |= {"completions": "vllm"}
    return CamelpressLM(
        generation_model, ResponseCache(identity, settings.answers), specs, generator
    )


def _select_items(
    task_set: LoadedTasks, settings: ValidateSettings, adapter: LMAdapter, failures: dict[str, str]
) -> dict[str, list[int]]:
    """Selects the items of each task within the time budget; omits complete tasks.

    One model answers items until its time is up, and keeps these answers; the other model will
    take about as long. Unused or excess time of a task carries over to the next one, so tasks with
    long completions come first and likelihoods last.
    """
    if settings.budget is None:
        return {}
    time_limit = time_budget.ANSWERING_SHARE * time_budget.parse_duration(settings.budget) / 2
    start, selection = time.monotonic(), {}
    for number, name in enumerate(
        sorted(task_set.tasks, key=partial(_max_completion_tokens, task_set), reverse=True)
    ):
        task = task_set.tasks[name]
        parts = [str(doc.get("part", "")) for doc in task.eval_docs]
        by_part = task_set.specs[name].is_macro_average
        task_start = time.monotonic()
        with _record_failure(name, failures, is_only_task=len(task_set.tasks) == 1):
            count = time_budget.answer_within_budget(
                len(parts),
                (time_limit - (task_start - start)) / (len(task_set.tasks) - number),
                partial(_answer_round, adapter, task, parts, by_part),
                first=max(1, time_budget.FIRST_ROUND_REQUESTS // (task.config.repeats or 1)),
                unit=len(set(parts)) if by_part else 1,
            )
            if count < len(parts):
                selection[name] = time_budget.sample_items(parts, count, by_part=by_part)
            elapsed = time.monotonic() - task_start
            note(f"{name}: {count:,} of {len(parts):,} items, {elapsed:.0f} s per model")
    adapter.release()
    note(f"the other model answers the same items, in about {time.monotonic() - start:.0f} s")
    return selection


def _max_completion_tokens(task_set: LoadedTasks, name: str) -> int:
    """Returns the maximum tokens of a completion, 0 for likelihood tasks."""
    config = task_set.tasks[name].config
    is_generation = config.output_type == "generate_until"
    return max_new_tokens(config.generation_kwargs or {}) if is_generation else 0


@contextmanager
def _record_failure(name: str, failures: dict[str, str], *, is_only_task: bool) -> Iterator[None]:
    """Records the failure of a task and continues; re-raises the problem of an only task."""
    try:
        yield
    except (RecipeProblem, DataProblem, ToolProblem) as problem:
        if is_only_task:
            raise
        failures[name] = problem.message
        note(f"{name} is left out: {problem.message}")


def _answer_round(
    adapter: LMAdapter, task: Task, parts: Sequence[str], by_part: bool, count: int
) -> time_budget.RoundCost:
    """Answers the first `count` items of the shuffle."""
    indices = time_budget.sample_items(parts, count, by_part=by_part)
    _build_requests(task, indices)
    adapter.require_positions(task.instances)
    cost = adapter.fill_cache(task.instances)
    return time_budget.RoundCost(cost.uncached_share * len(indices), cost.fixed_seconds)


def _build_all_requests(
    task_set: LoadedTasks,
    selection: Mapping[str, list[int]],
    adapters: Sequence[LMAdapter],
    failures: dict[str, str],
) -> None:
    """Builds the requests of all tasks and checks that both models have enough positions."""
    for name, task in task_set.tasks.items():
        if name in failures:
            continue
        with _record_failure(name, failures, is_only_task=len(task_set.tasks) == 1):
            _build_requests(task, selection.get(name))
            for adapter in adapters:
                adapter.require_positions(task.instances)


def _log_samples(
    adapter: LMAdapter,
    tasks: Mapping[str, Task],
    selection: Mapping[str, list[int]],
    failures: dict[str, str],
) -> dict[str, LoggedSamples]:
    """Scores each task with lm-evaluation-harness; adds failed tasks to `failures`."""
    from lm_eval.evaluator import evaluate

    adapter.fill_cache([request for task in tasks.values() for request in task.instances])
    adapter.release()
    samples_by_task: dict[str, LoggedSamples] = {}
    for name, task in tasks.items():
        if name in failures:
            continue
        with _record_failure(name, failures, is_only_task=len(tasks) == 1), silence_lm_eval():
            results = evaluate(
                lm=adapter,
                task_dict={"tasks": {name: task}},
                samples={name: selection[name]} if name in selection else None,
                bootstrap_iters=0,
            )
            samples_by_task[name] = results["samples"][name]
    return samples_by_task


def _judge_outputs(
    tasks: PreparedTasks, sample_logs: Sequence[dict[str, LoggedSamples]], failures: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Scores the judged tasks in `sample_logs`; returns their facts by task name."""
    facts: dict[str, dict[str, Any]] = {}
    for spec, _ in tasks.tasks.judge_tasks():
        name = spec.name
        if tasks.judge_session is None or name in failures:
            continue
        with _record_failure(name, failures, is_only_task=len(tasks.tasks.tasks) == 1):
            judge_scores = score_with_judge(
                tasks.judge_session,
                spec,
                *(samples_by_task[name] for samples_by_task in sample_logs),
            )
            sample_logs[0][name], sample_logs[1][name] = (
                judge_scores.reference,
                judge_scores.candidate,
            )
            facts[name] = judge_scores.facts
    return facts


def _build_requests(task: Task, indices: list[int] | None) -> None:
    """Builds the requests of a task like `lm_eval.evaluator.evaluate`."""
    if task.config.num_fewshot is None:
        task.set_config("num_fewshot", 0)
    task.set_fewshot_seed(1234)
    with silence_lm_eval():
        task.build_all_requests(samples=indices)
