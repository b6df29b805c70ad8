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
from camelpress.core.errors import DataProblem, EngineProblem, RecipeProblem
from camelpress.core.files.file_hashes import checkpoint_digest, sha256_json
from camelpress.core.progress import note
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.generation.generator import Completer, Completes, Respondent
from camelpress.inference.generation.sampling import longest
from camelpress.inference.generation.stop_tokens import ends
from camelpress.inference.generation.vllm_generator import VllmCompleter, require_vllm
from camelpress.validate.benchmarks import item_scores, task_catalogue, time_budget
from camelpress.validate.benchmarks.averages import averages
from camelpress.validate.benchmarks.judge_session import Arena
from camelpress.validate.benchmarks.judged_scores import mark
from camelpress.validate.benchmarks.response_cache import Answers
from camelpress.validate.benchmarks.samples import Sample, paired, pulls
from camelpress.validate.benchmarks.task_catalogue import (
    Column,
    Loaded,
    Task,
    quiet,
    require_harness,
)
from camelpress.validate.scoring.model_pair import open_model, require_same_tokenizer
from camelpress.validate.settings import Validate

Logged = Sequence[Mapping[str, Any]]
Harness = Any  # `harness.Harness`, which needs lm-evaluation-harness


@dataclass(frozen=True)
class Ready:
    """What is asked, and who judges where a judge is needed; None where none is named."""

    loaded: Loaded
    arena: Arena | None


@dataclass(frozen=True)
class Answered:
    """What a report tells of tasks, and the items behind it."""

    facts: dict[str, Any]
    samples: dict[str, list[Sample]]
    models: dict[str, str]

    @property
    def inputs(self) -> dict[str, str]:
        """Hashes of both models, and of the items of each task."""
        items = {
            f"task:{name}": sha256_json([sample.line["doc_hash"] for sample in found])
            for name, found in self.samples.items()
        }
        return self.models | items


def ready(reference: Checkpoint, candidate: Checkpoint, settings: Validate, out: Path) -> Ready:
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
    require_harness()
    if settings.completions == "vllm":
        require_vllm()
    if settings.budget is not None:
        time_budget.seconds(settings.budget)
    require_same_tokenizer(reference.folder, candidate.folder)
    arena = Arena.open(settings, out)
    loaded = task_catalogue.load(
        settings.tasks,
        data_dir=settings.data_dir,
        tokenizer=reference.folder,
        judged=arena is not None,
    )
    note_unread_data(settings.data_dir, loaded.columns.values())
    if arena is not None:
        arena.forecast(loaded, whole=settings.budget is None)
        arena.try_out(loaded)
    return Ready(loaded, arena)


def note_unread_data(folder: Path | None, chosen: Iterable[Column]) -> None:
    """Notes that no task takes its data from the folder of `--data-dir`."""
    if folder is not None and not any(column.benchmark for column in chosen):
        note(f"{folder} is not read: only tasks of tulu and tulu-fixed take data from --data-dir")


def answered(
    tasks: Ready, reference: Checkpoint, candidate: Checkpoint, settings: Validate
) -> Answered:
    """Let both models answer, and a judge compare where that is what a task asks for.

    Args:
        tasks: what is asked, and who judges.
        reference, candidate, settings: as for `ready`.
    Raises:
        RecipeProblem: a model has too few positions for the one task that there is.
        NumericsProblem: logits that are not finite.
        Interrupted: the judge cannot be reached.
    """
    loaded = tasks.loaded
    sides = {"reference": reference, "candidate": candidate}
    models = {side: checkpoint_digest(checkpoint.folder) for side, checkpoint in sides.items()}
    first, second = (
        _harness(side, checkpoint, models[side], reference, settings, loaded.columns)
        for side, checkpoint in sides.items()
    )
    failed: dict[str, str] = {}
    chosen = _chosen(loaded, settings, second, failed)
    _build_all(loaded, chosen, [first, second], failed)
    left = {name: task for name, task in loaded.tasks.items() if name not in failed}
    logged = [_logged(harness, left, chosen, failed) for harness in (first, second)]
    judged = _judged(tasks, logged, failed)
    samples = {
        name: paired(loaded.columns[name], *(each[name] for each in logged))
        for name in left
        if name not in failed
    }
    told = [
        item_scores.facts(
            loaded.columns[name], [each.marks for each in found], of=len(left[name].eval_docs)
        )
        | judged.get(name, {})
        for name, found in samples.items()
    ]
    mean = averages(told, {name: pulls(loaded.columns[name], samples[name]) for name in samples})
    facts = {"tasks": told, "tasks_missing": loaded.missing | failed, "averages": mean}
    return Answered(facts, samples, models)


def _harness(
    label: str,
    checkpoint: Checkpoint,
    digest: str,
    reference: Checkpoint,
    settings: Validate,
    columns: Mapping[str, Column],
) -> Harness:
    from camelpress.validate.benchmarks.lm_eval_adapter import Harness as Asked

    model = open_model(checkpoint, settings)
    tokenizer = Tokenizer.load(reference.folder)
    told = {"model": digest, "dtype": dtype_name(model.dtype), "device": model.device.type}
    asked = Respondent(label, checkpoint, model, tokenizer, ends(reference, tokenizer))
    completer: Completes = Completer(asked)
    if settings.completions == "vllm":
        completer = VllmCompleter(asked, tokenizer=reference.folder, gpus=settings.vllm_gpus)
        told |= {"completions": "vllm"}
    return Asked(asked, Answers(told, settings.answers), columns, completer)


def _chosen(
    loaded: Loaded, settings: Validate, harness: Harness, failed: dict[str, str]
) -> dict[str, list[int]]:
    """Which items are asked of a task, where not all are.

    One model answers them all for that, and not again afterwards; the other will take about as
    long. What a task leaves of its share of the time, or takes beyond it, goes to those after it:
    so tasks come first of which a few items may take long, and likelihoods last.
    """
    if settings.budget is None:
        return {}
    most = time_budget.ANSWERING * time_budget.seconds(settings.budget) / 2
    begun, chosen = time.monotonic(), {}
    for number, name in enumerate(sorted(loaded.tasks, key=partial(_length, loaded), reverse=True)):
        task = loaded.tasks[name]
        parts = [str(doc.get("part", "")) for doc in task.eval_docs]
        by_part = loaded.columns[name].by_part
        clock = time.monotonic()
        with _told(name, failed, alone=len(loaded.tasks) == 1):
            count = time_budget.fitting(
                len(parts),
                (most - (clock - begun)) / (len(loaded.tasks) - number),
                partial(_answer, harness, task, parts, by_part),
                first=max(1, time_budget.FIRST // (task.config.repeats or 1)),
                unit=len(set(parts)) if by_part else 1,
            )
            if count < len(parts):
                chosen[name] = time_budget.subset(parts, count, by_part=by_part)
            took = time.monotonic() - clock
            note(f"{name}: {count:,} of {len(parts):,} items, {took:.0f} s a model")
    harness.release()
    note(
        f"the other model is asked the same, which will take about {time.monotonic() - begun:.0f} s"
    )
    return chosen


def _length(loaded: Loaded, name: str) -> int:
    """Tokens that a completion of a task may have."""
    config = loaded.tasks[name].config
    completes = config.output_type == "generate_until"
    return longest(config.generation_kwargs or {}) if completes else 0


@contextmanager
def _told(name: str, failed: dict[str, str], *, alone: bool) -> Iterator[None]:
    """A task that cannot be asked or marked is told as such; with one task alone it is an error."""
    try:
        yield
    except (RecipeProblem, DataProblem, EngineProblem) as problem:
        if alone:
            raise
        failed[name] = problem.what
        note(f"{name} is left out: {problem.what}")


def _answer(
    harness: Harness, task: Task, parts: Sequence[str], by_part: bool, count: int
) -> time_budget.Round:
    """Answer the first items of the shuffle."""
    chosen = time_budget.subset(parts, count, by_part=by_part)
    _build(task, chosen)
    harness.require_room(task.instances)
    effort = harness.answer(task.instances)
    return time_budget.Round(effort.share * len(chosen), effort.overhead)


def _build_all(
    loaded: Loaded,
    chosen: Mapping[str, list[int]],
    harnesses: Sequence[Harness],
    failed: dict[str, str],
) -> None:
    """The requests of all tasks that have room in both models."""
    for name, task in loaded.tasks.items():
        if name in failed:
            continue
        with _told(name, failed, alone=len(loaded.tasks) == 1):
            _build(task, chosen.get(name))
            for harness in harnesses:
                harness.require_room(task.instances)


def _logged(
    harness: Harness,
    tasks: Mapping[str, Task],
    chosen: Mapping[str, list[int]],
    failed: dict[str, str],
) -> dict[str, Logged]:
    """What the harness logs of each task; a task that cannot be marked goes to `failed`."""
    from lm_eval.evaluator import evaluate

    harness.answer([request for task in tasks.values() for request in task.instances])
    harness.release()
    logged: dict[str, Logged] = {}
    for name, task in tasks.items():
        if name in failed:
            continue
        with _told(name, failed, alone=len(tasks) == 1), quiet():
            results = evaluate(
                lm=harness,
                task_dict={"tasks": {name: task}},
                samples={name: chosen[name]} if name in chosen else None,
                bootstrap_iters=0,
            )
            logged[name] = results["samples"][name]
    return logged


def _judged(
    tasks: Ready, logged: Sequence[dict[str, Logged]], failed: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Give the items that a judge compares their marks; what a report tells of that, by task."""
    found: dict[str, dict[str, Any]] = {}
    for column, _ in tasks.loaded.judged():
        name = column.name
        if tasks.arena is None or name in failed:
            continue
        with _told(name, failed, alone=len(tasks.loaded.tasks) == 1):
            marked = mark(tasks.arena, column, *(each[name] for each in logged))
            logged[0][name], logged[1][name] = marked.reference, marked.candidate
            found[name] = marked.facts
    return found


def _build(task: Task, chosen: list[int] | None) -> None:
    """The requests of a task, as `evaluate` builds them."""
    if task.config.num_fewshot is None:
        task.set_config("num_fewshot", 0)
    task.set_fewshot_seed(1234)
    with quiet():
        task.build_all_requests(samples=chosen)
