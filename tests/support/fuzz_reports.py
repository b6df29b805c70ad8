"""Fuzz targets of reports, samples, cards, releases, lock files, judges and benchmark data."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from camelpress.core.errors import Problem
from camelpress.core.files.file_hashes import sha256_file
from camelpress.pipeline.run import PipelineLock
from camelpress.publish.card.card_markdown import read_front_matter
from camelpress.publish.card.hub_access import merge_access_fields, read_source_card
from camelpress.publish.release import checksums
from camelpress.reporting.rendering import html_page
from camelpress.reporting.report_classes import ValidationReport
from camelpress.reporting.tables import validation_tables
from camelpress.validate.benchmarks import samples
from camelpress.validate.benchmarks.response_cache import RESPONSE_CHECKS, ResponseCache
from camelpress.validate.gate import report_files
from camelpress.validate.judge.annotations import AnnotationFile
from camelpress.validate.judge.chat_completion import (
    parse_completion,
    parse_error,
    parse_retry_after,
)
from camelpress.validate.settings import Gate, ReportSettings
from camelpress.validate.tasks import task_data
from fuzzing import target
from mutations import dump, either, mutate_bytes, mutate_json

SHA = "5e" * 32
ANSWER = {"score": 1.0, "responses": ["a whale"], "sha256": SHA, "verdicts": [
    {"shown_first": True, "won": 1.0}, {"shown_first": False, "won": None}]}  # fmt: skip
SAMPLE: dict[str, Any] = {
    "task": "gsm",
    "models": {"reference": SHA, "candidate": SHA},
    "item": "7",
    "part": "",
    "flip": "lost",
    "prompt": "How many whales?",
    "target": "7",
    "metric": "exact_match",
    "reference": ANSWER,
    "candidate": {**ANSWER, "score": 0.0, "responses": [[-1.5, True], [-2.5, False]],
                  "chosen": " six"},
    "judge": "a judge",
    "direct": [{"shown_first": True, "won": 0.5}],
}  # fmt: skip
MODEL = {"path": "org/camel", "architecture": "LlamaForCausalLM", "parameters": 10, "dtype":
         "bfloat16", "bytes": 20, "bits": 4, "group_size": 128, "sym": True,
         "bits_per_weight": 4.25}  # fmt: skip
PART: dict[str, Any] = {
    "tokens": 900,
    "sequences": 30,
    "reference_perplexity": 9.5,
    "candidate_perplexity": 9.75,
    "perplexity_ratio": 1.026,
    "perplexity_ratio_interval": [1.02, 1.03],
    "kl_mean": 0.01,
    "kl_mean_interval": [0.008, 0.012],
    "top1_agreement": 0.95,
    "top1_agreement_interval": [0.94, 0.96],
}
DUEL = {"pairs": 4, "verdicts": 8, "win_rate": 0.5, "win_rate_interval": [0.2, 0.8],
        "length_controlled": 0.5, "length_controlled_interval": None, "characters": -3.0,
        "draws": 1, "first_shown": 0.5, "agreement": None, "unread": 0}  # fmt: skip
TASK: dict[str, Any] = {
    "name": "gsm",
    "title": "GSM",
    "n": 40,
    "of": 200,
    "lost": 3,
    "won": 1,
    "reference_accuracy": 0.5,
    "candidate_accuracy": 0.45,
    "delta": -0.05,
    "delta_interval": [-0.15, 0.05],
    "p_value": 0.3,
    "detectable_loss": 0.2,
    "quirks": {"bos": "no BOS"},
    "judged": {"judge": "a judge", "against": "davinci", "reference": DUEL, "candidate": DUEL,
               "direct": DUEL},
}  # fmt: skip
MEANS = {"reference": 0.5, "candidate": 0.45, "delta": -0.05, "delta_interval": [-0.1, 0.1]}
FACTS: dict[str, Any] = {
    **PART,
    "protocol": "documents",
    "reference": {**MODEL, "bits": None},
    "candidate": MODEL,
    "kl_percentiles": {"50": 0.001, "99": 0.1, "max": 1.0},
    "kl_percentiles_interval": {"99": [0.05, 0.2]},
    "kl_histogram": {"edges": [0.0, 0.001, 0.01, 0.1], "counts": [500, 300, 100]},
    "by_position": {"edges": [0, 128, 256], "kl_mean": [0.01, None], "tokens": [900, 0],
                    "log_ratio": [0.02, None]},
    "kl_by_confidence": {"edges": [0.0, 0.5, 1.0], "kl_mean": [0.02, 0.01], "tokens": [400, 500]},
    "early": {"context": 128, "first": PART, "rest": None},
    "texts": [{**PART, "name": "chat.jsonl"}],
    "blocks": [{"relative_error": 0.1, "sqnr_db": 20.0, "worst": True}],
    "non_finite": {"reference": 0, "candidate": 0},
    "noise_floor": {"kl_mean": 1e-5, "perplexity_ratio_interval": [0.999, 1.001]},
    "tasks": [TASK],
    "tasks_missing": {"bbh": "no data"},
    "averages": {**MEANS, "name": "Average", "complete": False, "benchmarks": {"gsm": MEANS},
                 "missing": ["bbh"]},
    "probability_change": {"mean": -0.001, "rms": 0.01},
    "vocabularies": {"reference": 32000, "candidate": 32000},
}  # fmt: skip
GATE = {"perplexity_ratio": {"max": 1.035}, "kl_mean": {"max": 0.03},
        "top1_agreement": {"min": 0.94}, "non_finite": {"max": 0},
        "texts": {"*.jsonl": {"kl_mean": {"max": 0.05}}},
        "tasks": {"gsm": {"margin": 0.1, "significance": 0.05}}}  # fmt: skip
REPORT: dict[str, Any] = {
    "schema_version": 1,
    "stage": "validate",
    "version": "0.1.0",
    "inputs": {"reference": SHA, "candidate": SHA, "text:chat.jsonl": SHA},
    "outputs": {},
    "settings": {"protocol": "documents", "gate": GATE},
    "facts": FACTS,
    "verdict": "PASS",
    "cost": {"seconds": 1.0, "peak_bytes": 10},
}
CARD = b"""---
license: other
language: [en]
extra_gated_prompt: "You agree"
extra_gated_fields:
  Name: text
  Purpose: {type: select, options: [research, other]}
extra_gated_button_content: Send
date: 2023-06-09
model-index:
- name: camel
  results:
  - metrics:
    - {type: perplexity, value: 1.5e1}
---
# A camel
"""
LOCK = {"stages": {"recover": {"made_from": {"version": "0.1.0", "settings": SHA, "inputs": {}},
                               "output": SHA}},
        "files": {"/data/base": [10, 20, SHA]}}  # fmt: skip
REPLY = {"choices": [{"message": {"content": "Output (a)"}}],
         "usage": {"prompt_tokens": 10, "completion_tokens": 3}}  # fmt: skip
ANNOTATION = {"instruction": "Say whale", "output_1": "whale", "output_2": "camel",
              "preference": 1, "annotator": "a judge"}  # fmt: skip
ROWS = {"question": "How many?", "answer": "Seven.\n#### 7"}
JSON = either(mutate_json, mutate_bytes)


def _lines(row: object) -> bytes:
    return dump(row) + b"\n"


@target("samples", seeds=lambda _: [_lines(SAMPLE)], mutate=JSON)
def read_flips(content: bytes, folder: Path) -> None:
    """Lists the flips of a report whose samples are damaged."""
    place = folder / samples.SAMPLES_FOLDER / "gsm.jsonl"
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(content)
    report = ValidationReport.model_validate(
        REPORT | {"verdict": None, "facts": FACTS}, strict=False
    )
    outputs_of = {f"{samples.SAMPLES_FOLDER}/gsm.jsonl": sha256_file(place)}
    report = report.model_copy(update={"outputs": outputs_of})
    changed = [*samples.read_flips(report, folder)]
    for line in changed:
        validation_tables.flip_row(line)
    html_page.render_flips(report, changed)


@target("report", seeds=lambda _: [dump(REPORT)], mutate=JSON)
def judge_report(content: bytes, folder: Path) -> None:
    """Judges a damaged report again and writes it in every form."""
    path = folder / "report.json"
    path.write_bytes(content)
    report = report_files.regate_report(path, None)
    report_files.write_report_files(report, folder, ReportSettings())
    report_files.regate_report(path, Gate.parse(GATE, source="gate"))


@target("card", seeds=lambda _: [CARD])
def read_gated_card(content: bytes, folder: Path) -> None:
    """Reads the gate of a damaged card."""
    path = folder / "README.md"
    path.write_bytes(content)
    merge_access_fields([read_source_card(str(path))])


@target("front-matter", seeds=lambda _: [CARD])
def read_matter(content: bytes, folder: Path) -> None:
    """Reads the front matter of a damaged card."""
    read_front_matter(content.decode("utf-8", "replace"), source="README.md")


@target("checksums", seeds=lambda _: [f"{SHA}  model.safetensors\n{SHA} *a/b.json\n".encode()])
def read_checksums(content: bytes, folder: Path) -> None:
    """Reads a damaged manifest."""
    path = folder / "SHA256SUMS"
    path.write_bytes(content)
    for name in checksums.read_checksums(path)[0]:
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise AssertionError(f"{name!r} leads out of the folder")


@target("lockfile", seeds=lambda _: [dump(LOCK)], mutate=JSON)
def read_lock(content: bytes, folder: Path) -> None:
    """Opens a damaged lock file, which is never an error: its stages run again."""
    path = folder / "camelpress.lock"
    path.write_bytes(content)
    try:
        PipelineLock(path)
    except Problem as problem:
        raise AssertionError("a lock file stops a run") from problem


def _judge_seeds(_: Path) -> Sequence[bytes]:
    return [dump(REPLY), dump({"error": {"code": "insufficient_quota", "message": "no credit"}})]


@target("judge", seeds=_judge_seeds, mutate=JSON)
def read_answer_of_judge(content: bytes, _: Path) -> None:
    """Reads a damaged answer of a judge."""
    parse_completion(content)
    parse_error(content)


@target("retry-after", seeds=lambda _: [b"120", b"Fri, 31 Dec 1999 23:59:59 GMT"])
def read_retry_after(content: bytes, _: Path) -> None:
    """Reads a damaged header of a judge."""
    parse_retry_after(content.decode("latin-1"))


@target("annotations", seeds=lambda _: [_lines(ANNOTATION)], mutate=JSON)
def read_annotations(content: bytes, folder: Path) -> None:
    """Reads damaged verdicts, as JSON lines and as a list."""
    path = folder / "verdicts.jsonl"
    path.write_bytes(content)
    AnnotationFile(path, None)
    path = folder / "verdicts.json"
    path.write_bytes(b"[" + content.strip() + b"]")
    AnnotationFile(path, None)


@target("answers", seeds=lambda _: [_lines({SHA: [-1.5, True]})], mutate=JSON)
def read_answers(content: bytes, folder: Path) -> None:
    """Reads damaged answers, which are asked again."""
    ResponseCache({"model": SHA}, folder)
    path = next(folder.glob("*.jsonl"))
    path.write_bytes(content)
    answers = ResponseCache({"model": SHA}, folder)
    for form in RESPONSE_CHECKS:
        if answers.has(SHA, form):
            json.dumps(answers[SHA])


@target("task-data-gz", seeds=lambda _: [gzip.compress(_lines(ROWS))])
def read_packed_task_data(content: bytes, folder: Path) -> None:
    """Reads a damaged compressed file of benchmark items."""
    _read_rows(folder / "test.jsonl.gz", content)


@target("task-data", seeds=lambda _: [_lines(ROWS)], mutate=JSON)
def read_task_data(content: bytes, folder: Path) -> None:
    """Reads damaged benchmark items."""
    _read_rows(folder / "test.jsonl", content)


def _read_rows(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for place, row in task_data.read_json_lines(path):
        task_data.require_type(row.get("question"), str, place)
