"""Configs that contradict their tensors: stages go by the tensors, and write what is true."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import damage
import stages
from camelpress.core.errors import Problem
from camelpress.reporting.stage_report import Report
from command import Run

Stage = Callable[[Path], Report]
LEFT_OVER = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@pytest.fixture
def merged(tuned: Path, tmp_path: Path) -> Path:
    """A QLoRA that was merged, whose config still says that it is packed."""
    return damage.with_config(tuned, tmp_path / "merged", quantization_config=LEFT_OVER)


def config(folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return told


def test_every_stage_reads_plain_weights_as_plain(stage: Stage, base: Path, tmp_path: Path) -> None:
    folder = damage.with_config(base, tmp_path / "model", quantization_config=LEFT_OVER)
    try:
        stage(folder)
    except Problem as problem:  # base handed in where a diff or a tuned model belongs
        assert "quantized" not in problem.message


def test_a_merged_model_goes_from_its_diff_to_its_release_form(
    base: Path, merged: Path, tuned: Path, chat: Path, tmp_path: Path
) -> None:
    stages.make_diff(base, merged, tmp_path / "diff")
    stages.recover(base, tmp_path / "diff", tmp_path / "recovered")
    again = load_file(tmp_path / "recovered" / "model.safetensors")
    for name, tensor in load_file(tuned / "model.safetensors").items():
        assert again[name].equal(tensor), name
    report = stages.quantize(merged, tmp_path / "packed", chat)
    assert report.facts.record["config_changes"] == [
        "quantization_config of bitsandbytes is left over, since the weights are plain bfloat16"
    ]
    usual = stages.quantize(tuned, tmp_path / "usual", chat)
    assert usual.facts.record["config_changes"] == []
    for name in ("model.safetensors", "quantize_config.json"):
        assert (tmp_path / "packed" / name).read_bytes() == (tmp_path / "usual" / name).read_bytes()
    for folder in ("diff", "recovered"):
        assert "quantization_config" not in config(tmp_path / folder)
    judged = stages.validate(merged, tmp_path / "packed", tmp_path / "report", chat)
    assert (
        judged.facts.record["reference"]["config_changes"] == report.facts.record["config_changes"]
    )


def test_a_diff_and_a_base_with_a_left_over_key_are_added(
    base: Path, tuned: Path, tmp_path: Path
) -> None:
    stages.make_diff(base, tuned, tmp_path / "diff")
    marked_base, marked_diff = (
        damage.with_config(folder, tmp_path / f"{name}-marked", quantization_config=LEFT_OVER)
        for name, folder in (("base", base), ("diff", tmp_path / "diff"))
    )
    stages.recover(marked_base, marked_diff, tmp_path / "out")
    assert "quantization_config" not in config(tmp_path / "out")


def test_the_output_says_that_its_head_is_its_own(base: Path, chat: Path, tmp_path: Path) -> None:
    tied = damage.with_config(base, tmp_path / "tied", tie_word_embeddings=True)
    report = stages.quantize(tied, tmp_path / "out", chat)
    assert config(tmp_path / "out")["tie_word_embeddings"] is False
    assert "lm_head is another matrix" in report.facts.record["config_changes"][0]
    usual = stages.quantize(base, tmp_path / "usual", chat)
    assert usual.facts.record["layers"] == report.facts.record["layers"]
    judged = stages.validate(tied, tied, tmp_path / "report", chat)
    same = stages.validate(base, base, tmp_path / "same", chat)
    key = "reference_perplexity"
    assert judged.facts.record[key] == same.facts.record[key]


def test_a_recovered_model_is_tied_only_where_its_sums_are(
    base: Path, tuned: Path, tmp_path: Path
) -> None:
    tensors = load_file(tuned / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    damage.with_tensors(tuned, tmp_path / "same", tensors)
    truly = damage.with_config(tmp_path / "same", tmp_path / "truly", tie_word_embeddings=True)
    falsely = damage.with_config(tuned, tmp_path / "falsely", tie_word_embeddings=True)
    for folder, expected in ((truly, True), (falsely, False)):
        stages.make_diff(base, folder, tmp_path / f"{folder.name}-diff")
        stages.recover(base, tmp_path / f"{folder.name}-diff", tmp_path / f"{folder.name}-out")
        assert config(tmp_path / f"{folder.name}-out")["tie_word_embeddings"] is expected


def test_the_command_line_says_what_it_reads_otherwise(merged: Path, run: Run) -> None:
    ended = run("inspect", merged)
    assert ended.code == 0
    assert "quantization_config of bitsandbytes is left over" in " ".join(ended.err.split())
    assert json.loads(run("inspect", merged, "--json").out)["quantization"] is None
