"""A conversation becomes the ids that the model was trained on, or is refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from camelpress.chat.chat_format import ChatFormat
from camelpress.core.errors import CheckpointProblem, RecipeProblem
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.core.text.tulu_format import TULU_CHAT_TEMPLATE, Message, encode_chat
from refusal import refusal

LLAMA = Path(__file__).parents[2] / ".models" / "llama-tokenizer"
TULU2 = (  # as later models write it: no BOS, and a newline after EOS
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<|user|>\\n' + message['content'] + '\\n' }}{% elif message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\\n' + message['content'] + eos_token + '\\n' }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}"
)
ZEPHYR = (  # the same marks, but EOS after every turn
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] }}"
    "{{ eos_token + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}"
    "{% endif %}"
)
USER_ONLY = (
    "{% for message in messages %}{% if message['role'] != 'user' %}"
    "{{ raise_exception('only users here') }}{% endif %}{{ message['content'] }}{% endfor %}"
)


def talk(*turns: str) -> list[Message]:
    roles = ("user", "assistant")
    return [
        Message.model_validate({"role": roles[number % 2], "content": content})
        for number, content in enumerate(turns)
    ]


@pytest.fixture
def tokenizer(base: Path) -> Tokenizer:
    return Tokenizer.load(base)


def form(tokenizer: Tokenizer, template: str | None, choice: str = "auto") -> ChatFormat:
    tokenizer._tokenizer.chat_template = template
    return ChatFormat(tokenizer, choice, source="the model")


@pytest.mark.parametrize("template", [TULU_CHAT_TEMPLATE, TULU2])
def test_tulus_format_is_told_by_what_it_renders(tokenizer: Tokenizer, template: str) -> None:
    found = form(tokenizer, template)
    assert found.name == "tulu"
    turns = talk("a whale", "the sea", "go </s> on")
    assert found.encode(turns) == encode_chat(turns, tokenizer, generation=True)


def test_llamas_ids_are_those_of_training() -> None:
    if not LLAMA.is_dir():
        pytest.skip("no LLaMA tokenizer here")
    found = form(Tokenizer.load(LLAMA), TULU_CHAT_TEMPLATE)
    assert found.name == "tulu"
    user = [529, 29989, 1792, 29989, 29958, 13]
    assistant = [29966, 29989, 465, 22137, 29989, 29958, 13]
    hello, hi = 10994, 18567
    assert found.encode(talk("Hello")) == [1, *user, hello, 13, *assistant]
    assert found.encode(talk("Hello", "Hi", "Hello")) == [
        1, *user, hello, 13, *assistant, hi, 2, *user, hello, 13, *assistant,
    ]  # fmt: skip


def test_what_a_user_typed_stays_text(tokenizer: Tokenizer) -> None:
    ids = form(tokenizer, TULU_CHAT_TEMPLATE).encode(talk("</s>"))
    assert tokenizer.eos not in ids


def test_another_template_is_rendered_and_encoded_whole(tokenizer: Tokenizer) -> None:
    found = form(tokenizer, ZEPHYR)
    assert found.name == "own"
    ids = found.encode(talk("a"))
    assert tokenizer.decode(ids) == "<|user|>\na</s>\n<|assistant|>\n"
    assert ids.count(tokenizer.eos or 0) == 1


def test_a_template_that_refuses_is_a_problem(tokenizer: Tokenizer) -> None:
    found = form(tokenizer, USER_ONLY)
    assert tokenizer.decode(found.encode(talk("a"))) == "a"
    with refusal(
        CheckpointProblem,
        "the chat template of the model cannot be rendered (only users here)",
        next_step="fix it, leave out --system if it has no system message, or give --template "
        "tulu or plain",
        out=None,
    ):
        found.encode([Message(role="system", content="x"), *talk("a")])


@pytest.mark.parametrize("template", ["{% if %}", "{{ messages.__class__.__mro__[1] }}{{ 1/0 }}"])
def test_a_broken_template_is_a_problem(tokenizer: Tokenizer, template: str) -> None:
    with pytest.raises(CheckpointProblem, match="cannot be rendered"):
        form(tokenizer, template).encode(talk("a"))


def test_no_template_is_refused_and_a_choice_helps(tokenizer: Tokenizer) -> None:
    with pytest.raises(RecipeProblem, match="has no chat template"):
        form(tokenizer, None)
    assert form(tokenizer, None, "tulu").encode(talk("a"))[0] == tokenizer.bos
    plain = form(tokenizer, None, "plain")
    assert plain.encode(talk("a")) == tokenizer.encode_document("a")
    assert not plain.has_turns


def test_plain_text_has_no_turns(tokenizer: Tokenizer) -> None:
    with refusal(
        RecipeProblem,
        "plain text has no system message and no turns",
        next_step="leave out --system, or give --template tulu",
        out=None,
        exit_code=2,
    ):
        form(tokenizer, None, "plain").encode(talk("a", "b", "c"))
