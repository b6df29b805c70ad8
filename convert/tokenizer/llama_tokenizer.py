"""Makes the files of a tokenizer that has a tokenizer.model alone.

The small files of 2023 are not to be trusted: special tokens that are "" send fast tokenizers
into endless recursion, and without tokenizer.json transformers 5 puts no BOS in front. What they
state and loaders can honour stays; defaults fill the gaps.
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

FAST_CLASS = "PreTrainedTokenizerFast"  # takes tokenizer.json as it stands, in transformers 4 and 5
LLAMA_CLASS = "LlamaTokenizer"  # rebuilds its pipeline from the settings, in transformers 5
MAX_KNOWN_LENGTH = 10**9  # a longer model_max_length means: not known
DEFAULT_SETTINGS: JsonObject = {
    "legacy": True,  # else a role marker after BOS is 29966, not 529 as in training
    "add_bos_token": True,
    "add_eos_token": False,
    "clean_up_tokenization_spaces": False,
    "padding_side": "left",
}
REPLACED_KEYS = (  # keys that are written anew, or say where and with what the source was written
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
    """Returns the settings that the source states, and a default for each that it leaves open.

    Args:
        source: states them in its tokenizer_config.json.
        model: of the source; says whether texts get a blank in front.
        config: of the model; its `max_position_embeddings` bound texts where nothing else does.
    """
    defaults = DEFAULT_SETTINGS | {"add_bos_token": "bos" in model.special_ids}
    if not model.adds_dummy_prefix and source.config.get("legacy") is not False:
        defaults["add_prefix_space"] = False  # without `legacy` loaders put a blank nevertheless
    values = {key: value for key, value in source.config.items() if key not in REPLACED_KEYS}
    for key, valid in SETTING_CHECKS.items():
        if key in values and not valid(values[key]):
            del values[key]
    length = config.get("max_position_embeddings")
    if _is_length(length):
        defaults["model_max_length"] = length
    return defaults | values


def prepend_scheme(options: Mapping[str, Any]) -> PrependScheme:
    """Tells from the settings which texts get a blank in front."""
    if not options.get("add_prefix_space", True):
        return "never"
    return "always" if options["legacy"] else "first"


def build_tokenizer_files(
    source: TokenizerFiles,
    vocabulary: Vocabulary,
    made: tokenizers.Tokenizer,
    special: Mapping[str, int],
    template: Any,
    options: Mapping[str, Any],
    *,
    llama: bool,
) -> dict[str, bytes | JsonObject]:
    """Returns all files that loaders of transformers 4 and 5, fast and slow, look for.

    Args:
        source: gives tokenizer.model.
        vocabulary: holds what is added to `made`.
        made: gives the ids of tokenizer.model; it is completed here.
        special: bos, eos, unk and pad.
        template: of chats; it goes into tokenizer_config.json, which all loaders read.
        options: the settings.
        llama: says whether LLaMA's class builds the same pipeline.
    """
    _add(made, vocabulary, options)
    made.post_processor = build_post_processor(vocabulary, special, options)
    names: JsonObject = {
        f"{role}_token": vocabulary.tokens_by_id[number] for role, number in special.items()
    }
    taken, listed = set(special.values()), set(map(token_text, source.tokens_without_role()))
    more = [
        token.content
        for number, token in sorted((vocabulary.matched_words | vocabulary.added).items())
        if token.special
        and number not in taken
        and (number in vocabulary.added or token.content in listed)
    ]
    names |= {SPECIAL_LIST_KEYS[0]: more} if more else {}
    decoder = made.get_added_tokens_decoder()
    small: dict[str, JsonObject] = {
        TOKENIZER_CONFIG: {"tokenizer_class": LLAMA_CLASS if llama else FAST_CLASS}
        | dict(options)
        | ({} if llama else {"model_input_names": ["input_ids", "attention_mask"]})
        | ({"chat_template": template} if template else {})
        | names
        | {"added_tokens_decoder": {str(n): token_entry(decoder[n]) for n in sorted(decoder)}},
        SPECIAL_TOKENS_MAP: names,
        ADDED_TOKENS: {token.content: number for number, token in vocabulary.added.items()},
    }
    return {
        TOKENIZER_MODEL: source.paths[TOKENIZER_MODEL].read_bytes(),
        TOKENIZER_JSON: made.to_str(pretty=True).encode(),
        **{name: content for name, content in small.items() if content},
    }


def _add(made: tokenizers.Tokenizer, vocabulary: Vocabulary, options: Mapping[str, Any]) -> None:
    """Adds the marked words and the tokens behind the words.

    A token that is looked for in normalized text is never found where the normalizer puts a
    blank in front of it, so there each is looked for in the text as it stands.
    """
    hidden = prepend_scheme(options) == "always"
    for _, token in sorted((vocabulary.matched_words | vocabulary.added).items()):
        flags = {key: value for key, value in token_entry(token).items() if key != "content"}
        flags["normalized"] = flags["normalized"] and not hidden
        added = AddedToken(token.content, **flags)
        (made.add_special_tokens if token.special else made.add_tokens)([added])


def build_post_processor(
    vocabulary: Vocabulary, special: Mapping[str, int], options: Mapping[str, Any]
) -> processors.TemplateProcessing:
    """Returns the step that puts BOS before a text and EOS behind it, as the settings have it."""
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
