"""Checks for optional packages, each installed by an extra of camelpress."""

from __future__ import annotations

from importlib.util import find_spec

from camelpress.core.errors import ToolProblem


def is_installed(module: str) -> bool:
    """Returns True if a module can be imported, without importing it."""
    return find_spec(module) is not None


def require_package(module: str, *, need: str, extra: str) -> None:
    """Checks that a module is installed.

    Args:
        module: Import name.
        need: Start of the message, such as "the report needs matplotlib".
        extra: Extra of camelpress with the package.
    Raises:
        ToolProblem: The module is not installed.
    """
    if not is_installed(module):
        raise ToolProblem(
            f"{need}, which is not installed", next_step=f'pip install "camelpress[{extra}]"'
        )
