"""Sequences longer than the model has positions."""

from __future__ import annotations

from pathlib import Path

import pytest

import damage
import stages
from camelpress.core.errors import RecipeProblem
from refusal import refusal


@pytest.mark.parametrize("length", [129, 2048])
def test_calibration_sequences_longer_than_the_positions_are_refused(
    base: Path, chat: Path, out: Path, length: int
) -> None:
    with refusal(
        RecipeProblem,
        f"sequence_length {length} exceeds the 128 positions of {base}",
        next_step="use --sequence-length 128 or less",
        exit_code=2,
        out=out,
    ):
        stages.quantize(base, out, chat, sequence_length=length)


def test_a_sliding_window_counts_as_positions(
    base: Path, chat: Path, tmp_path: Path, out: Path
) -> None:
    narrow = damage.with_config(base, tmp_path / "narrow", sliding_window=32)
    with refusal(
        RecipeProblem,
        f"sequence_length 64 exceeds the 32 positions of {narrow}",
        next_step="use --sequence-length 32 or less",
        exit_code=2,
        out=out,
    ):
        stages.quantize(narrow, out, chat)


def test_scoring_takes_windows_that_both_models_can_read(
    base: Path, chat: Path, tmp_path: Path, out: Path
) -> None:
    short = damage.with_config(stages.widened(base), tmp_path / "short", max_position_embeddings=48)
    report = stages.validate(base, short, out, chat, sequence_length=2048)
    assert "disjoint windows of 48 tokens" in report.facts.record["protocol"]
