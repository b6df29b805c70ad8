"""The tokenizer of a checkpoint, reduced to what this project needs of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from camelpress.core.errors import CheckpointProblem

EXPECTED = (  # of transformers, where files are missing or broken
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)


class Tokenizer:
    """Text to ids, and which ids begin and end a sequence."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.bos: int | None = tokenizer.bos_token_id
        self.eos: int | None = tokenizer.eos_token_id
        self.pad: int | None = tokenizer.pad_token_id

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """The tokenizer that lies beside the weights.

        Raises:
            CheckpointProblem: there is none, or transformers cannot read it.
        """
        from transformers import AutoTokenizer  # half a second, and not every command has text

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            if not isinstance(error, EXPECTED) and type(error) is not Exception:
                raise
            raise _unreadable(folder, str(error) or type(error).__name__) from error
        if len(tokenizer) == len(tokenizer.get_added_vocab()):  # made up where files are missing
            raise _unreadable(folder, "it knows no words")
        return cls(tokenizer)

    def __len__(self) -> int:
        return len(self._tokenizer)

    @property
    def vocabulary(self) -> dict[str, int]:
        """The id of every token but those that were added to the vocabulary."""
        added = self._tokenizer.get_added_vocab()
        vocabulary = self._tokenizer.get_vocab().items()
        return {token: number for token, number in vocabulary if token not in added}

    def encode(self, text: str) -> list[int]:
        """The ids of a text as it stands: nothing added, `</s>` in it stays text."""
        ids: list[int] = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        )["input_ids"]
        return ids

    def encode_document(self, text: str) -> list[int]:
        """The ids of a text as the model's tokenizer encodes it, its own BOS included."""
        ids: list[int] = self._tokenizer(text, verbose=False)["input_ids"]
        return ids

    def encode_rendered(self, text: str) -> list[int]:
        """The ids of what a chat template made: special tokens in it count, none are added."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def render(self, turns: list[dict[str, str]], template: str | None = None) -> str:
        """A conversation as its chat template writes it, ready for an answer.

        Args:
            turns: a `role` and a `content` each.
            template: instead of the tokenizer's own.
        Raises:
            jinja2.TemplateError: the template is broken, or refuses such a conversation.
        """
        text: str = self._tokenizer.apply_chat_template(
            turns, chat_template=template, add_generation_prompt=True, tokenize=False
        )
        return text

    def decode(self, ids: list[int]) -> str:
        """The text of ids, special tokens included."""
        text: str = self._tokenizer.decode(ids)
        return text

    def words(self, ids: list[int]) -> str:
        """The text of ids without the special tokens that frame sequences."""
        return self.decode([each for each in ids if each not in (self.bos, self.eos, self.pad)])

    @property
    def template(self) -> str | None:
        """The chat template, if the tokenizer has one."""
        template: str | None = self._tokenizer.chat_template
        return template


def _unreadable(folder: Path, reason: str) -> CheckpointProblem:
    return CheckpointProblem(
        f"{folder} has no tokenizer that can be read ({reason.splitlines()[0]})",
        next_step="copy tokenizer.json and tokenizer_config.json of the model there",
    )
