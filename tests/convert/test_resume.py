"""A recovery that was killed or stopped at any moment ends, run again, as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import damage
import stages
from camelpress.cli import entry_point
from camelpress.convert.recover import arithmetic, input_record, tensor_output, tensor_stream
from camelpress.convert.recover.run import REPORT
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.checkpoint_writer import CheckpointWriter
from camelpress.core.checkpoint.shards import read_shard_header
from camelpress.core.errors import Interruption, OutputProblem
from camelpress.core.files import file_hashes
from camelpress.core.output.journal import JOURNAL_FILE, Journal
from camelpress.reporting.report_classes import read_report
from refusal import refusal
from unfinished import beside

SINGLE = "model.safetensors"
DOWN = "model.layers.1.mlp.down_proj.weight"
STEPS = 23  # 21 tensors, and the file of each input
Contents = dict[str, Any]

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def _small(diff: Path) -> Iterator[None]:
    """Several shards, several pieces of a tensor; the diff is one file."""
    small = partial(CheckpointWriter, shard_bytes=40_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_output, "CheckpointWriter", small)
        patch.setattr(arithmetic, "CHUNK_VALUES", 1024)
        yield


@pytest.fixture(scope="module")
def diff(base: Path, tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tuned - base."""
    out = tmp_path_factory.mktemp("resume") / "diff"
    stages.make_diff(base, tuned, out)
    return out


@pytest.fixture(scope="module")
def expected(base: Path, diff: Path, _small: None) -> Contents:
    """What an undisturbed run writes."""
    stages.recover(base, diff, diff.parent / "undisturbed")
    return contents(diff.parent / "undisturbed")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where the output will stand, in a folder of its own."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "out"


def contents(folder: Path) -> Contents:
    """Every file, byte by byte; of the report, all but what the run cost."""
    report = read_report(folder / REPORT).model_dump(exclude={"cost"})
    return {path.name: path.read_bytes() for path in folder.iterdir()} | {REPORT: report}


def journalled(out: Path) -> dict[str, Any]:
    """What the journal says is finished."""
    told: dict[str, Any] = {}
    for line in (beside(out) / JOURNAL_FILE).read_bytes().splitlines():
        if line.endswith(b"}}"):
            told |= json.loads(line)
    return told


@dataclass
class Read:
    """What a run took from its inputs' weights: tensors that it added, files that it hashed."""

    tensors: set[str] = field(default_factory=set)
    files: list[str] = field(default_factory=list)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    """Watch from here on."""
    read = Read()
    rows, hashed, whole = arithmetic._rows, tensor_stream._hash_file, file_hashes.sha256_file

    def seen_rows(checkpoint: Checkpoint, name: str, start: int, stop: int) -> Any:
        read.tensors.add(name)
        return rows(checkpoint, name, start, stop)

    def seen_file(path: Path, stop: threading.Event) -> str:
        read.files.append(str(path))
        return hashed(path, stop)

    def not_weights(path: Path) -> str:
        assert path.suffix != ".safetensors"
        return whole(path)

    monkeypatch.setattr(arithmetic, "_rows", seen_rows)
    monkeypatch.setattr(tensor_stream, "_hash_file", seen_file)
    monkeypatch.setattr(file_hashes, "sha256_file", not_weights)
    return read


CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "fcntl.flock")

# --- killed -------------------------------------------------------------------------------------


def forked(work: Callable[[], object]) -> int:
    """The number of another process that does `work` and ends."""
    child = os.fork()
    if not child:
        try:
            signal.alarm(60)  # rather than hang
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
            work()
            os._exit(0)
        finally:
            os._exit(99)
    return child


def ended(child: int) -> int:
    """The exit code of a process, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def require_nothing_false(out: Path, expected: Contents) -> None:
    """Nothing has the output's name; what has a shard's is right, and an index is the end."""
    assert not out.exists()
    named = {path.name for path in beside(out).glob("*.safetensors")}
    for name in named:
        assert (beside(out) / name).read_bytes() == expected[name]
    if (beside(out) / damage.INDEX).exists():
        assert named == {name for name in expected if name.endswith(".safetensors")}


def test_killed_after_every_step(base: Path, diff: Path, out: Path, expected: Contents) -> None:
    def work() -> object:
        add = Journal.add

        def add_and_die(*told: Any) -> None:
            add(*told)
            die()

        pytest.MonkeyPatch().setattr(Journal, "add", add_and_die)
        return stages.recover(base, diff, out)

    runs = 0
    while ended(forked(work)) == -signal.SIGKILL:
        runs += 1
        assert len(journalled(out)) >= runs
        require_nothing_false(out, expected)
    assert runs > STEPS / 2  # several threads may finish a step before the process is gone
    assert contents(out) == expected
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("seed", range(8))
def test_killed_at_a_random_moment(
    base: Path, diff: Path, out: Path, expected: Contents, seed: int
) -> None:
    child = forked(lambda: stages.recover(base, diff, out))
    time.sleep(random.Random(seed).uniform(0.0, 0.4))
    os.kill(child, signal.SIGKILL)
    if ended(child) != 0:
        if beside(out).exists():
            require_nothing_false(out, expected)
        stages.recover(base, diff, out)
    assert contents(out) == expected
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("count", range(1, 46, 5))
def test_killed_before_a_change_of_the_disk(
    base: Path, diff: Path, out: Path, expected: Contents, count: int
) -> None:
    calls = iter(range(1000))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES and str(out) in str(arguments[0]) and next(calls) == count:
            die()

    def work() -> object:
        sys.addaudithook(hook)
        return stages.recover(base, diff, out)

    assert ended(forked(work)) == -signal.SIGKILL
    if beside(out).exists():
        require_nothing_false(out, expected)
    stages.recover(base, diff, out)
    assert contents(out) == expected
    assert list(out.parent.iterdir()) == [out]


# --- the next run -------------------------------------------------------------------------------


def stop(base: Path, diff: Path, out: Path, *, after: int = 12) -> set[str]:
    """Recover until some steps are finished; the names of the finished ones."""
    counts = iter(range(1000))

    def add(journal: Journal, name: str, facts: dict[str, Any]) -> None:
        if next(counts) >= after:
            raise Interruption("stopped", next_step="go on")
        original(journal, name, facts)

    with pytest.MonkeyPatch.context() as patch:
        original = Journal.add
        patch.setattr(Journal, "add", add)
        with pytest.raises(Interruption):
            stages.recover(base, diff, out)
    finished = set(journalled(out))
    assert len(finished) == after
    return finished


@pytest.mark.parametrize("after", [0, 1, 5, 17, 22])
def test_only_what_is_missing_is_read_again(
    base: Path, diff: Path, out: Path, expected: Contents, read: Read, after: int
) -> None:
    finished = stop(base, diff, out, after=after)
    read.tensors.clear()
    read.files.clear()
    stages.recover(base, diff, out)
    assert read.tensors == set(Checkpoint.open(diff).tensors) - finished
    assert set(read.files) == {str(folder / SINGLE) for folder in (base, diff)} - finished
    assert len(read.files) == len(set(read.files))
    assert contents(out) == expected


def place(out: Path, name: str) -> tuple[Path, int]:
    """In which file a tensor of an unfinished output lies, and from which byte on."""
    for file in beside(out).glob("*.safetensors*"):
        copy = out.with_name("copy.safetensors")
        copy.write_bytes(file.read_bytes())
        told = read_shard_header(copy).get(name)
        copy.unlink()
        if told is not None:
            return file, told.offset or 0
    raise KeyError(name)


@pytest.mark.parametrize("at", [0, 1, 1000])
def test_a_byte_that_flipped_is_noticed(
    base: Path, diff: Path, out: Path, expected: Contents, read: Read, at: int
) -> None:
    finished = stop(base, diff, out)
    name = max(finished & set(Checkpoint.open(diff).tensors))
    file, begin = place(out, name)
    content = bytearray(file.read_bytes())
    content[begin + at] ^= 1
    file.write_bytes(content)
    read.tensors.clear()
    stages.recover(base, diff, out)
    assert read.tensors == set(Checkpoint.open(diff).tensors) - finished | {name}
    assert contents(out) == expected


def lying(text: bytes) -> bytes:
    """The hash that belongs to one tensor at another one, too."""
    lines = [json.loads(line) for line in text.splitlines() if line]
    told = {name: facts for line in lines for name, facts in line.items()}
    first, *others = sorted(name for name in told if name.endswith("weight"))
    for name in others:
        told[name]["sha256"] = told[first]["sha256"]
    return b"".join(json.dumps({name: facts}).encode() + b"\n" for name, facts in told.items())


HARMS: dict[str, Callable[[bytes], bytes]] = {
    "a last line cut short": lambda text: text[:-30],
    "a last line without its end": lambda text: text.rstrip(),
    "nothing": lambda _: b"",
    "bytes": lambda text: b"\xff\xfe\x00" + text,
    "zeros, as after a power cut": lambda text: text + bytes(4096),
    "too deep for a parser": lambda text: text + b"[" * 100_000,
    "too many digits": lambda text: text + b'{"a": ' + b"9" * 5000 + b"}",
    "what are no facts": lambda text: text + f'{{"{DOWN}": 7}}\n["a"]\nnull\n'.encode(),
    "facts without a hash": lambda text: text + f'{{"{DOWN}": {{"x": 1}}}}\n'.encode(),
    "the hash of another tensor": lying,
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS.keys())
def test_a_journal_is_not_believed(
    base: Path, diff: Path, out: Path, expected: Contents, harm: Callable[[bytes], bytes]
) -> None:
    stop(base, diff, out)
    journal = beside(out) / JOURNAL_FILE
    journal.write_bytes(harm(journal.read_bytes()))
    stages.recover(base, diff, out)
    assert contents(out) == expected


def test_a_line_with_other_facts_is_not_believed(tmp_path: Path) -> None:
    with pytest.raises(Interruption), Journal(tmp_path) as journal:
        journal.add("a", {"sha256": "1", "rounded": 7})
        raise Interruption("stopped", next_step="go on")
    text = (tmp_path / JOURNAL_FILE).read_text()
    (tmp_path / JOURNAL_FILE).write_text(text.replace('"rounded": 7', '"rounded": []'))
    with Journal(tmp_path) as again:
        assert again["a"] is None


def test_a_line_cut_short_takes_no_other_with_it(tmp_path: Path) -> None:
    with pytest.raises(Interruption), Journal(tmp_path) as journal:
        journal.add("a", {"sha256": "1"})
        raise Interruption("stopped", next_step="go on")
    with (tmp_path / JOURNAL_FILE).open("a") as file:
        file.write('{"b": {"sha')
    with pytest.raises(Interruption), Journal(tmp_path) as journal:
        journal.add("c", {"sha256": "3"})
        raise Interruption("stopped", next_step="go on")
    with Journal(tmp_path) as again:
        assert [again[name] for name in "abc"] == [{"sha256": "1"}, None, {"sha256": "3"}]
    assert not (tmp_path / JOURNAL_FILE).exists()


@pytest.mark.parametrize("harm", ["gone", "short", "long", "header"])
def test_a_shard_that_suffered_is_made_again(
    base: Path, diff: Path, out: Path, expected: Contents, harm: str
) -> None:
    stop(base, diff, out, after=20)
    for file in beside(out).glob("*.safetensors*"):
        content = file.read_bytes()
        file.unlink()
        if harm == "short":
            file.write_bytes(content[:-1])
        elif harm == "long":
            file.write_bytes(content + b"x")
        elif harm == "header":
            file.write_bytes(content.replace(b"BF16", b"FP16"))
    stages.recover(base, diff, out)
    assert contents(out) == expected


# fmt: off
OTHERWISE = [
    ("replaced", "diff/model.safetensors: "),
    ("size",     "diff/model.safetensors: "),
    ("settings", "check: sample -> full"),
    ("version",  "version of torch: "),
]
# fmt: on


@pytest.mark.parametrize(("change", "told"), OTHERWISE)
def test_a_run_that_was_begun_otherwise_is_kept_until_a_restart(
    base: Path, diff: Path, out: Path, monkeypatch: pytest.MonkeyPatch, read: Read,
    change: str, told: str,
) -> None:  # fmt: skip
    own = damage.copied(diff, out.parent / "diff")
    finished = stop(base, own, out)
    weights, status = own / SINGLE, (own / SINGLE).stat()
    options: dict[str, Any] = {}
    if change == "replaced":  # by another of the same size and time, as `cp -p` and `rsync -t` do
        content = bytearray(weights.read_bytes())
        content[8 + int.from_bytes(content[:8], "little")] ^= 1  # one value of the first matrix
        weights.with_suffix(".new").write_bytes(content)
        weights.with_suffix(".new").rename(weights)
        os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "size":
        tensors = load_file(weights)
        save_file(tensors, weights, metadata={"format": "pt", "of": "another"})
        os.utime(weights, ns=(0, status.st_mtime_ns))
    elif change == "settings":
        options["check"] = "full"
    else:
        monkeypatch.setattr(
            input_record,
            "package_versions",
            lambda: file_hashes.package_versions() | {"torch": "another"},
        )
    read.tensors.clear()
    read.files.clear()
    with pytest.raises(
        OutputProblem, match="was begun with other inputs or settings and is kept"
    ) as error:
        stages.recover(base, own, out, **options)
    assert told in error.value.message
    assert set(journalled(out)) == finished
    assert read == Read()
    stages.recover(base, own, out, restart=True, **options)
    assert read.tensors == set(Checkpoint.open(own).tensors)
    assert len(read.files) == 2


def chmod(path: Path) -> None:
    path.chmod(0o440)


def backup(path: Path) -> None:
    path.with_suffix(".backup").hardlink_to(path)


def copy(path: Path) -> None:
    path.with_suffix(".new").write_bytes(path.read_bytes())
    path.with_suffix(".new").rename(path)


@pytest.mark.parametrize("touch", [chmod, backup, copy, Path.touch])
def test_an_input_that_was_touched_and_holds_the_same_costs_nothing(
    base: Path, diff: Path, out: Path, expected: Contents, read: Read,
    touch: Callable[[Path], None],
) -> None:  # fmt: skip
    own = damage.copied(diff, out.parent / "diff")
    finished = stop(base, own, out)
    assert str(own / SINGLE) in finished
    touch(own / SINGLE)
    touch(own / "config.json")
    read.tensors.clear()
    stages.recover(base, own, out)
    assert read.tensors == set(Checkpoint.open(own).tensors) - finished
    assert tensors_of(out) == {name: expected[name] for name in tensors_of(out)}


def test_tensors_of_a_touched_input_without_a_hash_are_made_again(
    base: Path, diff: Path, out: Path, expected: Contents, read: Read
) -> None:
    own = damage.copied(diff, out.parent / "diff")
    finished = stop(base, own, out)
    journal = beside(out) / JOURNAL_FILE
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(line for line in lines if str(own) not in line))
    chmod(own / SINGLE)
    read.tensors.clear()
    with pytest.MonkeyPatch.context() as patch:  # killed before it makes one of them
        patch.setattr(Journal, "__init__", interrupted)
        with pytest.raises(Interruption):
            stages.recover(base, own, out)
    assert not {name for name in finished if name in Checkpoint.open(own).tensors} & {
        name for name, facts in journalled(out).items() if facts["sha256"]
    }
    stages.recover(base, own, out)
    assert read.tensors == set(Checkpoint.open(own).tensors)
    assert tensors_of(out) == {name: expected[name] for name in tensors_of(out)}


def interrupted(*_: object) -> None:
    raise Interruption("stopped", next_step="go on")


def tensors_of(out: Path) -> Contents:
    """The files of the weights, byte by byte."""
    return {path.name: path.read_bytes() for path in out.glob("*.safetensors")}


# --- stopped ------------------------------------------------------------------------------------


def command(
    errors: Path, *arguments: object, waits: Callable[[], bool] = lambda: False
) -> Callable[[], None]:
    """The command line, slowly, with its errors in a file; once `waits`, until it is stopped."""

    def work() -> None:
        go_on = tensor_stream._raise_if_stopped

        def go_slowly(stop: threading.Event) -> None:
            stop.wait(30 if waits() else 0.01)
            go_on(stop)

        pytest.MonkeyPatch().setattr(tensor_stream, "_raise_if_stopped", go_slowly)
        os.dup2(os.open(errors, os.O_CREAT | os.O_WRONLY), 2)
        sys.stderr = open(2, "w")
        sys.argv = ["camelpress", *map(str, arguments)]
        try:
            entry_point.main()
        except SystemExit as end:
            sys.stderr.flush()
            os._exit(int(end.code or 0))

    return work


def has_journal(out: Path) -> bool:
    """Whether an output that is being made has a tensor that is finished."""
    return (beside(out) / JOURNAL_FILE).exists() and bool(journalled(out))


def wait_for_journal(out: Path) -> None:
    deadline = time.monotonic() + 30
    while not has_journal(out):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGTERM, 75, "error: stopped before the end; run the same command again\n"),
        (signal.SIGINT, 130, ""),
    ],
)
def test_a_signal_stops_it_and_the_same_command_goes_on(
    base: Path, diff: Path, out: Path, expected: Contents, tmp_path: Path, read: Read,
    number: signal.Signals, code: int, said: str,
) -> None:  # fmt: skip
    errors = tmp_path / "errors"
    begun = partial(has_journal, out)
    child = forked(command(errors, "recover", base, diff, out, "-q", waits=begun))
    wait_for_journal(out)
    os.kill(child, number)
    assert ended(child) == code
    assert errors.read_text() == said
    finished = set(journalled(out))
    require_nothing_false(out, expected)
    stages.recover(base, diff, out)
    assert read.tensors == set(Checkpoint.open(diff).tensors) - finished
    assert contents(out) == expected
    assert list(out.parent.iterdir()) == [out]


def test_the_second_of_two_runs_is_refused(
    base: Path, diff: Path, out: Path, expected: Contents, tmp_path: Path
) -> None:
    child = forked(command(tmp_path / "errors", "recover", base, diff, out, "-q"))
    wait_for_journal(out)
    with refusal(
        OutputProblem,
        f"{out} is being written by another run",
        next_step="wait for it, or name another output",
        out=None,
    ):
        stages.recover(base, diff, out)
    assert ended(child) == 0
    assert contents(out) == expected
    assert list(out.parent.iterdir()) == [out]


def test_the_old_output_stays_until_the_new_one_is_complete(
    base: Path, diff: Path, out: Path, expected: Contents, tmp_path: Path
) -> None:
    stages.recover(base, diff, out, dtype="float32")
    old = contents(out)
    child = forked(command(tmp_path / "errors", "recover", base, diff, out, "-q", "--force"))
    wait_for_journal(out)
    os.kill(child, signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL
    assert contents(out) == old
    stages.recover(base, diff, out, force=True)
    assert contents(out) == expected
    assert list(out.parent.iterdir()) == [out]


# --- threads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_any_number_of_threads_gives_the_same_bytes(
    base: Path, diff: Path, out: Path, expected: Contents, monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(tensor_stream, "MAX_WORKERS", workers)
    stages.recover(base, diff, out)
    assert contents(out) == expected
