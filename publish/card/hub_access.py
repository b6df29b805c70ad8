"""Merges the access gates of the source models from the front matter of their cards.

    extra_gated_prompt           terms for the reader; the prompts of all cards, concatenated
    extra_gated_fields           questions to the reader; the union over all cards
    extra_gated_...              other texts and flags; the value of the first card with the key

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
    """Front matter of the card of a source model."""

    origin: str
    sha256: str
    metadata: Mapping[str, Any]


def read_source_card(source: str) -> SourceCard:
    """Reads a card from a folder, a file, or a repository on the hub.

    Raises:
        CheckpointProblem: the card is missing, or its front matter cannot be read.
    """
    location = locate_card(Path(source))
    text = read_card_text(location.path)
    metadata = read_front_matter(text, source=f"the card of {location.name}")
    return SourceCard(location.name, sha256_file(location.path), metadata)


def require_license_covers(cards: Sequence[SourceCard], name: str, profile: LicenseProfile) -> None:
    """Checks the licence on each source card against the licence profile.

    Raises:
        RecipeProblem: a card names a licence outside the profile.
    """
    for card in cards:
        card_license = card.metadata.get("license")
        for license_id in card_license if isinstance(card_license, list) else [card_license]:
            if license_id is not None and license_id not in profile.covers:
                raise RecipeProblem(
                    f"the card of {card.origin} names the licence {license_id}, and the release "
                    f"would be under {name}",
                    next_step="give the --license that covers both, or publish nothing",
                )


def merge_access_fields(cards: Sequence[SourceCard]) -> dict[str, Any]:
    """Returns front matter with the combined access gates of all cards.

    Raises:
        CheckpointProblem: a gate has an invalid form, or two cards define a field differently.
    """
    prompts: dict[str, None] = {}
    fields: dict[str, Any] = {}
    other_fields: dict[str, Any] = {}
    for card in cards:
        prompt = card.metadata.get(GATED_PROMPT)
        if prompt is not None:
            prompts[_gated_text(card, GATED_PROMPT, prompt)] = None
        for label, definition in _gated_fields(card).items():
            if fields.setdefault(label, definition) != definition:
                raise CheckpointProblem(
                    f"the card of {card.origin} asks for {label!r} in a second form",
                    next_step="give only one of the cards with --gated-like",
                )
        for key, value in card.metadata.items():
            if str(key).startswith(GATED_PREFIX) and key not in (GATED_PROMPT, GATED_FIELDS):
                other_fields.setdefault(
                    key, value if isinstance(value, bool) else _gated_text(card, key, value)
                )
    if fields:
        other_fields = {GATED_FIELDS: fields} | other_fields
    return ({GATED_PROMPT: "\n\n".join(prompts)} if prompts else {}) | other_fields


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
    for label, definition in fields.items():
        field_type = definition.get("type") if isinstance(definition, dict) else definition
        if not isinstance(label, str) or field_type not in GATED_FIELD_TYPES:
            raise _invalid_field(card, GATED_FIELDS)
    return fields


def _invalid_field(card: SourceCard, key: str) -> CheckpointProblem:
    return CheckpointProblem(
        f"the card of {card.origin} has {key} in a form unknown to the hub",
        next_step="correct a copy of that card, and give it with --gated-like",
    )
