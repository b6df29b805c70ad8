"""What the tokenizer files of a model say, and which ids that makes.

Any of the four JSON files can be missing, and can hold null or "" for a token; of what they say
of a token's id each may be the only one. What contradicts something else is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from camelpress.core.errors import CheckpointProblem
from camelpress.core.files.json_files import read_json
from camelpress.core.hub.model_location import CHAT_TEMPLATES_FOLDER

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
VOCABULARY_FILES = (
    TOKENIZER_JSON,
    TOKENIZER_MODEL,
    VOCAB_JSON,
)  # files that make a tokenizer, the one loaders prefer first
FOREIGN_VOCABULARIES = (  # vocabularies of other libraries, which no check here understands
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
PAD_TOKENS = ("<pad>", "[PAD]")  # what open-instruct adds, and what Alpaca and FastChat v0 add
SPECIAL_TOKEN_KEYS = tuple(f"{role}_token" for role in (*ROLES, "sep", "cls", "mask"))
SPECIAL_LIST_KEYS = ("additional_special_tokens", "extra_special_tokens")  # of transformers 4 and 5
TOKEN_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
NEXT_STEP = "give the tokenizer that these weights were trained with"
DROP_STEP = f"leave it out with --extra-rows drop, or {NEXT_STEP}"


class Vocabulary:
    """Words, the tokens added behind them, and the words that are matched as whole tokens."""

    def __init__(self, words: Mapping[str, int]) -> None:
        self.words = dict(words)
        self.ids = dict(words)
        self.tokens_by_id = {number: text for text, number in words.items()}
        self.added: dict[int, AddedToken] = {}
        self.matched_words: dict[int, AddedToken] = {}

    @property
    def next(self) -> int:
        """The id of the next token to be added."""
        return 1 + max(self.tokens_by_id, default=-1)

    def add(self, text: str, flags: Mapping[str, bool]) -> None:
        """Give a text the next id."""
        number = self.next
        self.ids[text], self.tokens_by_id[number] = number, text
        self.added[number] = _token(text, flags)

    def add_match(self, text: str, flags: Mapping[str, bool]) -> None:
        """Matches a word as a whole, before the rest of a text is cut."""
        self.matched_words.setdefault(self.ids[text], _token(text, flags))

    def added_from(self, first: int) -> list[str]:
        """The added tokens from an id on."""
        return [self.tokens_by_id[number] for number in self.added if number >= first]

    def drop_added(self, first: int) -> list[str]:
        """Take away the added tokens from an id on."""
        gone = self.added_from(first)
        for text in gone:
            number = self.ids.pop(text)
            self.words.pop(text, None)
            del self.tokens_by_id[number], self.added[number]
        return gone


class TokenizerFiles:
    """Reads the small files of a tokenizer; {} stands for one that is not there.

    Args:
        folders: the one that holds the vocabulary is the last; a small file of an earlier one
            takes precedence.
    Raises:
        CheckpointProblem: one of them cannot be read.
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
        """Returns the file of the vocabulary that loaders prefer."""
        return next(self.paths[name] for name in VOCABULARY_FILES if name in self.paths)

    def contents(self) -> dict[str, bytes]:
        """Returns the bytes of every file."""
        return {name: path.read_bytes() for name, path in self.paths.items()}

    def token(self, key: str) -> Any:
        """Returns a token as a file has it; where two files name one, the one that loaders take."""
        files = (self.map, self.config)
        first, second = files[::-1] if "added_tokens_decoder" in self.config else files
        return first.get(key) if token_text(first.get(key)) else second.get(key)

    def special_text(self, key: str) -> str:
        """The text of a special token; "" where the files name none."""
        return token_text(self.token(key))

    def roles(self, known: Set[str]) -> dict[str, str]:
        """Role to text; only texts that are `known` count."""
        found = {role: self.special_text(f"{role}_token") for role in ROLES}
        found["pad"] = next((text for text in (found["pad"], *PAD_TOKENS) if text in known), "")
        return {role: text for role, text in found.items() if text in known}

    def template(self) -> Any:
        """The chat template, a text or a list of them; None without one.

        Raises:
            CheckpointProblem: it is not text.
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
        """Add the tokens to which the files give ids, and those that they only name.

        The latter get the rows that are left, as loaders do it.

        Args:
            vocabulary: without any added token.
            rows: of the embedding.
            rowless: whether ids without a row are taken, too.
        Raises:
            CheckpointProblem: an id without a row, one given twice, or a gap between ids.
        """
        listed = self._collect_ids(vocabulary, None if rowless else rows)
        for number, (path, text, flags) in sorted(listed.items()):
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
        found: dict[int, tuple[Path, str, dict[str, bool]]] = {}
        for name, token, value in self._id_entries():
            path, text, number = self.paths[name], token_text(token), _token_id(value)
            flags = {"special": text in special} | _flags(token)
            if not text or ids.get(text) == number:
                if text in vocabulary.words:
                    vocabulary.add_match(text, flags)
                continue
            if rows is not None and number >= rows:
                raise missing_row_problem(path, text, number, rows, next_step=DROP_STEP)
            if text in ids or number < vocabulary.next or number in found:
                raise CheckpointProblem(
                    f"{path} gives {text!r} the id {value}, which contradicts other tokens",
                    next_step=NEXT_STEP,
                )
            ids[text] = number
            found[number] = (path, text, flags)
        return found

    def _id_entries(self) -> Iterator[tuple[str, object, object]]:
        """File, token and id of whatever has an id."""
        decoder = self.config.get("added_tokens_decoder")
        for number, token in decoder.items() if isinstance(decoder, dict) else ():
            yield TOKENIZER_CONFIG, token, number
        for token in token_entries(self.fast.get("added_tokens")):
            yield TOKENIZER_JSON, token, token.get("id")
        for text, number in self.added.items():
            yield ADDED_TOKENS, text, number

    def tokens_without_role(self) -> Iterator[object]:
        """Yields the special tokens without a role."""
        for content in (self.map, self.config):
            for key in SPECIAL_LIST_KEYS:
                yield from _tokens(content.get(key))


def tokenizer_files(sources: Sequence[Path]) -> TokenizerFiles | None:
    """Finds the tokenizer of the first folder that has one; returns None where no folder does.

    Raises:
        CheckpointProblem: the first that has one has it in a form that cannot be checked.
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
    """The problem of an id that the embedding does not have."""
    return CheckpointProblem(
        f"{path} gives {text!r} the id {number}, but the embedding has {rows} rows",
        next_step=next_step,
    )


def token_text(token: object) -> str:
    """The text of a token, which files hold as a string or in an object; "" if there is none."""
    text = token.get("content") if isinstance(token, dict) else token
    if isinstance(text, str) and text == text.encode("utf-8", "ignore").decode():
        return text
    return ""


def token_entries(tokens: object) -> list[JsonObject]:
    """The objects of a list of tokens, such as tokenizer.json's `added_tokens`."""
    return (
        [token for token in tokens if isinstance(token, dict)] if isinstance(tokens, list) else []
    )


def token_entry(token: AddedToken) -> JsonObject:
    """An added token as files hold it, without its id."""
    return {key: getattr(token, key) for key in ("content", *TOKEN_FLAGS)}


def _token(text: str, flags: Mapping[str, bool]) -> AddedToken:
    return AddedToken(text, **{"normalized": False, **flags})


def _tokens(value: object) -> Iterable[object]:
    """Returns the tokens of a list, or of an object that names each."""
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _flags(token: object) -> dict[str, bool]:
    stated = token if isinstance(token, dict) else {}
    return {key: stated[key] for key in TOKEN_FLAGS if isinstance(stated.get(key), bool)}


def _token_id(value: object) -> int:
    """An id, which files hold as a number or as its digits; -1 if it is neither."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        return int(value)
    return value if isinstance(value, int) else -1
