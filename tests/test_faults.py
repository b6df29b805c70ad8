"""Each command is killed, and failed by its disk, at two operations; `make faults` tries all."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

import hub_process
from disk_hooks import KILL
from fault_sweep import STAGES, make_trial
from fault_trial import Inputs
from hub_process import HubProcess

FAULTS = (errno.ENOSPC, KILL)

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """What the stages are run on."""
    return Inputs.made(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def hub() -> Iterator[HubProcess]:
    """A hub that outlives a client."""
    with hub_process.started() as hub:
        yield hub


@pytest.mark.parametrize("stage", STAGES)
def test_the_same_command_ends_what_was_cut_short(
    inputs: Inputs, hub: HubProcess, tmp_path: Path, stage: str
) -> None:
    swept = make_trial(inputs, hub, stage, tmp_path, replaces=stage != "run")
    (tmp_path / "counted").mkdir()
    count = len(swept.operations(tmp_path / "counted"))
    for number, fault in enumerate(FAULTS):
        place = tmp_path / str(number)
        place.mkdir()
        at = (number + 1) * count // len(FAULTS) - 2
        assert [*swept.faults_at(place, at, fault)] == []
