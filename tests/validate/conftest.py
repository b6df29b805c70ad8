"""A report as `validate` writes it, for all that read one."""

from __future__ import annotations

from pathlib import Path

import pytest

import stages


@pytest.fixture(scope="module")
def validation(
    base: Path, chat: Path, prose: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What validate writes of a model that is its own reference."""
    out = tmp_path_factory.mktemp("validation") / "out"
    stages.validate(base, base, out, chat, prose, max_tokens=1000)
    return out
