"""Repairs tokenizer files of any kind, and keeps correct files byte for byte."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from typing import Any

from camelpress.convert.tokenizer.llama_tokenizer import (
    FAST_CLASS,
    LLAMA_CLASS,
    build_post_processor,
)
from camelpress.convert.tokenizer.tokenizer_files import (
    ADDED_TOKENS,
    CHAT_TEMPLATE_FILE,
    SPECIAL_LIST_KEYS,
    SPECIAL_TOKEN_KEYS,
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    JsonObject,
    TokenizerFiles,
    Vocabulary,
    token_entries,
    token_entry,
    token_text,
)

LLAMA_CLASSES = (LLAMA_CLASS, f"{LLAMA_CLASS}Fast")
LLAMA_TOKENS = (("bos", "<s>"), ("eos", "</s>"))  # defaults of LLaMA's class
ADD_TOKEN_KEYS = {"add_bos_token", "add_eos_token"}
UNPORTABLE_CLASSES = (None, "TokenizersBackend")  # transformers 4: guessed; missing


def repair_tokenizer_files(
    source: TokenizerFiles, vocabulary: Vocabulary, special: Mapping[str, int], template: Any
) -> dict[str, bytes | JsonObject]:
    """Returns all files of the source, with new contents for those in need of repair.

    Args:
        source: tokenizer files of the source.
        vocabulary: vocabulary of the output, without dropped tokens.
        special: role to id of bos, eos, unk and pad.
        template: chat template of the output.
    """
    names = {f"{role}_token": vocabulary.tokens_by_id[number] for role, number in special.items()}
    is_source_template = template == source.template()
    repaired: dict[str, tuple[JsonObject, JsonObject]] = {
        TOKENIZER_JSON: (
            source.fast,
            _repair_fast(source, vocabulary, special) if source.fast else {},
        ),
        TOKENIZER_CONFIG: (
            source.config,
            _repair_config(
                source, vocabulary, names, template, is_source_template=is_source_template
            ),
        ),
        SPECIAL_TOKENS_MAP: (
            source.map,
            _repair_special_tokens(source.map, vocabulary.ids, names) if source.map else {},
        ),
        ADDED_TOKENS: (source.added, _repair_added_tokens(source, vocabulary)),
    }
    files: dict[str, bytes | JsonObject] = {
        name: content
        for name, content in source.contents().items()
        if is_source_template or name != CHAT_TEMPLATE_FILE
    }
    return files | {name: new for name, (old, new) in repaired.items() if new != old}


def _repair_config(
    source: TokenizerFiles,
    vocabulary: Vocabulary,
    names: Mapping[str, str],
    template: Any,
    *,
    is_source_template: bool,
) -> JsonObject:
    config = _portable_config(source, _repair_special_tokens(source.config, vocabulary.ids, names))
    if isinstance(config.get("added_tokens_decoder"), dict):
        decoder = {str(number): token_entry(token) for number, token in vocabulary.added.items()}
        config["added_tokens_decoder"] = decoder | config["added_tokens_decoder"]
    if not is_source_template:
        config.pop("chat_template", None)
        config |= {"chat_template": template} if template else {}
    return config


def _portable_config(source: TokenizerFiles, config: JsonObject) -> JsonObject:
    """Returns a tokenizer_config.json with one meaning in transformers 4 and 5, without code."""
    auto_map = config.pop("auto_map", None)
    if source.fast and (auto_map or config.get("tokenizer_class") in UNPORTABLE_CLASSES):
        config["tokenizer_class"] = FAST_CLASS
        config.setdefault("model_input_names", ["input_ids", "attention_mask"])
    elif auto_map:
        config["tokenizer_class"] = LLAMA_CLASS
    unloadable = any(source.config.get(key) == "" for key in SPECIAL_TOKEN_KEYS)
    if source.fast and unloadable and _is_llama(source) and "legacy" not in config:
        # transformers 4 takes it from tokenizer.json, version 5 defaults to false
        config["legacy"] = "Prepend" in json.dumps(source.fast.get("normalizer"))
    list_key, extra_key = SPECIAL_LIST_KEYS
    if isinstance(config.get(extra_key), list):  # transformers 4 cannot read it
        tokens = config.pop(extra_key)
        config[list_key] = config.get(list_key) or tokens
    return config


def _repair_fast(
    source: TokenizerFiles, vocabulary: Vocabulary, special: Mapping[str, int]
) -> JsonObject:
    """Returns a tokenizer.json with exactly the added tokens of the output.

    Transformers 5 takes BOS and EOS only from this file, version 4 from the settings. For LLaMA's
    class, a missing post-processor is built from the settings, so they count in both versions.
    """
    repaired = _without_dropped(source.fast, vocabulary)
    lacks_processor = source.fast.get("post_processor") is None
    if lacks_processor and _is_llama(source) and ADD_TOKEN_KEYS & source.config.keys():
        defaults = {
            role: vocabulary.ids[text] for role, text in LLAMA_TOKENS if text in vocabulary.ids
        }
        step = build_post_processor(vocabulary, defaults | dict(special), source.config)
        repaired["post_processor"] = json.loads(step.__getstate__())
    entries = token_entries(source.fast.get("added_tokens"))
    listed = [token for token in entries if token_text(token) in vocabulary.ids]
    texts = {token_text(token) for token in listed}
    listed += [
        {"id": number, **token_entry(token)}
        for number, token in vocabulary.added.items()
        if token.content not in texts
    ]
    return repaired | ({"added_tokens": listed} if listed != entries else {})


def _without_dropped(fast: JsonObject, vocabulary: Vocabulary) -> JsonObject:
    """Returns a tokenizer.json without dropped tokens among its words and padding."""
    repaired = dict(fast)
    padding, model = fast.get("padding"), fast.get("model")
    if isinstance(padding, dict) and token_text(padding.get("pad_token")) not in vocabulary.ids:
        repaired["padding"] = None
    words = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(words, dict) and not words.keys() <= vocabulary.ids.keys():
        vocab = {text: number for text, number in words.items() if text in vocabulary.ids}
        repaired["model"] = {**fast["model"], "vocab": vocab}
    return repaired


def _is_llama(source: TokenizerFiles) -> bool:
    return source.config.get("tokenizer_class") in LLAMA_CLASSES


def _repair_added_tokens(source: TokenizerFiles, vocabulary: Vocabulary) -> JsonObject:
    """Returns an added_tokens.json; it lists new tokens if no other file can."""
    ids = {text: number for text, number in source.added.items() if text in vocabulary.ids}
    if source.fast or "added_tokens_decoder" in source.config:
        return ids
    return ids | {token.content: number for number, token in vocabulary.added.items()}


def _repair_special_tokens(
    content: JsonObject, tokens: Container[str], names: Mapping[str, str]
) -> JsonObject:
    """Returns a JSON file without unknown tokens, and with the tokens of all roles."""
    settings: JsonObject = {}
    for key, value in content.items():
        if key in (*SPECIAL_LIST_KEYS, "added_tokens_decoder") and isinstance(value, dict):
            value = {name: token for name, token in value.items() if token_text(token) in tokens}
        elif key in SPECIAL_LIST_KEYS and isinstance(value, list):
            value = [token for token in value if token_text(token) in tokens]
        if key not in SPECIAL_TOKEN_KEYS or value is None or token_text(value) in tokens:
            settings[key] = value
    return settings | {
        key: text for key, text in names.items() if token_text(settings.get(key)) != text
    }
