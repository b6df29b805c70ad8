"""Damaged reports, samples and benchmark data end in one line, whatever their author wrote."""

from __future__ import annotations

import copy
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from camelpress.core.errors import CheckpointProblem, DataProblem
from camelpress.reporting import validation_report
from camelpress.validate.benchmarks.sample_lines import read_samples
from camelpress.validate.tasks import task_data
from fuzz_reports import FACTS, REPORT, SAMPLE

LOSSES: dict[str, Any] = {  # path to a field, and a value that pages cannot show
    "candidate.group_size": "128",
    "candidate.bytes": -1,
    "kl_histogram.edges": [0.0, 0.1],
    "kl_histogram.counts": [1, 2, -3],
    "by_position.tokens": [900],
    "by_position.log_ratio": [0.02, None, 0.1],
    "kl_by_confidence.edges": [0.0, 1.0, 0.5],
    "perplexity_ratio": 1e300,
    "perplexity_ratio_interval": [1.03, 1.02],
    "kl_percentiles": {"50": 0.1},
    "texts": [],
}


@pytest.mark.parametrize("path", LOSSES)
def test_facts_that_no_page_can_show_are_refused(tmp_path: Path, path: str) -> None:
    report = copy.deepcopy(REPORT)
    *outer, key = path.split(".")
    place = report["facts"]
    for name in outer:
        place = place[name]
    place[key] = LOSSES[path]
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(CheckpointProblem, match="report.json is damaged \\(facts: ") as refusal:
        validation_report.read_validation(tmp_path)
    assert path.split(".")[0] in str(refusal.value)


def test_a_report_without_text_needs_no_bins(tmp_path: Path) -> None:
    empty = {"tokens": 0, "sequences": 0, "texts": [], "kl_percentiles": {}, "early": None}
    none: dict[str, list[float]] = {"edges": [], "kl_mean": [], "tokens": [], "log_ratio": []}
    bins = {"kl_histogram": {"edges": [], "counts": []}, "by_position": none}
    (tmp_path / "report.json").write_text(
        json.dumps(REPORT | {"facts": FACTS | empty | bins | {"kl_by_confidence": None}})
    )
    assert validation_report.read_validation(tmp_path).facts.record["tokens"] == 0


def test_a_named_pipe_is_no_report(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "report.json")
    with pytest.raises(CheckpointProblem, match="cannot be read"):
        validation_report.read_validation(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"flip": "drawn"}, "flip"),
        ({"prompt": 7}, "prompt"),
        ({"reference": {"score": "1", "responses": []}}, "reference.score"),
        ({"candidate": {"score": 1.0, "responses": []}}, "an answer has no verdicts"),
        ({"direct": [{"shown_first": "yes", "won": 1}]}, "direct.0.shown_first"),
    ],
)
def test_a_damaged_sample_is_named_by_its_line(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "gsm.jsonl"
    lines = [json.dumps(SAMPLE), json.dumps(SAMPLE | change)]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(CheckpointProblem) as refusal:
        list(read_samples(path))
    assert refusal.value.message.startswith(f"{path}:2 is not a sample (")
    assert reason in refusal.value.message


def test_samples_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "gsm.jsonl"
    path.write_text(json.dumps(SAMPLE | {"more": [1, None]}) + "\n")
    assert list(read_samples(path)) == [SAMPLE | {"more": [1, None]}]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_benchmark_data_are_bounded_after_decompression(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Any
) -> None:
    monkeypatch.setattr(task_data, "MAX_TASK_DATA_BYTES", 1000)
    path = tmp_path / ("a.jsonl.gz" if pack is gzip.compress else "a.jsonl")
    path.write_bytes(pack(b" " * 1000))
    assert task_data.read_task_text(path) == " " * 1000
    path.write_bytes(pack(b" " * 1001))
    with pytest.raises(DataProblem, match="it holds more than 1,000 bytes"):
        task_data.read_task_text(path)


def test_a_small_archive_of_much_data_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    block = gzip.compress(b" " * 2**24)  # 16 MiB in 16 kB
    path.write_bytes(block * 20)  # 320 MiB in 320 kB
    with pytest.raises(DataProblem, match="it holds more than"):
        task_data.read_task_text(path)
