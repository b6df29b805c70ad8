"""A command as a process of its own: its time, and the most memory it had."""

from __future__ import annotations

import os
import tempfile
import time
from typing import NamedTuple


class Run(NamedTuple):
    """What one run cost."""

    seconds: float
    peak: int  # resident bytes
    cpu: float  # seconds of all its threads and children, user and system


def run(command: list[str]) -> Run:
    """Run a command to its end; what it prints on stdout is dropped.

    Peak and CPU time are of it and the children it waited for: the largest, and the sum. Linux lets
    the peak start at that of the process that spawned it, so the caller must be small: this module
    and its callers import nothing that is not.

    Raises:
        SystemExit: it failed; with its stderr.
    """
    with tempfile.TemporaryFile() as stderr:
        files = [
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, stderr.fileno(), 2),
        ]
        start = time.perf_counter()
        child = os.posix_spawnp(command[0], command, os.environ, file_actions=files)
        _, status, usage = os.wait4(child, 0)
        seconds = time.perf_counter() - start
        code = os.waitstatus_to_exitcode(status)
        if code:
            stderr.seek(0)
            text = stderr.read().decode(errors="replace")
            raise SystemExit(f"exit code {code} of {' '.join(command)}\n{text}")
    return Run(seconds, usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime)
