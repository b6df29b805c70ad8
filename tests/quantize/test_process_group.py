"""Any number of processes writes the same bytes, and only the first one speaks."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import pico
import small_lanes
import stages
from camelpress.core.errors import NotPositiveDefinite, NumericsProblem
from camelpress.inference.model.batch_sizes import batch_sizes
from camelpress.inference.streaming import home_choice, state_checkpoints
from camelpress.inference.streaming.process_group import ProcessGroup
from camelpress.quantize import calibration_shards
from camelpress.quantize.calibration_shards import CalibrationShard
from camelpress.quantize.run import REPORT
from camelpress.quantize.solver import layer
from camelpress.quantize.solver.hessian import HessianAccumulator
from camelpress.reporting.report_classes import read_report
from processes import together
from unfinished import finished, terminated

OPTIONS: dict[str, Any] = {"dtype": "float32", "correction": 0.5, "samples": 3}
COMMAND = (
    "--group-size 32 --sequence-length 64 --samples 3 --dtype float32 --correction 0.5"
).split()
Contents = dict[str, Any]

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    """Several lanes, several blocks of rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_lanes.TABLE, small_lanes.resized(shard=small_lanes.LANE_TOKENS))
        patch.setattr(layer, "SOLVE_ROWS", small_lanes.ROWS)
        yield


@pytest.fixture(scope="module")
def expected(base: Path, chat: Path, tmp_path_factory: pytest.TempPathFactory) -> Contents:
    """What one process writes."""
    out = tmp_path_factory.mktemp("team") / "alone"
    stages.quantize(base, out, chat, **OPTIONS)
    return contents(out)


def contents(folder: Path) -> Contents:
    """Every file, byte by byte; of the report, all but what the run cost."""
    report = read_report(folder / REPORT).model_dump(exclude={"cost"})
    return {path.name: path.read_bytes() for path in folder.iterdir()} | {REPORT: report}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_any_number_of_ranks_gives_the_same_bytes(
    base: Path, chat: Path, tmp_path: Path, expected: Contents, size: int
) -> None:
    out = tmp_path / "out"
    assert together(size, lambda: stages.quantize(base, out, chat, **OPTIONS)) == [0] * size
    assert contents(out) == expected
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("fraction", [0, 1], ids=["files", "memory"])
def test_every_home_of_the_states_gives_the_same_bytes(
    base: Path, chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    fraction: float, size: int,
) -> None:  # fmt: skip
    """With a correction and a mask, with and without saves beside the work."""
    options = {**OPTIONS, "calibration_mask": "assistant"}
    stages.quantize(base, tmp_path / "alone", chat, **options)
    monkeypatch.setattr(home_choice, "HOST_FRACTION", fraction)
    monkeypatch.setattr(state_checkpoints, "SAVE_SECONDS", 1e-9)
    out = tmp_path / "out"
    assert together(size, lambda: stages.quantize(base, out, chat, **options)) == [0] * size
    assert contents(out) == contents(tmp_path / "alone")


def test_ranks_that_have_nothing_to_do_do_no_harm(base: Path, tmp_path: Path) -> None:
    stages.quantize(base, tmp_path / "alone", method="rtn")
    out = tmp_path / "out"
    assert together(2, lambda: stages.quantize(base, out, method="rtn")) == [0, 0]
    assert contents(out) == contents(tmp_path / "alone")


@pytest.mark.parametrize("tokens", [150, 10_000])
def test_ranks_without_a_lane_do_no_harm(
    base: Path, chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    monkeypatch.setattr(small_lanes.TABLE, small_lanes.resized(shard=tokens))  # two lanes, or one
    stages.quantize(base, tmp_path / "alone", chat, **OPTIONS)
    out = tmp_path / "out"
    assert together(3, lambda: stages.quantize(base, out, chat, **OPTIONS)) == [0, 0, 0]
    assert contents(out) == contents(tmp_path / "alone")


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (3, 2)])
def test_another_number_of_ranks_goes_on(
    base: Path, chat: Path, tmp_path: Path, expected: Contents, before: int, after: int
) -> None:
    out = tmp_path / "out"

    def work() -> None:
        stages.quantize(base, out, chat, **OPTIONS)

    assert together(before, terminated(work)) == [75] * before
    assert finished(out) == 1
    assert together(after, work) == [0] * after
    assert contents(out) == expected
    assert list(tmp_path.iterdir()) == [out]


def test_torchrun_gives_the_same_bytes_and_only_the_first_rank_speaks(
    base: Path, chat: Path, tmp_path: Path, expected: Contents
) -> None:
    launcher = "-m torch.distributed.run --standalone --nproc-per-node 2".split()
    out = tmp_path / "out"
    command = [small_lanes.__file__, "quantize", base, out, "--calibration", chat, "--json"]
    ended = subprocess.run(
        [sys.executable, *launcher, *map(str, command), *COMMAND],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["stage"] == "quantize"
    assert ended.stderr.count("memory: at most") == 1
    assert contents(out) == expected


def test_moments_are_summed_in_the_order_of_the_lanes_on_every_rank(tmp_path: Path) -> None:
    sizes = (1e8, 1.0, -1e8, 3.0, 1e-3)  # in fp32, other orders of these give other sums
    ids = [[1] * (number + 1) for number in range(len(sizes))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_lanes.TABLE, small_lanes.resized(shard=1))
        patch.setattr(calibration_shards, "REFERENCE_TOKENS_PER_COLUMN", 7)
        patch.setattr(calibration_shards, "MIN_REFERENCE_TOKENS", 0)
        own = calibration_shards.calibration_shards(
            ids,
            torch.ones(15, dtype=torch.bool),
            tmp_path,
            sizes=batch_sizes(torch.device("cpu")),
            limit=5,
            columns=1,
        )

    def folded() -> HessianAccumulator:
        def collect(lane: CalibrationShard, moments: HessianAccumulator) -> None:
            moments.cross_moment += sizes[len(lane.sequences.tokens) - 1]

        total, team = HessianAccumulator(2, 3, torch.device("cpu")), ProcessGroup.join()
        team.reduce_in_order(own[:3], collect, total)
        team.reduce_in_order(own[3:], collect, total)
        return total

    def kept() -> None:
        cross = folded().cross_moment
        torch.save(cross, tmp_path / f"{os.environ['RANK']}.pt")

    alone = folded().cross_moment
    assert float(alone[0, 0]) == pytest.approx(4.001)
    for size in (2, 3):
        assert together(size, kept) == [0] * size
        for rank in range(size):
            assert torch.equal(torch.load(tmp_path / f"{rank}.pt"), alone)


@pytest.mark.parametrize("row", [0, 40])  # of the first rank, and of the second
def test_what_stops_one_rank_stops_all_and_all_say_why(
    chat: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], row: int
) -> None:
    source = pico.write_model(tmp_path / "source", dtype=torch.bfloat16)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.self_attn.q_proj.weight"][row, 3] = 1e8
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "out"
    codes = together(2, lambda: stages.quantize(source, out, chat, **OPTIONS))
    assert codes == [NumericsProblem.exit_code] * 2
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 2
    for line in told:
        assert "self_attn.q_proj" in line
        assert line.endswith("do not fit float16; check the checkpoint: its weights are too large")
    assert list(tmp_path.iterdir()) == [source]


def test_problems_travel() -> None:
    problem = NotPositiveDefinite("hopeless", next_step="despair")
    again = pickle.loads(pickle.dumps(problem))  # noqa: S301
    assert type(again) is NotPositiveDefinite
    assert (again.message, again.next_step, str(again)) == ("hopeless", "despair", str(problem))


def test_without_torchrun_there_is_a_team_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    team = ProcessGroup.join()
    assert (team.rank, team.size, team.is_main) == (0, 1, True)
    assert team.items_of_rank([1, 2, 3]) == team.all_gather([1, 2, 3], 3) == [1, 2, 3]
    assert team.broadcast(lambda: "this") == "this"
