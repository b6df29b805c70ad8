"""The tokenizer of a recovered model: planned before a weight is written, written after the last.

A tokenizer.model that stands alone gets a tokenizer.json that gives the same ids, and small files
that both generations of transformers read alike (`llama_tokenizer`). Any other tokenizer is kept
as it is, file by file, but for what is wrong in it (`kept_tokenizer`). Either is loaded once, and
compared with the source's own, before it counts.
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
from camelpress.convert.tokenizer.tokenizer_changes import changes
from camelpress.convert.tokenizer.tokenizer_files import (
    FAST,
    FILES,
    JINJA,
    MERGES,
    MODEL,
    PADS,
    PIECES,
    Json,
    TokenizerFiles,
    Vocabulary,
    entries,
    text_of,
    tokenizer_files,
    without_row,
)
from camelpress.core.checkpoint.portable_config import LOCAL
from camelpress.core.errors import CheckpointProblem
from camelpress.core.files.file_recognizer import unreadable
from camelpress.core.files.json_files import read_json
from camelpress.core.progress import note
from camelpress.core.runtime.rust_panics import is_panic, without_panic_messages
from camelpress.core.text.tulu_format import CHAT_TEMPLATE

Template = Literal["auto", "tulu", "none"]

KEPT = FILES  # names that a plan decides on
INFILLING = "▁<PRE>"  # a piece of CodeLlama's, whose class has a pipeline of its own
PAD_FROM = {
    "pad": "the token that the files call so",
    "row": "the row without a token",
    "unk": "the unknown token",
    "eos": "the end of sequence token",
    None: "none",
}


@dataclass(frozen=True)
class TokenizerPlan:
    """The files of a tokenizer, not yet written.

    `files` is empty where no source has a tokenizer. `special` maps bos, eos, unk and pad to
    ids; a role that no token has is not in it. `rows` are the output's. `facts` are for the
    report.
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
        """A config.json with this tokenizer's special ids.

        A list of ends that has the tokenizer's in it stays; an id without a row goes.
        """
        agreed = dict(config)
        for role in ("bos", "eos", "pad"):
            key, own = f"{role}_token_id", self.special.get(role)
            value = config.get(key)
            ids = value if isinstance(value, list) else [value]
            known = [number for number in ids if type(number) is int and 0 <= number < self.rows]
            if own not in (None, *known):
                agreed[key] = own
            elif len(known) < len(ids) and key in config:
                agreed[key] = known if len(known) > 1 else (*known, own)[0]
        return agreed

    def generation_config(self, existing: Mapping[str, Any] | None) -> dict[str, Any]:
        """A generation_config.json with this tokenizer's special ids.

        Args:
            existing: the source's, if it has one.
        """
        stated = existing or {}
        return self.agreeing(
            {key: stated[key] for key in stated if key not in LOCAL and not key.startswith("_")}
        )


@dataclass(frozen=True)
class Form:
    """Holds the files of a tokenizer, facts of their form, and ids that they must give."""

    files: Mapping[str, bytes | Json]
    facts: Json
    sample: Mapping[str, list[int]] = field(default_factory=dict)


def plan(
    sources: Sequence[Path],
    rows: int,
    base_rows: int,
    *,
    drop: bool,
    config: Mapping[str, Any],
    template: Template,
) -> TokenizerPlan:
    """Decide on the tokenizer of a recovered model, and try it out in a temporary folder.

    Pad is the added token that the files call so; else `<pad>` where exactly one row has no
    token, as in Tulu's diffs; else the unknown token; else the end.

    Args:
        sources: the diff's folder, then the base's; the first that has a tokenizer counts.
        rows: of the tuned embedding.
        base_rows: of the base's embedding.
        drop: leave out what the tuning added; the output then has `base_rows` rows.
        config: the output's; its `max_position_embeddings` is a default of `model_max_length`.
        template: `auto` keeps the diff's own chat template and gives Tulu's to a diff that adds
            `<pad>` and nothing else, as open-instruct's do.
    Raises:
        CheckpointProblem: a file cannot be read, files contradict one another, or an id has no
            row.
    Source:
        What tunings add: allenai/open-instruct e44fcf588, open_instruct/finetune.py.
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
    tulu = from_diff and rows > base_rows and vocabulary.since(base_rows) == [PADS[0]]
    dropped = vocabulary.drop(limit)
    if dropped:
        texts = ", ".join(map(repr, dropped))
        note(f"{source.folder}: without a row in the output, so left out: {texts}")
    special, pad = _special(source, model, vocabulary, limit)
    chat = _chat_template(source, template, tulu=tulu)
    form = _form(source, model, vocabulary, special, chat, config)
    files = dict(form.files)
    if source.templates and isinstance(chat, str):
        files.setdefault(JINJA, chat.encode())  # loaders read no other default beside templates
    contents = {name: _bytes(content) for name, content in files.items()}
    facts = {
        "from": source.folder.name,
        "source": "diff" if from_diff else "base",
        "tokens": vocabulary.next,
        "pad": PAD_FROM[pad],
        "dropped": dropped,
        "chat_template": chat and ("tulu" if chat == CHAT_TEMPLATE else "own"),
        "changes": changes(source, contents),
        **form.facts,
    }
    planned = TokenizerPlan(contents, special, limit, facts)
    return _tried(planned, vocabulary, source, config, form.sample)


def _sentencepiece(source: TokenizerFiles, diff: Path) -> SentencePieceModel | None:
    """Reads the tokenizer.model of a source; returns None where there is none, or tiktoken's."""
    path = source.paths.get(MODEL)
    if path is None:
        return None
    if not is_tiktoken(path):
        return SentencePieceModel(path)
    if FAST in source.paths or PIECES in source.paths:
        return None
    raise CheckpointProblem(
        f"{path} is for tiktoken, as Meta ships Llama 3, and no {FAST} is beside it",
        next_step=f"copy the {FAST} of this model into {diff}",
    )


def _vocabulary(source: TokenizerFiles, model: SentencePieceModel | None, limit: int) -> Vocabulary:
    """Reads the vocabulary without added tokens.

    Raises:
        CheckpointProblem: it cannot be read, a word has no row, or the folder has two different
            vocabularies.
    """
    vocabulary = Vocabulary(_words(source, model, limit))
    last = vocabulary.next - 1
    if last >= limit:
        raise without_row(source.vocabulary, vocabulary.texts[last], last, limit)
    return vocabulary


def _words(source: TokenizerFiles, model: SentencePieceModel | None, limit: int) -> dict[str, int]:
    pieces = {piece: number for number, piece in enumerate(model.pieces)} if model else {}
    if FAST in source.paths:
        added = {text_of(token) for token in entries(source.fast.get("added_tokens"))}
        if model and model.is_llama:
            _require_same(source, pieces, added)
        words = _loaded(source.paths[FAST]).get_vocab(with_added_tokens=False)
        return {
            text: number for text, number in words.items() if number < limit or text not in added
        }
    return pieces or _listed(source)


def _listed(source: TokenizerFiles) -> dict[str, int]:
    """Reads the words of a vocab.json."""
    path = source.paths[PIECES]
    words = read_json(path)
    if MERGES not in source.paths:
        raise CheckpointProblem(
            f"{path} has no {MERGES} beside it", next_step=f"download {MERGES}, too"
        )
    if not words or any(type(number) is not int or number < 0 for number in words.values()):
        raise CheckpointProblem(
            f"{path} is not a vocabulary: words with their ids", next_step="download it again"
        )
    return words


def _loaded(path: Path) -> tokenizers.Tokenizer:
    try:
        with without_panic_messages():
            return tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except BaseException as error:
        if type(error) is not Exception and not is_panic(error):  # the library raises the former
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise unreadable(path, f"{path} is not a tokenizer ({reason})") from error


def _require_same(source: TokenizerFiles, pieces: Mapping[str, int], added: set[str]) -> None:
    """Refuses two vocabularies in one folder: nothing says which one the weights belong to."""
    model = source.fast.get("model")
    words = model.get("vocab") if isinstance(model, dict) else None
    known = words if isinstance(words, dict) else {}
    if {text: known[text] for text in known if text in pieces or text not in added} != pieces:
        size = len(words) if isinstance(words, (dict, list)) else 0
        raise CheckpointProblem(
            f"{source.paths[FAST]} has a vocabulary of {size}, not the {len(pieces)} of {MODEL}",
            next_step="remove the one that does not belong to these weights",
        )


def _special(
    source: TokenizerFiles, model: SentencePieceModel | None, vocabulary: Vocabulary, limit: int
) -> tuple[dict[str, int], str | None]:
    """Decides on the ids of bos, eos, unk and pad, and names the rule that gave pad."""
    own = model.roles if model and not (source.fast and not model.is_llama) else {}
    roles = source.roles(vocabulary.ids.keys())
    special = own | {role: vocabulary.ids[text] for role, text in roles.items()}
    pad: str | None = next((role for role in ("pad", "unk", "eos") if role in special), None)
    if pad != "pad" and vocabulary.next == limit - 1:
        pad, special["pad"] = "row", vocabulary.next
        vocabulary.add(PADS[0], {"special": True})
    elif pad:
        special["pad"] = special[pad]
    return special, pad


def _chat_template(source: TokenizerFiles, template: Template, *, tulu: bool) -> Any:
    own = source.template()
    if template == "none":
        return None
    if template == "tulu" or (tulu and not own):
        return CHAT_TEMPLATE
    return own


def _form(
    source: TokenizerFiles,
    model: SentencePieceModel | None,
    vocabulary: Vocabulary,
    special: Mapping[str, int],
    chat: Any,
    config: Mapping[str, Any],
) -> Form:
    """Makes the files from tokenizer.model where it stands alone, or keeps the source's files."""
    alone = model is not None and not {FAST, PIECES} & source.paths.keys()
    if model is None or not alone or INFILLING in model.pieces:
        return Form(tokenizer_repair.files(source, vocabulary, special, chat), {"form": "kept"})
    options = llama_tokenizer.settings(source, model, config)
    fast = model.fast(llama_tokenizer.prefix(options))
    if fast is None:
        note(
            f"{model.path}: no fast tokenizer gives its ids on joined text, so it is kept without "
            f"a {FAST}; SentencePiece and the slow tokenizer of transformers 4 give these ids"
        )
        files = tokenizer_repair.files(source, vocabulary, special, chat)
        return Form(files, {"form": f"{MODEL} alone, as no fast tokenizer gives its ids"})
    if fast.mismatches:
        note(
            f"{model.path}: {FAST} gives SentencePiece's ids on all of {fast.texts} texts but "
            f"{fast.mismatches}, which hold rare marks or special tokens as text"
        )
    files = llama_tokenizer.files(
        source, vocabulary, fast.backend, special, chat, options, llama=model.is_llama
    )
    compared = {"texts": fast.texts, "mismatches": fast.mismatches}
    facts = {"form": f"{FAST} made from {MODEL}", "sentencepiece": compared}
    return Form(files, facts, fast.sample)


def _tried(
    plan: TokenizerPlan,
    vocabulary: Vocabulary,
    source: TokenizerFiles,
    config: Mapping[str, Any],
    sample: Mapping[str, list[int]],
) -> TokenizerPlan:
    """Completes the plan with the special ids of the loaded files.

    Raises:
        CheckpointProblem: they cannot be loaded, or give other ids than was planned.
    """
    kind = {"config.json": _bytes({key: config[key] for key in ("model_type",) if key in config})}
    loaded = tokenizer_check.load({**plan.files, **kind}, source.folder)
    special = tokenizer_check.special_ids(loaded, vocabulary, plan.rows, source.folder)
    tokens = {token.content for token in (vocabulary.marked | vocabulary.added).values()}
    plain = {
        text: ids for text, ids in sample.items() if not any(token in text for token in tokens)
    }
    tokenizer_check.require_ids(loaded, plain, source.folder)
    compared = tokenizer_check.mismatches(
        loaded, source.contents() | kind, vocabulary, source.folder
    )
    if compared and compared["mismatches"]:
        note(
            f"{source.folder}: {compared['mismatches']} of {compared['texts']} texts get other ids "
            "than transformers reads from these files; the report lists what was filled in"
        )
    facts = {**plan.facts, "transformers": compared}
    return replace(plan, special={**plan.special, **special}, facts=facts)


def _bytes(content: bytes | Json) -> bytes:
    if isinstance(content, bytes):
        return content
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # half a surrogate pair, as JSON escapes it
