"""Command lines with standard streams that fail, each in a process that ends as Python ends.

    python tests/support/redirected.py < cases.json > ends.json

A case is {"words": [...], "streams": {descriptor: state}, "code": ...}; its end is an exit code and
what stood on a stderr that is a file. The processes are forked off one that has imported the
program, which takes longer than most commands. `code` replaces the work of `inspect`.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CLOSED, FULL, GONE, FILE = "closed", "full", "gone", "file"


def ends_of(cases: list[dict[str, Any]], cwd: Path) -> list[tuple[int, str]]:
    """Exit code and messages of each case, with `cwd` as the working folder."""
    ended = subprocess.run(
        [sys.executable, "-P", __file__],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=True,
        cwd=cwd,
    )
    return [(code, said) for code, said in json.loads(ended.stdout)]


def _point(descriptor: int, state: str) -> None:
    """Gives a descriptor the state that a shell would start the program with."""
    if state == CLOSED:
        os.close(descriptor)
        return
    if state == GONE:
        reader, place = os.pipe()
        os.close(reader)
    else:
        place = os.open("/dev/full" if state == FULL else os.devnull, os.O_RDWR)
    os.dup2(place, descriptor)
    os.close(place)


def _stream(descriptor: int, **how: Any) -> Any:
    """The stream that Python makes of a descriptor when it starts; None where it is closed."""
    try:
        os.fstat(descriptor)
    except OSError:
        return None
    return open(descriptor, "w", encoding="utf-8", closefd=False, **how)


def _become(case: dict[str, Any], messages: int) -> None:
    """Turns this process into the program of a case."""
    os.dup2(messages, 2)
    os.close(messages)
    _point(1, FILE)
    for descriptor, state in case["streams"].items():
        _point(int(descriptor), state)
    sys.stdout, sys.stderr = _stream(1), _stream(2, errors="backslashreplace")
    sys.argv = ["camelpress", *case["words"]]
    if code := case.get("code"):
        from camelpress.core.checkpoint import checkpoint

        def work(*_: Any) -> Any:
            exec(code, {})  # noqa: S102 - written by a test

        checkpoint.Checkpoint.open = work  # type: ignore[assignment]


def _serve() -> None:
    import camelpress.cli.commands  # noqa: F401
    from camelpress.cli.entry_point import main
    from camelpress.core.checkpoint import checkpoint  # noqa: F401
    from camelpress.validate.gate import report_files  # noqa: F401

    gc.freeze()  # or each process would look through all that was imported when it ends
    ends = []
    for case in json.loads(sys.stdin.read()):
        with tempfile.TemporaryFile("w+") as messages:
            child = os.fork()
            if not child:
                _become(case, os.dup(messages.fileno()))
                main()
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            messages.seek(0)
            ends.append((code, messages.read()))
    sys.stdout.write(json.dumps(ends))


if __name__ == "__main__":
    _serve()
