"""A short campaign of every fuzz target; `make fuzz` runs a long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzzing import campaign, targets

INPUTS = 300  # of each target
SECONDS = 5.0  # of each target


@pytest.mark.parametrize("name", targets())
def test_every_input_is_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    outcome = campaign(targets()[name], tmp_path, inputs=INPUTS, max_seconds=SECONDS)
    assert outcome.faults == {}
    assert outcome.tried > 0
