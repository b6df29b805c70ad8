"""Plans the tokenizer of a recovered model before the first weight is written.

A lone tokenizer.model gets a tokenizer.json with the same ids, and JSON files with one meaning in
transformers 4 and 5 (`llama_tokenizer`). Any other tokenizer is kept file by file, with repairs
(`tokenizer_repair`). The result is loaded once and compared with the source's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import tokenizers

from camelpress.convert.tokenizer import llama_tokenizer, tokenizer_check, tokenizer_repair
from camelpress.convert.tokenizer.sentencepiece_model import SentencePieceModel, is_tiktoken
from camelpress.convert.tokenizer.tokenizer_changes import setting_changes
from camelpress.convert.tokenizer.tokenizer_files import (
    CHAT_TEMPLATE_FILE,
    MERGES_TXT,
    PAD_TOKENS,
    TOKENIZER_FILE_NAMES,
    TOKENIZER_JSON,
    TOKENIZER_MODEL,
    VOCAB_JSON,
    JsonObject,
    TokenizerFiles,
    Vocabulary,
    missing_row_problem,
    token_entries,
    token_text,
    tokenizer_files,
)
from camelpress.core.checkpoint.portable_config import MACHINE_CONFIG_KEYS
from camelpress.core.errors import CheckpointProblem
from camelpress.core.files.file_recognizer import unreadable_file_problem
from camelpress.core.files.json_files import read_json
from camelpress.core.progress import note
from camelpress.core.runtime.rust_panics import drop_panic_messages, is_panic
from camelpress.core.text.tulu_format import TULU_CHAT_TEMPLATE

TemplateOption = Literal["auto", "tulu", "none"]

OUTPUT_FILES = TOKENIZER_FILE_NAMES  # file names under control of a plan
INFILL_PIECE = "▁<PRE>"  # piece of CodeLlama; its class has another pipeline
PAD_ORIGINS = {
    "pad": "the pad token of the files",
    "row": "the row without a token",
    "unk": "the unknown token",
    "eos": "the end of sequence token",
    None: "none",
}


@dataclass(frozen=True)
class TokenizerPlan:
    """Files of a tokenizer, not yet written.

    Args:
        files: name to content; empty if no source has a tokenizer.
        special: role to id of bos, eos, unk and pad, without roles that no token has.
        rows: rows of the output's embedding.
        facts: facts for the report.
    """

    files: Mapping[str, bytes]
    special: Mapping[str, int]
    rows: int
    facts: Mapping[str, Any]

    def write(self, folder: Path) -> None:
        """Writes all files into an existing folder."""
        for name, content in self.files.items():
            (folder / name).write_bytes(content)

    def align_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a config.json with this tokenizer's special ids.

        A list of ids that includes the tokenizer's stays; ids without a row are removed.
        """
        aligned = dict(config)
        for role in ("bos", "eos", "pad"):
            key, token_id = f"{role}_token_id", self.special.get(role)
            value = config.get(key)
            ids = value if isinstance(value, list) else [value]
            valid_ids = [
                number for number in ids if type(number) is int and 0 <= number < self.rows
            ]
            if token_id not in (None, *valid_ids):
                aligned[key] = token_id
            elif len(valid_ids) < len(ids) and key in config:
                aligned[key] = valid_ids if len(valid_ids) > 1 else (*valid_ids, token_id)[0]
        return aligned

    def generation_config(self, existing: Mapping[str, Any] | None) -> dict[str, Any]:
        """Returns a generation_config.json with this tokenizer's special ids.

        Args:
            existing: generation config of the source, or None.
        """
        source_config = existing or {}
        return self.align_config(
            {
                key: source_config[key]
                for key in source_config
                if key not in MACHINE_CONFIG_KEYS and not key.startswith("_")
            }
        )


@dataclass(frozen=True)
class TokenizerForm:
    """Files of a tokenizer, facts of their form, and texts with expected ids."""

    files: Mapping[str, bytes | JsonObject]
    facts: JsonObject
    sample: Mapping[str, list[int]] = field(default_factory=dict)


def plan_tokenizer(
    sources: Sequence[Path],
    rows: int,
    base_rows: int,
    *,
    drop: bool,
    config: Mapping[str, Any],
    template: TemplateOption,
) -> TokenizerPlan:
    """Plans the tokenizer of a recovered model, and checks it in a temporary folder.

    Pad is the pad token of the files; else `<pad>` if exactly one row has no token, as in Tulu's
    diffs; else the unknown token; else the end-of-sequence token.

    Args:
        sources: folder of the diff, then those of the base; the first tokenizer counts.
        rows: rows of the tuned embedding.
        base_rows: rows of the base's embedding.
        drop: drops added tokens, so the output has `base_rows` rows.
        config: config of the output; its `max_position_embeddings` is the default of
            `model_max_length`.
        template: `auto` keeps the diff's own chat template, and gives Tulu's to a diff that adds
            only `<pad>`, as those of open-instruct do.
    Raises:
        CheckpointProblem: a file cannot be read, files contradict each other, or an id has no
            row.
    Source:
        tokens added by tuning: allenai/open-instruct e44fcf588, open_instruct/finetune.py.
    """
    limit = base_rows if drop else rows
    source = tokenizer_files(sources)
    if source is None:
        return TokenizerPlan({}, {}, limit, {"from": None})
    from_diff = source.folder == sources[0]
    model = _sentencepiece(source, sources[0])
    vocabulary = _vocabulary(source, model, limit)
    source.add_to(vocabulary, rows, rowless=drop)
    if not from_diff:
        note(f"{sources[0]} has no tokenizer of its own: that of {source.folder} is used")
    tulu = from_diff and rows > base_rows and vocabulary.added_from(base_rows) == [PAD_TOKENS[0]]
    dropped = vocabulary.drop_added(limit)
    if dropped:
        texts = ", ".join(map(repr, dropped))
        note(f"{source.folder}: without a row in the output, so left out: {texts}")
    special, pad = _special_ids(source, model, vocabulary, limit)
    chat = _chat_template(source, template, tulu=tulu)
    form = _build_form(source, model, vocabulary, special, chat, config)
    files = dict(form.files)
    if source.templates and isinstance(chat, str):
        # beside named templates, loaders read the default one only from this file
        files.setdefault(CHAT_TEMPLATE_FILE, chat.encode())
    contents = {name: _encode_file(content) for name, content in files.items()}
    facts = {
        "from": source.folder.name,
        "source": "diff" if from_diff else "base",
        "tokens": vocabulary.next,
        "pad": PAD_ORIGINS[pad],
        "dropped": dropped,
        "chat_template": chat and ("tulu" if chat == TULU_CHAT_TEMPLATE else "own"),
        "changes": setting_changes(source, contents),
        **form.facts,
    }
    plan = TokenizerPlan(contents, special, limit, facts)
    return _check_plan(plan, vocabulary, source, config, form.sample)


def _sentencepiece(source: TokenizerFiles, diff: Path) -> SentencePieceModel | None:
    """Reads the tokenizer.model of a source; returns None without one, or for a tiktoken file."""
    path = source.paths.get(TOKENIZER_MODEL)
    if path is None:
        return None
    if not is_tiktoken(path):
        return SentencePieceModel(path)
    if TOKENIZER_JSON in source.paths or VOCAB_JSON in source.paths:
        return None
    raise CheckpointProblem(
        f"{path} is for tiktoken, as Meta ships Llama 3, and no {TOKENIZER_JSON} is beside it",
        next_step=f"copy the {TOKENIZER_JSON} of this model into {diff}",
    )


def _vocabulary(source: TokenizerFiles, model: SentencePieceModel | None, limit: int) -> Vocabulary:
    """Reads the vocabulary without added tokens.

    Raises:
        CheckpointProblem: the file cannot be read, a word has no row, or the folder has two
            different vocabularies.
    """
    vocabulary = Vocabulary(_read_words(source, model, limit))
    last = vocabulary.next - 1
    if last >= limit:
        raise missing_row_problem(source.vocabulary, vocabulary.tokens_by_id[last], last, limit)
    return vocabulary


def _read_words(
    source: TokenizerFiles, model: SentencePieceModel | None, limit: int
) -> dict[str, int]:
    pieces = {piece: number for number, piece in enumerate(model.pieces)} if model else {}
    if TOKENIZER_JSON in source.paths:
        added = {token_text(token) for token in token_entries(source.fast.get("added_tokens"))}
        if model and model.is_llama:
            _require_same(source, pieces, added)
        words = _load_fast(source.paths[TOKENIZER_JSON]).get_vocab(with_added_tokens=False)
        return {
            text: number for text, number in words.items() if number < limit or text not in added
        }
    return pieces or _read_vocab_json(source)


def _read_vocab_json(source: TokenizerFiles) -> dict[str, int]:
    """Reads the words of a vocab.json."""
    path = source.paths[VOCAB_JSON]
    words = read_json(path)
    if MERGES_TXT not in source.paths:
        raise CheckpointProblem(
            f"{path} has no {MERGES_TXT} beside it", next_step=f"download {MERGES_TXT}, too"
        )
    if not words or any(type(number) is not int or number < 0 for number in words.values()):
        raise CheckpointProblem(
            f"{path} is not a vocabulary: words with their ids", next_step="download it again"
        )
    return words


def _load_fast(path: Path) -> tokenizers.Tokenizer:
    try:
        with drop_panic_messages():
            return tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except BaseException as error:
        # the library raises plain Exception
        if type(error) is not Exception and not is_panic(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise unreadable_file_problem(path, f"{path} is not a tokenizer ({reason})") from error


def _require_same(source: TokenizerFiles, pieces: Mapping[str, int], added: set[str]) -> None:
    """Raises CheckpointProblem if tokenizer.json and tokenizer.model differ."""
    model = source.fast.get("model")
    words = model.get("vocab") if isinstance(model, dict) else None
    vocab = words if isinstance(words, dict) else {}
    if {text: vocab[text] for text in vocab if text in pieces or text not in added} != pieces:
        size = len(words) if isinstance(words, (dict, list)) else 0
        raise CheckpointProblem(
            f"{source.paths[TOKENIZER_JSON]} has a vocabulary of {size}, not the "
            f"{len(pieces)} of {TOKENIZER_MODEL}",
            next_step="remove the one that does not belong to these weights",
        )


def _special_ids(
    source: TokenizerFiles, model: SentencePieceModel | None, vocabulary: Vocabulary, limit: int
) -> tuple[dict[str, int], str | None]:
    """Returns the ids of bos, eos, unk and pad, and the origin of pad."""
    piece_ids = model.special_ids if model and not (source.fast and not model.is_llama) else {}
    roles = source.roles(vocabulary.ids.keys())
    special = piece_ids | {role: vocabulary.ids[text] for role, text in roles.items()}
    pad: str | None = next((role for role in ("pad", "unk", "eos") if role in special), None)
    if pad != "pad" and vocabulary.next == limit - 1:
        pad, special["pad"] = "row", vocabulary.next
        vocabulary.add(PAD_TOKENS[0], {"special": True})
    elif pad:
        special["pad"] = special[pad]
    return special, pad


def _chat_template(source: TokenizerFiles, template: TemplateOption, *, tulu: bool) -> Any:
    source_template = source.template()
    if template == "none":
        return None
    if template == "tulu" or (tulu and not source_template):
        return TULU_CHAT_TEMPLATE
    return source_template


def _build_form(
    source: TokenizerFiles,
    model: SentencePieceModel | None,
    vocabulary: Vocabulary,
    special: Mapping[str, int],
    chat: Any,
    config: Mapping[str, Any],
) -> TokenizerForm:
    """Builds the files from a lone tokenizer.model, or keeps the source's files."""
    is_alone = model is not None and not {TOKENIZER_JSON, VOCAB_JSON} & source.paths.keys()
    if model is None or not is_alone or INFILL_PIECE in model.pieces:
        return TokenizerForm(
            tokenizer_repair.repair_tokenizer_files(source, vocabulary, special, chat),
            {"form": "kept"},
        )
    options = llama_tokenizer.tokenizer_settings(source, model, config)
    fast = model.build_fast(llama_tokenizer.prepend_scheme(options))
    if fast is None:
        note(
            f"{model.path}: no fast tokenizer gives its ids on joined text, so it is kept without "
            f"a {TOKENIZER_JSON}; SentencePiece and the slow tokenizer of transformers 4 "
            "give these ids"
        )
        files = tokenizer_repair.repair_tokenizer_files(source, vocabulary, special, chat)
        return TokenizerForm(
            files, {"form": f"{TOKENIZER_MODEL} alone, as no fast tokenizer gives its ids"}
        )
    if fast.mismatches:
        note(
            f"{model.path}: {TOKENIZER_JSON} gives SentencePiece's ids on all of {fast.texts} "
            f"texts but {fast.mismatches}, which hold rare marks or special tokens as text"
        )
    files = llama_tokenizer.build_tokenizer_files(
        source, vocabulary, fast.backend, special, chat, options, llama=model.is_llama
    )
    comparison = {"texts": fast.texts, "mismatches": fast.mismatches}
    facts = {"form": f"{TOKENIZER_JSON} made from {TOKENIZER_MODEL}", "sentencepiece": comparison}
    return TokenizerForm(files, facts, fast.sample)


def _check_plan(
    plan: TokenizerPlan,
    vocabulary: Vocabulary,
    source: TokenizerFiles,
    config: Mapping[str, Any],
    sample: Mapping[str, list[int]],
) -> TokenizerPlan:
    """Loads the planned files, and completes the plan with their special ids.

    Raises:
        CheckpointProblem: the files cannot be loaded, or give other ids than planned.
    """
    config_file = {
        "config.json": _encode_file({key: config[key] for key in ("model_type",) if key in config})
    }
    loaded = tokenizer_check.load_tokenizer({**plan.files, **config_file}, source.folder)
    special = tokenizer_check.loaded_special_ids(loaded, vocabulary, plan.rows, source.folder)
    tokens = {token.content for token in (vocabulary.matched_words | vocabulary.added).values()}
    plain_texts = {
        text: ids for text, ids in sample.items() if not any(token in text for token in tokens)
    }
    tokenizer_check.require_sentencepiece_ids(loaded, plain_texts, source.folder)
    comparison = tokenizer_check.count_mismatches(
        loaded, source.contents() | config_file, vocabulary, source.folder
    )
    if comparison and comparison["mismatches"]:
        note(
            f"{source.folder}: {comparison['mismatches']} of {comparison['texts']} texts get other "
            "ids than transformers reads from these files; the report lists what was filled in"
        )
    facts = {**plan.facts, "transformers": comparison}
    return replace(plan, special={**plan.special, **special}, facts=facts)


def _encode_file(content: bytes | JsonObject) -> bytes:
    if isinstance(content, bytes):
        return content
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # JSON escapes half of a surrogate pair
