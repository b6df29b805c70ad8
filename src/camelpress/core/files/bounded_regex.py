"""Matches regular expressions from untrusted configs within bounds on time and memory.

Some expressions need exponential time for a name of 40 characters, and some exhaust the memory
before the first match. Here counted repeats are small, and all slow matches of a process share one
time budget.
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
SLOW_SECONDS = 0.01  # processor time of a match; a faster one is free


class _Budget:
    """Remaining processor time for slow expressions in this process."""

    seconds = MAX_PATTERN_SECONDS


@lru_cache(maxsize=2**18)
def match_regex(pattern: str, text: str, *, anywhere: bool = False) -> bool:
    """Returns True if a regular expression of Python's `re` matches at the start of a text.

    Args:
        pattern: Regular expression.
        text: Name of a layer.
        anywhere: True to match at any position.
    Raises:
        ValueError: The expression is invalid or exceeds a bound.
    """
    compiled = _compile_pattern(pattern)
    start = time.thread_time()
    try:
        match = compiled.search if anywhere else compiled.match
        return match(text, timeout=max(_Budget.seconds, SLOW_SECONDS)) is not None
    except (MemoryError, TimeoutError) as error:
        raise ValueError(f"{pattern!r} takes too much time or memory to match") from error
    finally:
        seconds = time.thread_time() - start
        _Budget.seconds -= seconds if seconds > SLOW_SECONDS else 0


def require_pattern_count(patterns: Sized) -> None:
    """Raises ValueError if a config has more than `MAX_PATTERNS` expressions."""
    if len(patterns) > MAX_PATTERNS:
        raise ValueError(f"it has {len(patterns):,} entries, the limit is {MAX_PATTERNS:,}")


@lru_cache(maxsize=4096)
def _compile_pattern(pattern: str) -> Any:
    if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN_CHARACTERS:
        raise ValueError(f"{pattern!r} is longer than {MAX_PATTERN_CHARACTERS:,} characters")
    braces = BRACES.findall(pattern)
    if not all(map(REPEAT.fullmatch, braces)):
        raise ValueError(f"{pattern!r} has braces that repeat nothing")
    repeats = (int(digits) for brace in braces for digits in re.findall(r"\d+", brace))
    if prod(max(1, repeat) for repeat in repeats) > MAX_PATTERN_REPEATS:
        raise ValueError(f"{pattern!r} repeats more than {MAX_PATTERN_REPEATS:,} times")
    try:
        re.compile(pattern)  # refuses the additional syntax of the regex library
        return regex.compile(pattern, regex.VERSION0)
    except (re.error, regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error})") from error
