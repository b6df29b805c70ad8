"""Each stage is killed, and failed by its disk, at two operations; `make faults` tries all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from disk_hooks import KILL
from fault_sweep import COMMANDS, Inputs, trial

FAULTS = (errno.ENOSPC, KILL)

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """What the stages are run on."""
    return Inputs.made(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize("stage", COMMANDS)
def test_the_same_command_ends_what_was_cut_short(
    inputs: Inputs, tmp_path: Path, stage: str
) -> None:
    one = trial(inputs, stage, tmp_path, replaces=True)
    (tmp_path / "counted").mkdir()
    count = len(one.operations(tmp_path / "counted"))
    for number, fault in enumerate(FAULTS):
        place = tmp_path / str(number)
        place.mkdir()
        at = (number + 1) * count // len(FAULTS) - 2
        assert [*one.faults_at(place, at, fault)] == []
