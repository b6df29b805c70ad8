"""Nothing that comes from outside acts on a terminal."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camelpress.core.runtime.terminal_text import escape_controls

# fmt: off
ESCAPES = {
    "\x1b[31mred":        "␛[31mred",
    "\x1b]0;title\x07":   "␛]0;title␇",
    "\x9b2J":             "\ufffd2J",
    "a\rb":               "a␍b",
    "\x7f\x08":           "␡␈",
    "\x00":               "␀",
    "\u202egpj.exe":      "\ufffdgpj.exe",
    "\u2066\u2028":       "\ufffd\ufffd",
    "\ud800":             "\ufffd",
}
KEPT = ("", "plain", "a\n\tb", "日本語", "👩\u200d👩\u200d👧", "é\u0301", "\u00a0", "ن\u200cم")
# fmt: on


@pytest.mark.parametrize(("text", "shown"), ESCAPES.items(), ids=map(repr, ESCAPES))
def test_what_would_act_is_shown(text: str, shown: str) -> None:
    assert escape_controls(text) == shown


@pytest.mark.parametrize("text", KEPT)
def test_text_stays_as_it_is(text: str) -> None:
    assert escape_controls(text) == text


@given(st.text())
def test_no_control_character_passes(text: str) -> None:
    shown = escape_controls(text)
    assert len(shown) == len(text)
    assert not any(unicodedata.category(letter) == "Cc" for letter in shown if letter not in "\n\t")
