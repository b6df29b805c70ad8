"""One row and one formula are a metric, and every surface shows it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import pico
from camelpress.reporting.facts_model import FactsModel
from camelpress.reporting.metrics import METRICS, Metric, metrics_on
from camelpress.reporting.report_classes import ValidationReport
from camelpress.validate.scoring import divergence
from camelpress.validate.scoring.metric_formulas import FORMULAS
from camelpress.validate.scoring.token_formulas import TOKEN_FORMULAS

SCRIPT = Path(__file__).parents[1] / "support/added_metrics.py"
REASON = "a store has no logits to compute it from; validate against the model itself"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all outputs of a run with two metrics more."""
    place = tmp_path_factory.mktemp("added")
    pico.write_model(place / "base")
    pico.write_text(place / "prose.txt", words=1200)
    subprocess.run([sys.executable, SCRIPT, place], check=True, capture_output=True)
    return place


@pytest.fixture(scope="module")
def outcome(place: Path) -> Any:
    return json.loads((place / "outcome.json").read_text(encoding="utf-8"))


def test_every_computed_metric_has_a_formula_and_every_formula_a_metric() -> None:
    computed = {key for key, metric in METRICS.items() if metric.is_computed}
    assert computed == FORMULAS.keys() | TOKEN_FORMULAS.keys()


def test_every_row_has_its_key_and_a_text_where_it_appears() -> None:
    for key, metric in METRICS.items():
        assert metric.key == key
        assert metric.limits is not None or metric.default_limit is None
    for surface in ("page", "card", "card_column", "bom", "terminal"):
        for metric in metrics_on(surface):
            names = {"reference": "R", "value": 1.5, "estimate": "E"}
            assert "{" not in metric.text(surface, **names)


def test_texts_of_a_row_are_made_of_title_and_unit() -> None:
    metric = Metric("gap", "Mean gap", "nats", card="gap to the {reference}")
    assert metric.text("bom", reference="model") == "mean gap, nats"
    assert metric.text("card_column") == "mean gap"
    assert metric.text("card", reference="model") == "gap to the model"
    assert Metric("kl", "KL at most", "%").text("card") == "KL at most"


def test_a_limit_is_a_minimum_where_the_best_value_is_the_highest() -> None:
    directions = {key: metric.direction for key, metric in METRICS.items() if metric.limits}
    lowest = {key for key, direction in directions.items() if direction == "min"}
    assert lowest == {"top1_agreement", "top5_agreement"}


def test_a_value_is_read_at_its_path_if_the_facts_have_it() -> None:
    blocks = [{"relative_error": 0.5}, {"relative_error": None}]
    facts = FactsModel.build({"blocks": blocks})
    assert METRICS["block_error"].value(facts) == 0.5
    assert METRICS["kl_mean"].value(facts) is None
    metric = Metric("b", "B", path="a/b")
    records: list[dict[str, Any]] = [{"a": a} for a in (None, 1, "x", [1], {"a": 2})]
    assert [metric.value(FactsModel.build(record)) for record in records] == [None] * 5
    assert metric.value(None) is metric.interval(None) is None


def test_a_token_formula_sees_log_probabilities_of_both_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[torch.Tensor] = []

    def formula(*arguments: torch.Tensor) -> torch.Tensor:
        seen.extend(arguments)
        return torch.full((len(arguments[0]),), 2.0)

    for key in [*TOKEN_FORMULAS]:
        monkeypatch.delitem(TOKEN_FORMULAS, key)
    monkeypatch.setitem(TOKEN_FORMULAS, "gap", formula)
    log_p, log_q = torch.randn(2, 3, 60).log_softmax(dim=-1)
    targets = torch.tensor([1, 2, 3])
    scores = divergence.compare_log_probs(log_p, log_q, targets)
    assert [
        entry is argument for entry, argument in zip(seen, (log_p, log_q, targets), strict=True)
    ]
    assert scores.formula_values.tolist() == [[2.0]] * 3
    buffer = divergence.TokenMetrics.allocate(5)
    buffer.write(slice(1, 4), scores)
    assert buffer.formula_values[1:4].tolist() == [[2.0]] * 3


def test_a_new_metric_is_in_report_and_schemas(place: Path, outcome: Any) -> None:
    facts = ValidationReport.read(place / "validation" / "report.json").facts.record
    for part in (facts, facts["early"]["first"], facts["texts"][0]):
        low, high = part["test_gap_interval"]
        assert 0 < low < part["test_gap"] < high
        assert 0 < part["test_share"] <= 1
    assert outcome["gate"]["properties"]["test_gap"]["properties"]["max"] == {"minimum": 0.0}
    assert "MinLimit" in str(outcome["gate"]["properties"]["test_share"])
    for name in ("ValidateFacts", "TextFigures", "TextFacts"):
        properties = outcome["report"]["$defs"][name]["properties"]
        assert properties["test_gap"]["description"] == "mean test gap, logits"
        assert "test_share_interval" in properties


def test_log_probabilities_less_their_mean_are_logits_less_their_mean() -> None:
    logits = torch.randn(4, 50)
    centred = [rows - rows.mean(dim=-1, keepdim=True) for rows in (logits, logits.log_softmax(-1))]
    torch.testing.assert_close(*centred)


def test_a_new_metric_is_judged_and_in_junit(place: Path) -> None:
    checks = ValidationReport.read(place / "validation" / "report.json").checks
    verdicts = {(check.name, check.part): check.verdict for check in checks}
    assert verdicts["test_gap", None] == verdicts["test_share", None] == "PASS"
    assert verdicts["test_gap", "first 128 tokens"] == "FAIL"
    junit = (place / "validation" / "junit.xml").read_text(encoding="utf-8")
    assert "Mean test gap: " in junit and "Share of test tokens: " in junit


def test_a_new_metric_is_on_page_and_in_markdown(place: Path) -> None:
    page = (place / "validation" / "report.html").read_text(encoding="utf-8")
    head = '<th scope="col" class="number">Mean test gap,<br>95 % interval</th>'
    assert page.count(head) == 2
    assert page.count("Share of test tokens,<br>") == 2
    summary = (place / "validation" / "report.md").read_text(encoding="utf-8")
    assert summary.count("| Mean test gap | Share of test tokens |") == 2


def test_a_new_metric_is_on_card_bom_and_terminal(place: Path, outcome: Any) -> None:
    card = (place / "release" / "README.md").read_text(encoding="utf-8")
    assert "\n| mean test gap, logits | 0." in card
    assert "| mean test gap | share of test tokens |" in card
    bom = json.loads((place / "release" / "bom.cdx.json").read_text(encoding="utf-8"))
    analysis = bom["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]
    entries = {entry["type"]: entry for entry in analysis["performanceMetrics"]}
    assert "confidenceInterval" in entries["mean test gap, logits"]
    assert "share of test tokens" in entries
    assert " logits  (" in outcome["terminal"]["mean test gap"]
    assert outcome["terminal"]["share of test tokens"].endswith("%")


def test_a_token_formula_is_null_against_a_store(place: Path, outcome: Any) -> None:
    report = ValidationReport.read(place / "stored" / "report.json")
    facts = report.facts.record
    for part in (facts, facts["early"]["first"], facts["texts"][0]):
        assert part["test_gap"] is None and part["test_gap_interval"] is None
        assert part["test_share"] is not None
    checks = {(check.name, check.part): check for check in report.checks}
    for part in (None, "first 128 tokens"):
        assert checks["test_gap", part].verdict == "ERROR"
        assert checks["test_gap", part].reason == f"the report has no test_gap: {REASON}"
    assert outcome["stored"]["mean test gap"] == "not recorded"
