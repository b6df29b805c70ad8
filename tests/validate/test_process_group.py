"""Any number of processes gives the same figures, and only the first one speaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import damage
import pico
import small_lanes
import stages
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import NumericsProblem
from camelpress.inference.streaming import home_choice, state_checkpoints
from camelpress.reporting.report_classes import read_report
from camelpress.validate import run as validation
from camelpress.validate.settings import StoreSettings, ValidateSettings
from camelpress.validate.store import build_store
from camelpress.validate.store.prediction_store import PredictionStore
from processes import together
from unfinished import finished, terminated

OPTIONS: dict[str, Any] = {"noise_floor": "batch"}
LAUNCHER = "-m torch.distributed.run --standalone --nproc-per-node 2".split()
Contents = dict[str, Any]

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    """Several lanes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            small_lanes.TABLE,
            small_lanes.resized(
                shard=small_lanes.LANE_TOKENS, scored_shard=small_lanes.LANE_TOKENS
            ),
        )
        yield


@pytest.fixture(scope="module")
def noisy(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model near the base, with the same vocabulary."""
    return pico.write_tuned(tmp_path_factory.mktemp("team") / "noisy", base, extra_rows=0)


@pytest.fixture(scope="module")
def expected(base: Path, noisy: Path, chat: Path, prose: Path, _small: None) -> Contents:
    """What one process writes."""
    out = noisy.parent / "alone"
    stages.validate(base, noisy, out, chat, prose, **OPTIONS)
    return contents(out)


def contents(folder: Path) -> Contents:
    """Every file byte by byte but those that tell the cost, and the report without it."""
    report = read_report(folder / "report.json").model_dump_json(exclude={"cost"})
    return {"files": sorted(path.name for path in folder.iterdir()), "report": report}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_any_number_of_ranks_gives_the_same_figures(
    base: Path, noisy: Path, chat: Path, prose: Path, tmp_path: Path, expected: Contents, size: int
) -> None:
    out = tmp_path / "out"
    codes = together(size, lambda: stages.validate(base, noisy, out, chat, prose, **OPTIONS))
    assert codes == [0] * size
    assert contents(out) == expected
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("fraction", [0, 1], ids=["files", "memory"])
def test_every_home_of_the_states_gives_the_same_figures(
    base: Path, noisy: Path, chat: Path, prose: Path, tmp_path: Path, expected: Contents,
    monkeypatch: pytest.MonkeyPatch, fraction: float, size: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(home_choice, "HOST_FRACTION", fraction)
    monkeypatch.setattr(state_checkpoints, "SAVE_SECONDS", 1e-9)
    out = tmp_path / "out"
    codes = together(size, lambda: stages.validate(base, noisy, out, chat, prose, **OPTIONS))
    assert codes == [0] * size
    assert contents(out) == expected


@pytest.mark.parametrize("threads", [2, 3])
def test_any_number_of_threads_gives_the_same_figures(
    base: Path, noisy: Path, chat: Path, prose: Path, tmp_path: Path, expected: Contents,
    threads: int,
) -> None:  # fmt: skip
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        stages.validate(base, noisy, tmp_path / "out", chat, prose, **OPTIONS)
    finally:
        torch.set_num_threads(before)
    assert contents(tmp_path / "out") == expected


def test_ranks_without_a_lane_do_no_harm(
    base: Path, noisy: Path, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        small_lanes.TABLE, small_lanes.resized(shard=10_000, scored_shard=10_000)
    )  # one lane
    stages.validate(base, noisy, tmp_path / "alone", prose)
    out = tmp_path / "out"
    assert together(2, lambda: stages.validate(base, noisy, out, prose)) == [0, 0]
    assert contents(out) == contents(tmp_path / "alone")


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2)])
def test_another_number_of_ranks_goes_on(
    base: Path, noisy: Path, chat: Path, prose: Path, tmp_path: Path, expected: Contents,
    before: int, after: int,
) -> None:  # fmt: skip
    out = tmp_path / "out"

    def work() -> None:
        stages.validate(base, noisy, out, chat, prose, **OPTIONS)

    assert together(before, terminated(work)) == [75] * before
    assert finished(out) == 1
    codes = together(after, work)
    assert codes == [0] * after
    assert contents(out) == expected


def test_a_store_is_made_and_used_by_any_number_of_ranks(
    base: Path, noisy: Path, chat: Path, prose: Path, tmp_path: Path
) -> None:
    def make(out: Path) -> None:
        settings = StoreSettings.parse(
            {"text": [chat, prose], "sequence_length": 64}, source="test"
        )
        build_store.build_store(Checkpoint.open(base), out, settings)

    def use(out: Path) -> None:
        store, candidate = PredictionStore.open(tmp_path / "alone"), Checkpoint.open(noisy)
        validation.run(store, candidate, out, ValidateSettings())

    make(tmp_path / "alone")
    assert together(3, lambda: make(tmp_path / "store")) == [0] * 3
    files = {path.name: path.read_bytes() for path in (tmp_path / "alone").glob("*.safetensors")}
    assert len(files) > 4
    for name, content in files.items():
        assert (tmp_path / "store" / name).read_bytes() == content
    use(tmp_path / "one")
    assert together(2, lambda: use(tmp_path / "two")) == [0, 0]
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_torchrun_gives_the_same_figures_and_only_the_first_rank_speaks(
    base: Path, noisy: Path, chat: Path, prose: Path, tmp_path: Path, expected: Contents
) -> None:
    out = tmp_path / "out"
    command = [small_lanes.__file__, "validate", base, noisy, "--out", out, "--json"]
    command += ["--text", chat, "--text", prose, "--noise-floor", "batch"]
    ended = subprocess.run(
        [sys.executable, *LAUNCHER, *map(str, command), *"--sequence-length 64".split()]
        + ["--max-tokens", "200"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )
    told = json.loads(ended.stdout)
    assert told["stage"] == "validate"
    assert contents(out) == expected


def test_what_stops_one_rank_stops_all_and_all_say_why(
    base: Path, prose: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    head = load_file(base / "model.safetensors")["lm_head.weight"].float() * 1e38 * 8
    broken = damage.with_tensors(base, tmp_path / "broken", {"lm_head.weight": head})
    out = tmp_path / "out"
    codes = together(2, lambda: stages.validate(base, broken, out, prose))
    assert codes == [NumericsProblem.exit_code] * 2
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 2
    for line in told:
        assert "the candidate gives logits that are not finite in" in line
    assert told[0] == told[1]
    assert list(tmp_path.iterdir()) == [broken]
