"""What only some commands need, and an extra of this package brings."""

from __future__ import annotations

from importlib.util import find_spec

from camelpress.core.errors import ToolProblem


def is_installed(module: str) -> bool:
    """Whether it can be imported; it is not."""
    return find_spec(module) is not None


def require_package(module: str, *, need: str, extra: str) -> None:
    """See that a module is there.

    Args:
        module: by the name it is imported by.
        need: who needs it, and what it is called.
        extra: that brings it.
    Raises:
        EngineProblem: it is not.
    """
    if not is_installed(module):
        raise ToolProblem(
            f"{need}, which is not installed", next_step=f'pip install "camelpress[{extra}]"'
        )
