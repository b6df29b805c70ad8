"""Runs the command line and ends the process with an exit code; 1 always means a failed gate.

0    finished, or every check passed
1    the gate failed
2    usage or recipe error
3    runtime error, bug, or unwritable output
4    inconclusive verdict
75   interrupted; the same command continues the run
130  Ctrl-C
141  stdout was closed by its reader
"""

from __future__ import annotations

import sys
import traceback

from camelpress.core.runtime.secrets_redaction import redact_secrets
from camelpress.core.runtime.standard_streams import (
    FAILED,
    SIGPIPE,
    ExitCode,
    LostOutput,
    StandardStreams,
    watch_standard_streams,
)

USAGE_EXIT_CODE, CTRL_C_EXIT_CODE = 2, 130


def main() -> None:
    """Runs the command line; a bug ends with a traceback and exit code 3."""
    code = FAILED
    try:
        with watch_standard_streams() as streams:
            code = _flush_exit_code(_run_to_exit_code(), streams)
    finally:  # showing an error may raise another error
        sys.exit(code)


def app() -> None:
    """Parses the arguments and runs a command; imports happen here, inside the error handling."""
    from camelpress.cli.commands import app as commands

    commands()


def _run_to_exit_code() -> int:
    """Runs the command line and returns an exit code, even after a bug."""
    try:
        app()
    except SystemExit as end:
        return _trusted_exit_code(end.code)
    except KeyboardInterrupt:
        return CTRL_C_EXIT_CODE
    except LostOutput:
        return FAILED  # `_flush_exit_code` prints the reason
    except BaseException:  # noqa: BLE001 - Python ends a bug with 1, which means "gate failed" here
        sys.stderr.write(redact_secrets(traceback.format_exc()))
        return FAILED
    return 0


def _trusted_exit_code(code: object) -> int:
    """Returns the exit code of a command unchanged, and 3 for an exit code 1 of a library."""
    if isinstance(code, ExitCode):
        return int(code)
    if code is None:
        return 0
    return (
        code if isinstance(code, int) and code in (0, USAGE_EXIT_CODE, CTRL_C_EXIT_CODE) else FAILED
    )


def _flush_exit_code(code: int, streams: StandardStreams) -> int:
    """Flushes both streams, and returns the exit code of the run or of lost output."""
    try:
        streams.out.flush()
    except LostOutput as lost:
        if streams.out.exit_code != SIGPIPE:
            streams.err.write(
                f"error: standard output cannot be written: {lost}; free some space there, or "
                "redirect the output to another disk\n"
            )
    streams.err.flush()
    lost_code = streams.out.exit_code or streams.err.exit_code
    return lost_code if lost_code and code in (0, 1, FAILED, 4) else code
