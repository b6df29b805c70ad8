"""The tokenizer of a checkpoint, reduced to what this project needs of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from camelpress.core.errors import CheckpointProblem, TemplateProblem
from camelpress.core.files.file_recognizer import recognize_file
from camelpress.core.runtime.rust_panics import drop_panic_messages, is_panic
from camelpress.core.text.template_renderer import render_template
from camelpress.core.text.text_bound import require_short_text

TOKENIZER_ERRORS = (  # of transformers, where files are missing or broken
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
PROBE_TEXT = "The sea, </s> 1234\n\té"  # a text that brings most faults of a tokenizer to light


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

        with drop_panic_messages(), _translate_errors(folder):
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            if len(tokenizer) == len(
                tokenizer.get_added_vocab()
            ):  # made up where files are missing
                raise ValueError("it knows no words")
            _require_template(tokenizer.chat_template)
            tokenizer(PROBE_TEXT, verbose=False)
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
        return self._ids(text, add_special_tokens=False, split_special_tokens=True)

    def encode_document(self, text: str) -> list[int]:
        """The ids of a text as the model's tokenizer encodes it, its own BOS included."""
        return self._ids(text)

    def encode_template_text(self, text: str) -> list[int]:
        """The ids of what a chat template made: special tokens in it count, none are added."""
        return self._ids(text, add_special_tokens=False)

    def render_chat(self, turns: list[dict[str, str]], template: str | None = None) -> str:
        """A conversation as its chat template writes it, ready for an answer.

        Args:
            turns: a `role` and a `content` each.
            template: instead of the tokenizer's own.
        Raises:
            TemplateProblem: the template is broken, refuses such a conversation, or takes too
                much time or memory.
        """
        try:
            chosen = self._tokenizer.get_chat_template(template)
            return render_template(chosen, turns, self._tokenizer.special_tokens_map)
        except ValueError as error:
            problem = TemplateProblem(
                f"the chat template of the tokenizer cannot be rendered ({error})",
                next_step="mend its chat_template, or use the tokenizer of the original model",
            )
            problem.reason = str(error)
            raise problem from error

    def decode(self, ids: list[int]) -> str:
        """The text of ids, special tokens included."""
        text: str = self._tokenizer.decode(ids)
        return text

    def decode_text(self, ids: list[int]) -> str:
        """The text of ids without the special tokens that frame sequences."""
        return self.decode([each for each in ids if each not in (self.bos, self.eos, self.pad)])

    @property
    def chat_template(self) -> str | None:
        """The chat template, if the tokenizer has one; of several the default one."""
        template: Any = self._tokenizer.chat_template
        chosen: str | None = template.get("default") if isinstance(template, dict) else template
        return chosen

    def _ids(self, text: str, **options: bool) -> list[int]:
        require_short_text("the prompt", text, next_step="shorten it, or leave it out")
        try:
            ids: list[int] = self._tokenizer(text, verbose=False, **options)["input_ids"]
        except BaseException as error:
            if not isinstance(error, TOKENIZER_ERRORS) and not is_panic(error):
                raise
            raise CheckpointProblem(
                f"the tokenizer cannot encode a text ({_reason(error)})",
                next_step="see that the text is valid Unicode, and use the tokenizer of the "
                "original model",
            ) from error
        return ids


@contextmanager
def _translate_errors(folder: Path) -> Iterator[None]:
    """Makes faults of the tokenizer's files, panics included, a problem of its folder."""
    try:
        yield
    except BaseException as error:
        known = (
            isinstance(error, TOKENIZER_ERRORS) or type(error) is Exception
        )  # tokenizers raise the latter
        if not known and not is_panic(error):
            raise
        if isinstance(error, StrictDataclassError):
            raise CheckpointProblem(
                f"{folder / 'config.json'} is refused by transformers "
                f"({' '.join(str(error).split())})",
                next_step="write a value of the right type there",
            ) from error
        raise _tokenizer_problem(folder, _reason(error)) from error


def _tokenizer_problem(folder: Path, reason: str) -> CheckpointProblem:
    """Returns the problem of a tokenizer, named for what one of its files really is."""
    for path in sorted(folder.glob("tokenizer*")):
        recognition = recognize_file(path)
        if recognition is not None:
            return recognition.problem()
    return CheckpointProblem(
        f"{folder} has no tokenizer that can be read ({reason})",
        next_step="copy tokenizer.json and tokenizer_config.json of the model there",
    )


def _require_template(template: object) -> None:
    texts = list(template.values()) if isinstance(template, dict) else [template]
    if not all(text is None or isinstance(text, str) for text in texts):
        raise ValueError(f"chat_template is {template!r}, which is no text")


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
