"""Wraps the tokenizer of a checkpoint."""

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

TOKENIZER_ERRORS = (  # raised by transformers for missing or broken files
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
PROBE_TEXT = "The sea, </s> 1234\n\té"  # reveals most faults of a tokenizer


class Tokenizer:
    """Encodes text to ids and decodes ids to text, with the ids of BOS, EOS and pad."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.bos: int | None = tokenizer.bos_token_id
        self.eos: int | None = tokenizer.eos_token_id
        self.pad: int | None = tokenizer.pad_token_id

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Loads the tokenizer of a checkpoint folder.

        Raises:
            CheckpointProblem: the folder has no tokenizer, or transformers cannot read it.
        """
        from transformers import AutoTokenizer  # takes half a second

        with drop_panic_messages(), _translate_errors(folder):
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            # transformers makes up an empty tokenizer for missing files
            if len(tokenizer) == len(tokenizer.get_added_vocab()):
                raise ValueError("it knows no words")
            _require_template(tokenizer.chat_template)
            tokenizer(PROBE_TEXT, verbose=False)
            return cls(tokenizer)

    def __len__(self) -> int:
        return len(self._tokenizer)

    @property
    def vocabulary(self) -> dict[str, int]:
        """Token to id, without added tokens."""
        added = self._tokenizer.get_added_vocab()
        vocabulary = self._tokenizer.get_vocab().items()
        return {token: number for token, number in vocabulary if token not in added}

    def encode(self, text: str) -> list[int]:
        """Encodes a text without adding special tokens; `</s>` in it stays text."""
        return self._ids(text, add_special_tokens=False, split_special_tokens=True)

    def encode_document(self, text: str) -> list[int]:
        """Encodes a text with the special tokens the tokenizer adds, such as BOS."""
        return self._ids(text)

    def encode_template_text(self, text: str) -> list[int]:
        """Encodes the output of a chat template: special tokens in it count, none are added."""
        return self._ids(text, add_special_tokens=False)

    def render_chat(self, turns: list[dict[str, str]], template: str | None = None) -> str:
        """Renders a conversation by the chat template, ready for an answer.

        Args:
            turns: messages with `role` and `content`.
            template: replaces the tokenizer's own template.
        Raises:
            TemplateProblem: the template is broken, refuses the conversation, or takes too much
                time or memory.
        """
        try:
            chat_template = self._tokenizer.get_chat_template(template)
            return render_template(chat_template, turns, self._tokenizer.special_tokens_map)
        except ValueError as error:
            problem = TemplateProblem(
                f"the chat template of the tokenizer cannot be rendered ({error})",
                next_step="mend its chat_template, or use the tokenizer of the original model",
            )
            problem.reason = str(error)
            raise problem from error

    def decode(self, ids: list[int]) -> str:
        """Decodes ids to text, special tokens included."""
        text: str = self._tokenizer.decode(ids)
        return text

    def decode_text(self, ids: list[int]) -> str:
        """Decodes ids to text, without BOS, EOS and pad."""
        return self.decode(
            [token_id for token_id in ids if token_id not in (self.bos, self.eos, self.pad)]
        )

    @property
    def chat_template(self) -> str | None:
        """Chat template, or None; the default one among named templates."""
        template: Any = self._tokenizer.chat_template
        chat_template: str | None = (
            template.get("default") if isinstance(template, dict) else template
        )
        return chat_template

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
    """Raises faults of the tokenizer's files, panics included, as a problem of its folder."""
    try:
        yield
    except BaseException as error:
        # the tokenizers library raises plain Exception
        is_expected = isinstance(error, TOKENIZER_ERRORS) or type(error) is Exception
        if not is_expected and not is_panic(error):
            raise
        if isinstance(error, StrictDataclassError):
            raise CheckpointProblem(
                f"{folder / 'config.json'} is refused by transformers "
                f"({' '.join(str(error).split())})",
                next_step="write a value of the right type there",
            ) from error
        raise _tokenizer_problem(folder, _reason(error)) from error


def _tokenizer_problem(folder: Path, reason: str) -> CheckpointProblem:
    """Returns the problem of a tokenizer, by the real type of its files if recognized."""
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
