"""Good inputs to break, and every stage as a place to hand a broken one in."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stages
from camelpress.core.errors import Problem
from camelpress.core.files.file_hashes import FileHashCache
from camelpress.reporting.stage_report import Report
from refusal import refusal


@pytest.fixture(scope="session")
def diff(base: Path, tuned: Path) -> Path:
    """tuned - base, in fp32."""
    stages.make_diff(base, tuned, base.parent / "hostile-diff")
    return base.parent / "hostile-diff"


@pytest.fixture(scope="session")
def packed(base: Path) -> Path:
    """The base in 4 bits."""
    stages.quantize(base, base.parent / "hostile-packed", method="rtn")
    return base.parent / "hostile-packed"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where the output would stand."""
    return tmp_path / "out"


@pytest.fixture(
    params=[
        "recover base",
        "recover diff",
        "make-diff base",
        "make-diff tuned",
        "quantize",
        "validate reference",
        "validate candidate",
    ]
)
def stage(
    request: pytest.FixtureRequest, base: Path, diff: Path, tuned: Path, chat: Path, out: Path
) -> Callable[[Path], Report]:
    """A stage that reads the folder it is called with as one of its inputs."""
    stage: Callable[[Path], Report] = {
        "recover base": lambda folder: stages.recover(folder, diff, out),
        "recover diff": lambda folder: stages.recover(base, folder, out),
        "make-diff base": lambda folder: stages.make_diff(folder, tuned, out),
        "make-diff tuned": lambda folder: stages.make_diff(base, folder, out),
        "quantize": lambda folder: stages.quantize(folder, out, chat),
        "validate reference": lambda folder: stages.validate(folder, base, out, chat),
        "validate candidate": lambda folder: stages.validate(base, folder, out, chat),
    }[request.param]
    return stage


@pytest.fixture
def refused(out: Path) -> Callable[..., None]:
    """See that recover refuses two folders, and leaves both as they are."""

    def refused(
        base: Path,
        diff: Path,
        kind: type[Problem],
        what: str | re.Pattern[str],
        *,
        next_step: str,
        exit_code: int = 3,
        **options: Any,
    ) -> None:
        before = [FileHashCache({}).tree_digest(folder) for folder in (base, diff)]
        with refusal(kind, what, next_step=next_step, out=out, exit_code=exit_code):
            stages.recover(base, diff, out, **options)
        assert [FileHashCache({}).tree_digest(folder) for folder in (base, diff)] == before

    return refused
