"""Pairs the samples of both models, stores them as JSON lines and reads the flips."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camelpress.core.errors import CheckpointProblem, NumericsProblem
from camelpress.core.files.file_hashes import sha256_file, sha256_json
from camelpress.reporting.report_classes import ValidationReport
from camelpress.validate.benchmarks import item_scores
from camelpress.validate.benchmarks.item_scores import ItemScores
from camelpress.validate.benchmarks.sample_lines import read_samples
from camelpress.validate.benchmarks.task_catalogue import BenchmarkSpec

SAMPLES_FOLDER = "samples"
NO_FLIP = "same"  # value of `flip` for equal scores
IDENTITY_HASHES = ("doc_hash", "prompt_hash", "target_hash")
CONTENT_HASHES = ("prompt_hash", "target_hash")  # equal for copies of an item
JUDGE_FIELDS = ("judge", "direct")  # judged tasks: judge name, direct verdicts on both models


@dataclass(frozen=True)
class ItemRecord:
    """One sample line with the scores of both models."""

    line: Mapping[str, Any]
    scores: ItemScores


def pair_samples(
    spec: BenchmarkSpec,
    reference: Sequence[Mapping[str, Any]],
    candidate: Sequence[Mapping[str, Any]],
) -> list[ItemRecord]:
    """Pairs the logged samples of two models by item.

    Args:
        spec: specification of the task.
        reference, candidate: samples of each model, logged by lm-evaluation-harness.
    Raises:
        NumericsProblem: The models answered different items, or a score is not a number.
    """
    records = []
    for first, second in zip(_first_filter(reference), _first_filter(candidate), strict=True):
        if any(first[key] != second[key] for key in IDENTITY_HASHES):
            raise NumericsProblem(
                f"{spec.name}, item {first['doc_id']}: the models answered different items",
                next_step="report this as a bug of camelpress",
            )
        part = str(first["doc"].get("part", ""))
        content = sha256_json([first[key] for key in CONTENT_HASHES])
        scores = ItemScores(part, _read_score(spec, first), _read_score(spec, second), content)
        records.append(ItemRecord(_sample_line(spec, first, second, scores), scores))
    return records


def influences_by_item(spec: BenchmarkSpec, samples: Sequence[ItemRecord]) -> dict[str, float]:
    """Returns item influences by item name, see `item_scores.item_influences`.

    Copies of an item are summed.
    """
    scores = [record.scores for record in samples]
    names = [str(samples[first].line["item"]) for first in item_scores.first_occurrences(scores)]
    totals = dict.fromkeys(names, 0.0)
    for name, influence in zip(names, item_scores.item_influences(spec, scores), strict=True):
        totals[name] += influence
    return totals


def write_samples(
    samples: Mapping[str, Sequence[ItemRecord]], models: Mapping[str, str], folder: Path
) -> None:
    """Writes one file of JSON lines per task.

    Args:
        samples: item records by task name.
        models: hashes of reference and candidate.
        folder: folder of the report.
    """
    for task, records in samples.items():
        path = folder / SAMPLES_FOLDER / f"{task}.jsonl"
        path.parent.mkdir(exist_ok=True)
        lines = [
            json.dumps({"task": task, "models": dict(models), **record.line}, ensure_ascii=False)
            for record in records
        ]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")


def sample_hashes(folder: Path) -> dict[str, str]:
    """Returns name and SHA-256 of each file of samples in a report's folder."""
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted((folder / SAMPLES_FOLDER).glob("*.jsonl"))
    }


def read_flips(
    report: ValidationReport, folder: Path, task: str | None = None
) -> Iterator[dict[str, Any]]:
    """Yields the items with different scores, task by task.

    Args:
        report: report of a validation.
        folder: folder of the report.
        task: name of a single task; None for all tasks.
    Raises:
        CheckpointProblem: The report has no samples (of that task), or a file of samples differs
            from its recorded hash.
    """
    names = [name for name in report.outputs if name.startswith(f"{SAMPLES_FOLDER}/")]
    if task is not None:
        names = [name for name in names if name == f"{SAMPLES_FOLDER}/{task}.jsonl"]
    if not names:
        suffix = f" of the task {task}" if task else ""
        raise CheckpointProblem(
            f"the report in {folder} has no samples{suffix}",
            next_step="give a report of validate --tasks, with its folder",
        )
    for name in names:
        path = folder / name
        if not path.is_file() or sha256_file(path) != report.outputs[name]:
            raise CheckpointProblem(
                f"{path} is not the file recorded in the report",
                next_step="validate again, or give the folder of that report",
            )
        for sample in read_samples(path):
            if sample["flip"] != NO_FLIP:
                yield sample


def _sample_line(
    spec: BenchmarkSpec, first: Mapping[str, Any], second: Mapping[str, Any], scores: ItemScores
) -> dict[str, Any]:
    return {
        "item": first["doc"].get("id", first["doc_id"]),
        "part": scores.part,
        **{key: first[key] for key in IDENTITY_HASHES},
        "flip": scores.flip,
        "prompt": first["arguments"][0][0],
        "target": _target(first),
        "metric": spec.metric,
        "reference": _sample_answer(first, scores.reference),
        "candidate": _sample_answer(second, scores.candidate),
        **{key: second[key] for key in JUDGE_FIELDS if key in second},
    }


def _sample_answer(sample: Mapping[str, Any], score: float) -> dict[str, Any]:
    """Returns score and responses, with the most likely choice for multiple choice."""
    raw_responses = sample["resps"]
    responses: Any = (
        [response[0] for response in raw_responses] if len(raw_responses) > 1 else raw_responses[0]
    )
    answer = {"score": score, "responses": responses, "sha256": sha256_json(responses)}
    if "verdicts" in sample:
        answer["verdicts"] = sample["verdicts"]
    if len(raw_responses) > 1 and all(
        isinstance(response, (list, tuple)) for response in responses
    ):
        log_likelihoods = [response[0] for response in responses]
        answer["chosen"] = sample["arguments"][log_likelihoods.index(max(log_likelihoods))][1]
    return answer


def _target(sample: Mapping[str, Any]) -> Any:
    """Returns the right answer, for multiple choice as text instead of index."""
    target, choices = sample["target"], sample["arguments"]
    is_index = isinstance(target, int) and 0 <= target < len(choices) and len(choices) > 1
    return choices[target][1].strip() if is_index else target


def _first_filter(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [sample for sample in samples if sample["filter"] == samples[0]["filter"]]


def _read_score(spec: BenchmarkSpec, sample: Mapping[str, Any]) -> float:
    score = sample.get(spec.metric)
    if isinstance(score, bool | int | float):
        return float(score)
    raise NumericsProblem(
        f"{spec.name} has no number for item {sample['doc_id']} under {spec.metric!r}",
        next_step="leave that task out: its items cannot be compared one by one",
    )
