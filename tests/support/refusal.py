"""A stage says no: in one line, with what to do next and an exit code, leaving nothing behind."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from camelpress.core.errors import Problem


@contextmanager
def refusal(
    kind: type[Problem],
    what: str | re.Pattern[str],
    *,
    next_step: str,
    out: Path | None,
    exit_code: int = 3,
) -> Iterator[None]:
    """The block ends in exactly this problem.

    Args:
        kind: its class, not a subclass.
        what: its text, or a pattern that fits all of it.
        next_step: word for word.
        out: where the output would stand; neither it nor anything whose name begins like it may
            be there. None where what stands there is the test's own.
        exit_code: of a process that ends in it.
    """
    with pytest.raises(kind) as told:
        yield
    problem = told.value
    assert type(problem) is kind
    if isinstance(what, str):
        assert problem.message == what
    else:
        assert what.fullmatch(problem.message), problem.message
    assert problem.next_step == next_step
    assert problem.exit_code == exit_code
    assert len(str(problem).splitlines()) == 1
    assert str(problem).endswith(f"; {next_step}")
    if out is not None and out.parent.is_dir():
        assert list(out.parent.glob(f"{out.name}*")) == []


def starting(text: str) -> re.Pattern[str]:
    """A problem's text that begins like this and ends in words of another library."""
    return re.compile(re.escape(text) + ".+", re.DOTALL)
