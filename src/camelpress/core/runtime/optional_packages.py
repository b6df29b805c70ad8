"""What only some commands need, and an extra of this package brings."""

from __future__ import annotations

from importlib.util import find_spec

from camelpress.core.errors import EngineProblem


def is_there(module: str) -> bool:
    """Whether it can be imported; it is not."""
    return find_spec(module) is not None


def require(module: str, *, need: str, extra: str) -> None:
    """See that a module is there.

    Args:
        module: by the name it is imported by.
        need: who needs it, and what it is called.
        extra: that brings it.
    Raises:
        EngineProblem: it is not.
    """
    if not is_there(module):
        raise EngineProblem(
            f"{need}, which is not installed", next_step=f'pip install "camelpress[{extra}]"'
        )
