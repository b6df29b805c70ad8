"""Text comes in whole characters, and is in the end the text of all tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.generation.detokenizer import Detokenizer, decode_completion
from camelpress.inference.generation.sampling import SamplingParams
from camelpress.inference.generation.stop_rule import FinishReason, StopRule

LLAMA = Path(__file__).parents[2] / ".models" / "llama-tokenizer"
TEXTS = (
    "Hello",
    "日本語のテキスト",
    "a🙂b 👩‍👩‍👧",
    "  two  blanks\n\n\ttab",
    "é\u0301 ß",
    "naïve café 🏳️‍🌈",
)


@pytest.fixture(scope="session")
def by_byte(base: Path) -> Tokenizer:
    """One token a byte."""
    return Tokenizer.load(base)


@pytest.fixture(scope="session")
def llama() -> Tokenizer:
    """LLaMA's own, which drops a blank at the beginning and falls back to bytes."""
    if not LLAMA.is_dir():
        pytest.skip("no LLaMA tokenizer here")
    return Tokenizer.load(LLAMA)


def parts(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = Detokenizer(tokenizer)
    return [*(decoder.add_token(token) for token in ids), decoder.finish()]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", ["by_byte", "llama"])
def test_no_part_ends_inside_a_character(
    request: pytest.FixtureRequest, name: str, text: str
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    ids = tokenizer.encode(text)
    told = parts(tokenizer, ids)
    assert "".join(told) == tokenizer.decode(ids)
    assert "".join(told).strip() == text.strip()  # LLaMA's drops a blank at the beginning
    assert not any("\ufffd" in part for part in told)


def test_a_character_comes_with_its_last_byte(by_byte: Tokenizer) -> None:
    assert parts(by_byte, by_byte.encode("a🙂")) == ["a", "", "", "", "🙂", ""]


def test_what_is_never_completed_is_a_mark_at_the_end(by_byte: Tokenizer) -> None:
    assert parts(by_byte, by_byte.encode("a🙂")[:-1]) == ["a", "", "", "", "\ufffd"]


def test_a_token_that_says_nothing_says_nothing(by_byte: Tokenizer) -> None:
    assert parts(by_byte, []) == [""]


@given(ids=st.lists(st.integers(3, 258), max_size=40))
def test_any_bytes_give_the_text_of_all_of_them(by_byte: Tokenizer, ids: list[int]) -> None:
    assert "".join(parts(by_byte, ids)) == by_byte.decode(ids)


@given(ids=st.lists(st.integers(3, 31_999), max_size=20))
def test_any_tokens_of_llama_do_too(llama: Tokenizer, ids: list[int]) -> None:
    whole = llama.decode(ids)
    if "\ufffd" not in whole:  # one broken byte makes LLaMA's take back the good ones beside it
        assert "".join(parts(llama, ids)) == whole


def test_a_completion_begins_with_its_space(llama: Tokenizer) -> None:
    """LLaMA's tokenizer drops the space at the beginning of a text."""
    prompt, tokens = llama.encode("the old"), llama.encode("whale")
    assert llama.decode(tokens) == "whale"
    assert decode_completion(llama, prompt, tokens) == " whale"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ab", None),
        ("ab</s>", FinishReason.END),
        ("abcde", FinishReason.LENGTH),
        ("abcd</s>", FinishReason.END),
        ("a.", FinishReason.END),
    ],
)
def test_a_rule_names_the_reason_of_an_end(
    by_byte: Tokenizer, text: str, reason: FinishReason | None
) -> None:
    sampling = SamplingParams(stop=(".",), max_tokens=5, temperature=0.0, top_p=1.0)
    rule = StopRule(sampling, by_byte, frozenset([by_byte.eos or 0]), positions=100)
    assert rule.finish_reason([1], by_byte.encode_template_text(text)) is reason


@pytest.mark.parametrize(
    ("max_tokens", "positions", "reason"),
    [
        (4, 6, None),
        (3, 6, FinishReason.LENGTH),
        (4, 5, FinishReason.CONTEXT),
        (3, 5, FinishReason.LENGTH),
    ],
)
def test_a_rule_tells_a_full_model_from_a_long_reply(
    by_byte: Tokenizer, max_tokens: int, positions: int, reason: FinishReason | None
) -> None:
    sampling = SamplingParams(stop=(), max_tokens=max_tokens, temperature=0.0, top_p=1.0)
    rule = StopRule(sampling, by_byte, frozenset(), positions)
    assert rule.finish_reason([1, 4], [7, 7, 7]) is reason
