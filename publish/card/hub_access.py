"""The gate of the models that a release was made from, as their cards describe it.

    extra_gated_prompt           what a reader agrees to; those of all cards, one after another
    extra_gated_fields           what a reader is asked for; together
    extra_gated_...              all else, words and flags; of the first card that has it

Source: huggingface/hub-docs 066b69ed, docs/hub/models-gated.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from camelpress.core.errors import CheckpointProblem, RecipeProblem
from camelpress.core.files.file_hashes import sha256_file
from camelpress.core.hub.model_location import locate_card
from camelpress.publish.card.card_markdown import read_card_text, read_front_matter
from camelpress.publish.license.license_profiles import LicenseProfile

GATED_PROMPT, GATED_FIELDS = "extra_gated_prompt", "extra_gated_fields"
GATED_PREFIX = "extra_gated_"
GATED_FIELD_TYPES = ("text", "checkbox", "date_picker", "country", "select")


class SourceCard(NamedTuple):
    """The front matter of a model's card."""

    origin: str
    sha256: str
    metadata: Mapping[str, Any]


def read_source_card(place: str) -> SourceCard:
    """The card of a folder, a file, or a repository on the hub.

    Raises:
        CheckpointProblem: it is not there, or its front matter cannot be read.
    """
    found = locate_card(Path(place))
    text = read_card_text(found.path)
    metadata = read_front_matter(text, source=f"the card of {found.name}")
    return SourceCard(found.name, sha256_file(found.path), metadata)


def require_license_covers(cards: Sequence[SourceCard], name: str, chosen: LicenseProfile) -> None:
    """See that no input's card names a licence that the chosen profile is not for.

    Raises:
        RecipeProblem: one does.
    """
    for card in cards:
        said = card.metadata.get("license")
        for each in said if isinstance(said, list) else [said]:
            if each is not None and each not in chosen.covers:
                raise RecipeProblem(
                    f"the card of {card.origin} says that its licence is {each}, and the release "
                    f"would be under {name}",
                    next_step="give the --license that covers both, or publish nothing",
                )


def merge_access_fields(cards: Sequence[SourceCard]) -> dict[str, Any]:
    """The front matter that asks of readers what all the cards ask.

    Raises:
        CheckpointProblem: a gate is not of the hub's form, or two ask for the same otherwise.
    """
    prompts: dict[str, None] = {}
    fields: dict[str, Any] = {}
    told: dict[str, Any] = {}
    for card in cards:
        prompt = card.metadata.get(GATED_PROMPT)
        if prompt is not None:
            prompts[_gated_text(card, GATED_PROMPT, prompt)] = None
        for label, kind in _gated_fields(card).items():
            if fields.setdefault(label, kind) != kind:
                raise CheckpointProblem(
                    f"the card of {card.origin} asks for {label!r} otherwise than another one",
                    next_step="give only one of them with --gated-like",
                )
        for key, value in card.metadata.items():
            if str(key).startswith(GATED_PREFIX) and key not in (GATED_PROMPT, GATED_FIELDS):
                told.setdefault(
                    key, value if isinstance(value, bool) else _gated_text(card, key, value)
                )
    if fields:
        told = {GATED_FIELDS: fields} | told
    return ({GATED_PROMPT: "\n\n".join(prompts)} if prompts else {}) | told


def _gated_text(card: SourceCard, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _invalid_field(card, key)
    return value.strip()


def _gated_fields(card: SourceCard) -> dict[str, Any]:
    fields = card.metadata.get(GATED_FIELDS)
    if fields is None:
        return {}
    if not isinstance(fields, dict):
        raise _invalid_field(card, GATED_FIELDS)
    for label, kind in fields.items():
        named = kind.get("type") if isinstance(kind, dict) else kind
        if not isinstance(label, str) or named not in GATED_FIELD_TYPES:
            raise _invalid_field(card, GATED_FIELDS)
    return fields


def _invalid_field(card: SourceCard, key: str) -> CheckpointProblem:
    return CheckpointProblem(
        f"the card of {card.origin} has {key} in a form that the hub does not know",
        next_step="correct a copy of that card, and give it with --gated-like",
    )
