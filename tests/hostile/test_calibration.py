"""Calibration texts, and words about them, with which nothing can be done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import stages
from camelpress.core.errors import DataProblem, RecipeProblem
from refusal import refusal


def text(folder: Path, name: str, content: str) -> Path:
    (folder / name).write_text(content, encoding="utf-8")
    return folder / name


def test_less_than_one_sequence_is_refused(base: Path, tmp_path: Path, out: Path) -> None:
    with refusal(
        RecipeProblem,
        "the calibration texts hold 63 tokens, less than one sequence of 64",
        next_step="give more text, or a shorter --sequence-length",
        exit_code=2,
        out=out,
    ):
        stages.quantize(base, out, text(tmp_path, "a.txt", "a" * 62))
    stages.quantize(base, out, text(tmp_path, "a.txt", "a b" * 21), samples=1)


def test_a_short_source_beside_a_long_one_is_taken(
    base: Path, prose: Path, tmp_path: Path, out: Path
) -> None:
    report = stages.quantize(base, out, prose, text(tmp_path, "a.txt", "sea"))
    assert [file["tokens"] for file in report.facts.record["calibration"]["files"]] == [124, 4]


def test_an_unknown_layout_is_named_with_its_line(
    base: Path, chat: Path, tmp_path: Path, out: Path
) -> None:
    odd = text(tmp_path, "odd.jsonl", '\n{"question": "Q", "answer": "A"}\n')
    with refusal(
        RecipeProblem,
        f"{odd} has no row that can be used: {odd}:2 is left out because it has only the fields "
        "answer, question",
        next_step="rename question to inputs and answer to targets, as in FLAN's layout",
        exit_code=2,
        out=out,
    ):
        stages.quantize(base, out, chat, odd)


@pytest.mark.parametrize(
    ("name", "fault", "next_step"),
    [
        (
            "data.parquet",
            "is a Parquet file, and no text",
            "name its columns like a known layout (text; instruction, output; inputs, targets) and "
            "convert it to JSON lines: pandas.read_parquet(FILE).to_json('rows.jsonl', "
            "orient='records', lines=True)",
        ),
        (
            "data.tar.gz",
            "is no whole gzip file (BadGzipFile)",
            "download it again, or give it unpacked",
        ),
    ],
)
def test_a_binary_file_is_refused(
    base: Path, tmp_path: Path, out: Path, name: str, fault: str, next_step: str
) -> None:
    (tmp_path / name).write_bytes(b"PAR1\xff\xfe")
    with refusal(
        RecipeProblem,
        f"{tmp_path / name} {fault}",
        next_step=next_step,
        exit_code=2,
        out=out,
    ):
        stages.quantize(base, out, tmp_path / name)


@pytest.mark.parametrize(
    ("weight", "fault"),
    [
        ("0", "greater than 0"),
        ("-1", "greater than 0"),
        ("-0.5", "greater than 0"),
        ("1e999", "a finite number"),
    ],
)
@pytest.mark.parametrize("written", ["string", "mapping"])
def test_a_weight_that_is_not_positive_is_refused(
    base: Path, chat: Path, out: Path, weight: str, fault: str, written: str
) -> None:
    mapping = {"source": chat, "weight": float(weight)}
    source = f"{chat}={weight}" if written == "string" else mapping
    with refusal(
        RecipeProblem,
        f"test: calibration.0.weight: Input should be {fault}",
        next_step="correct these entries",
        exit_code=2,
        out=out,
    ):
        stages.quantize(base, out, calibration=[source])


def test_a_weight_too_small_for_a_token_is_refused(
    base: Path, chat: Path, prose: Path, out: Path
) -> None:
    with refusal(
        RecipeProblem,
        "chat.jsonl has too small a weight to give a single token",
        next_step="give it a larger weight, or more --samples",
        exit_code=2,
        out=out,
    ):
        stages.quantize(base, out, calibration=[f"{chat}=0.000001", str(prose)])


def test_conversations_without_an_answer_in_reach_are_refused(
    base: Path, tmp_path: Path, out: Path
) -> None:
    asked = {"task_prompt": "sea " * 40, "task_output": "sea"}
    path = text(tmp_path, "long.jsonl", json.dumps(asked) + "\n")
    with refusal(
        RecipeProblem,
        f"none of the 1 conversations of {path} has an answer in its first 64 tokens",
        next_step="use a longer --sequence-length, or another text",
        exit_code=2,
        out=out,
    ):
        stages.quantize(base, out, path)


def test_shares_that_end_before_every_answer_are_refused(
    base: Path, tmp_path: Path, out: Path
) -> None:
    asked = {"task_prompt": "sea " * 8, "task_output": "sea"}
    paths = [
        text(tmp_path, f"{name}.jsonl", f"{json.dumps(asked)}\n" * 4) for name in ("a", "b", "c")
    ]
    options: dict[str, Any] = {
        "samples": 1,
        "sequence_length": 100,
        "calibration_mask": "assistant",
    }
    with refusal(
        RecipeProblem,
        "none of the 100 tokens drawn counts: every answer is cut off",
        next_step="use --calibration-mask all, or more --samples",
        exit_code=2,
        out=out,
    ):
        stages.quantize(base, out, *paths, **options)


def test_two_sources_of_one_name_are_refused(
    base: Path, chat: Path, tmp_path: Path, out: Path
) -> None:
    with refusal(
        RecipeProblem,
        "two texts are called chat.jsonl",
        next_step="rename one of them",
        exit_code=2,
        out=out,
    ):
        stages.quantize(base, out, chat, text(tmp_path, "chat.jsonl", chat.read_text()))


def test_a_data_set_out_of_reach_is_told(base: Path, out: Path) -> None:
    with refusal(
        DataProblem,
        "the hub is out of reach (OfflineModeIsEnabled) and org/nowhere is not all in its cache",
        next_step="run the same command once with a connection and without HF_HUB_OFFLINE",
        out=out,
    ):
        stages.quantize(base, out, Path("hf:org/nowhere:chat.jsonl"))
