"""Work in processes of its own: killed at any moment, signalled, or done by several as a team."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from camelpress.cli import entry_point
from camelpress.core.errors import Problem

PATIENCE = 120  # seconds, rather than hang


def forked(work: Callable[[], object]) -> int:
    """The exit code of another process that does `work`, or minus the signal that killed it."""
    child = os.fork()
    if not child:
        try:
            signal.alarm(PATIENCE)
            work()
            os._exit(0)
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def together(size: int, work: Callable[[], object]) -> list[int]:
    """The exit codes of some processes that do `work` as one team."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(size):
        children.append(os.fork())
        if not children[-1]:
            try:
                signal.alarm(PATIENCE)
                os.environ |= {
                    "RANK": str(rank),
                    "WORLD_SIZE": str(size),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    "GLOO_SOCKET_IFNAME": "lo",
                }
                work()
                os._exit(0)
            except Problem as problem:
                sys.stderr.write(f"{problem}\n")
                sys.stderr.flush()
                os._exit(problem.exit_code)
            finally:
                os._exit(99)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def die() -> None:
    """What no process survives."""
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt(owner: Any, name: str, at: int, act: Callable[[], None], *, late: bool) -> None:
    """Let something happen before or after the call of a method with the number `at`."""
    original, calls = getattr(owner, name), iter(range(100_000))

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        here = next(calls) == at
        if here and not late:
            act()
        found = original(*arguments, **keywords)
        if here and late:
            act()
        return found

    pytest.MonkeyPatch().setattr(owner, name, wrapped)


def signalled(
    errors: Path, arguments: list[str], sent: list[signal.Signals], owner: Any, name: str, at: int
) -> Callable[[], None]:
    """The command line, which signals itself after a call of a method, its errors in a file."""

    def work() -> None:
        def send() -> None:
            for number in sent:
                os.kill(os.getpid(), number)

        interrupt(owner, name, at, send, late=True)
        os.dup2(os.open(errors, os.O_CREAT | os.O_WRONLY), 2)
        sys.stderr = open(2, "w")
        sys.argv = ["camelpress", *arguments]
        try:
            entry_point.main()
        except SystemExit as end:
            sys.stderr.flush()
            os._exit(int(end.code or 0))

    return work
