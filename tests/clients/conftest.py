"""Where the run writes what it found."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--compatibility", type=Path, help="document whose tables of clients are to be replaced"
    )
