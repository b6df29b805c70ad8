"""What the hub would not take of a card's metadata, as far as its documents say it.

Source: huggingface/hub-docs, modelcard.md and docs/hub/repositories-licenses.md, model-cards.md,
models-gated.md; model-index as huggingface_hub reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from huggingface_hub import ModelCard

LICENSES = ("apache-2.0", "mit", "llama2", "other")  # of its list, those that can come here
RELATIONS = ("adapter", "finetune", "merge", "quantized")
FIELDS = ("text", "checkbox", "date_picker", "country", "select")
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def faults(card: str) -> list[str]:
    """All of them, each in a few words."""
    try:
        told = ModelCard(card).data.to_dict()
    except ValueError as error:  # its own checks, of the model-index too
        return [str(error)]
    return [*_of_license(told), *_of_gate(told), *_of_models(told)]


def _of_license(told: dict[str, object]) -> Iterator[str]:
    if told.get("license") not in LICENSES:
        yield f"license {told.get('license')!r} is not one of the list"
    if (told.get("license") == "other") != ("license_name" in told):
        yield "license_name belongs to a licence that is other"
    link = told.get("license_link", "LICENSE")
    if link not in ("LICENSE", "LICENSE.md") and not str(link).startswith("https://"):
        yield f"license_link {link!r} is neither LICENSE, LICENSE.md nor an address"


def _of_gate(told: dict[str, object]) -> Iterator[str]:
    fields = told.get("extra_gated_fields", {})
    kinds = fields.values() if isinstance(fields, dict) else [fields]
    for kind in kinds:
        if (kind.get("type") if isinstance(kind, dict) else kind) not in FIELDS:
            yield f"extra_gated_fields asks for {kind!r}"


def _of_models(told: dict[str, object]) -> Iterator[str]:
    if told.get("base_model_relation", "quantized") not in RELATIONS:
        yield f"base_model_relation {told['base_model_relation']!r} is not one of the list"
    for key in ("base_model", "datasets"):
        names = told.get(key, [])
        for name in names if isinstance(names, list) else [names]:
            if not REPOSITORY.fullmatch(str(name)):
                yield f"{key} {name!r} is no repository"
