"""One loop runs the blocks of a stage on every rank, and resumes after the last intact block."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from camelpress.core.errors import Interruption, NumericsProblem
from camelpress.core.output.journal import Journal, invalidate_entries, read_journal
from camelpress.inference.streaming.block_pipeline import BlockPipeline
from camelpress.inference.streaming.process_group import ProcessGroup
from processes import together

DEPTH = 4
RECORDS = [{"states": [state]} for state in (12, 35, 82, 177)]  # twice the state, plus the weight

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


class Doubling:
    """A stage whose hidden state is one number; it lists the blocks that it runs."""

    def __init__(self) -> None:
        self.states: dict[int, int] = {}  # by the number of the block that they enter
        self.lost_states: list[int] = []  # after blocks without their other results
        self.events: list[Any] = []

    def pipeline(self, journal: Journal | None, team: ProcessGroup) -> BlockPipeline[int]:
        return BlockPipeline(
            depth=DEPTH,
            label="test",
            team=team,
            journal=journal,
            embed=self.embed,
            state_hashes=lambda block: [self.states.get(block)],
            read_weights=self.read_weights,
            is_whole=lambda record: record["states"][0] not in self.lost_states,
        )

    def embed(self) -> None:
        self.events.append("embed")
        self.states[0] = 1

    def read_weights(self, block: int) -> int:
        assert torch.is_inference_mode_enabled()
        return 10 + block

    def run_block(self, block: int, weights: int) -> dict[str, Any]:
        self.events.append(block)
        self.states[block + 1] = 2 * self.states[block] + weights
        return {"states": [self.states[block + 1]]}

    def run(self, journal: Journal | None, team: ProcessGroup | None = None) -> list[Any]:
        pipeline = self.pipeline(journal, team or ProcessGroup())
        records = pipeline.start()
        return records + list(pipeline.run(len(records), self.run_block))


@pytest.fixture
def stage(tmp_path: Path) -> Doubling:
    """A stage that was stopped after three of its four blocks."""
    stage = Doubling()
    with pytest.raises(Interruption), Journal(tmp_path) as journal:
        pipeline = stage.pipeline(journal, ProcessGroup())
        assert pipeline.start() == []
        for number, record in enumerate(pipeline.run(0, stage.run_block)):
            line = read_journal(tmp_path)[f"block {number}"]
            assert ({*line}, line["states"]) == ({"sha256", "states"}, record["states"])
            if number == 2:
                raise Interruption("stopped", next_step="go on")
    assert stage.events == ["embed", 0, 1, 2]
    stage.events.clear()
    return stage


def test_without_a_journal_every_block_runs() -> None:
    stage = Doubling()
    assert stage.run(None) == RECORDS
    assert stage.events == ["embed", *range(DEPTH)]


# fmt: off
HARMS: list[tuple[Callable[[Doubling], None], list[Any]]] = [  # a harm, and what runs after it
    (lambda stage: None,                                  [3]),
    (lambda stage: stage.states.update({3: 0}),           [2, 3]),
    (lambda stage: stage.states.update({3: 0, 2: 0}),     [1, 2, 3]),
    (lambda stage: stage.states.clear(),                  ["embed", 0, 1, 2, 3]),
    (lambda stage: stage.lost_states.append(35),          [1, 2, 3]),
]
# fmt: on


@pytest.mark.parametrize(("harm", "events"), HARMS)
def test_a_run_resumes_after_the_last_intact_block(
    stage: Doubling, tmp_path: Path, harm: Callable[[Doubling], None], events: list[Any]
) -> None:
    harm(stage)
    with Journal(tmp_path) as journal:
        assert stage.run(journal) == RECORDS
    assert stage.events == events


def test_a_record_without_its_hash_is_not_believed(stage: Doubling, tmp_path: Path) -> None:
    invalidate_entries(tmp_path, ["block 1"])
    with Journal(tmp_path) as journal:
        assert stage.run(journal) == RECORDS
    assert stage.events == [1, 2, 3]


@pytest.mark.parametrize("done", [0, 3])
def test_every_rank_gets_the_records_of_the_first(
    tmp_path: Path, stage: Doubling, done: int
) -> None:
    if not done:
        stage = Doubling()

    def work() -> None:
        team = ProcessGroup.join()
        records = stage.run(Journal(tmp_path) if team.is_main and done else None, team)
        path = tmp_path / f"{team.rank}.json"
        path.write_text(json.dumps([records, stage.events]))

    assert together(2, work) == [0, 0]
    for rank in range(2):
        events = [3] if done else ["embed", *range(DEPTH)]
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [RECORDS, events]


def test_an_embedding_that_fails_on_one_rank_stops_all(
    capfd: pytest.CaptureFixture[str],
) -> None:
    class Failing(Doubling):
        def embed(self) -> None:
            if os.environ["RANK"] == "1":
                raise NumericsProblem("the embedding is not finite", next_step="check it")

    codes = together(2, lambda: Failing().run(None, ProcessGroup.join()))
    assert codes == [NumericsProblem.exit_code] * 2
    assert capfd.readouterr().err.splitlines() == ["the embedding is not finite; check it"] * 2
