"""A stage says no: in one line, with what to do next and an exit code, and leaves nothing behind."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from camelpress.core.errors import Problem


@contextmanager
def refusal(
    kind: type[Problem], what: str, *, next_step: str, exit_code: int, out: Path | None
) -> Iterator[None]:
    """The block ends in exactly this problem.

    Args:
        kind: its class, not a subclass.
        what: a regular expression that its whole text matches.
        next_step: word for word.
        exit_code: of a process that ends in it.
        out: where the output would stand; nothing must be there, or beside it under a name that
            begins like it. None where the block has no output.
    """
    with pytest.raises(kind) as told:
        yield
    problem = told.value
    assert type(problem) is kind
    assert re.fullmatch(what, problem.what, re.DOTALL), problem.what
    assert problem.next_step == next_step
    assert problem.exit_code == exit_code
    assert len(str(problem).splitlines()) == 1
    assert str(problem).endswith(f"; {next_step}")
    if out is not None and out.parent.is_dir():
        assert list(out.parent.glob(f"{out.name}*")) == []
