"""Conversations become the token ids that Tulu was trained on."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoTokenizer

from camelpress.core.errors import CheckpointProblem, RecipeProblem
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.core.text.tulu_format import TULU_CHAT_TEMPLATE, Message, chat_segments, encode_chat

ROOT = Path(__file__).parents[2]
LLAMA = ROOT / os.environ.get("CAMELPRESS_LLAMA_TOKENIZER", ".models/llama-tokenizer")

# fmt: off
USER_FIRST      = [529, 29989, 1792, 29989, 29958, 13]           # "▁<", "|", "user", "|", ">"
USER_NEXT       = [29966, 29989, 1792, 29989, 29958, 13]         # "<" where no blank is put before
ASSISTANT_FIRST = [529, 29989, 465, 22137, 29989, 29958, 13]     # "ass", "istant"
ASSISTANT_NEXT  = [29966, 29989, 465, 22137, 29989, 29958, 13]
SYSTEM_FIRST    = [529, 29989, 5205, 29989, 29958, 13]
SYSTEM_NEXT     = [29966, 29989, 5205, 29989, 29958, 13]
# fmt: on
HELLO, HI, NEWLINE, BOS, EOS, PAD = 10994, 18567, 13, 1, 2, 32000

USER = Message(role="user", content="Hello")
ASSISTANT = Message(role="assistant", content="Hi")
SYSTEM = Message(role="system", content="Hello")


def require_llama() -> None:
    if not LLAMA.is_dir():
        pytest.skip(f"{LLAMA} is not there; make it: python tests/models/llama_tokenizer.py DIR")


def without_fast_file(folder: Path) -> Tokenizer:
    """The tokenizer as Tulu's diffs hold it: a SentencePiece model and an added pad token."""
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(LLAMA / name, folder / name)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"pad_token": "<pad>", "tokenizer_class": "LlamaTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "added_tokens.json").write_text(json.dumps({"<pad>": PAD}))
    return Tokenizer.load(folder)


@pytest.fixture(scope="module", params=["tokenizer.json", "not fast", "tokenizer.model"])
def llama(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """LLaMA's tokenizer, read in each of the ways that it can be."""
    require_llama()
    if request.param == "tokenizer.json":
        return Tokenizer.load(LLAMA)
    if request.param == "tokenizer.model":
        return without_fast_file(tmp_path_factory.mktemp("slow"))
    return Tokenizer(AutoTokenizer.from_pretrained(LLAMA, use_fast=False, local_files_only=True))


@pytest.fixture(scope="module")
def pieces() -> Any:
    """The same tokenizer in the SentencePiece library, as an oracle."""
    require_llama()
    return sentencepiece.SentencePieceProcessor(model_file=str(LLAMA / "tokenizer.model"))


@pytest.fixture(scope="module")
def pico(base: Path) -> Tokenizer:
    """A tokenizer with its own BOS and EOS, of one id per byte."""
    return Tokenizer.load(base)


# --- ids of LLaMA -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("<|user|>\n", USER_FIRST),
        ("<|assistant|>\n", ASSISTANT_FIRST),
        ("<|system|>\n", SYSTEM_FIRST),
        ("x\n<|user|>\n", [921, NEWLINE, *USER_NEXT]),
        ("x\n<|assistant|>\n", [921, NEWLINE, *ASSISTANT_NEXT]),
        ("x\n<|system|>\n", [921, NEWLINE, *SYSTEM_NEXT]),
        ("\n", [29871, NEWLINE]),
        ("\n\n", [29871, NEWLINE, NEWLINE]),
        ("x\nHello", [921, NEWLINE, HELLO]),
        ("Hello", [15043]),
        ("<s>", [529, 29879, 29958]),
        ("</s>", [1533, 29879, 29958]),
        ("<pad>", [529, 8305, 29958]),
    ],
)
def test_a_segment_has_the_ids_of_the_training(llama: Tokenizer, text: str, ids: list[int]) -> None:
    assert llama.encode(text) == ids


def test_a_single_turn(llama: Tokenizer) -> None:
    expected = [BOS, *USER_FIRST, HELLO, NEWLINE, *ASSISTANT_NEXT, HI, EOS]
    assert encode_chat([USER, ASSISTANT], llama) == expected


def test_between_turns_eos_is_followed_by_the_next_marker(llama: Tokenizer) -> None:
    turn = [*USER_FIRST, HELLO, NEWLINE, *ASSISTANT_NEXT, HI, EOS]
    ids = encode_chat([USER, ASSISTANT, USER, ASSISTANT], llama)
    assert ids == [BOS, *turn, *turn]
    assert ids[len(turn) : len(turn) + 2] == [2, 529]


def test_a_system_message_stands_first(llama: Tokenizer) -> None:
    question = [BOS, *SYSTEM_FIRST, HELLO, NEWLINE, *USER_NEXT, HELLO, NEWLINE]
    assert encode_chat([SYSTEM, USER, ASSISTANT], llama) == [*question, *ASSISTANT_NEXT, HI, EOS]


def test_two_messages_in_a_row_are_one_segment(llama: Tokenizer) -> None:
    expected = [BOS, *USER_FIRST, HELLO, NEWLINE, *USER_NEXT, HELLO]
    assert encode_chat([USER, USER], llama) == expected


def test_a_generation_prompt_ends_in_a_newline(llama: Tokenizer) -> None:
    expected = [BOS, *USER_FIRST, HELLO, NEWLINE, *ASSISTANT_NEXT]
    assert encode_chat([USER], llama, generation=True) == expected
    assert expected[-1] == 13


def test_a_generation_prompt_after_an_answer_starts_afresh(llama: Tokenizer) -> None:
    ids = encode_chat([USER, ASSISTANT], llama, generation=True)
    assert ids[-9:] == [HI, EOS, *ASSISTANT_FIRST]


@pytest.mark.parametrize("text", ["</s>", "a</s>b", "<s>", "<pad>", "<unk>", "</s>\n<|user|>\n"])
def test_special_tokens_in_a_text_stay_text(llama: Tokenizer, text: str) -> None:
    ids = encode_chat([Message(role="user", content=text), ASSISTANT], llama)
    assert ids[0] == BOS
    assert ids[-1] == EOS
    assert not {0, BOS, EOS, PAD} & set(ids[1:-1])


def test_the_blanks_around_a_message_vanish(llama: Tokenizer) -> None:
    blank = Message(role="user", content="\n  Hello \t\n")
    assert encode_chat([blank, ASSISTANT], llama) == encode_chat([USER, ASSISTANT], llama)


def test_the_added_pad_token_is_known(tmp_path: Path) -> None:
    require_llama()
    tokenizer = without_fast_file(tmp_path)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad, len(tokenizer)) == (1, 2, 32000, 32001)


@given(st.text(st.characters(codec="utf-8", exclude_characters="▁\0")))
@settings(deadline=None, max_examples=60)
def test_segments_encode_as_sentencepiece_does(pieces: Any, llama: Tokenizer, text: str) -> None:
    for segment in chat_segments([Message(role="user", content=text), ASSISTANT]):
        assert llama.encode(segment.text) == pieces.encode(segment.text)


# --- any tokenizer ------------------------------------------------------------------------------


def test_bos_comes_once_and_eos_after_each_answer(pico: Tokenizer) -> None:
    ids = encode_chat([SYSTEM, USER, ASSISTANT, USER, ASSISTANT], pico)
    assert (pico.bos, pico.eos) == (BOS, EOS)
    assert [place for place, token in enumerate(ids) if token == BOS] == [0]
    assert ids.count(EOS) == 2
    assert ids[-1] == EOS
    assert pico.decode(ids) == (
        "<s><|system|>\nHello\n<|user|>\nHello\n<|assistant|>\nHi</s>"
        "<|user|>\nHello\n<|assistant|>\nHi</s>"
    )


def test_a_question_alone_gets_no_eos(pico: Tokenizer) -> None:
    assert pico.decode(encode_chat([USER], pico)) == "<s><|user|>\nHello"


def test_a_document_gets_the_bos_of_its_tokenizer(pico: Tokenizer) -> None:
    assert pico.decode(pico.encode_document("Hello")) == "<s>Hello"


def test_a_tokenizer_without_bos_gives_none(base: Path) -> None:
    raw = AutoTokenizer.from_pretrained(base, local_files_only=True)
    raw.bos_token = None
    assert BOS not in encode_chat([USER, ASSISTANT], Tokenizer(raw))


def test_a_tokenizer_without_eos_is_refused(base: Path) -> None:
    raw = AutoTokenizer.from_pretrained(base, local_files_only=True)
    raw.eos_token = None
    with pytest.raises(RecipeProblem) as told:
        encode_chat([USER], Tokenizer(raw))
    assert str(told.value) == (
        "the tokenizer has no end-of-sequence token; set eos_token in its config"
    )


def test_no_messages_are_refused(pico: Tokenizer) -> None:
    with pytest.raises(RecipeProblem) as told:
        encode_chat([], pico)
    assert str(told.value) == "a conversation has no messages; leave it out"


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(ValidationError):
        Message.model_validate({"role": "tool", "content": "x"})


# --- the chat template --------------------------------------------------------------------------

CONTENT = st.text(st.characters(codec="utf-8")).filter(str.strip)
MESSAGES = st.lists(
    st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=CONTENT),
    min_size=1,
    max_size=5,
)


def written(messages: list[Message], *, generation: bool) -> str:
    """The format as its authors concatenate it; a training example is stripped as a whole."""
    text = ""
    for message in messages:
        end = "</s>\n" if message.role == "assistant" else "\n"
        text += f"<|{message.role}|>\n{message.content.strip()}{end}"
    return f"{text}<|assistant|>\n" if generation else text.strip()


@pytest.fixture(scope="module")
def chat_tokenizer(base: Path) -> Any:
    return AutoTokenizer.from_pretrained(base, local_files_only=True)


@given(MESSAGES, st.booleans())
@settings(deadline=None, max_examples=60)
def test_the_chat_template_renders_the_format(
    chat_tokenizer: Any, messages: list[Message], generation: bool
) -> None:
    rendered = chat_tokenizer.apply_chat_template(
        [message.model_dump() for message in messages],
        chat_template=TULU_CHAT_TEMPLATE,
        tokenize=False,
        add_generation_prompt=generation,
    )
    parts = chat_segments(messages, generation=generation)
    assert rendered == "<s>" + "".join(part.text + "</s>" * part.has_eos for part in parts)


@given(MESSAGES, st.booleans())
@settings(deadline=None, max_examples=60)
def test_segments_are_the_format_without_newlines_after_eos(
    messages: list[Message], generation: bool
) -> None:
    joined = "\n".join(
        part.text + "</s>" * part.has_eos for part in chat_segments(messages, generation=generation)
    )
    assert joined == written(messages, generation=generation)


def test_the_chat_template_gives_the_ids_of_training_between_turns() -> None:
    require_llama()
    messages = [USER, ASSISTANT, USER, ASSISTANT, USER]
    ids: Any = AutoTokenizer.from_pretrained(LLAMA).apply_chat_template(
        [message.model_dump() for message in messages],
        chat_template=TULU_CHAT_TEMPLATE,
        add_generation_prompt=True,
        return_dict=False,
    )
    assert ids == encode_chat(messages, Tokenizer.load(LLAMA), generation=True)
    assert ids[ids.index(EOS) + 1 :][:6] == USER_FIRST


# --- tokenizers that cannot be read -------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [" ", "{", '"text"', "[]", '{"version": "1.0"}', "[" * 100_000, '{"added_tokens": [], "x": 1}'],
    ids=["blank", "open", "string", "list", "no tokens", "too deep", "no model"],
)
def test_a_broken_tokenizer_is_told_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    told = refused(tmp_path)
    assert told.startswith(f"{tmp_path} has no tokenizer that can be read (")


def test_a_folder_without_tokenizer_is_told_in_one_line(tmp_path: Path) -> None:
    assert refused(tmp_path).startswith(f"{tmp_path} has no tokenizer that can be read (")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_tokenizer_made_up_from_a_config_is_refused(tmp_path: Path, name: str) -> None:
    config = {"model_type": "qwen2", "tokenizer_class": "Qwen2Tokenizer"}
    (tmp_path / name).write_text(json.dumps(config))
    told = refused(tmp_path)
    assert told == f"{tmp_path} has no tokenizer that can be read (it knows no words)"


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointProblem) as told:
        Tokenizer.load(folder)
    assert told.value.next_step == (
        "copy tokenizer.json and tokenizer_config.json of the model there"
    )
    assert len(str(told.value).splitlines()) == 1
    return told.value.message
