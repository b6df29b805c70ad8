"""The bill of materials of a release, as CycloneDX: the model, what it was made from, and by what.

Written as plain JSON, since the Python library has no model cards.
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
from camelpress.reporting import quoted_values

MODEL_REF = "model"
URL_NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")  # of URLs, RFC 9562
SHA256_HEX = re.compile(r"[0-9a-f]{64}")
SPDX: Mapping[str, str] = {"apache-2.0": "Apache-2.0", "mit": "MIT"}
METRICS = (  # fact                   type
    ("candidate_perplexity",          "perplexity"),
    ("perplexity_ratio",              "perplexity over that of the {reference}"),
    ("kl_mean",                       "mean KL divergence from the {reference}, nats a token"),
    ("top1_agreement",                "top-1 agreement with the {reference}"),
)  # fmt: skip


def bill_of_materials(facts: ReleaseQuotes, versions: Mapping[str, str]) -> dict[str, Any]:
    """All of it; the same facts give the same serial number.

    Args:
        facts: of the release.
        versions: what it was made with, Python among it.
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
    named = SPDX.get(facts.settings.license)
    chosen = {"id": named} if named else {"name": facts.profile.name or facts.profile.hub}
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
        "licenses": [{"license": chosen}],
        "modelCard": {
            "modelParameters": parameters,
            "quantitativeAnalysis": {"performanceMetrics": list(_performance_metrics(facts))},
            "considerations": {"technicalLimitations": [*facts.caveats, facts.profile.terms]},
        },
        "properties": [
            {
                "name": f"camelpress:{key}",
                "value": quoted_values.format_quoted(facts.quantization.get(key)),
            }
            for key in ("bits", "group_size", "sym", "desc_act")
        ],
    }


def _performance_metrics(facts: ReleaseQuotes) -> Iterator[dict[str, Any]]:
    found = facts.validation.facts
    for fact, called in METRICS:
        value, ends = found.get(fact), found.get(f"{fact}_interval")
        if not isinstance(value, float) or not math.isfinite(value):
            continue
        told: dict[str, Any] = {
            "type": called.format(reference=facts.reference),
            "value": repr(value),
        }
        if isinstance(ends, list | tuple) and len(ends) == 2:
            told["confidenceInterval"] = {
                "lowerBound": str(ends[0]),
                "upperBound": str(ends[1]),
            }
        yield told


def _source_models(facts: ReleaseQuotes, inputs: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for which in ("base", "diff"):
        origin = facts.source_model(which)
        if origin is None and which not in inputs:
            continue  # nothing is known of it
        name, version = origin or (which, None)
        told: dict[str, Any] = {
            "type": "machine-learning-model",
            "bom-ref": which,
            "name": name,
        }
        if version:
            told["version"] = version
        if which in inputs:
            told["properties"] = [{"name": "camelpress:digest", "value": inputs[which]}]
        yield told


def _data_components(inputs: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for name, digest in inputs.items():
        kind, _, text = name.partition(":")
        if kind in ("calibration", "text") and text:
            told = {"type": "data", "bom-ref": name, "name": text}
            hashes = [{"alg": "SHA-256", "content": digest}] if SHA256_HEX.fullmatch(digest) else []
            yield told | {"hashes": hashes, "data": [{"type": "dataset", "name": kind}]}


def _library_components(versions: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for name, version in versions.items():
        if name != "camelpress":
            kind = "platform" if name == "python" else "library"
            yield {"type": kind, "bom-ref": f"library:{name}", "name": name, "version": version}
