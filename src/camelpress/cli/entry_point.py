"""Runs the command line and ends the process: 1 means that a gate failed, and nothing else.

0    done, or every check passed
1    a verdict: the gate failed
2    usage or recipe
3    could not run: an error, a bug, a result that could not be written
4    inconclusive
75   interrupted, the same command goes on
130  Ctrl-C
141  the reader of a pipe left
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

USAGE_EXIT_CODE, CTRL_C_EXIT_CODE = 2, 130  # exit codes


def main() -> None:
    """Runs the command line; a bug ends with a traceback and exit code 3, which no gate returns."""
    code = FAILED
    try:
        with watch_standard_streams() as streams:
            code = _flush_exit_code(_run_to_exit_code(), streams)
    finally:  # an error may be raised even while another one is shown
        sys.exit(code)


def app() -> None:
    """Parses the arguments and runs a command; nothing is imported before a failure is caught."""
    from camelpress.cli.commands import app as commands

    commands()


def _run_to_exit_code() -> int:
    """Runs the command line and returns an exit code whatever happens."""
    try:
        app()
    except SystemExit as end:
        return _trusted_exit_code(end.code)
    except KeyboardInterrupt:
        return CTRL_C_EXIT_CODE
    except LostOutput:
        return FAILED  # `_settled` says why
    except BaseException:  # noqa: BLE001 - Python's own code for a bug, 1, means "gate failed" here
        sys.stderr.write(redact_secrets(traceback.format_exc()))
        return FAILED
    return 0


def _trusted_exit_code(code: object) -> int:
    """Returns the code of a command as it is; the 1 of a library is a failure and no verdict."""
    if isinstance(code, ExitCode):
        return int(code)
    if code is None:
        return 0
    return (
        code if isinstance(code, int) and code in (0, USAGE_EXIT_CODE, CTRL_C_EXIT_CODE) else FAILED
    )


def _flush_exit_code(code: int, streams: StandardStreams) -> int:
    """Flushes both streams and returns the code of the run, unless they lost something."""
    try:
        streams.out.flush()
    except LostOutput as lost:
        if streams.out.exit_code != SIGPIPE:
            streams.err.write(
                f"error: standard output cannot be written: {lost}; free some space there, or "
                "send the output elsewhere\n"
            )
    streams.err.flush()
    lost_code = streams.out.exit_code or streams.err.exit_code
    return lost_code if lost_code and code in (0, 1, FAILED, 4) else code
