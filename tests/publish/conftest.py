"""A small quantized model, the report that judged it, and a way to publish it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import hub_client
from camelpress.core.files.file_hashes import checkpoint_digest
from camelpress.core.text.tulu_format import TULU_CHAT_TEMPLATE
from camelpress.publish.run import run
from camelpress.publish.settings import PublishSettings
from camelpress.reporting.facts.validation_facts import ValidateFacts
from camelpress.reporting.facts_model import FactsModel
from camelpress.reporting.plots import card_plots
from camelpress.reporting.stage_report import Report
from camelpress.reporting.verdict import Check, Verdict
from hub_client import TOKEN, Place

QUANTIZATION = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 32,
    "desc_act": False,
    "sym": True,
    "checkpoint_format": "gptq",
    "damp_percent": 0.01,
}
CONFIG = {
    "model_type": "llama",
    "intermediate_size": 192,
    "max_position_embeddings": 2048,
    "quantization_config": QUANTIZATION,
}
HASHES = {name: name[0] * 64 for name in ("base", "diff", "calibration", "text", "reference")}
DRAW, DRAWN = card_plots.draw_card_plots, dict[str, bytes]()
PLACE = "/home/someone/models/reference"


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same facts are drawn once: a plot takes longer than all the rest of a release."""
    monkeypatch.setattr(card_plots, "draw_card_plots", _draw)


def _draw(facts: ValidateFacts, path: Path) -> None:
    key = repr(facts.record)
    if key not in DRAWN:
        DRAW(facts, path)
        DRAWN[key] = path.read_bytes()
    path.write_bytes(DRAWN[key])


@pytest.fixture
def candidate(tmp_path: Path) -> Path:
    """What quantize leaves behind, with the licence files of Tulu."""
    folder = tmp_path / "candidate"
    folder.mkdir()
    tensors = {
        "model.layers.0.mlp.down_proj.qweight": torch.arange(96, dtype=torch.int32).view(24, 4),
        "model.layers.0.mlp.down_proj.scales": torch.ones(6, 4, dtype=torch.float16),
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "quantize_config.json", QUANTIZATION)
    write_json(folder / "tokenizer_config.json", {"chat_template": TULU_CHAT_TEMPLATE})
    write_json(folder / "tokenizer.json", {"version": "1.0"})
    (folder / "LICENSE.txt").write_text("AI MODEL LICENSE AGREEMENT\n")
    (folder / "llama_license.txt").write_text("The licence of LLaMA\n")
    (folder / "training_args.bin").write_bytes(b"\x80\x04N.")
    (folder / "notes to self.txt").write_text("private")
    (folder / "logs").mkdir()
    calibration = {
        "files": [{"name": "conversations.json", "sha256": HASHES["calibration"]}],
        "format": "Tulu prompts",
        "samples": 128,
        "tokens": 262144,
        "sequence_length": 2048,
    }
    Report(
        stage="quantize",
        inputs={"source": HASHES["reference"]},
        settings={"bits": 4, "group_size": 32, "sym": True, "seed": 42, "correction": 0.5},
        facts=FactsModel.build(
            {
                "method": "gptq",
                "rescues": 0,
                "calibration": calibration,
                "layers": [],
                "device": "cpu",
                "threads": 2,
            }
        ),
        cost={"seconds": 12345.678},
    ).write(folder / "quantize-report.json")
    Report(
        stage="recover",
        inputs={"base": HASHES["base"], "diff": HASHES["diff"]},
        settings={},
        facts=FactsModel.build(
            {"dtype": "bfloat16", "representable": {"bfloat16": 1.0}, "tensors": []}
        ),
        cost={"seconds": 12345.678},
    ).write(folder / "recover-report.json")
    return folder


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """The 16-bit model, as far as a release looks at it."""
    folder = tmp_path / "recovered"
    folder.mkdir()
    return folder


@pytest.fixture
def judge(tmp_path: Path, candidate: Path) -> Callable[..., Path]:
    """Writes the report of validate for the candidate as it is now; keywords replace facts."""

    def judge(verdict: Verdict | None = Verdict.PASS, **changed: Any) -> Path:
        facts = {
            "protocol": "windows of 2048 tokens, BOS first",
            "reference": {"path": "recovered", "dtype": "bfloat16", "bytes": 1000},
            "candidate": {"path": "candidate", "bits": 4, "bits_per_weight": 4.156},
            "reference_perplexity": 3.53,
            "candidate_perplexity": 3.65,
            "perplexity_ratio": 1.034,
            "perplexity_ratio_interval": [1.03, 1.038],
            "kl_mean": 0.0123,
            "kl_mean_interval": [0.012, 0.0126],
            "kl_percentiles": {"50": 0.004, "99": 0.11, "max": 1.5},
            "top1_agreement": 0.953,
            "top1_agreement_interval": [0.951, 0.955],
            "tokens": 81920,
            "sequences": 40,
            "texts": [{"name": "novel", "sequences": 40, "tokens": 81920, "kl_mean": 0.0123}],
        }
        check = Check(
            name="perplexity_ratio",
            verdict=verdict or Verdict.ERROR,
            estimate=1.034,
            interval=(1.03, 1.038),
            threshold=1.05,
            direction="max",
            n=81920,
            clusters=40,
            reason=f"measured in {PLACE}",
        )
        folder = tmp_path / "report"
        folder.mkdir(exist_ok=True)
        Report(
            stage="validate",
            inputs={
                "reference": HASHES["reference"],
                "candidate": checkpoint_digest(candidate),
                "text:novel": HASHES["text"],
            },
            settings={"texts": [PLACE]},
            facts=FactsModel.build(facts | changed),
            checks=(check,) if verdict else (),
            verdict=verdict,
            cost={"seconds": 98765.432},
        ).write(folder / "report.json")
        (folder / "report.md").write_text(f"# Report on {PLACE}\n", encoding="utf-8")
        (folder / "report.html").write_text(f"<p>Report on {PLACE}</p>\n", encoding="utf-8")
        return folder

    return judge


@pytest.fixture
def publish(
    tmp_path: Path, candidate: Path, judge: Callable[..., Path]
) -> Callable[..., tuple[Path, Report]]:
    """Publishes the candidate under Tulu's licence; keywords are settings."""
    judge()

    def publish(out: str = "release", force: bool = False, **settings: Any) -> tuple[Path, Report]:
        values = {"license": "tulu", "name": "Tulu 65B GPTQ"} | settings
        chosen = PublishSettings.parse(values, source="test")
        return tmp_path / out, run(
            candidate, tmp_path / "report", tmp_path / out, chosen, force=force
        )

    return publish


@pytest.fixture
def place(
    candidate: Path, judge: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """A candidate that passed, and a hub to publish it to."""
    with hub_client.talking(monkeypatch, TOKEN) as hub:
        yield Place(hub, candidate, judge(), judge, monkeypatch, [])
