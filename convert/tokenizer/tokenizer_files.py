"""Reads the tokenizer files of a model, and derives the ids of its tokens.

Any of the four JSON files can be missing or hold null or "" for a token, and any can be the only
one with a token's id. Contradictions are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from camelpress.core.errors import CheckpointProblem
from camelpress.core.file_names import CHAT_TEMPLATES_FOLDER
from camelpress.core.files.json_files import read_json

JsonObject = dict[str, Any]

TOKENIZER_MODEL, TOKENIZER_JSON, VOCAB_JSON, MERGES_TXT = (
    "tokenizer.model",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
)
TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP, ADDED_TOKENS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
CHAT_TEMPLATE_FILE = "chat_template.jinja"
# Files with a vocabulary, in the loaders' order of preference.
VOCABULARY_FILES = (TOKENIZER_JSON, TOKENIZER_MODEL, VOCAB_JSON)
FOREIGN_VOCABULARIES = (  # vocabulary files of other libraries, not supported
    *("tekken.json", "tiktoken.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt"),
    *("qwen.tiktoken",),
)
TOKENIZER_FILE_NAMES = (
    *VOCABULARY_FILES,
    MERGES_TXT,
    TOKENIZER_CONFIG,
    SPECIAL_TOKENS_MAP,
    ADDED_TOKENS,
    CHAT_TEMPLATE_FILE,
)

ROLES = ("bos", "eos", "unk", "pad")
PAD_TOKENS = ("<pad>", "[PAD]")  # pad token of open-instruct; of Alpaca and FastChat v0
SPECIAL_TOKEN_KEYS = tuple(f"{role}_token" for role in (*ROLES, "sep", "cls", "mask"))
SPECIAL_LIST_KEYS = ("additional_special_tokens", "extra_special_tokens")  # transformers 4, 5
TOKEN_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
NEXT_STEP = "give the tokenizer that these weights were trained with"
DROP_STEP = f"leave it out with --extra-rows drop, or {NEXT_STEP}"


class Vocabulary:
    """Vocabulary: words, tokens added after them, and words matched as whole tokens."""

    def __init__(self, words: Mapping[str, int]) -> None:
        self.words = dict(words)
        self.ids = dict(words)
        self.tokens_by_id = {number: text for text, number in words.items()}
        self.added: dict[int, AddedToken] = {}
        self.matched_words: dict[int, AddedToken] = {}

    @property
    def next(self) -> int:
        """Id of the next added token."""
        return 1 + max(self.tokens_by_id, default=-1)

    def add(self, text: str, flags: Mapping[str, bool]) -> None:
        """Adds a token with the next id."""
        number = self.next
        self.ids[text], self.tokens_by_id[number] = number, text
        self.added[number] = _token(text, flags)

    def add_match(self, text: str, flags: Mapping[str, bool]) -> None:
        """Marks a word for matching as a whole token, before a text is split."""
        self.matched_words.setdefault(self.ids[text], _token(text, flags))

    def added_from(self, first: int) -> list[str]:
        """Returns the added tokens with ids from `first` on."""
        return [self.tokens_by_id[number] for number in self.added if number >= first]

    def drop_added(self, first: int) -> list[str]:
        """Removes and returns the added tokens with ids from `first` on."""
        dropped = self.added_from(first)
        for text in dropped:
            number = self.ids.pop(text)
            self.words.pop(text, None)
            del self.tokens_by_id[number], self.added[number]
        return dropped


class TokenizerFiles:
    """Reads the JSON files of a tokenizer; a missing file is {}.

    Args:
        folders: folders in order of precedence; the last one holds the vocabulary.
    Raises:
        CheckpointProblem: a file cannot be read.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folder = folders[-1]
        self.paths = {
            name: folder / name
            for folder in reversed(folders)
            for name in TOKENIZER_FILE_NAMES
            if (folder / name).is_file()
        }
        self.templates = sorted(folders[0].glob(f"{CHAT_TEMPLATES_FOLDER}/*.jinja"))
        self.fast, self.config, self.map, self.added = (
            read_json(self.paths[name]) if name in self.paths else {}
            for name in (TOKENIZER_JSON, TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP, ADDED_TOKENS)
        )

    @property
    def vocabulary(self) -> Path:
        """Path of the vocabulary file preferred by loaders."""
        return next(self.paths[name] for name in VOCABULARY_FILES if name in self.paths)

    def contents(self) -> dict[str, bytes]:
        """Returns the bytes of every file."""
        return {name: path.read_bytes() for name, path in self.paths.items()}

    def token(self, key: str) -> Any:
        """Returns the entry of a token, from the file preferred by loaders."""
        files = (self.map, self.config)
        first, second = files[::-1] if "added_tokens_decoder" in self.config else files
        return first.get(key) if token_text(first.get(key)) else second.get(key)

    def special_text(self, key: str) -> str:
        """Returns the text of a special token; "" without one."""
        return token_text(self.token(key))

    def roles(self, tokens: Set[str]) -> dict[str, str]:
        """Returns role to text of bos, eos, unk and pad, without texts outside `tokens`."""
        roles = {role: self.special_text(f"{role}_token") for role in ROLES}
        roles["pad"] = next((text for text in (roles["pad"], *PAD_TOKENS) if text in tokens), "")
        return {role: text for role, text in roles.items() if text in tokens}

    def template(self) -> Any:
        """Returns the chat template, a text or a list of named ones; None without one.

        Raises:
            CheckpointProblem: the file is not UTF-8 text.
        """
        path = self.paths.get(CHAT_TEMPLATE_FILE)
        if path is None:
            return self.config.get("chat_template") or None
        try:
            return path.read_text(encoding="utf-8") or None
        except ValueError as error:
            raise CheckpointProblem(
                f"{path} is not UTF-8 text", next_step="download it again"
            ) from error

    def add_to(self, vocabulary: Vocabulary, rows: int, *, rowless: bool) -> None:
        """Adds the tokens with ids in the files, then the special tokens without ids.

        The latter get the remaining rows, as in loaders.

        Args:
            vocabulary: vocabulary without added tokens.
            rows: rows of the embedding.
            rowless: accepts ids without a row, too.
        Raises:
            CheckpointProblem: an id has no row, an id occurs twice, or ids have a gap.
        """
        entries_by_id = self._collect_ids(vocabulary, None if rowless else rows)
        for number, (path, text, flags) in sorted(entries_by_id.items()):
            if number != vocabulary.next:
                raise CheckpointProblem(
                    f"{path} gives {text!r} the id {number}, "
                    f"but no token has the id {vocabulary.next}",
                    next_step=NEXT_STEP,
                )
            vocabulary.add(text, flags)
        for token in (self.token("pad_token"), *self.tokens_without_role()):
            text = token_text(token)
            if text and text not in vocabulary.ids and vocabulary.next < rows:
                vocabulary.add(text, _flags(token) | {"special": True})
        for token in (*map(self.token, SPECIAL_TOKEN_KEYS), *self.tokens_without_role()):
            if token_text(token) in vocabulary.words:
                vocabulary.add_match(token_text(token), _flags(token) | {"special": True})

    def _collect_ids(
        self, vocabulary: Vocabulary, rows: int | None
    ) -> dict[int, tuple[Path, str, dict[str, bool]]]:
        special = {
            *map(self.special_text, SPECIAL_TOKEN_KEYS),
            *map(token_text, self.tokens_without_role()),
        }
        ids = dict(vocabulary.ids)
        entries_by_id: dict[int, tuple[Path, str, dict[str, bool]]] = {}
        for name, token, value in self._id_entries():
            path, text, number = self.paths[name], token_text(token), _token_id(value)
            flags = {"special": text in special} | _flags(token)
            if not text or ids.get(text) == number:
                if text in vocabulary.words:
                    vocabulary.add_match(text, flags)
                continue
            if rows is not None and number >= rows:
                raise missing_row_problem(path, text, number, rows, next_step=DROP_STEP)
            if text in ids or number < vocabulary.next or number in entries_by_id:
                raise CheckpointProblem(
                    f"{path} gives {text!r} the id {value}, which contradicts other tokens",
                    next_step=NEXT_STEP,
                )
            ids[text] = number
            entries_by_id[number] = (path, text, flags)
        return entries_by_id

    def _id_entries(self) -> Iterator[tuple[str, object, object]]:
        """Yields file name, token and id of every entry with an id."""
        decoder = self.config.get("added_tokens_decoder")
        for number, token in decoder.items() if isinstance(decoder, dict) else ():
            yield TOKENIZER_CONFIG, token, number
        for token in token_entries(self.fast.get("added_tokens")):
            yield TOKENIZER_JSON, token, token.get("id")
        for text, number in self.added.items():
            yield ADDED_TOKENS, text, number

    def tokens_without_role(self) -> Iterator[object]:
        """Yields the entries of special tokens without a role."""
        for content in (self.map, self.config):
            for key in SPECIAL_LIST_KEYS:
                yield from _tokens(content.get(key))


def tokenizer_files(sources: Sequence[Path]) -> TokenizerFiles | None:
    """Reads the tokenizer of the first folder with one; returns None without any.

    Raises:
        CheckpointProblem: the first tokenizer is of an unsupported library.
    """
    for count, folder in enumerate(sources, start=1):
        if any((folder / name).is_file() for name in VOCABULARY_FILES):
            return TokenizerFiles(sources[:count])
        foreign = [name for name in FOREIGN_VOCABULARIES if (folder / name).is_file()]
        if foreign:
            raise CheckpointProblem(
                f"{folder / foreign[0]} is a tokenizer of another library",
                next_step=f"copy the {TOKENIZER_JSON} of this model into {sources[0]}",
            )
    return None


def missing_row_problem(
    path: Path, text: str, number: int, rows: int, *, next_step: str = NEXT_STEP
) -> CheckpointProblem:
    """Returns the problem of a token id beyond the rows of the embedding."""
    return CheckpointProblem(
        f"{path} gives {text!r} the id {number}, but the embedding has {rows} rows",
        next_step=next_step,
    )


def token_text(token: object) -> str:
    """Returns the text of a token entry, a string or an object; "" for anything else."""
    text = token.get("content") if isinstance(token, dict) else token
    if isinstance(text, str) and text == text.encode("utf-8", "ignore").decode():
        return text
    return ""


def token_entries(tokens: object) -> list[JsonObject]:
    """Returns the objects in a list of tokens, such as tokenizer.json's `added_tokens`."""
    return (
        [token for token in tokens if isinstance(token, dict)] if isinstance(tokens, list) else []
    )


def token_entry(token: AddedToken) -> JsonObject:
    """Returns an added token as a file entry without its id."""
    return {key: getattr(token, key) for key in ("content", *TOKEN_FLAGS)}


def _token(text: str, flags: Mapping[str, bool]) -> AddedToken:
    return AddedToken(text, **{"normalized": False, **flags})


def _tokens(value: object) -> Iterable[object]:
    """Returns the tokens in a list, or the values of an object."""
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _flags(token: object) -> dict[str, bool]:
    entry = token if isinstance(token, dict) else {}
    return {key: entry[key] for key in TOKEN_FLAGS if isinstance(entry.get(key), bool)}


def _token_id(value: object) -> int:
    """Returns an id from a number or its digits; -1 for anything else."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        return int(value)
    return value if isinstance(value, int) else -1
