"""Builds the files of a tokenizer from its tokenizer.model alone.

The small files of 2023 are not reliable: special tokens "" send fast tokenizers into endless
recursion, and without tokenizer.json transformers 5 adds no BOS. Valid settings are kept; defaults
fill the gaps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, processors

from camelpress.convert.tokenizer.sentencepiece_model import PrependScheme, SentencePieceModel
from camelpress.convert.tokenizer.tokenizer_files import (
    ADDED_TOKENS,
    SPECIAL_LIST_KEYS,
    SPECIAL_TOKEN_KEYS,
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    TOKENIZER_MODEL,
    JsonObject,
    TokenizerFiles,
    Vocabulary,
    token_entry,
    token_text,
)
from camelpress.core.checkpoint.portable_config import MACHINE_CONFIG_KEYS

FAST_CLASS = "PreTrainedTokenizerFast"  # uses tokenizer.json unchanged, transformers 4 and 5
LLAMA_CLASS = "LlamaTokenizer"  # rebuilds its pipeline from the settings in transformers 5
MAX_KNOWN_LENGTH = 10**9  # tokens; a larger model_max_length means: unknown
DEFAULT_SETTINGS: JsonObject = {
    "legacy": True,  # as in training: a role marker after BOS is 529, not 29966
    "add_bos_token": True,
    "add_eos_token": False,
    "clean_up_tokenization_spaces": False,
    "padding_side": "left",
}
REPLACED_KEYS = (  # rewritten keys, and keys about the machine and software of the source
    *("auto_map", "chat_template", "added_tokens_decoder", "tokenizer_class", "name_or_path"),
    *("special_tokens_map_file", "tokenizer_file", "vocab_file", "backend", "is_local"),
    *(
        "from_slow",
        "init_inputs",
        "local_files_only",
        *MACHINE_CONFIG_KEYS,
        *SPECIAL_LIST_KEYS,
        *SPECIAL_TOKEN_KEYS,
    ),
)


def tokenizer_settings(
    source: TokenizerFiles, model: SentencePieceModel, config: Mapping[str, Any]
) -> JsonObject:
    """Returns the settings of the source, with defaults for missing and invalid ones.

    Args:
        source: tokenizer files with a tokenizer_config.json.
        model: tokenizer.model of the source; decides about the blank in front of a text.
        config: config of the model; `max_position_embeddings` is the default of
            `model_max_length`.
    """
    defaults = DEFAULT_SETTINGS | {"add_bos_token": "bos" in model.special_ids}
    if not model.adds_dummy_prefix and source.config.get("legacy") is not False:
        defaults["add_prefix_space"] = False  # loaders add a blank without `legacy` anyway
    values = {key: value for key, value in source.config.items() if key not in REPLACED_KEYS}
    for key, valid in SETTING_CHECKS.items():
        if key in values and not valid(values[key]):
            del values[key]
    length = config.get("max_position_embeddings")
    if _is_length(length):
        defaults["model_max_length"] = length
    return defaults | values


def prepend_scheme(options: Mapping[str, Any]) -> PrependScheme:
    """Returns the rule for blanks in front of texts, from the settings."""
    if not options.get("add_prefix_space", True):
        return "never"
    return "always" if options["legacy"] else "first"


def build_tokenizer_files(
    source: TokenizerFiles,
    vocabulary: Vocabulary,
    backend: tokenizers.Tokenizer,
    special: Mapping[str, int],
    template: Any,
    options: Mapping[str, Any],
    *,
    llama: bool,
) -> dict[str, bytes | JsonObject]:
    """Returns all files for the fast and slow loaders of transformers 4 and 5.

    Args:
        source: tokenizer files with a tokenizer.model.
        vocabulary: vocabulary with matched words and added tokens.
        backend: fast tokenizer with the ids of tokenizer.model; completed in place.
        special: role to id of bos, eos, unk and pad.
        template: chat template for tokenizer_config.json, read by all loaders.
        options: settings of the tokenizer.
        llama: True if LLaMA's class builds the same pipeline.
    """
    _add(backend, vocabulary, options)
    backend.post_processor = build_post_processor(vocabulary, special, options)
    token_names: JsonObject = {
        f"{role}_token": vocabulary.tokens_by_id[number] for role, number in special.items()
    }
    special_ids, listed_texts = (
        set(special.values()),
        set(map(token_text, source.tokens_without_role())),
    )
    extra_tokens = [
        token.content
        for number, token in sorted((vocabulary.matched_words | vocabulary.added).items())
        if token.special
        and number not in special_ids
        and (number in vocabulary.added or token.content in listed_texts)
    ]
    token_names |= {SPECIAL_LIST_KEYS[0]: extra_tokens} if extra_tokens else {}
    decoder = backend.get_added_tokens_decoder()
    json_files: dict[str, JsonObject] = {
        TOKENIZER_CONFIG: {"tokenizer_class": LLAMA_CLASS if llama else FAST_CLASS}
        | dict(options)
        | ({} if llama else {"model_input_names": ["input_ids", "attention_mask"]})
        | ({"chat_template": template} if template else {})
        | token_names
        | {"added_tokens_decoder": {str(n): token_entry(decoder[n]) for n in sorted(decoder)}},
        SPECIAL_TOKENS_MAP: token_names,
        ADDED_TOKENS: {token.content: number for number, token in vocabulary.added.items()},
    }
    return {
        TOKENIZER_MODEL: source.paths[TOKENIZER_MODEL].read_bytes(),
        TOKENIZER_JSON: backend.to_str(pretty=True).encode(),
        **{name: content for name, content in json_files.items() if content},
    }


def _add(backend: tokenizers.Tokenizer, vocabulary: Vocabulary, options: Mapping[str, Any]) -> None:
    """Adds the matched words and the added tokens to a fast tokenizer.

    If the normalizer puts a blank in front of every part, no token matches in normalized text;
    then each is matched in the raw text.
    """
    hidden = prepend_scheme(options) == "always"
    for _, token in sorted((vocabulary.matched_words | vocabulary.added).items()):
        flags = {key: value for key, value in token_entry(token).items() if key != "content"}
        flags["normalized"] = flags["normalized"] and not hidden
        added = AddedToken(token.content, **flags)
        (backend.add_special_tokens if token.special else backend.add_tokens)([added])


def build_post_processor(
    vocabulary: Vocabulary, special: Mapping[str, int], options: Mapping[str, Any]
) -> processors.TemplateProcessing:
    """Returns the step that adds BOS and EOS to a text, as the settings state."""
    bos, eos = (
        [vocabulary.tokens_by_id[special[role]]]
        if options.get(f"add_{role}_token") is True and role in special
        else []
        for role in ("bos", "eos")
    )
    first, second = ([*bos, "$A", *eos], [*bos, "$B", *eos])
    return processors.TemplateProcessing(
        single=first,
        pair=[*first, *(f"{piece}:1" for piece in second)],
        special_tokens=[(text, vocabulary.ids[text]) for text in dict.fromkeys(bos + eos)],
    )


def _is_length(value: object) -> bool:
    return type(value) is int and 0 < value < MAX_KNOWN_LENGTH


def _is_flag(value: object) -> bool:
    return type(value) is bool


def _is_side(value: object) -> bool:
    return value in ("left", "right")


SETTING_CHECKS: Mapping[str, Callable[[object], bool]] = {
    **dict.fromkeys(("legacy", "add_bos_token", "add_eos_token", "add_prefix_space"), _is_flag),
    **dict.fromkeys(("clean_up_tokenization_spaces", "split_special_tokens"), _is_flag),
    **dict.fromkeys(("spaces_between_special_tokens", "use_default_system_prompt"), _is_flag),
    **dict.fromkeys(("padding_side", "truncation_side"), _is_side),
    "model_max_length": _is_length,
}
