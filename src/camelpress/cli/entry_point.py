"""Runs the command line and ends the process with an `ExitCode`; 1 always means a failed gate."""

from __future__ import annotations

import sys
import traceback

from camelpress.core.exit_codes import ExitCode
from camelpress.core.runtime.secrets_redaction import redact_secrets
from camelpress.core.runtime.standard_streams import (
    LostOutput,
    StandardStreams,
    watch_standard_streams,
)

COMPLETED_CODES = (  # codes of finished work; lost output replaces them
    ExitCode.DONE, ExitCode.GATE_FAILED, ExitCode.PROBLEM, ExitCode.INCONCLUSIVE,
)  # fmt: skip


def main() -> None:
    """Runs the command line; a bug ends with a traceback and `ExitCode.PROBLEM`."""
    code = ExitCode.PROBLEM
    try:
        with watch_standard_streams() as streams:
            code = _flush_exit_code(_run_to_exit_code(), streams)
    finally:  # showing an error may raise another error
        sys.exit(code)


def app() -> None:
    """Parses the arguments and runs a command; imports happen here, inside the error handling."""
    from camelpress.cli.commands import app as commands

    commands()


def _run_to_exit_code() -> ExitCode:
    """Runs the command line and returns an exit code, even after a bug."""
    try:
        app()
    except SystemExit as end:
        return _trusted_exit_code(end.code)
    except KeyboardInterrupt:
        return ExitCode.CTRL_C
    except LostOutput:
        return ExitCode.PROBLEM  # `_flush_exit_code` prints the reason
    except BaseException:  # noqa: BLE001 - Python ends a bug with 1, which means "gate failed" here
        sys.stderr.write(redact_secrets(traceback.format_exc()))
        return ExitCode.PROBLEM
    return ExitCode.DONE


def _trusted_exit_code(code: object) -> ExitCode:
    """Returns the exit code of a command unchanged, and 3 for an exit code 1 of a library."""
    if isinstance(code, ExitCode):
        return code
    if code is None:
        return ExitCode.DONE
    trusted = (ExitCode.DONE, ExitCode.USAGE, ExitCode.CTRL_C)
    return ExitCode(code) if isinstance(code, int) and code in trusted else ExitCode.PROBLEM


def _flush_exit_code(code: ExitCode, streams: StandardStreams) -> ExitCode:
    """Flushes both streams, and returns the exit code of the run or of lost output."""
    try:
        streams.out.flush()
    except LostOutput as lost:
        if streams.out.exit_code != ExitCode.SIGPIPE:
            streams.err.write(
                f"error: standard output cannot be written: {lost}; free some space there, or "
                "redirect the output to another disk\n"
            )
    streams.err.flush()
    lost_code = streams.out.exit_code or streams.err.exit_code
    return lost_code if lost_code and code in COMPLETED_CODES else code
