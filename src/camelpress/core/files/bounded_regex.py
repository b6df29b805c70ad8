"""Regular expressions from the configs of strangers, matched within bounds.

Some expressions take longer than the universe lasts for a name of 40 characters, and some take all
memory before they match anything. Here repeats by number are small, and all matches of a process
share a bound on the time that slow expressions may take.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sized
from functools import lru_cache
from math import prod
from typing import Any

import regex

from camelpress.core.input_limits import (
    MAX_PATTERN_CHARACTERS,
    MAX_PATTERN_REPEATS,
    MAX_PATTERN_SECONDS,
    MAX_PATTERNS,
)

BRACES = re.compile(r"\{[^}]*\}?")
REPEAT = re.compile(r"\{\d{0,4}(,\d{0,4})?\}")
SLOW_SECONDS = 0.01  # processor time; a faster match does not count


class _Budget:
    """The processor time that slow expressions have left in this process."""

    seconds = MAX_PATTERN_SECONDS


@lru_cache(maxsize=2**18)
def match_regex(pattern: str, text: str, *, anywhere: bool = False) -> bool:
    """Returns whether a text begins with a regular expression, as Python's `re` understands it.

    Args:
        pattern: the expression.
        text: the name of a layer.
        anywhere: whether the expression can begin within the text, too.
    Raises:
        ValueError: the expression is not valid, or beyond a bound.
    """
    compiled = _compile_pattern(pattern)
    begin = time.thread_time()
    try:
        match = compiled.search if anywhere else compiled.match
        return match(text, timeout=max(_Budget.seconds, SLOW_SECONDS)) is not None
    except (MemoryError, TimeoutError) as error:
        raise ValueError(f"{pattern!r} takes too much time or memory to match") from error
    finally:
        spent = time.thread_time() - begin
        _Budget.seconds -= spent if spent > SLOW_SECONDS else 0


def require_pattern_count(patterns: Sized) -> None:
    """Raises ValueError where a config has more expressions than can be matched in good time."""
    if len(patterns) > MAX_PATTERNS:
        raise ValueError(f"it has {len(patterns):,} entries, {MAX_PATTERNS:,} are the limit")


@lru_cache(maxsize=4096)
def _compile_pattern(pattern: str) -> Any:
    if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN_CHARACTERS:
        raise ValueError(f"{pattern!r} is longer than {MAX_PATTERN_CHARACTERS:,} characters")
    braces = BRACES.findall(pattern)
    if not all(map(REPEAT.fullmatch, braces)):
        raise ValueError(f"{pattern!r} has braces that repeat nothing")
    repeats = (int(number) for each in braces for number in re.findall(r"\d+", each))
    if prod(max(1, number) for number in repeats) > MAX_PATTERN_REPEATS:
        raise ValueError(f"{pattern!r} repeats more than {MAX_PATTERN_REPEATS:,} times")
    try:
        re.compile(pattern)  # the other library knows more syntax
        return regex.compile(pattern, regex.VERSION0)
    except (re.error, regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error})") from error
