"""Keeps the files of a tokenizer of any kind, byte for byte where nothing in them is wrong."""

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
UNPORTABLE_CLASSES = (None, "TokenizersBackend")  # transformers 4 guesses the one, has no other


def repair_tokenizer_files(
    source: TokenizerFiles, vocabulary: Vocabulary, special: Mapping[str, int], template: Any
) -> dict[str, bytes | JsonObject]:
    """Returns all files of the source; those in which something is wrong are written anew.

    Args:
        source: holds the files.
        vocabulary: of the output, dropped tokens left out.
        special: bos, eos, unk and pad.
        template: of chats.
    """
    names = {f"{role}_token": vocabulary.tokens_by_id[number] for role, number in special.items()}
    own = template == source.template()
    mended: dict[str, tuple[JsonObject, JsonObject]] = {
        TOKENIZER_JSON: (
            source.fast,
            _repair_fast(source, vocabulary, special) if source.fast else {},
        ),
        TOKENIZER_CONFIG: (
            source.config,
            _repair_config(source, vocabulary, names, template, own=own),
        ),
        SPECIAL_TOKENS_MAP: (
            source.map,
            _repair_special_tokens(source.map, vocabulary.ids, names) if source.map else {},
        ),
        ADDED_TOKENS: (source.added, _repair_added_tokens(source, vocabulary)),
    }
    kept: dict[str, bytes | JsonObject] = {
        name: content
        for name, content in source.contents().items()
        if own or name != CHAT_TEMPLATE_FILE
    }
    return kept | {name: new for name, (old, new) in mended.items() if new != old}


def _repair_config(
    source: TokenizerFiles,
    vocabulary: Vocabulary,
    names: Mapping[str, str],
    template: Any,
    *,
    own: bool,
) -> JsonObject:
    config = _portable_config(source, _repair_special_tokens(source.config, vocabulary.ids, names))
    if isinstance(config.get("added_tokens_decoder"), dict):
        decoder = {str(number): token_entry(token) for number, token in vocabulary.added.items()}
        config["added_tokens_decoder"] = decoder | config["added_tokens_decoder"]
    if not own:
        config.pop("chat_template", None)
        config |= {"chat_template": template} if template else {}
    return config


def _portable_config(source: TokenizerFiles, config: JsonObject) -> JsonObject:
    """Returns a tokenizer_config.json that transformers 4 and 5 read alike, without its code."""
    foreign = config.pop("auto_map", None)
    if source.fast and (foreign or config.get("tokenizer_class") in UNPORTABLE_CLASSES):
        config["tokenizer_class"] = FAST_CLASS
        config.setdefault("model_input_names", ["input_ids", "attention_mask"])
    elif foreign:
        config["tokenizer_class"] = LLAMA_CLASS
    unloadable = any(source.config.get(key) == "" for key in SPECIAL_TOKEN_KEYS)
    if source.fast and unloadable and _is_llama(source) and "legacy" not in config:
        # transformers 4 takes it from tokenizer.json, version 5 would take it for false
        config["legacy"] = "Prepend" in json.dumps(source.fast.get("normalizer"))
    older, newer = SPECIAL_LIST_KEYS
    if isinstance(config.get(newer), list):  # which transformers 4 cannot read
        tokens = config.pop(newer)
        config[older] = config.get(older) or tokens
    return config


def _repair_fast(
    source: TokenizerFiles, vocabulary: Vocabulary, special: Mapping[str, int]
) -> JsonObject:
    """Returns a tokenizer.json with every added token of the output and no other.

    Transformers 5 takes BOS and EOS from here alone, version 4 from the settings; where this file
    says nothing of them, the settings count in both.
    """
    mended = _without_dropped(source.fast, vocabulary)
    silent = source.fast.get("post_processor") is None
    if silent and _is_llama(source) and ADD_TOKEN_KEYS & source.config.keys():
        known = {
            role: vocabulary.ids[text] for role, text in LLAMA_TOKENS if text in vocabulary.ids
        }
        step = build_post_processor(vocabulary, known | dict(special), source.config)
        mended["post_processor"] = json.loads(step.__getstate__())
    before = token_entries(source.fast.get("added_tokens"))
    listed = [token for token in before if token_text(token) in vocabulary.ids]
    texts = {token_text(token) for token in listed}
    listed += [
        {"id": number, **token_entry(token)}
        for number, token in vocabulary.added.items()
        if token.content not in texts
    ]
    return mended | ({"added_tokens": listed} if listed != before else {})


def _without_dropped(fast: JsonObject, vocabulary: Vocabulary) -> JsonObject:
    """Returns a tokenizer.json whose words and padding have no token that the output lacks."""
    mended = dict(fast)
    padding, model = fast.get("padding"), fast.get("model")
    if isinstance(padding, dict) and token_text(padding.get("pad_token")) not in vocabulary.ids:
        mended["padding"] = None
    words = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(words, dict) and not words.keys() <= vocabulary.ids.keys():
        kept = {text: number for text, number in words.items() if text in vocabulary.ids}
        mended["model"] = {**fast["model"], "vocab": kept}
    return mended


def _is_llama(source: TokenizerFiles) -> bool:
    return source.config.get("tokenizer_class") in LLAMA_CLASSES


def _repair_added_tokens(source: TokenizerFiles, vocabulary: Vocabulary) -> JsonObject:
    """Returns an added_tokens.json; new tokens stand there where no other file can list them."""
    kept = {text: number for text, number in source.added.items() if text in vocabulary.ids}
    if source.fast or "added_tokens_decoder" in source.config:
        return kept
    return kept | {token.content: number for number, token in vocabulary.added.items()}


def _repair_special_tokens(
    content: JsonObject, known: Container[str], names: Mapping[str, str]
) -> JsonObject:
    """Returns a small file without tokens that are not known, and with those that have a role."""
    kept: JsonObject = {}
    for key, value in content.items():
        if key in (*SPECIAL_LIST_KEYS, "added_tokens_decoder") and isinstance(value, dict):
            value = {name: token for name, token in value.items() if token_text(token) in known}
        elif key in SPECIAL_LIST_KEYS and isinstance(value, list):
            value = [token for token in value if token_text(token) in known]
        if key not in SPECIAL_TOKEN_KEYS or value is None or token_text(value) in known:
            kept[key] = value
    return kept | {key: text for key, text in names.items() if token_text(kept.get(key)) != text}
