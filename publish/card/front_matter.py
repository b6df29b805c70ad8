"""The metadata of a card, as the hub reads it: YAML between two lines of dashes.

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

from camelpress.core.hub.model_location import HUB_URL
from camelpress.publish.card.hub_access import GATED_PROMPT
from camelpress.publish.card.release_quotes import TULU_PROMPT, ReleaseQuotes
from camelpress.reporting import quoted_values
from camelpress.reporting.stage_report import Report, Verdict
from camelpress.reporting.tables import benchmark_tables

CLAIMS = "camelpress"  # the key that `verify` compares with the files
CLAIM_KEYS = ("bits", "group_size", "sym", "desc_act")
EVAL_RESULTS = ".eval_results/camelpress.yaml"
LINKABLE_LICENSES = (
    "LICENSE",
    "LICENSE.md",
)  # files that `license_link` may name; else it is an address
METRICS = (  # fact                   metric              what it is called
    ("candidate_perplexity",          "perplexity",       "perplexity, {protocol}"),
    ("perplexity_ratio",              "perplexity_ratio", "perplexity over the {reference}'s"),
    ("kl_mean",                       "kl",               "mean KL from the {reference}, nats"),
)  # fmt: skip


def card_claims(quantization: Any, validation: Report) -> dict[str, Any]:
    """What the front matter says of the files, so that a machine can check it."""
    verdict = validation.verdict or Verdict.ERROR
    return {key: quoted_values.value_at(quantization, key) for key in CLAIM_KEYS} | {
        "candidate": validation.inputs.get("candidate"),
        "verdict": verdict.value,
    }


def render_front_matter(facts: ReleaseQuotes) -> str:
    """All of it, with its lines of dashes."""
    chosen = facts.profile
    origin = facts.source_model("diff") or facts.source_model("base")
    content: dict[str, Any] = {}
    if origin:
        content |= {"base_model": [origin[0]], "base_model_relation": "quantized"}
    content |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    content["license"] = chosen.hub
    if chosen.name:
        content["license_name"] = chosen.name
        if link := _license_link(facts):
            content["license_link"] = link
    content |= facts.gate
    if chosen.restricted:
        content.setdefault(GATED_PROMPT, f"{chosen.terms} See {' and '.join(facts.licenses)}.")
    if datasets := sorted(set(_calibration_datasets(facts))):
        content["datasets"] = datasets
    kind = str(facts.config.get("model_type"))
    tags = ("gptq", f"{facts.quantization.get('bits')}-bit", kind, "camelpress")
    content["tags"] = [*tags, *(["tulu"] if facts.shape.get("prompt") == TULU_PROMPT else [])]
    if results := list(_eval_results(facts)):
        content["model-index"] = _drop_nulls(eval_results_to_model_index(facts.name, results))
    content[CLAIMS] = card_claims(facts.quantization, facts.validation)
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---\n"


def _license_link(facts: ReleaseQuotes) -> str | None:
    """Where the text stands, if that can be said in the words that the hub knows."""
    for name in facts.licenses:
        if name in LINKABLE_LICENSES:
            return name
    if facts.hub_home is None or not facts.licenses:
        return None
    repository, revision = facts.hub_home
    return f"{HUB_URL}/{repository}/blob/{revision}/{quote(facts.licenses[0])}"


def render_eval_results(facts: ReleaseQuotes) -> str | None:
    """Accuracies of the benchmarks that the settings know a data set of the hub for, as YAML."""
    entries = []
    for task in benchmark_tables.benchmark_facts(facts.validation.facts):
        place = facts.settings.benchmarks.get(str(task["name"]))
        value = task.get("candidate_accuracy")
        if place is not None and isinstance(value, float) and math.isfinite(value):
            dataset, _, kind = place.partition(":")
            asked = f"{task['name']}, {quoted_values.format_quoted(task.get('n'))} items"
            entries.append(
                EvalResultEntry(dataset, kind or "default", round(100 * value, 4), notes=asked)
            )
    told = eval_result_entries_to_yaml(entries)
    return yaml.safe_dump(told, sort_keys=False) if told else None


def _calibration_datasets(facts: ReleaseQuotes) -> Iterator[str]:
    """The repositories of the hub that the calibration came from."""
    files = quoted_values.value_at(
        facts.quantize.facts if facts.quantize else None, "calibration.files"
    )
    for each in files if isinstance(files, list) else []:
        named = re.match(
            r"([\w.-]+/[\w.-]+)@[0-9a-f]{40}:", str(quoted_values.value_at(each, "name"))
        )
        if named:
            yield named[1]


def _eval_results(facts: ReleaseQuotes) -> Iterator[EvalResult]:
    """The figures of each text, in the form that older readers of cards know."""
    protocol = quoted_values.format_quoted(facts.validation.facts.get("protocol"))
    for text in quoted_values.text_facts(facts.validation.facts):
        name = str(quoted_values.value_at(text, "name"))
        for fact, metric, called in METRICS:
            value = quoted_values.value_at(text, fact)
            if isinstance(value, float) and math.isfinite(value):
                yield EvalResult(
                    task_type="text-generation",
                    dataset_type=re.sub(r"[^a-z0-9.-]+", "-", name.lower()).strip("-") or "text",
                    dataset_name=name,
                    metric_type=metric,
                    metric_value=value,
                    metric_name=called.format(protocol=protocol, reference=facts.reference),
                )


def _drop_nulls(content: Any) -> Any:
    """Plain data without what is None."""
    if isinstance(content, Mapping):
        return {key: _drop_nulls(value) for key, value in content.items() if value is not None}
    return [_drop_nulls(each) for each in content] if isinstance(content, list) else content
