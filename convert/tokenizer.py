"""The tokenizer of a recovered model: planned before a weight is written, written after the last.

Tokenizer files of 2023 contradict one another and the weights: special tokens that are "" make
fast tokenizers recurse for ever, the pad id in config.json is not the tokenizer's, added tokens
have no row. What is trusted is the vocabulary itself, and that every id has a row.

A tokenizer.model of LLaMA's kind is copied, and everything beside it is made from it:
tokenizer.json, whose ids are compared with SentencePiece's, and the small files that loaders of
2023 and of today read. Any other tokenizer is kept as it is, file by file, except for what is
wrong in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import tokenizers
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, decoders, models, normalizers, processors

from camelpress.core.config import LOCAL
from camelpress.core.errors import CheckpointProblem
from camelpress.core.json import read_json
from camelpress.core.prompt import CHAT_TEMPLATE
from camelpress.core.tokens import Tokenizer

Template = Literal["auto", "tulu", "none"]

MODEL, FAST = "tokenizer.model", "tokenizer.json"
CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
JINJA = "chat_template.jinja"
COPIED = (MODEL, FAST, CONFIG, MAP, ADDED, JINJA, "vocab.json", "merges.txt")

ROLES = ("bos", "eos", "unk", "pad")
PAD = "<pad>"  # open-instruct's; Alpaca and FastChat v0 add [PAD]
PAD_NAMES = (PAD, "[PAD]")
LISTS = ("additional_special_tokens", "extra_special_tokens")  # transformers 4 and 5
FLAGS = ("lstrip", "rstrip", "single_word", "special")
OWN_CLASS = "PreTrainedTokenizerFast"  # reads tokenizer.json as it is, in transformers 4 and 5
BLANK = "\u2581"
LLAMA = {
    "tokenizer_class": "LlamaTokenizer",
    "legacy": True,  # else a role marker after BOS loses its blank: 29966 for 529
    "add_bos_token": True,
    "add_eos_token": False,
    "clean_up_tokenization_spaces": False,
    "padding_side": "left",
}
PROBES = (  # what kinds of SentencePiece models treat differently
    "", " ", "\n", " Hello", "Hello  world ", "<|user|>\nHello", "\ufb01 \u2460 e\u0301 \u00e9",
    "\u9be8 \U0001f40b \u200b \x00", "1234567", "\t x" + " " * 40 + "y",
)  # fmt: skip


@dataclass(frozen=True)
class TokenizerPlan:
    """The files of a tokenizer, not yet written.

    `files` is empty where no source has a tokenizer. `special` says which ids are bos, eos, unk
    and pad; a role that nothing fills is left out. `facts` are for the report.
    """

    files: Mapping[str, bytes]
    special: Mapping[str, int]
    rows: int
    facts: Mapping[str, Any]

    def write(self, folder: Path) -> None:
        """Write all files into a folder that is there."""
        for name, content in self.files.items():
            (folder / name).write_bytes(content)

    def agreeing(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A config.json with the special ids of this tokenizer.

        A list of ends that has the tokenizer's in it stays; an id without a row goes.
        """
        agreed = dict(config)
        for role in ("bos", "eos", "pad"):
            key, own = f"{role}_token_id", self.special.get(role)
            told = config.get(key)
            if isinstance(told, list):
                right = all(map(self._has_row, told)) and (own is None or own in told)
            else:
                right = own is None and self._has_row(told)
            if key in config or own is not None:
                agreed[key] = told if right else own
        return agreed

    def generation_config(self, existing: Mapping[str, Any] | None) -> dict[str, Any]:
        """A generation_config.json with the special ids of this tokenizer.

        Args:
            existing: of the source, if it has one.
        """
        kept = {
            key: value
            for key, value in (existing or {}).items()
            if key not in LOCAL and not key.startswith("_")
        }
        return self.agreeing(kept)

    def _has_row(self, number: object) -> bool:
        return type(number) is int and 0 <= number < self.rows


def plan(
    sources: Sequence[Path],
    rows: int,
    base_rows: int,
    *,
    drop: bool,
    config: Mapping[str, Any],
    template: Template,
) -> TokenizerPlan:
    """Decide what tokenizer a recovered model gets; nothing is written outside a temporary folder.

    The pad token is the one that the files name, if it has an id; else `<pad>` where exactly one
    row has no token, as in Tulu's diffs; else the unknown token; else the end.

    Args:
        sources: the diff's folder, then the base's; the first with a tokenizer counts.
        rows: of the tuned embedding.
        base_rows: of the base's embedding.
        drop: leave out the tokens that the tuning added; the output then has `base_rows` rows.
        config: of the output; tells the model type and `max_position_embeddings`.
        template: `auto` keeps the diff's own chat template, and gives Tulu's to a diff that adds
            `<pad>` and nothing else.
    Raises:
        CheckpointProblem: a file that cannot be read; files that contradict one another; an id
            without a row.
    """
    limit = base_rows if drop else rows
    folder = next((f for f in sources if any((f / n).is_file() for n in (MODEL, FAST))), None)
    if folder is None:
        return TokenizerPlan({}, {}, limit, {"tokenizer": None})
    source = _Source.read(folder)
    model = _sentencepiece(folder / MODEL) if (folder / MODEL).is_file() else None
    fast = _llama(model) if model is not None else None
    if model is None or fast is None:
        words = _words(source)
    else:
        words = [model.id_to_piece(number) for number in range(model.get_piece_size())]
        _require_same(source, words)
    vocabulary = _vocabulary(source, words, limit, base_rows, drop=drop)
    chat = _chat_template(source, vocabulary, template, diff=folder == sources[0])
    if model is None or fast is None:
        files, special = _kept(source, vocabulary, chat)
    else:
        own = {"bos": model.bos_id(), "eos": model.eos_id(), "unk": model.unk_id()}
        files, special = _made(source, vocabulary, chat, fast, own, config)
    _prove(source, files, special, config)
    facts = {
        "tokenizer": folder.name,
        "tokens": len(vocabulary.ids),
        "special": {role: [number, vocabulary.text(number)] for role, number in special.items()},
        "pad": vocabulary.why(special),
        "dropped": sorted(vocabulary.dropped),
        "chat_template": {None: None, CHAT_TEMPLATE: "tulu"}.get(chat, "own"),
    }
    return TokenizerPlan(files, special, limit, facts)
