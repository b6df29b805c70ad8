"""What differs between two releases, and nothing that does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from camelpress.core.errors import CheckpointProblem
from camelpress.core.progress import use_listener
from camelpress.publish.release_diff import diff_releases
from camelpress.reporting.facts_model import FactsModel
from camelpress.reporting.report_classes import read_report
from camelpress.reporting.stage_report import Report
from camelpress.reporting.verdict import Verdict
from notes import Notes

Publisher = Callable[..., tuple[Path, Report]]
Judge = Callable[..., Path]
LAYER = "model.layers.0.mlp.down_proj"


@pytest.fixture
def one(publish: Publisher) -> Path:
    return publish("one", name="Tulu")[0]


def differences(one: Path, other: Path) -> dict[str, list[str]]:
    report = diff_releases(one, other)
    found: dict[str, list[str]] = report.facts.record["differences"]
    assert (report.verdict is Verdict.FAIL) == any(found.values())
    return {kind: lines for kind, lines in found.items() if lines}


def test_two_of_the_same_do_not_differ(one: Path, publish: Publisher) -> None:
    assert differences(one, publish("other", name="Tulu")[0]) == {}


def test_everything_that_was_changed_is_told(
    one: Path, publish: Publisher, candidate: Path, judge: Judge
) -> None:
    tensors = load_file(candidate / "model.safetensors")
    tensors[f"{LAYER}.qweight"][0, :3] += 1
    tensors[f"{LAYER}.scales"] = tensors[f"{LAYER}.scales"].float()
    tensors["extra"] = torch.zeros(2)
    save_file(tensors, candidate / "model.safetensors")
    config = json.loads((candidate / "config.json").read_text())
    config["rope"] = {"theta": 1}
    (candidate / "config.json").write_text(json.dumps(config))
    judge(kl_mean=0.02, texts=[{"name": "novel", "sequences": 40, "kl_mean": 0.02}])
    assert differences(one, publish("other", name="Tulu")[0]) == {
        "config": ["rope: None, {'theta': 1}"],
        "tensors": [
            "extra: none, torch.float32 [2]",
            f"{LAYER}.qweight: 3 of 96 values",
            f"{LAYER}.scales: torch.float16 [6, 4], torch.float32 [6, 4]",
        ],
        "figures": [
            "mean KL divergence, nats a token: 0.0123, 0.02",
            "novel, tokens: 81,920, not recorded",
            "novel, mean KL: 0.0123, 0.02",
        ],
        "files": [
            "README.md: other bytes",
            "SHA256SUMS: other bytes",
            "bom.cdx.json: other bytes",
            "config.json: other bytes",
            "provenance.json: other bytes",
            "validation/report.json: other bytes",
        ],
    }


def test_texts_and_benchmarks_of_one_side_only_are_told(
    one: Path, publish: Publisher, judge: Judge
) -> None:
    task = {"name": "gsm", "n": 8, "reference_accuracy": 0.5, "candidate_accuracy": 0.25}
    judge(texts=[], tasks=[task])
    assert differences(one, publish("other", name="Tulu")[0])["figures"] == [
        "novel, sequences: 40, not recorded",
        "novel, tokens: 81,920, not recorded",
        "novel, mean KL: 0.0123, not recorded",
        "gsm, reference: not recorded, 0.5",
        "gsm, this model: not recorded, 0.25",
        "gsm, items: not recorded, 8",
    ]


def test_not_a_number_is_the_same_as_itself(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        save_file({"x": torch.tensor([float("nan")])}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text("{}")
    assert differences(tmp_path / "one", tmp_path / "other") == {}


def test_what_is_no_checkpoint_is_told(one: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointProblem):
        diff_releases(one, tmp_path / "nothing")


def test_the_report_of_other_weights_is_not_compared(one: Path, publish: Publisher) -> None:
    other = publish("other", name="Tulu")[0]
    path = other / "quantize-report.json"
    changes = {
        "facts": FactsModel.build({"method": "rtn"}),
        "outputs": {"model.safetensors": "0" * 64},
    }
    read_report(path).model_copy(update=changes).write(path)
    notes = Notes()
    with use_listener(notes):
        figures = differences(one, other)["figures"]
    assert f"{path} lists other weights than those beside it" in notes.heard[0]
    assert len(notes.heard) == 1
    assert not any("rtn" in line for line in figures)
