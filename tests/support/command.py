"""The command line, run in this process as `main` does."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest


class Ended(NamedTuple):
    """What it came to."""

    code: int
    out: str
    err: str


Run = Callable[..., Ended]


def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Something that runs a command line, with a text on stdin."""
    from camelpress.cli import entry_point

    def call(*arguments: object, typed: str | bytes = "") -> Ended:
        content = typed.encode() if isinstance(typed, str) else typed
        monkeypatch.setattr(sys, "argv", ["camelpress", *map(str, arguments)])
        stdin = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", stdin)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            entry_point.main()
        out, err = capsys.readouterr()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else 0, out, err)

    return call
