"""Command lines in processes of their own, forked off one that has imported the program, no more.

Importing takes several times as long as a stage on a small model. Of a forked process, too, Linux
tells the peak of its own memory; it begins with what the imports take.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

MODULES = (
    "camelpress.cli.entry_point",
    "camelpress.cli.commands",
    "camelpress.convert.recover.run",
    "camelpress.convert.recover.make_diff",
    "camelpress.convert.export.export_checkpoint",
    "camelpress.quantize.run",
    "camelpress.validate.run",
    "camelpress.validate.store.build_store",
    "camelpress.publish.run",
    "camelpress.publish.publish_release",
    "camelpress.publish.verify_release",
    "numba",
)


class Fresh:
    """Something that runs command lines; `files` is where each of `MODULES` comes from.

    Args:
        server: this file as a program.
    """

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self._server = server
        self.files: dict[str, str] = self._told()

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """What came of a command line."""
        words = [str(each) for each in arguments]
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(words) + "\n")
        self._server.stdin.flush()
        code, out, err = self._told()
        return subprocess.CompletedProcess(words, code, out, err)

    def _told(self) -> Any:
        assert self._server.stdout is not None
        return json.loads(self._server.stdout.readline())


@contextmanager
def fresh(env: Mapping[str, str], cwd: Path | None = None) -> Iterator[Fresh]:
    """Command lines in an environment and a folder."""
    with subprocess.Popen(
        [sys.executable, "-P", __file__],
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        yield Fresh(server)
        assert server.stdin is not None
        server.stdin.close()


def _serve() -> None:
    _tell({name: importlib.import_module(name).__file__ for name in MODULES})
    for line in sys.stdin:
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            child = os.fork()
            if not child:
                _become(json.loads(line), out.fileno(), err.fileno())
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            for file in (out, err):
                file.seek(0)
            _tell([code, out.read(), err.read()])


def _tell(content: object) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


def _become(arguments: list[str], out: int, err: int) -> NoReturn:
    from camelpress.cli.entry_point import main

    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.argv = ["camelpress", *arguments]
    code: object = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    _serve()
