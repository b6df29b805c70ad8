"""Registers all commands; each parses its options, calls one stage and shows the report."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from camelpress import __version__
from camelpress.cli import (  # noqa: F401 - importing a module registers its commands
    chat_commands,
    inspect_commands,
    pipeline_commands,
    stage_commands,
)
from camelpress.cli.command import PANELS, app

__all__ = ["app"]

app.registered_commands.sort(key=lambda entry: PANELS.index(str(entry.rich_help_panel)))


def _print_version(value: bool) -> bool:
    if value:
        sys.stdout.write(f"camelpress {__version__}\n")
        raise typer.Exit
    return value


@app.callback()
def _global_options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass
