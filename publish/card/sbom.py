"""Builds the CycloneDX bill of materials of a release: model, source models, data and libraries.

The file is plain JSON, since the Python library of CycloneDX has no model cards.
Source: CycloneDX 1.6, https://cyclonedx.org/docs/1.6/json/ (machine-learning-model, modelCard).
"""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from camelpress import __version__
from camelpress.publish.card import card_tables
from camelpress.publish.card.release_quotes import ReleaseQuotes
from camelpress.reporting.metrics import metrics_on
from camelpress.reporting.number_format import format_quoted

MODEL_REF = "model"
URL_NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")  # URLs, RFC 9562
SHA256_HEX = re.compile(r"[0-9a-f]{64}")
SPDX: Mapping[str, str] = {"apache-2.0": "Apache-2.0", "mit": "MIT"}


def bill_of_materials(facts: ReleaseQuotes, versions: Mapping[str, str]) -> dict[str, Any]:
    """Builds the whole bill; the same facts give the same serial number.

    Args:
        facts: facts of the release.
        versions: mapping of packages, Python included, to versions.
    """
    inputs = card_tables.input_hashes(facts.validation, facts.quantize, facts.recover)
    parts = [
        *_source_models(facts, inputs),
        *_data_components(inputs),
        *_library_components(versions),
    ]
    candidate = facts.validation.inputs.get("candidate", "")
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(URL_NAMESPACE, f'{facts.name} {candidate}')}",
        "version": 1,
        "metadata": {
            "tools": {
                "components": [
                    {"type": "application", "name": "camelpress", "version": __version__}
                ]
            },
            "component": _model(facts),
        },
        "components": parts,
        "dependencies": [{"ref": MODEL_REF, "dependsOn": [part["bom-ref"] for part in parts]}],
    }


def _model(facts: ReleaseQuotes) -> dict[str, Any]:
    spdx_id = SPDX.get(facts.settings.license)
    profile = facts.profile
    license_entry = {"id": spdx_id} if spdx_id else {"name": profile.name or profile.hub}
    architectures = facts.config.get("architectures")
    parameters = {
        "task": "text-generation",
        "architectureFamily": str(facts.config.get("model_type")),
        "inputs": [{"format": "text"}],
        "outputs": [{"format": "text"}],
    }
    if isinstance(architectures, list) and architectures:
        parameters["modelArchitecture"] = str(architectures[0])
    return {
        "type": "machine-learning-model",
        "bom-ref": MODEL_REF,
        "name": facts.name,
        "version": facts.validation.inputs.get("candidate", "")[:12],
        "description": f"{facts.quantization.get('bits')}-bit GPTQ weights",
        "licenses": [{"license": license_entry}],
        "modelCard": {
            "modelParameters": parameters,
            "quantitativeAnalysis": {"performanceMetrics": list(_performance_metrics(facts))},
            "considerations": {"technicalLimitations": [*facts.caveats, profile.terms]},
        },
        "properties": [
            {"name": f"camelpress:{key}", "value": format_quoted(facts.quantization.get(key))}
            for key in ("bits", "group_size", "sym", "desc_act")
        ],
    }


def _performance_metrics(facts: ReleaseQuotes) -> Iterator[dict[str, Any]]:
    values = facts.validation.facts
    for metric in metrics_on("bom"):
        value, ends = metric.value(values), metric.interval(values)
        if not isinstance(value, float) or not math.isfinite(value):
            continue
        entry: dict[str, Any] = {
            "type": metric.text("bom", reference=facts.reference),
            "value": repr(value),
        }
        if isinstance(ends, list | tuple) and len(ends) == 2:
            entry["confidenceInterval"] = {
                "lowerBound": str(ends[0]),
                "upperBound": str(ends[1]),
            }
        yield entry


def _source_models(facts: ReleaseQuotes, inputs: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for role in ("base", "diff"):
        origin = facts.source_model(role)
        if origin is None and role not in inputs:
            continue  # unknown source model
        name, version = origin or (role, None)
        component: dict[str, Any] = {
            "type": "machine-learning-model",
            "bom-ref": role,
            "name": name,
        }
        if version:
            component["version"] = version
        if role in inputs:
            component["properties"] = [{"name": "camelpress:digest", "value": inputs[role]}]
        yield component


def _data_components(inputs: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for name, digest in inputs.items():
        kind, _, text = name.partition(":")
        if kind in ("calibration", "text") and text:
            component = {"type": "data", "bom-ref": name, "name": text}
            hashes = [{"alg": "SHA-256", "content": digest}] if SHA256_HEX.fullmatch(digest) else []
            yield component | {"hashes": hashes, "data": [{"type": "dataset", "name": kind}]}


def _library_components(versions: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for name, version in versions.items():
        if name != "camelpress":
            kind = "platform" if name == "python" else "library"
            yield {"type": kind, "bom-ref": f"library:{name}", "name": name, "version": version}
