"""The command line: every command parses, calls one function of a stage, shows its report."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from camelpress import __version__
from camelpress.command import PANELS, app
from camelpress.commands import look, pipeline, stages, talk  # noqa: F401 - each adds its commands
from camelpress.core.secrets import redacted

__all__ = ["app", "main"]

app.registered_commands.sort(key=lambda each: PANELS.index(str(each.rich_help_panel)))


def _version(wanted: bool) -> bool:
    if wanted:
        sys.stdout.write(f"camelpress {__version__}\n")
        raise typer.Exit
    return wanted


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; a bug ends with a traceback and exit code 3, which no gate returns."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:  # noqa: BLE001 - Python's own code for a bug, 1, means "gate failed" here
        sys.stderr.write(redacted(traceback.format_exc()))
        sys.exit(3)
