"""The modules of benchmarks/, which stand outside of what is installed."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks are for Linux")


def part(name: str) -> Any:
    """One of them."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(ROOT)
        return import_module(f"benchmarks.{name}")
