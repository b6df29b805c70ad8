"""The tasks, answered by both models: lm-evaluation-harness builds, filters and scores.

All requests of all tasks go to a model at once, so that one that does not fit into memory is read
once for all of them. Then the harness scores each task by itself, with every answer at hand: a task
that cannot be scored is told as such, and takes no other along.
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
from camelpress.validate.settings import Validate

LoggedSamples = Sequence[Mapping[str, Any]]
LMAdapter = Any  # `harness.Harness`, which needs lm-evaluation-harness


@dataclass(frozen=True)
class PreparedTasks:
    """What is asked, and who judges where a judge is needed; None where none is named."""

    tasks: LoadedTasks
    judge_session: JudgeSession | None


@dataclass(frozen=True)
class BenchmarkResults:
    """What a report tells of tasks, and the items behind it."""

    facts: dict[str, Any]
    samples: dict[str, list[ItemRecord]]
    models: dict[str, str]

    @property
    def inputs(self) -> dict[str, str]:
        """Hashes of both models, and of the items of each task."""
        items = {
            f"task:{name}": sha256_json([sample.line["doc_hash"] for sample in found])
            for name, found in self.samples.items()
        }
        return self.models | items


def prepare_tasks(
    reference: Checkpoint, candidate: Checkpoint, settings: Validate, out: Path
) -> PreparedTasks:
    """The tasks of the settings with their items, before anything is asked.

    Args:
        reference: the model before it was quantized, whose tokenizer asks both.
        candidate: plain or packed.
        settings: tasks, data and judge.
        out: of the report.
    Raises:
        EngineProblem: lm-evaluation-harness is not installed, or vLLM where it is asked for.
        RecipeProblem: no such task, a budget that is no time, or a judge that cannot be asked.
        DataProblem: the data of a task are not there, or not what they should be.
        CheckpointProblem: the models have different tokenizers.
        Interrupted: the judge cannot be reached.
    """
    require_lm_eval()
    if settings.completions == "vllm":
        require_vllm()
    if settings.budget is not None:
        time_budget.parse_duration(settings.budget)
    require_same_tokenizer(reference.folder, candidate.folder)
    arena = JudgeSession.open(settings, out)
    loaded = task_catalogue.load_tasks(
        settings.tasks,
        data_dir=settings.data_dir,
        tokenizer=reference.folder,
        judged=arena is not None,
    )
    note_unread_data(settings.data_dir, loaded.specs.values())
    if arena is not None:
        arena.require_budget(loaded, whole=settings.budget is None)
        arena.probe_endpoint(loaded)
    return PreparedTasks(loaded, arena)


def note_unread_data(folder: Path | None, chosen: Iterable[BenchmarkSpec]) -> None:
    """Notes that no task takes its data from the folder of `--data-dir`."""
    if folder is not None and not any(column.benchmark for column in chosen):
        note(f"{folder} is not read: only tasks of tulu and tulu-fixed take data from --data-dir")


def run_tasks(
    tasks: PreparedTasks, reference: Checkpoint, candidate: Checkpoint, settings: Validate
) -> BenchmarkResults:
    """Let both models answer, and a judge compare where that is what a task asks for.

    Args:
        tasks: what is asked, and who judges.
        reference, candidate, settings: as for `ready`.
    Raises:
        RecipeProblem: a model has too few positions for the one task that there is.
        NumericsProblem: logits that are not finite.
        Interrupted: the judge cannot be reached.
    """
    loaded = tasks.tasks
    sides = {"reference": reference, "candidate": candidate}
    models = {side: checkpoint_digest(checkpoint.folder) for side, checkpoint in sides.items()}
    first, second = (
        _open_model_adapter(side, checkpoint, models[side], reference, settings, loaded.specs)
        for side, checkpoint in sides.items()
    )
    failed: dict[str, str] = {}
    chosen = _select_items(loaded, settings, second, failed)
    _build_all_requests(loaded, chosen, [first, second], failed)
    left = {name: task for name, task in loaded.tasks.items() if name not in failed}
    logged = [_log_samples(harness, left, chosen, failed) for harness in (first, second)]
    judged = _judge_outputs(tasks, logged, failed)
    samples = {
        name: pair_samples(loaded.specs[name], *(each[name] for each in logged))
        for name in left
        if name not in failed
    }
    told = [
        item_scores.task_facts(
            loaded.specs[name], [each.marks for each in found], of=len(left[name].eval_docs)
        )
        | judged.get(name, {})
        for name, found in samples.items()
    ]
    mean = average_benchmarks(
        told, {name: influences_by_item(loaded.specs[name], samples[name]) for name in samples}
    )
    facts = {"tasks": told, "tasks_missing": loaded.missing | failed, "averages": mean}
    return BenchmarkResults(facts, samples, models)


def _open_model_adapter(
    label: str,
    checkpoint: Checkpoint,
    digest: str,
    reference: Checkpoint,
    settings: Validate,
    columns: Mapping[str, BenchmarkSpec],
) -> LMAdapter:
    from camelpress.validate.benchmarks.lm_eval_adapter import CamelpressLM as Asked

    model = open_streamed_model(checkpoint, settings)
    tokenizer = Tokenizer.load(reference.folder)
    told = {"model": digest, "dtype": dtype_name(model.dtype), "device": model.device.type}
    asked = GenerationModel(
        label, checkpoint, model, tokenizer, stop_token_ids(reference, tokenizer)
    )
    completer: Generator = LocalGenerator(asked)
    if settings.completions == "vllm":
        completer = VllmGenerator(asked, tokenizer=reference.folder, gpus=settings.vllm_gpus)
        told |= {"completions": "vllm"}
    return Asked(asked, ResponseCache(told, settings.answers), columns, completer)


def _select_items(
    loaded: LoadedTasks, settings: Validate, harness: LMAdapter, failed: dict[str, str]
) -> dict[str, list[int]]:
    """Which items are asked of a task, where not all are.

    One model answers them all for that, and not again afterwards; the other will take about as
    long. What a task leaves of its share of the time, or takes beyond it, goes to those after it:
    so tasks come first of which a few items may take long, and likelihoods last.
    """
    if settings.budget is None:
        return {}
    most = time_budget.ANSWERING_SHARE * time_budget.parse_duration(settings.budget) / 2
    begun, chosen = time.monotonic(), {}
    for number, name in enumerate(
        sorted(loaded.tasks, key=partial(_max_completion_tokens, loaded), reverse=True)
    ):
        task = loaded.tasks[name]
        parts = [str(doc.get("part", "")) for doc in task.eval_docs]
        by_part = loaded.specs[name].is_macro_average
        clock = time.monotonic()
        with _record_failure(name, failed, alone=len(loaded.tasks) == 1):
            count = time_budget.answer_within_budget(
                len(parts),
                (most - (clock - begun)) / (len(loaded.tasks) - number),
                partial(_answer_round, harness, task, parts, by_part),
                first=max(1, time_budget.FIRST_ROUND_REQUESTS // (task.config.repeats or 1)),
                unit=len(set(parts)) if by_part else 1,
            )
            if count < len(parts):
                chosen[name] = time_budget.sample_items(parts, count, by_part=by_part)
            took = time.monotonic() - clock
            note(f"{name}: {count:,} of {len(parts):,} items, {took:.0f} s a model")
    harness.release()
    note(
        f"the other model is asked the same, which will take about {time.monotonic() - begun:.0f} s"
    )
    return chosen


def _max_completion_tokens(loaded: LoadedTasks, name: str) -> int:
    """Tokens that a completion of a task may have."""
    config = loaded.tasks[name].config
    completes = config.output_type == "generate_until"
    return max_new_tokens(config.generation_kwargs or {}) if completes else 0


@contextmanager
def _record_failure(name: str, failed: dict[str, str], *, alone: bool) -> Iterator[None]:
    """A task that cannot be asked or marked is told as such; with one task alone it is an error."""
    try:
        yield
    except (RecipeProblem, DataProblem, ToolProblem) as problem:
        if alone:
            raise
        failed[name] = problem.message
        note(f"{name} is left out: {problem.message}")


def _answer_round(
    harness: LMAdapter, task: Task, parts: Sequence[str], by_part: bool, count: int
) -> time_budget.RoundCost:
    """Answer the first items of the shuffle."""
    chosen = time_budget.sample_items(parts, count, by_part=by_part)
    _build_requests(task, chosen)
    harness.require_positions(task.instances)
    effort = harness.fill_cache(task.instances)
    return time_budget.RoundCost(effort.uncached_share * len(chosen), effort.fixed_seconds)


def _build_all_requests(
    loaded: LoadedTasks,
    chosen: Mapping[str, list[int]],
    harnesses: Sequence[LMAdapter],
    failed: dict[str, str],
) -> None:
    """The requests of all tasks that have room in both models."""
    for name, task in loaded.tasks.items():
        if name in failed:
            continue
        with _record_failure(name, failed, alone=len(loaded.tasks) == 1):
            _build_requests(task, chosen.get(name))
            for harness in harnesses:
                harness.require_positions(task.instances)


def _log_samples(
    harness: LMAdapter,
    tasks: Mapping[str, Task],
    chosen: Mapping[str, list[int]],
    failed: dict[str, str],
) -> dict[str, LoggedSamples]:
    """What the harness logs of each task; a task that cannot be marked goes to `failed`."""
    from lm_eval.evaluator import evaluate

    harness.fill_cache([request for task in tasks.values() for request in task.instances])
    harness.release()
    logged: dict[str, LoggedSamples] = {}
    for name, task in tasks.items():
        if name in failed:
            continue
        with _record_failure(name, failed, alone=len(tasks) == 1), silence_lm_eval():
            results = evaluate(
                lm=harness,
                task_dict={"tasks": {name: task}},
                samples={name: chosen[name]} if name in chosen else None,
                bootstrap_iters=0,
            )
            logged[name] = results["samples"][name]
    return logged


def _judge_outputs(
    tasks: PreparedTasks, logged: Sequence[dict[str, LoggedSamples]], failed: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Give the items that a judge compares their marks; what a report tells of that, by task."""
    found: dict[str, dict[str, Any]] = {}
    for column, _ in tasks.tasks.judge_tasks():
        name = column.name
        if tasks.judge_session is None or name in failed:
            continue
        with _record_failure(name, failed, alone=len(tasks.tasks.tasks) == 1):
            marked = score_with_judge(tasks.judge_session, column, *(each[name] for each in logged))
            logged[0][name], logged[1][name] = marked.reference, marked.candidate
            found[name] = marked.facts
    return found


def _build_requests(task: Task, chosen: list[int] | None) -> None:
    """The requests of a task, as `evaluate` builds them."""
    if task.config.num_fewshot is None:
        task.set_config("num_fewshot", 0)
    task.set_fewshot_seed(1234)
    with silence_lm_eval():
        task.build_all_requests(samples=chosen)
