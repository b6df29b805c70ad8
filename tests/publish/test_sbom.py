"""The bill of materials, held against CycloneDX's own schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from camelpress.reporting.stage_report import Report

Publisher = Callable[..., tuple[Path, Report]]


def test_the_bill_is_what_the_schema_asks_for(publish: Publisher) -> None:
    validation = pytest.importorskip(
        "cyclonedx.validation.json", reason="needs cyclonedx-python-lib[json-validation]"
    )
    schema = pytest.importorskip("cyclonedx.schema")
    checker = validation.JsonStrictValidator(schema.SchemaVersion.V1_6)
    for name, license in (("release-1", "tulu"), ("release-2", "mit")):
        out, _ = publish(name, license=license, base_model="huggyllama/llama-65b")
        fault = checker.validate_str((out / "bom.cdx.json").read_text(encoding="utf-8"))
        assert fault is None, fault


def test_it_names_model_inputs_figures_and_libraries(publish: Publisher) -> None:
    out, report = publish(base_model="huggyllama/llama-65b")
    bill = json.loads((out / "bom.cdx.json").read_text(encoding="utf-8"))
    model = bill["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["licenses"] == [{"license": {"name": "ai2-ai-model-license"}}]
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert {
        "type": "perplexity over that of the 16-bit reference",
        "value": "1.034",
        "confidenceInterval": {"lowerBound": "1.03", "upperBound": "1.038"},
    } in metrics
    parts = {part["bom-ref"]: part for part in bill["components"]}
    assert parts["base"]["name"] == "huggyllama/llama-65b"
    assert parts["calibration:conversations.json"]["hashes"] == [
        {"alg": "SHA-256", "content": report.inputs["calibration:conversations.json"]}
    ]
    assert parts["library:torch"]["version"] == report.facts.record["versions"]["torch"]
    assert set(bill["dependencies"][0]["dependsOn"]) == parts.keys()
