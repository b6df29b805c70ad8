"""Runs the command line and ends the process with a code of `ExitCode`."""

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

COMPLETED_CODES = (  # of work that ended; lost output replaces them
    ExitCode.DONE, ExitCode.GATE_FAILED, ExitCode.PROBLEM, ExitCode.INCONCLUSIVE,
)  # fmt: skip


def main() -> None:
    """Runs the command line; a bug ends with a traceback and a code that no gate returns."""
    code = ExitCode.PROBLEM
    try:
        with watch_standard_streams() as streams:
            code = _flush_exit_code(_run_to_exit_code(), streams)
    finally:  # an error may be raised even while another one is shown
        sys.exit(code)


def app() -> None:
    """Parses the arguments and runs a command; nothing is imported before a failure is caught."""
    from camelpress.cli.commands import app as commands

    commands()


def _run_to_exit_code() -> ExitCode:
    """Runs the command line and returns an exit code whatever happens."""
    try:
        app()
    except SystemExit as end:
        return _trusted_exit_code(end.code)
    except KeyboardInterrupt:
        return ExitCode.CTRL_C
    except LostOutput:
        return ExitCode.PROBLEM  # `_flush_exit_code` says why
    except BaseException:  # noqa: BLE001 - Python's own code for a bug, 1, means "gate failed" here
        sys.stderr.write(redact_secrets(traceback.format_exc()))
        return ExitCode.PROBLEM
    return ExitCode.DONE


def _trusted_exit_code(code: object) -> ExitCode:
    """Returns the code of a command as it is; the 1 of a library is a failure and no verdict."""
    if isinstance(code, ExitCode):
        return code
    if code is None:
        return ExitCode.DONE
    trusted = (ExitCode.DONE, ExitCode.USAGE, ExitCode.CTRL_C)
    return ExitCode(code) if isinstance(code, int) and code in trusted else ExitCode.PROBLEM


def _flush_exit_code(code: ExitCode, streams: StandardStreams) -> ExitCode:
    """Flushes both streams and returns the code of the run, unless they lost something."""
    try:
        streams.out.flush()
    except LostOutput as lost:
        if streams.out.exit_code != ExitCode.SIGPIPE:
            streams.err.write(
                f"error: standard output cannot be written: {lost}; free some space there, or "
                "send the output elsewhere\n"
            )
    streams.err.flush()
    lost_code = streams.out.exit_code or streams.err.exit_code
    return lost_code if lost_code and code in COMPLETED_CODES else code
