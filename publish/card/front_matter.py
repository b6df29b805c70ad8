"""Writes the metadata of a card for the hub: YAML between two lines of dashes.

Source: huggingface/hub-docs, modelcard.md 0d37e0ca and docs/hub/eval-results.md 064c7548.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.repocard_data import eval_results_to_model_index

from camelpress.core.hub.repo_id import HUB_URL
from camelpress.publish.card.hub_access import GATED_PROMPT
from camelpress.publish.card.release_quotes import TULU_PROMPT, ReleaseQuotes
from camelpress.reporting.metrics import metrics_on
from camelpress.reporting.number_format import format_quoted
from camelpress.reporting.stage_report import Report
from camelpress.reporting.tables import benchmark_tables
from camelpress.reporting.verdict import Verdict

CLAIMS = "camelpress"  # key of the claims for `verify`
CLAIM_KEYS = ("bits", "group_size", "sym", "desc_act")
EVAL_RESULTS = ".eval_results/camelpress.yaml"
LINKABLE_LICENSES = ("LICENSE", "LICENSE.md")  # file names allowed in `license_link`


def card_claims(quantization: Mapping[str, Any], validation: Report) -> dict[str, Any]:
    """Returns the claims of the front matter about the files, for `verify`."""
    verdict = validation.verdict or Verdict.ERROR
    return {key: quantization.get(key) for key in CLAIM_KEYS} | {
        "candidate": validation.inputs.get("candidate"),
        "verdict": verdict.value,
    }


def render_front_matter(facts: ReleaseQuotes) -> str:
    """Renders the front matter with its lines of dashes."""
    profile = facts.profile
    origin = facts.source_model("diff") or facts.source_model("base")
    content: dict[str, Any] = {}
    if origin:
        content |= {"base_model": [origin[0]], "base_model_relation": "quantized"}
    content |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    content["license"] = profile.hub
    if profile.name:
        content["license_name"] = profile.name
        if link := _license_link(facts):
            content["license_link"] = link
    content |= facts.gate
    if profile.restricted:
        content.setdefault(GATED_PROMPT, f"{profile.terms} See {' and '.join(facts.licenses)}.")
    if datasets := sorted(set(_calibration_datasets(facts))):
        content["datasets"] = datasets
    model_type = str(facts.config.get("model_type"))
    tags = ("gptq", f"{facts.quantization.get('bits')}-bit", model_type, "camelpress")
    content["tags"] = [*tags, *(["tulu"] if facts.shape.get("prompt") == TULU_PROMPT else [])]
    if results := list(_eval_results(facts)):
        content["model-index"] = _drop_nulls(eval_results_to_model_index(facts.name, results))
    content[CLAIMS] = card_claims(facts.quantization, facts.validation)
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---\n"


def _license_link(facts: ReleaseQuotes) -> str | None:
    """Returns a file name or URL of the licence text; None without a valid form."""
    for name in facts.licenses:
        if name in LINKABLE_LICENSES:
            return name
    if facts.hub_home is None or not facts.licenses:
        return None
    repository, revision = facts.hub_home
    return f"{HUB_URL}/{repository}/blob/{revision}/{quote(facts.licenses[0])}"


def render_eval_results(facts: ReleaseQuotes) -> str | None:
    """Renders accuracies of benchmarks with a hub data set as YAML; None if there are none."""
    entries = []
    for task in benchmark_tables.benchmark_facts(facts.validation.facts):
        dataset_name = facts.settings.benchmarks.get(task.name)
        value = task.candidate_accuracy
        if dataset_name is not None and value is not None:
            dataset, _, subset = dataset_name.partition(":")
            notes = f"{task.name}, {format_quoted(task.n)} items"
            entries.append(
                EvalResultEntry(dataset, subset or "default", round(100 * value, 4), notes=notes)
            )
    results = eval_result_entries_to_yaml(entries)
    return yaml.safe_dump(results, sort_keys=False) if results else None


def _calibration_datasets(facts: ReleaseQuotes) -> Iterator[str]:
    """Yields the hub repositories of the calibration texts."""
    for file in facts.quantize.facts.calibration_files if facts.quantize else []:
        if match := re.match(r"([\w.-]+/[\w.-]+)@[0-9a-f]{40}:", file.name or ""):
            yield match[1]


def _eval_results(facts: ReleaseQuotes) -> Iterator[EvalResult]:
    """Yields the metrics of each text in the older model-index form."""
    protocol = format_quoted(facts.validation.facts.protocol)
    for text in facts.validation.facts.texts or []:
        name = format_quoted(text.name)
        for metric in metrics_on("hub_type"):
            value = metric.value(text)
            if isinstance(value, float) and math.isfinite(value):
                yield EvalResult(
                    task_type="text-generation",
                    dataset_type=re.sub(r"[^a-z0-9.-]+", "-", name.lower()).strip("-") or "text",
                    dataset_name=name,
                    metric_type=metric.text("hub_type"),
                    metric_value=value,
                    metric_name=metric.text(
                        "hub_name", protocol=protocol, reference=facts.reference
                    ),
                )


def _drop_nulls(content: Any) -> Any:
    """Removes None values from nested plain data."""
    if isinstance(content, Mapping):
        return {key: _drop_nulls(value) for key, value in content.items() if value is not None}
    return [_drop_nulls(item) for item in content] if isinstance(content, list) else content
