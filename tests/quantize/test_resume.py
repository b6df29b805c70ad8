"""A run that was killed or stopped at any moment ends, run again, as if nothing had been."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import damage
import pico
import small_lanes
import stages
from camelpress.core.checkpoint.checkpoint_writer import CheckpointWriter
from camelpress.core.errors import OutputExists, OutputProblem
from camelpress.core.files.file_hashes import package_versions
from camelpress.core.output.journal import JOURNAL_FILE, Journal
from camelpress.inference.streaming import home_choice, rounding_facts, state_checkpoints
from camelpress.inference.streaming.rounding_facts import torch_threads
from camelpress.inference.streaming.state_home import FileHome, MemoryHome, StateHome
from camelpress.inference.streaming.token_shards import SHARDS_FOLDER
from camelpress.quantize import model_quantizer, run
from camelpress.quantize.block_quantizer import BlockQuantizer
from camelpress.quantize.calibration_shards import CalibrationShard
from camelpress.quantize.run import REPORT
from camelpress.reporting.report_classes import read_report
from camelpress.reporting.stage_report import Report
from processes import die, forked, interrupt, signalled
from unfinished import beside, finished, stop

BLOCKS = 3
OPTIONS: dict[str, Any] = {"dtype": "float32", "correction": 0.5, "samples": 3}
ARGUMENTS = (
    "--group-size 32 --sequence-length 64 --samples 3 --dtype float32 --correction 0.5"
).split()
SHARD = 60_000  # bytes; several shards
Contents = dict[str, Any]

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture(scope="module", autouse=True, params=["memory", "files"])
def _small(request: pytest.FixtureRequest) -> Iterator[None]:
    """Several shards and several lanes; states are saved after every block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_checkpoints, "SAVE_SECONDS", 0.0)
        patch.setattr(home_choice, "HOST_FRACTION", 0 if request.param == "files" else 1)
        patch.setattr(run, "CheckpointWriter", partial(CheckpointWriter, shard_bytes=SHARD))
        patch.setattr(small_lanes.TABLE, small_lanes.resized(shard=100))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of three blocks."""
    return pico.write_model(tmp_path_factory.mktemp("resume") / "model", pico.Sizes(layers=BLOCKS))


@pytest.fixture(scope="module")
def expected(
    model: Path, chat: Path, tmp_path_factory: pytest.TempPathFactory, _small: None
) -> Contents:
    """What an undisturbed run writes."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    stages.quantize(model, out, chat, **OPTIONS)
    return contents(out)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where the output will stand, in a folder of its own."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "out"


@pytest.fixture
def walked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The blocks that are quantized from here on."""
    numbers: list[int] = []

    class Watched(BlockQuantizer):
        def __init__(self, model: Any, number: int, *others: Any) -> None:
            numbers.append(number)
            super().__init__(model, number, *others)

    monkeypatch.setattr(model_quantizer, "BlockQuantizer", Watched)
    return numbers


def contents(folder: Path) -> Contents:
    """Every file, byte by byte; of the report, all but what the run cost."""
    report = read_report(folder / REPORT).model_dump(exclude={"cost"})
    return {path.name: path.read_bytes() for path in folder.iterdir()} | {REPORT: report}


def require_the_same(out: Path, expected: Contents) -> None:
    """Byte for byte, and nothing else is left."""
    assert contents(out) == expected
    assert list(out.parent.iterdir()) == [out]


# --- killed -------------------------------------------------------------------------------------


# fmt: off
MOMENTS = [  # what is called in a run, and at which of its calls the run is killed
    (CheckpointWriter, "write_tensor",  [0, 12, 61, 92]),
    (CheckpointWriter, "_complete",     [0, 1, 2]),
    (CalibrationShard, "write_states",  [0, 5, 15, 20, 28, 39]),
    (CalibrationShard, "start_save",    [1, 3]),
    (Journal,          "add",           [0, 1, 2, 3, 4, 5]),
    (shutil,           "rmtree",        [0]),
    (shutil,           "copyfile",      [0]),
    (Report,           "write",         [0]),
]
# fmt: on


@pytest.mark.parametrize(
    ("owner", "name", "at"), [(owner, name, at) for owner, name, calls in MOMENTS for at in calls]
)
def test_killed_at_any_moment(
    model: Path, chat: Path, out: Path, expected: Contents, walked: list[int],
    owner: Any, name: str, at: int,
) -> None:  # fmt: skip
    def work() -> None:
        interrupt(owner, name, at, die, late=bool(at % 2))
        stages.quantize(model, out, chat, **OPTIONS)

    assert forked(work) == -signal.SIGKILL
    assert not out.exists()
    done = finished(out)
    stages.quantize(model, out, chat, **OPTIONS)
    assert walked == [*range(done, BLOCKS)]
    require_the_same(out, expected)


def test_killed_after_every_block(model: Path, chat: Path, out: Path, expected: Contents) -> None:
    def work() -> None:
        interrupt(Journal, "add", 1, die, late=True)
        stages.quantize(model, out, chat, **OPTIONS)

    for number in range(BLOCKS):
        assert forked(work) == -signal.SIGKILL
        assert finished(out) == number + 1
    assert forked(work) == 0
    require_the_same(out, expected)


@pytest.mark.parametrize("at", [1, 70])
def test_killed_in_the_middle_of_a_tensor(
    model: Path, chat: Path, out: Path, expected: Contents, at: int
) -> None:
    def work() -> None:
        write, calls = CheckpointWriter.write_bytes, iter(range(1000))

        def half(writer: CheckpointWriter, name: str, offset: int, content: memoryview) -> None:
            here = next(calls) == at
            write(writer, name, offset, content[: len(content) // 2] if here else content)
            if here:
                die()

        pytest.MonkeyPatch().setattr(CheckpointWriter, "write_bytes", half)
        stages.quantize(model, out, chat, **OPTIONS)

    assert forked(work) == -signal.SIGKILL
    stages.quantize(model, out, chat, **OPTIONS)
    require_the_same(out, expected)


@pytest.mark.parametrize(
    ("home", "name", "at"),
    [(FileHome, "write", at) for at in (0, 17, 30)]
    + [(MemoryHome, "save", at) for at in (0, 2, 4)],
)
def test_killed_in_the_middle_of_the_states(
    model: Path, chat: Path, out: Path, expected: Contents, monkeypatch: pytest.MonkeyPatch,
    home: type[StateHome], name: str, at: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(home_choice, "HOST_FRACTION", 0 if home is FileHome else 1)

    def work() -> None:
        write, calls = getattr(home, name), iter(range(1000))

        def half(home: StateHome, path: Path, *values: Any) -> Any:
            here, before = next(calls) == at, path.read_bytes() if path.exists() else b""
            written = write(home, path, *values)
            if here:
                content = path.read_bytes()
                path.write_bytes(content[: len(content) // 2] + before[len(content) // 2 :])
                die()
            return written

        pytest.MonkeyPatch().setattr(home, name, half)
        stages.quantize(model, out, chat, **OPTIONS)

    assert forked(work) == -signal.SIGKILL
    stages.quantize(model, out, chat, **OPTIONS)
    require_the_same(out, expected)


# --- the next run -------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [1, 3])
def test_only_what_is_missing_is_done(
    model: Path, chat: Path, out: Path, expected: Contents, walked: list[int], after: int
) -> None:
    stop(lambda: stages.quantize(model, out, chat, **OPTIONS), out, after=after)
    walked.clear()
    stages.quantize(model, out, chat, **OPTIONS)
    assert walked == [*range(after, BLOCKS)]
    require_the_same(out, expected)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def states(out: Path, name: str, version: int) -> Path:
    return beside(out) / SHARDS_FOLDER / f"lane-0001.{name}.{version}"


@pytest.mark.parametrize(
    ("name", "version", "harm", "again"),
    [
        ("hidden", 0, "flipped", 1),
        ("reference", 0, "short", 1),
        ("hidden", 0, "gone", 1),
        ("reference", 1, "flipped", 2),
    ],
)
def test_states_that_suffered_are_computed_again(
    model: Path, chat: Path, out: Path, expected: Contents, walked: list[int],
    name: str, version: int, harm: str, again: int,
) -> None:  # fmt: skip
    """After two blocks, version 0 enters the third, and version 1 entered the second."""
    stop(lambda: stages.quantize(model, out, chat, **OPTIONS), out, after=2)
    path = states(out, name, version)
    if harm == "flipped":
        flip(path, 100)
    elif harm == "short":
        path.write_bytes(path.read_bytes()[:-4])
    else:
        path.unlink()
    walked.clear()
    stages.quantize(model, out, chat, **OPTIONS)
    assert walked == [*range(again, BLOCKS)]
    require_the_same(out, expected)


def test_without_any_states_everything_is_done_again(
    model: Path, chat: Path, out: Path, expected: Contents, walked: list[int]
) -> None:
    stop(lambda: stages.quantize(model, out, chat, **OPTIONS), out, after=2)
    for path in (beside(out) / SHARDS_FOLDER).iterdir():
        path.unlink()
    walked.clear()
    stages.quantize(model, out, chat, **OPTIONS)
    assert walked == [*range(BLOCKS)]
    require_the_same(out, expected)


@pytest.mark.parametrize(
    ("block", "part"), [(0, "qweight"), (1, "qzeros"), (1, "scales"), (0, "g_idx")]
)
def test_tensors_that_suffered_are_computed_again(
    model: Path, chat: Path, out: Path, expected: Contents, walked: list[int],
    block: int, part: str,
) -> None:  # fmt: skip
    stop(lambda: stages.quantize(model, out, chat, **OPTIONS), out, after=2)
    file, begin = place(out, f"model.layers.{block}.self_attn.o_proj.{part}")
    flip(file, begin)
    walked.clear()
    stages.quantize(model, out, chat, **OPTIONS)
    assert walked == ([*range(BLOCKS)] if block == 0 else [1, 2])
    require_the_same(out, expected)


def place(out: Path, name: str) -> tuple[Path, int]:
    """In which file a tensor of an unfinished output lies, and from which byte on."""
    for file in beside(out).glob("*.safetensors*"):
        content = file.read_bytes()
        size = int.from_bytes(content[:8], "little")
        told = json.loads(content[8 : 8 + size])
        if name in told:
            return file, 8 + size + int(told[name]["data_offsets"][0])
    raise KeyError(name)


# fmt: off
HARMS: dict[str, Callable[[bytes], bytes]] = {
    "a last line cut short":       lambda text: text[:-30],
    "nothing":                     lambda _: b"",
    "zeros, as after a power cut": lambda text: text + bytes(4096),
    "bytes":                       lambda text: b"\xff\xfe\x00" + text,
    "what are no facts":           lambda text: text + b'{"block 2": {"sha256": "1"}}\n',
    "facts of another shape":      lambda text: text + b'{"block 2": {"sha256": "1", "x": 3}}',
    "a tensor that nobody knows":  lambda text: text.replace(b"layers.1.mlp", b"layers.7.mlp"),
    "layers that are none":        lambda text: text.replace(b'"layers": [', b'"layers": [7, '),
}
# fmt: on


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS.keys())
def test_a_journal_is_not_believed(
    model: Path, chat: Path, out: Path, expected: Contents, harm: Callable[[bytes], bytes]
) -> None:
    stop(lambda: stages.quantize(model, out, chat, **OPTIONS), out, after=2)
    journal = beside(out) / JOURNAL_FILE
    journal.write_bytes(harm(journal.read_bytes()))
    stages.quantize(model, out, chat, **OPTIONS)
    require_the_same(out, expected)


# fmt: off
OTHERWISE = [  # what decides the bytes: how it differs, and the name in the message
    ("setting",     "damp_percent: 0.05 -> 0.02"),
    ("samples",     "samples: 3 -> 4"),
    ("content",     "source/model.safetensors: "),
    ("calibration", "calibration:chat.jsonl: "),
    ("version",     "version of torch: "),
    ("TF32",        'fp32 products: highest -> high'),
]
# fmt: on


@pytest.mark.parametrize(("change", "told"), OTHERWISE)
def test_a_run_that_was_begun_otherwise_is_kept_until_a_restart(
    model: Path, chat: Path, out: Path, tmp_path: Path, walked: list[int],
    monkeypatch: pytest.MonkeyPatch, change: str, told: str,
) -> None:  # fmt: skip
    own, text = damage.copied(model, tmp_path / "model"), tmp_path / "chat.jsonl"
    text.write_bytes(chat.read_bytes())
    stop(lambda: stages.quantize(own, out, text, **OPTIONS), out, after=2)
    weights, options = own / "model.safetensors", dict(OPTIONS)
    if change == "setting":
        options["damp_percent"] = 0.02
    elif change == "samples":
        options["samples"] = 4
    elif change == "content":
        before = weights.stat()
        flip(weights, before.st_size - 1)
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "calibration":
        text.write_bytes(text.read_bytes().replace(b"whale", b"shale"))
    elif change == "version":
        changed = package_versions() | {"torch": "another"}
        monkeypatch.setattr(run, "package_versions", lambda: changed)
    else:
        monkeypatch.setattr(rounding_facts, "product_facts", lambda: {"fp32 products": "high"})
    walked.clear()
    with pytest.raises(OutputProblem) as error:
        stages.quantize(own, out, text, **options)
    assert told in error.value.message
    assert (
        error.value.next_step
        == "repeat the earlier command to resume it, or give --restart to begin again"
    )
    assert (walked, finished(out)) == ([], 2)
    stages.quantize(own, out, text, restart=True, **options)
    assert walked == [*range(BLOCKS)]
    stages.quantize(own, out.with_name("fresh"), text, **options)
    assert contents(out) == contents(out.with_name("fresh"))


@pytest.mark.parametrize("change", ["time", "place", "device", "fallbacks", "threads"])
def test_a_change_that_decides_no_byte_is_gone_on_with(
    model: Path, chat: Path, out: Path, tmp_path: Path, walked: list[int], change: str
) -> None:
    own, options = damage.copied(model, tmp_path / "model"), dict(OPTIONS)
    stop(lambda: stages.quantize(own, out, chat, **OPTIONS), out, after=2)
    if change == "time":
        os.utime(own / "model.safetensors", ns=(0, 0))
    elif change == "place":
        own = own.rename(tmp_path / "elsewhere")
    elif change == "device":
        options["device"] = "cpu:0"
    elif change == "fallbacks":
        options["max_fallbacks"] = 1
    walked.clear()
    with torch_threads(2 if change == "threads" else 1):
        stages.quantize(own, out, chat, **options)
        assert torch.get_num_threads() == (2 if change == "threads" else 1)
    assert walked == [2]
    stages.quantize(own, out.with_name("fresh"), chat, **options)
    assert contents(out) == contents(out.with_name("fresh"))


def test_a_folder_of_somebody_else_is_left_alone(model: Path, chat: Path, out: Path) -> None:
    (beside(out) / SHARDS_FOLDER).mkdir(parents=True)
    (beside(out) / SHARDS_FOLDER / "lane-0000.hidden.0").write_bytes(b"something")
    with pytest.raises(OutputExists, match="is not an unfinished output of camelpress"):
        stages.quantize(model, out, chat, **OPTIONS)
    assert (beside(out) / SHARDS_FOLDER / "lane-0000.hidden.0").read_bytes() == b"something"


def test_a_file_that_is_put_into_an_unfinished_output_is_not_shipped(
    model: Path, chat: Path, out: Path, expected: Contents
) -> None:
    stop(lambda: stages.quantize(model, out, chat, **OPTIONS), out, after=2)
    for name in ("adapter.bin", "model-00007-of-00009.safetensors", ".tmpA1b2C3"):
        (beside(out) / name).write_text("mine")
    stages.quantize(model, out, chat, **OPTIONS)
    assert contents(out) == expected
    assert sorted(path.name for path in out.with_name("out.aside").iterdir()) == [
        ".tmpA1b2C3",
        "adapter.bin",
    ]


def test_a_kill_in_the_last_step_loses_no_block(
    model: Path, chat: Path, out: Path, expected: Contents, walked: list[int]
) -> None:
    """The report is written when all blocks are done; the journal stays until then."""

    def work() -> None:
        interrupt(Report, "write", 0, die, late=False)
        stages.quantize(model, out, chat, **OPTIONS)

    assert forked(work) == -signal.SIGKILL
    assert finished(out) == BLOCKS
    stages.quantize(model, out, chat, **OPTIONS)
    assert walked == []
    require_the_same(out, expected)


# --- stopped ------------------------------------------------------------------------------------


def arguments(model: Path, chat: Path, out: Path) -> list[str]:
    return ["quantize", str(model), str(out), "-q", "--calibration", str(chat), *ARGUMENTS]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("at", "done"), [(10, 1), (25, 2)])
def test_a_signal_finishes_the_block_and_the_same_command_goes_on(
    model: Path, chat: Path, out: Path, expected: Contents, tmp_path: Path, walked: list[int],
    number: signal.Signals, at: int, done: int,
) -> None:  # fmt: skip
    errors = tmp_path / "errors"
    command = arguments(model, chat, out)
    assert forked(signalled(errors, command, [number], CalibrationShard, "write_states", at)) == 75
    assert errors.read_text() == (
        f"error: stopped after block {done} of {BLOCKS}; run the same command again to go on\n"
    )
    assert finished(out) == done
    assert not out.exists()
    stages.quantize(model, out, chat, **OPTIONS)
    assert walked == [*range(done, BLOCKS)]
    require_the_same(out, expected)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once(
    model: Path, chat: Path, out: Path, expected: Contents, tmp_path: Path, walked: list[int],
    number: signal.Signals,
) -> None:  # fmt: skip
    errors = tmp_path / "errors"
    command = arguments(model, chat, out)
    assert (
        forked(signalled(errors, command, [number, number], CalibrationShard, "write_states", 25))
        == 75
    )
    assert errors.read_text() == "error: stopped before the end; run the same command again\n"
    assert finished(out) == 1
    stages.quantize(model, out, chat, **OPTIONS)
    assert walked == [1, 2]
    require_the_same(out, expected)


def test_a_signal_in_the_last_block_lets_the_run_end(
    model: Path, chat: Path, out: Path, expected: Contents, tmp_path: Path
) -> None:
    command = arguments(model, chat, out)
    assert (
        forked(
            signalled(
                tmp_path / "errors", command, [signal.SIGTERM], CalibrationShard, "write_states", 35
            )
        )
        == 0
    )
    require_the_same(out, expected)


def test_the_old_output_stays_until_the_new_one_is_complete(
    model: Path, chat: Path, out: Path, expected: Contents
) -> None:
    stages.quantize(model, out, chat, **{**OPTIONS, "bits": 8})
    old = contents(out)

    def work() -> None:
        interrupt(Journal, "add", 1, die, late=True)
        stages.quantize(model, out, chat, force=True, **OPTIONS)

    assert forked(work) == -signal.SIGKILL
    assert contents(out) == old
    stages.quantize(model, out, chat, force=True, **OPTIONS)
    require_the_same(out, expected)
