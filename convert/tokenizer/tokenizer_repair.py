"""Keeps the files of a tokenizer of any kind, byte for byte where nothing in them is wrong."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from typing import Any

from camelpress.convert.tokenizer.llama_tokenizer import LLAMA, PLAIN, post_processor
from camelpress.convert.tokenizer.tokenizer_files import (
    ADDED,
    CONFIG,
    FAST,
    JINJA,
    LISTS,
    MAP,
    SINGLE,
    Json,
    TokenizerFiles,
    Vocabulary,
    entries,
    entry,
    text_of,
)

LLAMAS = (LLAMA, f"{LLAMA}Fast")
TOKENS = (("bos", "<s>"), ("eos", "</s>"))  # defaults of LLaMA's class
ENDS = {"add_bos_token", "add_eos_token"}
UNPORTABLE = (None, "TokenizersBackend")  # transformers 4 guesses the one, has no other


def files(
    source: TokenizerFiles, vocabulary: Vocabulary, special: Mapping[str, int], template: Any
) -> dict[str, bytes | Json]:
    """Returns all files of the source; those in which something is wrong are written anew.

    Args:
        source: holds the files.
        vocabulary: of the output, dropped tokens left out.
        special: bos, eos, unk and pad.
        template: of chats.
    """
    names = {f"{role}_token": vocabulary.texts[number] for role, number in special.items()}
    own = template == source.template()
    mended: dict[str, tuple[Json, Json]] = {
        FAST: (source.fast, _fast(source, vocabulary, special) if source.fast else {}),
        CONFIG: (source.config, _config(source, vocabulary, names, template, own=own)),
        MAP: (source.map, _corrected(source.map, vocabulary.ids, names) if source.map else {}),
        ADDED: (source.added, _added(source, vocabulary)),
    }
    kept: dict[str, bytes | Json] = {
        name: content for name, content in source.contents().items() if own or name != JINJA
    }
    return kept | {name: new for name, (old, new) in mended.items() if new != old}


def _config(
    source: TokenizerFiles,
    vocabulary: Vocabulary,
    names: Mapping[str, str],
    template: Any,
    *,
    own: bool,
) -> Json:
    config = _portable(source, _corrected(source.config, vocabulary.ids, names))
    if isinstance(config.get("added_tokens_decoder"), dict):
        decoder = {str(number): entry(token) for number, token in vocabulary.added.items()}
        config["added_tokens_decoder"] = decoder | config["added_tokens_decoder"]
    if not own:
        config.pop("chat_template", None)
        config |= {"chat_template": template} if template else {}
    return config


def _portable(source: TokenizerFiles, config: Json) -> Json:
    """Returns a tokenizer_config.json that transformers 4 and 5 read alike, without its code."""
    foreign = config.pop("auto_map", None)
    if source.fast and (foreign or config.get("tokenizer_class") in UNPORTABLE):
        config["tokenizer_class"] = PLAIN
        config.setdefault("model_input_names", ["input_ids", "attention_mask"])
    elif foreign:
        config["tokenizer_class"] = LLAMA
    unloadable = any(source.config.get(key) == "" for key in SINGLE)
    if source.fast and unloadable and _is_llama(source) and "legacy" not in config:
        # transformers 4 takes it from tokenizer.json, version 5 would take it for false
        config["legacy"] = "Prepend" in json.dumps(source.fast.get("normalizer"))
    older, newer = LISTS
    if isinstance(config.get(newer), list):  # which transformers 4 cannot read
        tokens = config.pop(newer)
        config[older] = config.get(older) or tokens
    return config


def _fast(source: TokenizerFiles, vocabulary: Vocabulary, special: Mapping[str, int]) -> Json:
    """Returns a tokenizer.json with every added token of the output and no other.

    Transformers 5 takes BOS and EOS from here alone, version 4 from the settings; where this file
    says nothing of them, the settings count in both.
    """
    mended = _without_dropped(source.fast, vocabulary)
    silent = source.fast.get("post_processor") is None
    if silent and _is_llama(source) and ENDS & source.config.keys():
        known = {role: vocabulary.ids[text] for role, text in TOKENS if text in vocabulary.ids}
        step = post_processor(vocabulary, known | dict(special), source.config)
        mended["post_processor"] = json.loads(step.__getstate__())
    before = entries(source.fast.get("added_tokens"))
    listed = [token for token in before if text_of(token) in vocabulary.ids]
    texts = {text_of(token) for token in listed}
    listed += [
        {"id": number, **entry(token)}
        for number, token in vocabulary.added.items()
        if token.content not in texts
    ]
    return mended | ({"added_tokens": listed} if listed != before else {})


def _without_dropped(fast: Json, vocabulary: Vocabulary) -> Json:
    """Returns a tokenizer.json whose words and padding have no token that the output lacks."""
    mended = dict(fast)
    padding, model = fast.get("padding"), fast.get("model")
    if isinstance(padding, dict) and text_of(padding.get("pad_token")) not in vocabulary.ids:
        mended["padding"] = None
    words = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(words, dict) and not words.keys() <= vocabulary.ids.keys():
        kept = {text: number for text, number in words.items() if text in vocabulary.ids}
        mended["model"] = {**fast["model"], "vocab": kept}
    return mended


def _is_llama(source: TokenizerFiles) -> bool:
    return source.config.get("tokenizer_class") in LLAMAS


def _added(source: TokenizerFiles, vocabulary: Vocabulary) -> Json:
    """Returns an added_tokens.json; new tokens stand there where no other file can list them."""
    kept = {text: number for text, number in source.added.items() if text in vocabulary.ids}
    if source.fast or "added_tokens_decoder" in source.config:
        return kept
    return kept | {token.content: number for number, token in vocabulary.added.items()}


def _corrected(content: Json, known: Container[str], names: Mapping[str, str]) -> Json:
    """Returns a small file without tokens that are not known, and with those that have a role."""
    kept: Json = {}
    for key, value in content.items():
        if key in (*LISTS, "added_tokens_decoder") and isinstance(value, dict):
            value = {name: token for name, token in value.items() if text_of(token) in known}
        elif key in LISTS and isinstance(value, list):
            value = [token for token in value if text_of(token) in known]
        if key not in SINGLE or value is None or text_of(value) in known:
            kept[key] = value
    return kept | {key: text for key, text in names.items() if text_of(kept.get(key)) != text}
