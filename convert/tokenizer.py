"""The tokenizer of a recovered model: planned before a weight is written, written after the last.

One of LLaMA's kind is made anew from its tokenizer.model (`llama_tokenizer`). Any other is kept
as it is, file by file, but for what is wrong in it. Either is loaded once before it counts.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import tokenizers

from camelpress.convert import llama_tokenizer
from camelpress.convert.vocabulary import (
    ADDED,
    CONFIG,
    FAST,
    JINJA,
    LISTS,
    MAP,
    MODEL,
    NEXT_STEP,
    PADS,
    SINGLE,
    Json,
    Told,
    Vocabulary,
    entries,
    entry,
    text_of,
    without_row,
)
from camelpress.core.config import LOCAL
from camelpress.core.errors import CheckpointProblem
from camelpress.core.panics import is_panic, without_panic_messages
from camelpress.core.prompt import CHAT_TEMPLATE
from camelpress.core.tokens import Tokenizer

Template = Literal["auto", "tulu", "none"]

KEPT = (MODEL, FAST, CONFIG, MAP, ADDED, JINJA, "vocab.json", "merges.txt")
PLAIN = "PreTrainedTokenizerFast"  # takes tokenizer.json as it stands, in transformers 4 and 5
PAD_FROM = {
    "pad": "the token that the files call so",
    "row": "the row without a token",
    "unk": "the unknown token",
    "eos": "the end of sequence token",
    None: "none",
}
UNPORTABLE = (None, "TokenizersBackend")  # transformers 4 guesses the one, has no other


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

        A list of ends that has the tokenizer's in it stays; an id without a row does not.
        """
        agreed = dict(config)
        for role in ("bos", "eos", "pad"):
            key, own = f"{role}_token_id", self.special.get(role)
            told = config.get(key)
            ids = told if isinstance(told, list) else [told]
            known = all(type(number) is int and 0 <= number < self.rows for number in ids)
            if own not in (None, *ids) or (not known and key in config):
                agreed[key] = own
        return agreed

    def generation_config(self, existing: Mapping[str, Any] | None) -> dict[str, Any]:
        """A generation_config.json with this tokenizer's special ids.

        Args:
            existing: the source's, if it has one.
        """
        told = existing or {}
        return self.agreeing(
            {key: told[key] for key in told if key not in LOCAL and not key.startswith("_")}
        )


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
        config: the output's; its `max_position_embeddings` bounds `model_max_length`.
        template: `auto` keeps the diff's own chat template and gives Tulu's to a diff that adds
            `<pad>` and nothing else, as open-instruct's do.
    Raises:
        CheckpointProblem: a file cannot be read, files contradict one another, or an id has no
            row.
    Source:
        What tunings add: allenai/open-instruct e44fcf588, open_instruct/finetune.py.
    """
    limit = base_rows if drop else rows
    folder = next((f for f in sources if any((f / n).is_file() for n in (MODEL, FAST))), None)
    if folder is None:
        return TokenizerPlan({}, {}, limit, {"from": None})
    told = Told(folder)
    llama = llama_tokenizer.read(told)
    made, own = llama or (_loaded(folder / FAST), {})
    vocabulary = Vocabulary(made.get_vocab(with_added_tokens=False))
    last = vocabulary.next - 1
    if last >= limit:
        raise without_row(folder / (MODEL if llama else FAST), vocabulary.texts[last], last, limit)
    told.add_to(vocabulary, rows, rowless=drop)
    tulu = folder == sources[0] and vocabulary.since(base_rows) == [PADS[0]]
    dropped = vocabulary.drop(limit)
    roles = told.roles(vocabulary.ids.keys() - (vocabulary.words if llama else {}))
    special = own | {role: vocabulary.ids[text] for role, text in roles.items()}
    pad: str | None = next((role for role in ("pad", "unk", "eos") if role in special), None)
    if pad != "pad" and vocabulary.next == limit - 1:
        pad, special["pad"] = "row", vocabulary.next
        vocabulary.add(PADS[0], {"special": True})
    elif pad:
        special["pad"] = special[pad]
    chat = _chat_template(told, template, tulu=tulu)
    if llama:
        files = llama_tokenizer.files(told, vocabulary, made, special, chat, config)
    else:
        files = _kept(told, vocabulary, special, chat)
    facts = {
        "from": folder.name,
        "tokens": vocabulary.next,
        "pad": PAD_FROM[pad],
        "dropped": dropped,
        "chat_template": chat and ("tulu" if chat == CHAT_TEMPLATE else "own"),
    }
    contents = {name: _bytes(content) for name, content in files.items()}
    planned = TokenizerPlan(contents, special, limit, facts)
    return replace(planned, special=special | _tried(planned, vocabulary, folder, config))


def _loaded(path: Path) -> tokenizers.Tokenizer:
    try:
        with without_panic_messages():
            return tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except BaseException as error:
        if type(error) is not Exception and not is_panic(error):  # the library raises the former
            raise
        raise CheckpointProblem(
            f"{path} is not a tokenizer ({str(error).splitlines()[0]})",
            next_step="download it again",
        ) from error


def _chat_template(told: Told, template: Template, *, tulu: bool) -> Any:
    own = told.template()
    if template == "none":
        return None
    if template == "tulu" or (tulu and not own):
        return CHAT_TEMPLATE
    return own


def _kept(
    told: Told, vocabulary: Vocabulary, special: Mapping[str, int], template: Any
) -> dict[str, bytes | Json]:
    """The files of a tokenizer of any kind, byte for byte where nothing in them is wrong."""
    names = {f"{role}_token": vocabulary.texts[number] for role, number in special.items()}
    decoder = {str(number): entry(token) for number, token in vocabulary.added.items()}
    config = _corrected(told.config, vocabulary.ids, names)
    if config.pop("auto_map", None) or config.get("tokenizer_class") in UNPORTABLE:
        config["tokenizer_class"] = PLAIN
        config.setdefault("model_input_names", ["input_ids", "attention_mask"])
    if isinstance(config.get("added_tokens_decoder"), dict):
        config["added_tokens_decoder"] = decoder | config["added_tokens_decoder"]
    own = template == told.template()
    if not own:
        config.pop("chat_template", None)
        config |= {"chat_template": template} if template else {}
    before = entries(told.fast.get("added_tokens"))
    listed = [token for token in before if text_of(token) in vocabulary.ids]
    texts = {text_of(token) for token in listed}
    listed += [
        {"id": number, **entry(token)}
        for number, token in vocabulary.added.items()
        if token.content not in texts
    ]
    fast = told.fast | ({"added_tokens": listed} if listed != before else {})
    padding = fast.get("padding")
    if isinstance(padding, dict) and text_of(padding.get("pad_token")) not in vocabulary.ids:
        fast["padding"] = None
    right: dict[str, tuple[Json, Json]] = {
        FAST: (told.fast, fast),
        CONFIG: (told.config, config),
        MAP: (told.map, _corrected(told.map, vocabulary.ids, names) if told.map else {}),
        ADDED: (
            told.added,
            {text: number for text, number in told.added.items() if text in vocabulary.ids},
        ),
    }
    files: dict[str, bytes | Json] = {
        name: (told.folder / name).read_bytes()
        for name in KEPT
        if (told.folder / name).is_file() and (own or name != JINJA)
    }
    return files | {name: new for name, (old, new) in right.items() if new != old}


def _corrected(content: Json, known: Container[str], names: Mapping[str, str]) -> Json:
    """A small file without tokens that are not known, and with those that have a role."""
    kept: Json = {}
    for key, value in content.items():
        if key in (*LISTS, "added_tokens_decoder") and isinstance(value, dict):
            value = {name: token for name, token in value.items() if text_of(token) in known}
        elif key in LISTS and isinstance(value, list):
            value = [token for token in value if text_of(token) in known]
        if key not in SINGLE or value is None or text_of(value) in known:
            kept[key] = value
    return kept | {key: text for key, text in names.items() if text_of(kept.get(key)) != text}


def _tried(
    plan: TokenizerPlan, vocabulary: Vocabulary, folder: Path, config: Mapping[str, Any]
) -> dict[str, int]:
    """The special ids of the files once they are loaded.

    Raises:
        CheckpointProblem: they cannot be loaded, or give other ids than was planned.
    """
    with TemporaryDirectory() as name:
        place = Path(name)
        plan.write(place)
        kind = {key: config[key] for key in ("model_type",) if key in config}
        (place / "config.json").write_bytes(_bytes(kind))
        try:
            loaded = Tokenizer.load(place)
            ids = loaded.encode_document("Hello world")
            added = {n: loaded.encode_document(vocabulary.texts[n]) for n in vocabulary.added}
        except CheckpointProblem as error:
            raise CheckpointProblem(
                error.what.replace(name, str(folder)), next_step=error.next_step
            ) from error
        except (TypeError, ValueError) as error:
            raise CheckpointProblem(
                f"{folder} has a tokenizer that cannot encode ({error})", next_step=NEXT_STEP
            ) from error
    found = {"bos": loaded.bos, "eos": loaded.eos, "pad": loaded.pad}
    special = {role: number for role, number in found.items() if number is not None}
    lost = {number for number, encoded in added.items() if number not in encoded}
    if lost:
        text = vocabulary.texts[min(lost)]
        raise CheckpointProblem(
            f"{folder} has a tokenizer that does not give {text!r} the id {min(lost)} "
            "when it is loaded",
            next_step=NEXT_STEP,
        )
    top = max(len(loaded) - 1, *ids, *special.values())
    if top >= plan.rows:
        raise CheckpointProblem(
            f"{folder} has a tokenizer that gives the id {top} when it is loaded, "
            f"but the embedding has {plan.rows} rows",
            next_step=NEXT_STEP,
        )
    return special


def _bytes(content: bytes | Json) -> bytes:
    if isinstance(content, bytes):
        return content
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # half a surrogate pair, as JSON escapes it
