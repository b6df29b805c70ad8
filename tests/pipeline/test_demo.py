"""The embedded pair: a genuine diff, small enough to ship, that feels four bits."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from camelpress.convert.recover.make_diff import make_diff
from camelpress.convert.recover.run import recover
from camelpress.convert.settings import MakeDiffSettings, RecoverSettings
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.documents.document_reader import read_documents
from camelpress.pipeline import demo
from camelpress.reporting.verdict import Verdict

DATA = Path(str(files("camelpress") / "data" / "demo"))


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> demo.DemoResult:
    """The whole demo, run once."""
    return demo.run_demo(tmp_path_factory.mktemp("demo"))


def test_base_and_diff_are_at_most_4_mb() -> None:
    sizes = [path.stat().st_size for path in DATA.rglob("*") if path.is_file()]
    assert sum(sizes) <= 4_000_000


def test_the_diff_is_exact_and_can_be_made_again(tmp_path: Path) -> None:
    base, diff = Checkpoint.open(DATA / "base"), Checkpoint.open(DATA / "diff")
    report = recover(base, diff, tmp_path / "recovered", RecoverSettings())
    assert report.facts.record["dtype"] == "bfloat16"
    assert report.facts.record["representable"]["bfloat16"] == 1.0
    make_diff(base, Checkpoint.open(tmp_path / "recovered"), tmp_path / "diff", MakeDiffSettings())
    again, shipped = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "diff", DATA / "diff")
    )
    assert again.keys() == shipped.keys()
    for name, tensor in shipped.items():
        torch.testing.assert_close(again[name], tensor, rtol=0, atol=1e-9)
    recover(base, Checkpoint.open(tmp_path / "diff"), tmp_path / "again", RecoverSettings())
    first, second = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("recovered", "again")
    )
    assert first == second


def test_calibration_and_evaluation_share_no_conversation() -> None:
    calibration = set(read_documents(DATA / "calibration.jsonl"))
    assert calibration.isdisjoint(read_documents(DATA / "evaluation.jsonl"))


def test_no_text_of_the_evaluation_overlaps_the_calibration(shown: demo.DemoResult) -> None:
    told = shown.outcome.reports["validate"].facts.record["overlap"]
    assert told["checked"]
    assert [text["overlapping"] for text in told["texts"]] == [0, 0]


def test_gptq_passes_the_gate_and_plain_rounding_does_not(shown: demo.DemoResult) -> None:
    solved, rounded = shown.outcome.reports["validate"], shown.round_to_nearest
    assert (solved.verdict, rounded.verdict) == (Verdict.PASS, Verdict.FAIL)
    assert 1.0 < solved.facts.record["perplexity_ratio"] < rounded.facts.record["perplexity_ratio"]
    assert solved.facts.record["kl_mean"] < rounded.facts.record["kl_mean"]


def test_the_demo_ends_in_a_report_and_a_release(shown: demo.DemoResult) -> None:
    assert shown.report_page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert (shown.recipe.out / "release" / "SHA256SUMS").is_file()
