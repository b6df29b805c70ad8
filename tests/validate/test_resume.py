"""A validation that was killed or stopped ends, run again, as if nothing had been."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import damage
import pico
import small_lanes
import stages
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import OutputProblem
from camelpress.core.output.journal import Journal
from camelpress.inference.streaming import home_choice, state_checkpoints
from camelpress.inference.streaming.token_shards import SHARDS_FOLDER, TokenShard
from camelpress.reporting.report_classes import read_report
from camelpress.reporting.stage_report import Report
from camelpress.validate.scoring import streamed_run
from camelpress.validate.scoring.paired_heads import PairedHeads
from camelpress.validate.settings import StoreSettings
from camelpress.validate.store import build_store
from processes import die, forked, interrupt, signalled
from unfinished import beside, finished, stop

BLOCKS = 3
OPTIONS: dict[str, Any] = {"max_tokens": 300, "noise_floor": "bfloat16"}
Contents = dict[str, Any]

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture(scope="module", autouse=True, params=["memory", "files"])
def _small(request: pytest.FixtureRequest) -> Iterator[None]:
    """Several lanes; states are saved after every block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_checkpoints, "SAVE_SECONDS", 0.0)
        patch.setattr(home_choice, "HOST_FRACTION", 0 if request.param == "files" else 1)
        patch.setattr(small_lanes.TABLE, small_lanes.resized(shard=200, scored_shard=200))
        yield


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of three blocks, and one near it."""
    folder = tmp_path_factory.mktemp("resume")
    reference = pico.write_model(folder / "reference", pico.Sizes(layers=BLOCKS))
    return reference, pico.write_tuned(folder / "candidate", reference, extra_rows=0)


@pytest.fixture(scope="module")
def expected(
    pair: tuple[Path, Path],
    chat: Path,
    prose: Path,
    tmp_path_factory: pytest.TempPathFactory,
    _small: None,
) -> Contents:
    """What an undisturbed run writes."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    stages.validate(*pair, out, chat, prose, **OPTIONS)
    return contents(out)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where the output will stand, in a folder of its own."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "out"


@pytest.fixture
def walked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The blocks that are walked from here on."""
    numbers: list[int] = []
    through = streamed_run._run_block

    def watched(runners: Any, number: int, *others: Any, **options: Any) -> dict[str, Any]:
        numbers.append(number)
        return through(runners, number, *others, **options)

    monkeypatch.setattr(streamed_run, "_run_block", watched)
    return numbers


def contents(folder: Path) -> Contents:
    """The names of all files, and the report but for what the run cost."""
    report = read_report(folder / "report.json").model_dump(exclude={"cost"})
    return {"files": sorted(path.name for path in folder.iterdir()), "report": report}


def require_the_same(out: Path, expected: Contents) -> None:
    """Every figure, and nothing else is left."""
    assert contents(out) == expected
    assert list(out.parent.iterdir()) == [out]


# fmt: off
MOMENTS = [  # what is called in a run, and at which of its calls the run is killed
    (TokenShard,  "write_states",  [0, 9, 26]),
    (TokenShard,  "start_save",    [13]),
    (Journal,     "add",           [0, 1, 2, 3]),
    (PairedHeads, "log_probs",     [1]),
    (Report,      "write",         [0]),
    (shutil,      "rmtree",        [0]),
]
# fmt: on


@pytest.mark.parametrize(
    ("owner", "name", "at"), [(owner, name, at) for owner, name, calls in MOMENTS for at in calls]
)
def test_killed_at_any_moment(
    pair: tuple[Path, Path], chat: Path, prose: Path, out: Path, expected: Contents,
    walked: list[int], owner: Any, name: str, at: int,
) -> None:  # fmt: skip
    def work() -> None:
        interrupt(owner, name, at, die, late=bool(at % 2))
        stages.validate(*pair, out, chat, prose, **OPTIONS)

    assert forked(work) == -signal.SIGKILL
    assert not out.exists()
    done = finished(out)
    stages.validate(*pair, out, chat, prose, **OPTIONS)
    assert walked == [*range(done, BLOCKS)]
    require_the_same(out, expected)


@pytest.mark.parametrize(
    ("place", "again"),
    [
        ("reference/lane-0001.hidden.0", 1),  # after two blocks: what enters the third
        ("reference-again/lane-0000.hidden.0", 1),
        ("candidate/lane-0001.hidden.1", 2),  # what entered the second
    ],
)
def test_states_that_suffered_are_computed_again(
    pair: tuple[Path, Path], chat: Path, prose: Path, out: Path, expected: Contents,
    walked: list[int], place: str, again: int,
) -> None:  # fmt: skip
    stop(lambda: stages.validate(*pair, out, chat, prose, **OPTIONS), out, after=2)
    path = beside(out) / SHARDS_FOLDER / place
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    walked.clear()
    stages.validate(*pair, out, chat, prose, **OPTIONS)
    assert walked == [*range(again, BLOCKS)]
    require_the_same(out, expected)


NAMES = {
    "protocol": "protocol: documents",
    "content": "candidate/model.safetensors: ",
    "text": "text 1: ",
    "dtype": "dtype: auto",
}


@pytest.mark.parametrize("change", [*NAMES, "gate"])
def test_only_the_same_work_is_gone_on_with(
    pair: tuple[Path, Path], chat: Path, prose: Path, out: Path, tmp_path: Path,
    walked: list[int], change: str,
) -> None:  # fmt: skip
    own, text = damage.copied(pair[1], tmp_path / "candidate"), tmp_path / "prose.txt"
    shutil.copyfile(prose, text)
    stop(lambda: stages.validate(pair[0], own, out, text, **OPTIONS), out, after=2)
    options = dict(OPTIONS)
    if change == "protocol":
        options["protocol"] = "gptq"
    elif change == "content":
        tensors = load_file(own / "model.safetensors")
        save_file(tensors, own / "model.safetensors", metadata={"format": "pt", "of": "another"})
    elif change == "text":
        text.write_bytes(text.read_bytes().replace(b"ship", b"shop"))
    elif change == "dtype":
        options["dtype"] = "bfloat16"
    else:
        options["gate"] = {"kl_mean": {"max": 5.0}}
    walked.clear()
    if change != "gate":
        with pytest.raises(OutputProblem, match=f"{NAMES[change]}.*-> "):
            stages.validate(pair[0], own, out, text, **options)
        assert (walked, finished(out)) == ([], 2)
    stages.validate(pair[0], own, out, text, restart=change != "gate", **options)
    assert walked == ([2] if change == "gate" else [*range(BLOCKS)])
    stages.validate(pair[0], own, out.with_name("fresh"), text, **options)
    assert contents(out) == contents(out.with_name("fresh"))


def command(pair: tuple[Path, Path], out: Path, texts: tuple[Path, ...]) -> list[str]:
    options = "--sequence-length 64 --max-tokens 300 --noise-floor bfloat16 -q".split()
    given = [each for text in texts for each in ("--text", str(text))]
    return ["validate", *map(str, pair), "--out", str(out), *given, *options]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_block_and_the_same_command_goes_on(
    pair: tuple[Path, Path], chat: Path, prose: Path, out: Path, expected: Contents,
    tmp_path: Path, walked: list[int], number: signal.Signals,
) -> None:  # fmt: skip
    errors, given = tmp_path / "errors", command(pair, out, (chat, prose))
    assert forked(signalled(errors, given, [number], Journal, "add", 1)) == 75
    assert errors.read_text() == (
        f"error: stopped after block 2 of {BLOCKS}; run the same command again to go on\n"
    )
    assert finished(out) == 2
    stages.validate(*pair, out, chat, prose, **OPTIONS)
    assert walked == [2]
    require_the_same(out, expected)


def test_a_signal_while_predictions_are_compared_stops_at_once(
    pair: tuple[Path, Path], chat: Path, prose: Path, out: Path, expected: Contents,
    tmp_path: Path, walked: list[int],
) -> None:  # fmt: skip
    errors, given = tmp_path / "errors", command(pair, out, (chat, prose))
    assert forked(signalled(errors, given, [signal.SIGTERM], PairedHeads, "log_probs", 1)) == 75
    assert errors.read_text() == "error: stopped before the end; run the same command again\n"
    stages.validate(*pair, out, chat, prose, **OPTIONS)
    assert walked == []
    require_the_same(out, expected)


def test_a_store_is_gone_on_with(
    pair: tuple[Path, Path], prose: Path, tmp_path: Path, walked: list[int]
) -> None:
    def work(out: Path) -> Report:
        settings = StoreSettings.parse({"text": [prose], "sequence_length": 64}, source="test")
        return build_store.build_store(Checkpoint.open(pair[0]), out, settings)

    def killed() -> None:
        interrupt(PairedHeads, "log_probs", 2, die, late=False)
        work(tmp_path / "killed")

    assert forked(killed) == -signal.SIGKILL
    again = work(tmp_path / "killed")
    assert walked == []
    whole = work(tmp_path / "whole")
    assert again.model_dump(exclude={"cost"}) == whole.model_dump(exclude={"cost"})


def test_a_store_that_was_killed_leaves_no_file_of_the_killed_run(
    pair: tuple[Path, Path], prose: Path, tmp_path: Path
) -> None:
    def work(out: Path) -> Report:
        settings = StoreSettings.parse({"text": [prose], "sequence_length": 64}, source="test")
        return build_store.build_store(Checkpoint.open(pair[0]), out, settings)

    def killed() -> None:
        interrupt(build_store, "write_windows", 0, die, late=True)
        work(tmp_path / "out")

    assert forked(killed) == -signal.SIGKILL
    for name in ("predictions-00099-001.safetensors", ".tmpa1B2c3", "notes.txt"):
        (tmp_path / "out.partial" / name).write_text("left")
    report = work(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(report.files)
    assert {"store-report.json", "windows.safetensors"} < set(report.files)
    assert "predictions-00099-001.safetensors" not in report.files


def test_nothing_is_left_of_a_validation_that_fails(
    pair: tuple[Path, Path], prose: Path, out: Path, tmp_path: Path
) -> None:
    broken = damage.copied(pair[1], tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["lm_head.weight"] = torch.full_like(tensors["lm_head.weight"], torch.inf)
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Exception, match="not finite"):
        stages.validate(pair[0], broken, out, prose)
    assert not list(out.parent.iterdir())
