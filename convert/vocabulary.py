"""What the tokenizer files of a folder say, and which ids that makes.

Any of the four JSON files can be missing, and can hold null or "" for a token; of what they say
of a token's id each may be the only one. What contradicts something else is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from camelpress.core.errors import CheckpointProblem
from camelpress.core.json import read_json

Json = dict[str, Any]

MODEL, FAST = "tokenizer.model", "tokenizer.json"
CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
JINJA = "chat_template.jinja"

ROLES = ("bos", "eos", "unk", "pad")
PADS = ("<pad>", "[PAD]")  # what open-instruct adds, and what Alpaca and FastChat v0 add
SINGLE = tuple(f"{role}_token" for role in (*ROLES, "sep", "cls", "mask"))
LISTS = ("additional_special_tokens", "extra_special_tokens")  # of transformers 4 and 5
FLAGS = ("lstrip", "rstrip", "single_word", "special")
NEXT_STEP = "give the tokenizer that these weights were trained with"


class Vocabulary:
    """Words, and the tokens added behind them."""

    def __init__(self, words: Mapping[str, int]) -> None:
        self.words = dict(words)
        self.ids = dict(words)
        self.texts = {number: text for text, number in words.items()}
        self.added: dict[int, AddedToken] = {}

    @property
    def next(self) -> int:
        """The id of the next token to be added."""
        return 1 + max(self.texts, default=-1)

    def add(self, text: str, flags: Mapping[str, bool]) -> None:
        """Give a text the next id."""
        number = self.next
        self.ids[text], self.texts[number] = number, text
        self.added[number] = AddedToken(text, normalized=False, **flags)

    def since(self, first: int) -> list[str]:
        """The added tokens from an id on."""
        return [self.texts[number] for number in self.added if number >= first]

    def drop(self, first: int) -> list[str]:
        """Take away the added tokens from an id on."""
        gone = self.since(first)
        for text in gone:
            number = self.ids.pop(text)
            del self.texts[number], self.added[number]
        return gone


class Told:
    """The small files of a tokenizer; {} for one that is not there.

    Raises:
        CheckpointProblem: one of them cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fast, self.config, self.map, self.added = (
            read_json(folder / name) if (folder / name).is_file() else {}
            for name in (FAST, CONFIG, MAP, ADDED)
        )

    def named(self, key: str) -> str:
        """A special token; where two files name one, the one that loaders take."""
        files = (self.map, self.config)
        first, second = files[::-1] if "added_tokens_decoder" in self.config else files
        return text_of(first.get(key)) or text_of(second.get(key))

    def roles(self, known: Set[str]) -> dict[str, str]:
        """Role to text; only texts that are `known` count."""
        found = {role: self.named(f"{role}_token") for role in ROLES}
        found["pad"] = next((text for text in (found["pad"], *PADS) if text in known), "")
        return {role: text for role, text in found.items() if text in known}

    def template(self) -> Any:
        """The chat template, a text or a list of them; None without one.

        Raises:
            CheckpointProblem: it is not text.
        """
        path = self.folder / JINJA
        if not path.is_file():
            return self.config.get("chat_template") or None
        try:
            return path.read_text(encoding="utf-8") or None
        except ValueError as error:
            raise CheckpointProblem(
                f"{path} is not UTF-8 text", next_step="download it again"
            ) from error

    def add_to(self, vocabulary: Vocabulary, rows: int, *, rowless: bool) -> None:
        """Add the tokens to which the files give ids, and those that they only name.

        The latter get the rows that are left, as loaders do it.

        Args:
            vocabulary: without any added token.
            rows: of the embedding.
            rowless: whether ids without a row are taken, too.
        Raises:
            CheckpointProblem: an id without a row, one given twice, or a gap between ids.
        """
        listed = self._listed(vocabulary, None if rowless else rows)
        for number, (path, text, flags) in sorted(listed.items()):
            if number != vocabulary.next:
                raise CheckpointProblem(
                    f"{path} gives {text!r} the id {number}, "
                    f"but no token has the id {vocabulary.next}",
                    next_step=NEXT_STEP,
                )
            vocabulary.add(text, flags)
        for text in (self.named("pad_token"), *self._more()):
            if text and text not in vocabulary.ids and vocabulary.next < rows:
                vocabulary.add(text, {"special": True})

    def _listed(
        self, vocabulary: Vocabulary, rows: int | None
    ) -> dict[int, tuple[Path, str, dict[str, bool]]]:
        special = {*map(self.named, SINGLE), *self._more()}
        ids = dict(vocabulary.ids)
        found: dict[int, tuple[Path, str, dict[str, bool]]] = {}
        for name, token, given in self._entries():
            path, text, number = self.folder / name, text_of(token), _number(given)
            if not text or ids.get(text) == number:
                continue
            if rows is not None and number >= rows:
                raise without_row(path, text, number, rows)
            if text in ids or number < vocabulary.next or number in found:
                raise CheckpointProblem(
                    f"{path} gives {text!r} the id {given}, which contradicts other tokens",
                    next_step=NEXT_STEP,
                )
            ids[text] = number
            found[number] = (path, text, {"special": text in special} | _flags(token))
        return found

    def _entries(self) -> Iterator[tuple[str, object, object]]:
        """File, token and id of whatever has an id."""
        decoder = self.config.get("added_tokens_decoder")
        for number, token in decoder.items() if isinstance(decoder, dict) else ():
            yield CONFIG, token, number
        for token in entries(self.fast.get("added_tokens")):
            yield FAST, token, token.get("id")
        for text, number in self.added.items():
            yield ADDED, text, number

    def _more(self) -> Iterator[str]:
        """Special tokens without a role."""
        for content in (self.map, self.config):
            for key in LISTS:
                value = content.get(key)
                tokens = value.values() if isinstance(value, dict) else value
                yield from map(text_of, tokens if isinstance(tokens, Iterable) else ())


def without_row(path: Path, text: str, number: int, rows: int) -> CheckpointProblem:
    """The problem of an id that the embedding does not have."""
    return CheckpointProblem(
        f"{path} gives {text!r} the id {number}, but the embedding has {rows} rows",
        next_step=NEXT_STEP,
    )


def text_of(token: object) -> str:
    """The text of a token, which files hold as a string or in an object; "" if there is none."""
    text = token.get("content") if isinstance(token, dict) else token
    if isinstance(text, str) and text == text.encode("utf-8", "ignore").decode():
        return text
    return ""


def entries(tokens: object) -> list[Json]:
    """The objects of a list of tokens, such as tokenizer.json's `added_tokens`."""
    return (
        [token for token in tokens if isinstance(token, dict)] if isinstance(tokens, list) else []
    )


def entry(token: AddedToken) -> Json:
    """An added token as files hold it, without its id."""
    return {key: getattr(token, key) for key in ("content", "normalized", *FLAGS)}


def _flags(token: object) -> dict[str, bool]:
    told = token if isinstance(token, dict) else {}
    return {key: told[key] for key in FLAGS if isinstance(told.get(key), bool)}


def _number(given: object) -> int:
    """An id, which files hold as a number or as its digits; -1 if it is neither."""
    if isinstance(given, str) and given.isdecimal() and len(given) < 10:
        return int(given)
    return given if isinstance(given, int) else -1
