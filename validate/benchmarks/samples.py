"""Every item as both models answered it, kept in JSON lines; and what changed between the two."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camelpress.core.errors import CheckpointProblem, NumericsProblem
from camelpress.core.files.file_hashes import sha256_file, sha256_json
from camelpress.reporting.stage_report import Report
from camelpress.validate.benchmarks import item_scores
from camelpress.validate.benchmarks.item_scores import ItemScores
from camelpress.validate.benchmarks.sample_lines import read_samples
from camelpress.validate.benchmarks.task_catalogue import BenchmarkSpec

SAMPLES_FOLDER = "samples"
NO_FLIP = "same"  # value of `flip` where both models did equally well
IDENTITY_HASHES = ("doc_hash", "prompt_hash", "target_hash")
CONTENT_HASHES = ("prompt_hash", "target_hash")  # by which copies of an item are known
JUDGE_FIELDS = ("judge", "direct")  # where a judge has compared: its name, and the models' duel


@dataclass(frozen=True)
class ItemRecord:
    """One item with both answers, as a line has it."""

    line: Mapping[str, Any]
    marks: ItemScores


def pair_samples(
    column: BenchmarkSpec,
    reference: Sequence[Mapping[str, Any]],
    candidate: Sequence[Mapping[str, Any]],
) -> list[ItemRecord]:
    """What lm-evaluation-harness logged of two models, item by item.

    Raises:
        NumericsProblem: the models were not asked the same, or a mark is no number.
    """
    found = []
    for first, second in zip(_first_filter(reference), _first_filter(candidate), strict=True):
        if any(first[key] != second[key] for key in IDENTITY_HASHES):
            raise NumericsProblem(
                f"{column.name}, item {first['doc_id']}: the models were not asked the same",
                next_step="report this as a fault of camelpress",
            )
        part = str(first["doc"].get("part", ""))
        content = sha256_json([first[key] for key in CONTENT_HASHES])
        marks = ItemScores(part, _read_score(column, first), _read_score(column, second), content)
        found.append(ItemRecord(_sample_line(column, first, second, marks), marks))
    return found


def influences_by_item(column: BenchmarkSpec, samples: Sequence[ItemRecord]) -> dict[str, float]:
    """How far each item, by its name, pulls the column's difference: see `columns.pulls`.

    Copies of an item pull as one.
    """
    marks = [each.marks for each in samples]
    names = [str(samples[first].line["item"]) for first in item_scores.first_occurrences(marks)]
    total = dict.fromkeys(names, 0.0)
    for name, pull in zip(names, item_scores.item_influences(column, marks), strict=True):
        total[name] += pull
    return total


def write_samples(
    samples: Mapping[str, Sequence[ItemRecord]], models: Mapping[str, str], folder: Path
) -> None:
    """A file a task; its lines are one item each.

    Args:
        samples: by task.
        models: hash of reference and candidate.
        folder: of the report.
    """
    for task, found in samples.items():
        path = folder / SAMPLES_FOLDER / f"{task}.jsonl"
        path.parent.mkdir(exist_ok=True)
        lines = [
            json.dumps({"task": task, "models": dict(models), **sample.line}, ensure_ascii=False)
            for sample in found
        ]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")


def sample_hashes(folder: Path) -> dict[str, str]:
    """Name and hash of each file of samples in a report's folder."""
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted((folder / SAMPLES_FOLDER).glob("*.jsonl"))
    }


def read_flips(report: Report, folder: Path, task: str | None = None) -> Iterator[dict[str, Any]]:
    """The items that one model did better than the other, task by task.

    Args:
        report: of a validation.
        folder: that it lies in.
        task: only this one's.
    Raises:
        CheckpointProblem: the report has no samples (of that task), or they are not those that it
            was made of.
    """
    names = [name for name in report.outputs if name.startswith(f"{SAMPLES_FOLDER}/")]
    if task is not None:
        names = [name for name in names if name == f"{SAMPLES_FOLDER}/{task}.jsonl"]
    if not names:
        told = f" of the task {task}" if task else ""
        raise CheckpointProblem(
            f"the report in {folder} has no samples{told}",
            next_step="give one that validate --tasks wrote, with its folder",
        )
    for name in names:
        path = folder / name
        if not path.is_file() or sha256_file(path) != report.outputs[name]:
            raise CheckpointProblem(
                f"{path} is not the file that the report was made of",
                next_step="validate again, or give the report's own folder",
            )
        for sample in read_samples(path):
            if sample["flip"] != NO_FLIP:
                yield sample


def _sample_line(
    column: BenchmarkSpec, first: Mapping[str, Any], second: Mapping[str, Any], marks: ItemScores
) -> dict[str, Any]:
    return {
        "item": first["doc"].get("id", first["doc_id"]),
        "part": marks.part,
        **{key: first[key] for key in IDENTITY_HASHES},
        "flip": marks.flip,
        "prompt": first["arguments"][0][0],
        "target": _target(first),
        "metric": column.metric,
        "reference": _sample_answer(first, marks.reference),
        "candidate": _sample_answer(second, marks.candidate),
        **{key: second[key] for key in JUDGE_FIELDS if key in second},
    }


def _sample_answer(sample: Mapping[str, Any], mark: float) -> dict[str, Any]:
    """Completions as they are; of choices, the log-likelihood of each and which is largest."""
    responses = sample["resps"]
    told: Any = [each[0] for each in responses] if len(responses) > 1 else responses[0]
    answer = {"score": mark, "responses": told, "sha256": sha256_json(told)}
    if "verdicts" in sample:
        answer["verdicts"] = sample["verdicts"]
    if len(responses) > 1 and all(isinstance(each, (list, tuple)) for each in told):
        logs = [each[0] for each in told]
        answer["chosen"] = sample["arguments"][logs.index(max(logs))][1]
    return answer


def _target(sample: Mapping[str, Any]) -> Any:
    """What is right; of choices the choice itself and not its number."""
    target, choices = sample["target"], sample["arguments"]
    numbered = isinstance(target, int) and 0 <= target < len(choices) and len(choices) > 1
    return choices[target][1].strip() if numbered else target


def _first_filter(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [sample for sample in samples if sample["filter"] == samples[0]["filter"]]


def _read_score(column: BenchmarkSpec, sample: Mapping[str, Any]) -> float:
    mark = sample.get(column.metric)
    if isinstance(mark, bool | int | float):
        return float(mark)
    raise NumericsProblem(
        f"{column.name} has no number for item {sample['doc_id']} under {column.metric!r}",
        next_step="leave it out: items cannot be compared one by one",
    )
