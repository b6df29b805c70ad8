"""Lists tokenizer settings with different values in source and output, with reasons."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from camelpress.convert.tokenizer.tokenizer_files import (
    SPECIAL_LIST_KEYS,
    SPECIAL_TOKEN_KEYS,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    JsonObject,
    TokenizerFiles,
    token_text,
)

SEPARATE_KEYS = ("added_tokens_decoder", "chat_template")  # compared or reported separately
PROVENANCE_KEYS = (  # keys about the machine and software of the source
    *("name_or_path", "_name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file"),
    *("transformers_version", "is_local", "local_files_only", "backend", "from_slow"),
)


def setting_changes(source: TokenizerFiles, files: Mapping[str, bytes]) -> list[JsonObject]:
    """Returns setting, old value, new value and reason of each change in the JSON files."""
    after, fast = (
        json.loads(files[name]) if name in files else {}
        for name in (TOKENIZER_CONFIG, TOKENIZER_JSON)
    )
    rows = [*_changed_settings(source, after), *_changed_flags(source.config, after)]
    if source.fast and source.fast.get("post_processor") != fast.get("post_processor"):
        reason = "as add_bos_token and add_eos_token state"
        rows.append(("post_processor", None, fast["post_processor"]["single"], reason))
    return [
        {"setting": key, "old": old, "new": new, "reason": reason} for key, old, new, reason in rows
    ]


def _changed_settings(
    source: TokenizerFiles, after: JsonObject
) -> Iterator[tuple[str, Any, Any, str]]:
    keys = dict.fromkeys(
        [*source.config, *(key for key in SPECIAL_TOKEN_KEYS if key in source.map), *after]
    )
    for key in keys:
        if key in SEPARATE_KEYS or key in PROVENANCE_KEYS:
            continue
        old, new = source.config.get(key), after.get(key)
        if key in SPECIAL_TOKEN_KEYS:
            old, new = token_text(source.token(key)) or None, token_text(new) or None
        if old != new:
            yield key, old, new, _reason(key, old)


def _reason(key: str, old: Any) -> str:
    if key == "tokenizer_class":
        return "a class that reads these files alike in transformers 4 and 5"
    if key == "auto_map":
        return "code of the source is not run"
    if key in SPECIAL_LIST_KEYS:
        return "one list that both generations read, without tokens that are not there"
    if key in SPECIAL_TOKEN_KEYS and old:
        return "the vocabulary has no such token"
    return "not stated" if old is None else "not a value that loaders take"


def _changed_flags(before: JsonObject, after: JsonObject) -> Iterator[tuple[str, Any, Any, str]]:
    """Yields changed flags of added tokens with old value, new value and reason."""
    old, new = (content.get("added_tokens_decoder") for content in (before, after))
    if not isinstance(old, dict) or not isinstance(new, dict):
        return
    for number in old.keys() & new.keys():
        for flag, value in new[number].items() if isinstance(old[number], dict) else ():
            if flag in old[number] and old[number][flag] != value:
                reason = "in normalized text a blank in front would hide the token"
                yield f"{flag} of {new[number].get('content')!r}", old[number][flag], value, reason
