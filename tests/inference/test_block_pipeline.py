"""One loop runs the blocks of a stage on every rank, and resumes after the last saved states."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from camelpress.core.errors import Interruption, NumericsProblem, OutputProblem
from camelpress.core.files.file_hashes import sha256_json
from camelpress.core.output.journal import Journal, invalidate_entries, read_journal
from camelpress.inference.model.token_batches import TokenBatches
from camelpress.inference.streaming import state_checkpoints
from camelpress.inference.streaming.block_pipeline import BlockPipeline
from camelpress.inference.streaming.process_group import ProcessGroup
from camelpress.inference.streaming.state_home import FileHome, MemoryHome, StateHome
from camelpress.inference.streaming.token_shards import TokenShard
from processes import together

DEPTH = 4
RECORDS = [{"value": value} for value in (12, 35, 82, 177)]  # twice the state, plus the weight
HOMES: list[Callable[[], StateHome]] = [FileHome, lambda: MemoryHome(torch.device("cpu"))]

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


class Doubling:
    """A stage whose hidden state is one number; it lists the blocks that it runs."""

    def __init__(self, folder: Path, home: StateHome) -> None:
        sequences = TokenBatches([[1]], limit=1)
        self.folder = folder
        self.home = home
        self.shard = TokenShard(0, sequences, folder, states=("hidden",), depth=DEPTH)
        self.lost: list[int] = []  # values of blocks without their other results
        self.events: list[Any] = []
        self.weight = 10

    def pipeline(self, journal: Journal | None, team: ProcessGroup) -> BlockPipeline[int]:
        return BlockPipeline(
            depth=DEPTH,
            label="test",
            team=team,
            journal=journal,
            shards=[(self.shard,)],
            home=self.home,
            embed=self.embed,
            read_weights=self.read_weights,
            is_whole=lambda record: record["value"] not in self.lost,
        )

    def embed(self) -> None:
        self.events.append("embed")
        self.shard.select_block(0)
        self.shard.write_states("hidden", torch.ones(1, 1))

    def read_weights(self, block: int) -> int:
        assert torch.is_inference_mode_enabled()
        return self.weight + block

    def run_block(self, block: int, weights: int) -> dict[str, Any]:
        self.events.append(block)
        self.shard.select_block(block)
        value = 2 * self.shard.read_states("hidden", 1, torch.float32) + weights
        self.shard.allocate_states("hidden", 1, torch.float32, after=True)
        self.shard.write_states("hidden", value, after=True)
        return {"value": int(value)}

    def run(self, journal: Journal | None, team: ProcessGroup | None = None) -> list[Any]:
        pipeline = self.pipeline(journal, team or ProcessGroup())
        records = pipeline.start()
        return records + list(pipeline.run(len(records), self.run_block))

    def harm(self, *blocks: int) -> None:
        """Damages the files of the states before some blocks."""
        for block in blocks:
            (self.folder / f"lane-0000.hidden.{block % 2}").write_bytes(b"harm")


@pytest.fixture
def stage(tmp_path: Path) -> Doubling:
    """A stage that was stopped after three of its four blocks; its states are in files."""
    stage = Doubling(tmp_path, FileHome())
    stop_in(stage, after=3)
    return stage


def stop_in(stage: Doubling, *, after: int) -> None:
    """Stop a stage at once after some blocks."""
    with pytest.raises(Interruption), Journal(stage.folder) as journal:
        pipeline = stage.pipeline(journal, ProcessGroup())
        first = len(pipeline.start())
        for number, record in enumerate(pipeline.run(first, stage.run_block), start=first):
            line = read_journal(stage.folder)[f"block {number}"]
            assert ({*line}, line["value"]) == ({"sha256", "value"}, record["value"])
            if number + 1 == after:
                raise Interruption("stopped", next_step="go on")
    stage.events.clear()


def signal_in(stage: Doubling, *, after: int) -> None:
    """Ask a stage to stop while a block is running."""
    run_block = stage.run_block

    def run_and_signal(block: int, weights: int) -> dict[str, Any]:
        if block + 1 == after:
            os.kill(os.getpid(), signal.SIGTERM)
        return run_block(block, weights)

    with (
        pytest.raises(Interruption, match=f"after block {after}"),
        Journal(stage.folder) as journal,
    ):
        pipeline = stage.pipeline(journal, ProcessGroup())
        list(pipeline.run(len(pipeline.start()), run_and_signal))
    stage.events.clear()


def again(stage: Doubling, home: Callable[[], StateHome]) -> Doubling:
    """The same stage in another process."""
    return Doubling(stage.folder, home())


def saved(folder: Path) -> list[int]:
    """The blocks whose states were saved, as the journal tells."""
    return [int(name.split()[1]) for name in read_journal(folder) if name.startswith("states")]


@pytest.mark.parametrize("home", HOMES)
def test_without_a_journal_every_block_runs(tmp_path: Path, home: Callable[[], StateHome]) -> None:
    stage = Doubling(tmp_path, home())
    assert stage.run(None) == RECORDS
    assert stage.events == ["embed", *range(DEPTH)]


# fmt: off
EVERYTHING = ["embed", 0, 1, 2, 3]
HARMS: list[tuple[Callable[[Doubling], None], list[Any]]] = [  # a harm, and what runs after it
    (lambda stage: None,                                    [3]),
    (lambda stage: stage.harm(3),                           [2, 3]),
    (lambda stage: stage.harm(3, 2),                        EVERYTHING),
    (lambda stage: stage.lost.append(82),                   [2, 3]),
    (lambda stage: stage.lost.append(35),                   EVERYTHING),
]
# fmt: on


@pytest.mark.parametrize(("harm", "events"), HARMS)
@pytest.mark.parametrize("home", HOMES)
def test_a_run_resumes_after_the_last_saved_states(
    stage: Doubling,
    tmp_path: Path,
    home: Callable[[], StateHome],
    harm: Callable[[Doubling], None],
    events: list[Any],
) -> None:
    resumed = again(stage, home)
    harm(resumed)
    with Journal(tmp_path) as journal:
        assert resumed.run(journal) == RECORDS
    assert resumed.events == events


def test_a_record_without_its_hash_is_not_believed(stage: Doubling, tmp_path: Path) -> None:
    invalidate_entries(tmp_path, ["block 2"])
    with Journal(tmp_path) as journal:
        assert stage.run(journal) == RECORDS
    assert stage.events == [2, 3]


def test_the_journal_of_an_earlier_version_is_believed(tmp_path: Path) -> None:
    """It has the hashes of the states in the record of the block, one for each shard."""
    stage = Doubling(tmp_path, FileHome())
    stop_in(stage, after=2)
    lines = read_journal(tmp_path)
    (tmp_path / "journal.jsonl").unlink()
    with pytest.raises(Interruption), Journal(tmp_path) as journal:
        for number in range(2):
            states = [group[0] for group in lines[f"states {number + 1}"]["states"]]
            record = {"value": RECORDS[number]["value"], "states": states}
            journal.add(f"block {number}", {"sha256": sha256_json(record), **record})
        raise Interruption("stopped", next_step="go on")
    stage.harm(2)
    with Journal(tmp_path) as journal:
        records = stage.run(journal)
    assert [record["value"] for record in records] == [record["value"] for record in RECORDS]
    assert stage.events == [1, 2, 3]


# --- states in memory -----------------------------------------------------------------------------


def test_states_in_memory_are_saved_at_a_stop(tmp_path: Path) -> None:
    stage = Doubling(tmp_path, HOMES[1]())
    signal_in(stage, after=3)
    assert saved(tmp_path) == [3]
    resumed = again(stage, HOMES[1])
    with Journal(tmp_path) as journal:
        assert resumed.run(journal) == RECORDS
    assert resumed.events == [3]


@pytest.mark.parametrize(("first", "second", "expected"), [(1, 2, [1, 2]), (1, 3, [1, 2, 3])])
def test_a_save_never_overwrites_the_only_saved_states(
    tmp_path: Path, first: int, second: int, expected: list[int]
) -> None:
    """States two blocks apart have one file, so those between them are saved first."""
    signal_in(Doubling(tmp_path, HOMES[1]()), after=first)
    signal_in(Doubling(tmp_path, HOMES[1]()), after=second)
    assert saved(tmp_path) == expected


def test_blocks_since_the_last_save_run_again(tmp_path: Path) -> None:
    stage = Doubling(tmp_path, HOMES[1]())
    signal_in(stage, after=1)
    stop_in(again(stage, HOMES[1]), after=3)
    resumed = again(stage, HOMES[1])
    with Journal(tmp_path) as journal:
        assert resumed.run(journal) == RECORDS
    assert resumed.events == [1, 2, 3]


def test_another_result_of_a_repeated_block_is_a_problem(tmp_path: Path) -> None:
    stage = Doubling(tmp_path, HOMES[1]())
    signal_in(stage, after=1)
    stop_in(again(stage, HOMES[1]), after=2)
    changed = again(stage, HOMES[1])
    changed.weight = 11
    with (
        pytest.raises(OutputProblem, match="block 2 ran again and has another result") as told,
        Journal(tmp_path) as journal,
    ):
        changed.run(journal)
    assert told.value.next_step == "give --restart to begin again"


@pytest.mark.parametrize("seconds", [1e-9, 0.0])
def test_states_in_memory_are_saved_by_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """At every moment after the first save the journal has an entry for what is on disk."""
    monkeypatch.setattr(state_checkpoints, "SAVE_SECONDS", seconds)
    stage, save = Doubling(tmp_path, HOMES[1]()), MemoryHome.save

    def check() -> None:
        lines = read_journal(tmp_path)
        blocks = saved(tmp_path)
        valid = [
            stage.shard.states_digest(b) == lines[f"states {b}"]["states"][0][0] for b in blocks
        ]
        assert not blocks or any(valid)

    def checked(home: MemoryHome, path: Path) -> str:
        check()
        digest = save(home, path)
        path.write_bytes(bytes(4))  # as if killed before the end
        check()
        save(home, path)
        return digest

    monkeypatch.setattr(MemoryHome, "save", checked)
    with Journal(tmp_path) as journal:
        assert stage.run(journal) == RECORDS
        blocks = saved(tmp_path)
        assert blocks[-1] == DEPTH
        assert len(blocks) == DEPTH if seconds == 0 else len(blocks) >= 2


def test_a_save_that_fails_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(home: MemoryHome, path: Path) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state_checkpoints, "SAVE_SECONDS", 1e-9)
    monkeypatch.setattr(MemoryHome, "save", full)
    with pytest.raises(OSError, match="No space"), Journal(tmp_path) as journal:
        Doubling(tmp_path, HOMES[1]()).run(journal)


# --- several ranks --------------------------------------------------------------------------------


@pytest.mark.parametrize("home", HOMES)
@pytest.mark.parametrize("done", [0, 3])
def test_every_rank_gets_the_records_of_the_first(
    tmp_path: Path, done: int, home: Callable[[], StateHome]
) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]  # both ranks run the shard of the first
    folders[0].mkdir()
    if done:
        stop_in(Doubling(folders[0], FileHome()), after=done)
    shutil.copytree(folders[0], folders[1])

    def work() -> None:
        team = ProcessGroup.join()
        stage = Doubling(folders[team.rank], home())
        records = stage.run(Journal(folders[0]) if team.is_main and done else None, team)
        path = tmp_path / f"{team.rank}.json"
        path.write_text(json.dumps([records, stage.events]))

    assert together(2, work) == [0, 0]
    for rank in range(2):
        events = [3] if done else ["embed", *range(DEPTH)]
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [RECORDS, events]


def test_an_embedding_that_fails_on_one_rank_stops_all(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Failing(Doubling):
        def embed(self) -> None:
            if os.environ["RANK"] == "1":
                raise NumericsProblem("the embedding is not finite", next_step="check it")

    codes = together(2, lambda: Failing(tmp_path, FileHome()).run(None, ProcessGroup.join()))
    assert codes == [NumericsProblem.exit_code] * 2
    assert capfd.readouterr().err.splitlines() == ["the embedding is not finite; check it"] * 2
