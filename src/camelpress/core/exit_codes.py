"""The exit codes of the command line: 1 means that a gate failed, and nothing else."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit code that a command chose; a plain integer may be the code of a library."""

    DONE = 0  # and every check passed
    GATE_FAILED = 1
    USAGE = 2  # an option, a recipe or a gate file that cannot be used
    PROBLEM = 3  # could not run: an error, a bug, a result that could not be written
    INCONCLUSIVE = 4
    TRY_AGAIN = 75  # interrupted, the same command resumes; EX_TEMPFAIL of sysexits.h
    CTRL_C = 130  # 128 + SIGINT
    SIGPIPE = 141  # 128 + SIGPIPE: stdout was closed by its reader
