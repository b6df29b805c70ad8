"""An output has its name only when it is whole, and never at the cost of something else."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from camelpress.core.errors import (
    CheckpointProblem,
    Interruption,
    NumericsProblem,
    OutOfMemory,
    OutputExists,
    OutputProblem,
    Problem,
    RecipeProblem,
    ToolProblem,
)
from camelpress.core.output.output_contents import read_output_files
from camelpress.core.output.output_replacement import REPLACEMENT_MARK, remove_output
from camelpress.core.output.staged_output import require_separate_output, staged
from camelpress.core.output.unfinished_output import MARK_FILE, OutputMark
from disk_hooks import KILL, Disk
from processes import forked
from refusal import refusal


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_staged_folder_takes_its_name_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "not yet" / "there" / "out"
    with staged(target) as folder:
        (folder / "file").write_text("whole")
        assert not target.exists()
    assert contents(target) == {"file": b"whole"}
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), staged(tmp_path / "out") as folder:
        (folder / "file").write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExists) as told, staged(tmp_path / "out"):
        pytest.fail("nothing may run")
    assert told.value.message == f"{tmp_path / 'out'} exists"
    assert told.value.next_step == "name another output, or give --force to replace it"
    assert told.value.exit_code == 3


def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(OutputExists, match="out exists"), staged(tmp_path / "out"):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "of another run").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "of another run"]


def test_force_replaces_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "quantize-report.json").touch()
    with staged(tmp_path / "out", force=True) as folder:
        (folder / "new").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "out"]


@pytest.mark.parametrize("name", ["out", "out/holiday.jpg"])
def test_force_replaces_nothing_but_an_earlier_output(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with (
        pytest.raises(OutputExists, match="is not an earlier output and is not replaced") as told,
        staged(tmp_path / "out", force=True),
    ):
        pass
    assert told.value.next_step == "name another output, or remove it yourself"
    assert (tmp_path / name).is_file()


def test_force_replaces_a_link_and_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to("elsewhere")
    with staged(tmp_path / "out", force=True) as folder:
        (folder / "new").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "out"]
    assert contents(tmp_path / "out") == {"new": b""}
    assert contents(tmp_path / "elsewhere") == {}


def test_force_keeps_the_old_until_the_new_is_whole(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").touch()
    with pytest.raises(RuntimeError), staged(tmp_path / "out", force=True):
        raise RuntimeError
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["out", "report.json"]


def test_a_foreign_folder_in_the_place_of_the_partial_one_is_left_alone(tmp_path: Path) -> None:
    target, partial = tmp_path / "out", tmp_path / "out.partial"
    partial.mkdir()
    (partial / "holiday.jpg").write_text("mine")
    with (
        refusal(
            OutputExists,
            f"{partial} is not an unfinished output of camelpress and is left alone, and {target} "
            "would be prepared there",
            next_step="move it elsewhere, or name another output",
            out=None,
        ),
        staged(target),
    ):
        pytest.fail("nothing may run")
    assert contents(partial) == {"holiday.jpg": b"mine"}


@pytest.mark.parametrize("left", [[], ["fingerprint.partial"]], ids=["empty", "a torn mark"])
def test_a_run_that_was_killed_before_its_mark_was_whole_is_no_obstacle(
    tmp_path: Path, left: list[str]
) -> None:
    (tmp_path / "out.partial").mkdir()
    for name in left:
        (tmp_path / "out.partial" / name).write_text('{"camelpr')
    with staged(tmp_path / "out") as folder:
        assert [path.name for path in folder.iterdir()] == [MARK_FILE]
    assert contents(tmp_path / "out") == {}


def test_a_complete_folder_without_a_mark_is_ours(tmp_path: Path) -> None:
    """A kill fell between the removal of the mark and the last rename."""
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "model.safetensors").touch()
    write_report(partial, "model.safetensors")
    with staged(tmp_path / "out") as folder:
        assert [path.name for path in folder.iterdir()] == [MARK_FILE]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_a_disk_that_refuses_is_told_in_one_line(tmp_path: Path, number: int) -> None:
    target = tmp_path / "out"
    with pytest.raises(OutputProblem) as told, staged(target):
        raise OSError(number, os.strerror(number))
    assert told.value.message == f"{target} cannot be written: {os.strerror(number)}"
    assert told.value.next_step == "free some space, or name a place that can be written"
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_too_long_is_told_in_one_line(tmp_path: Path) -> None:
    target = tmp_path / ("o" * 250)
    with pytest.raises(OutputProblem) as told, staged(target):
        pytest.fail("nothing may run")
    assert (
        told.value.message == f"{target} cannot be written: File name too long ({target}.partial)"
    )


def test_a_file_in_the_way_of_the_partial_folder_is_named(tmp_path: Path) -> None:
    target, partial = tmp_path / "out", tmp_path / "out.partial"
    partial.touch()
    with pytest.raises(OutputProblem) as told, staged(target):
        pytest.fail("nothing may run")
    assert told.value.message == f"{target} cannot be written: File exists ({partial})"
    assert partial.is_file()


def test_an_error_that_is_not_of_the_disk_passes_unchanged(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError), staged(tmp_path / "out"):
        raise ConnectionResetError(errno.ECONNRESET, "reset")
    assert list(tmp_path.iterdir()) == []


# --- resuming -----------------------------------------------------------------------------------

STOPPED = [Interruption("stopped", next_step="go on"), KeyboardInterrupt()]
BEGUN: dict[str, Any] = {"stage": "quantize", "bits": 4, "text": "5" * 64}


def leave(target: Path, made_from: dict[str, Any], error: BaseException = STOPPED[0]) -> None:
    """A block that is stopped after it wrote something."""
    with pytest.raises(type(error)), staged(target, made_from=made_from) as folder:
        (folder / "journal.jsonl").write_text("half")
        (folder / "config.json").write_text("half")
        raise error


@pytest.mark.parametrize("error", STOPPED)
def test_the_state_of_a_run_that_was_stopped_is_found_again(
    tmp_path: Path, error: BaseException
) -> None:
    leave(tmp_path / "out", BEGUN, error)
    with staged(tmp_path / "out", made_from=BEGUN) as folder:
        assert contents(folder).keys() == {MARK_FILE, "journal.jsonl"}
        assert (folder / "journal.jsonl").read_text() == "half"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"bits": 8}, "bits: 4 -> 8"),
        ({"text": "6" * 64}, "text: 555555555555 -> 666666666666"),
        ({"bits": 3, "TF32": [True, False]}, "bits: 4 -> 3, TF32: null -> [true, false]"),
        (dict.fromkeys("abcdefgh", 1), ", ".join(f"{name}: null -> 1" for name in "abcdef")
         + ", and 2 more"),
    ],
)  # fmt: skip
def test_another_beginning_is_told_and_kept(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    target, partial = tmp_path / "out", tmp_path / "out.partial"
    leave(target, BEGUN)
    before = contents(partial)
    with (
        refusal(
            OutputProblem,
            f"{partial} was begun with other inputs or settings and is kept ({told})",
            next_step="repeat the earlier command to resume it, or give --restart to begin again",
            out=None,
        ),
        staged(target, made_from=BEGUN | change, force=True),
    ):
        pytest.fail("nothing may run")
    assert contents(partial) == before


@pytest.mark.parametrize("now", [BEGUN | {"bits": 8}, BEGUN])
def test_a_restart_begins_again(tmp_path: Path, now: dict[str, Any]) -> None:
    leave(tmp_path / "out", BEGUN)
    with staged(tmp_path / "out", made_from=now, restart=True) as folder:
        assert [path.name for path in folder.iterdir()] == [MARK_FILE]
    leave(tmp_path / "out.2", BEGUN)


@pytest.mark.parametrize("now", [None, {"stage": "recover"}])
def test_an_unfinished_run_of_another_stage_is_kept(
    tmp_path: Path, now: dict[str, Any] | None
) -> None:
    leave(tmp_path / "out", BEGUN)
    with (
        refusal(
            OutputProblem,
            f"{tmp_path / 'out.partial'} is an unfinished run of quantize",
            next_step="run the command that began it again, or move it elsewhere",
            out=None,
        ),
        staged(tmp_path / "out", made_from=now),
    ):
        pytest.fail("nothing may run")
    assert (tmp_path / "out.partial" / "journal.jsonl").read_text() == "half"


@pytest.mark.parametrize("mark", [b"", b"\xff\xfe", b"a" * 64, b"{}", b"[" * 100_000, b"null"])
def test_a_folder_whose_mark_is_damaged_is_left_alone(tmp_path: Path, mark: bytes) -> None:
    leave(tmp_path / "out", BEGUN)
    (tmp_path / "out.partial" / MARK_FILE).write_bytes(mark)
    with pytest.raises(OutputExists), staged(tmp_path / "out", made_from=BEGUN):
        pytest.fail("nothing may run")
    assert (tmp_path / "out.partial" / "journal.jsonl").read_text() == "half"


@pytest.mark.parametrize("kind", [CheckpointProblem, NumericsProblem, RecipeProblem])
def test_the_state_of_a_run_whose_input_is_wrong_is_not_kept(
    tmp_path: Path, kind: type[Problem]
) -> None:
    leave(tmp_path / "out", BEGUN)
    with pytest.raises(kind), staged(tmp_path / "out", made_from=BEGUN):
        raise kind("x", next_step="y")
    assert list(tmp_path.iterdir()) == []


def unread() -> Problem:
    """An input on a disk that went away."""
    problem = CheckpointProblem("x", next_step="y")
    problem.__cause__ = OSError(errno.EIO, "gone")
    return problem


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(),
        MemoryError(),
        OutputProblem("no space", next_step="free some"),
        OutOfMemory("x", next_step="y"),
        ToolProblem("x", next_step="y"),
        unread(),
    ],
)
def test_the_state_of_a_run_that_failed_for_another_reason_is_kept(
    tmp_path: Path, error: Exception
) -> None:
    leave(tmp_path / "out", BEGUN)
    with pytest.raises(type(error)), staged(tmp_path / "out", made_from=BEGUN):
        raise error
    with staged(tmp_path / "out", made_from=BEGUN) as folder:
        assert (folder / "journal.jsonl").read_text() == "half"


def test_a_run_that_failed_before_it_finished_anything_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory), staged(tmp_path / "out", made_from=BEGUN) as folder:
        (folder / "journal.jsonl").write_text("\n")
        (folder / "model.safetensors.partial").write_bytes(bytes(9))
        raise OutOfMemory("x", next_step="y")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fails_loses_no_state(tmp_path: Path, number: int) -> None:
    with (
        pytest.raises(OutputProblem) as told,
        staged(tmp_path / "out", made_from=BEGUN) as folder,
    ):
        (folder / "journal.jsonl").write_text("half")
        raise OSError(number, os.strerror(number))
    assert told.value.message == f"{tmp_path / 'out'} cannot be written: {os.strerror(number)}"
    with staged(tmp_path / "out", made_from=BEGUN) as folder:
        assert (folder / "journal.jsonl").read_text() == "half"


# --- strangers ----------------------------------------------------------------------------------


def write_report(folder: Path, *names: str) -> None:
    """A report that lists the files of an output."""
    listed = [*names, "quantize-report.json"]
    (folder / "quantize-report.json").write_text(json.dumps({"files": listed}))


def test_a_file_in_an_unfinished_output_is_neither_shipped_nor_lost(tmp_path: Path) -> None:
    target, writes = tmp_path / "out", ("config.json",)
    with pytest.raises(KeyboardInterrupt), staged(target, made_from=BEGUN, writes=writes):
        raise KeyboardInterrupt
    (tmp_path / "out.partial" / "deep").mkdir()
    (tmp_path / "out.partial" / "deep" / "notes.txt").write_text("mine")
    with staged(target, made_from=BEGUN, writes=writes) as folder:
        assert contents(folder).keys() == {MARK_FILE}
        (folder / "config.json").touch()
        (folder / "extra.safetensors").write_text("put there meanwhile")
    assert contents(target) == {"config.json": b""}
    assert (tmp_path / "out.aside" / "deep" / "notes.txt").read_text() == "mine"
    assert contents(tmp_path / "out.aside-2") == {"extra.safetensors": b"put there meanwhile"}


def test_force_deletes_only_the_files_that_an_output_lists(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    for name in ("config.json", "thesis.tex", "model.safetensors.bak"):
        (target / name).write_text(name)
    write_report(target, "config.json", "../../elsewhere")
    with staged(target, force=True) as folder:
        (folder / "config.json").write_text("new")
    assert contents(target) == {"config.json": b"new"}
    kept = {name: name.encode() for name in ("thesis.tex", "model.safetensors.bak")}
    assert contents(tmp_path / "out.aside") == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.aside"]


def test_an_output_is_known_by_its_own_report_and_not_by_one_that_it_carries(
    tmp_path: Path,
) -> None:
    (tmp_path / "recover-report.json").write_text(
        json.dumps({"files": ["recover-report.json", "photo.json"]})
    )
    write_report(tmp_path, "config.json", "recover-report.json")
    assert read_output_files(tmp_path) == {
        "config.json",
        "recover-report.json",
        "quantize-report.json",
    }


def test_a_release_lists_its_files_in_its_checksums(tmp_path: Path) -> None:
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  README.md\n{'1' * 64}  validation/a b.md\n")
    write_report(tmp_path, "config.json")
    assert read_output_files(tmp_path) == {"SHA256SUMS", "README.md", "validation/a b.md"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": 7}', '{"files": [7, null]}', "\0"])
def test_a_report_without_a_list_covers_itself_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    assert read_output_files(tmp_path) == {"report.json"}


# --- replacing ----------------------------------------------------------------------------------


def replace(target: Path) -> None:
    with staged(target, force=True) as folder:
        (folder / "config.json").write_text("new")
        write_report(folder, "config.json")


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("fault", [KILL, errno.EIO])
def test_a_replacement_that_is_cut_short_anywhere_is_ended_by_the_same_command(
    tmp_path: Path, fault: int
) -> None:
    def prepared(number: int) -> Path:
        target = tmp_path / str(number) / "out"
        target.mkdir(parents=True)
        (target / "config.json").write_text("old")
        (target / "mine").write_text("mine")
        write_report(target, "config.json")
        return target

    def work(disk: Disk, target: Path) -> None:
        disk.install()
        replace(target)

    for number in count():
        target = prepared(number)
        code = forked(partial(work, Disk(target.parent, number, fault), target))
        replace(target)
        assert contents(target).keys() == {"config.json", "quantize-report.json"}
        assert (target / "config.json").read_text() == "new"
        assert contents(target.with_name("out.aside")) == {"mine": b"mine"}
        assert len(list(target.parent.iterdir())) == 2
        if code == 0:
            break
    assert number > 15


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("fault", [KILL, errno.EIO])
def test_a_removal_that_is_cut_short_anywhere_is_ended_by_the_next_output(
    tmp_path: Path, fault: int
) -> None:
    def work(disk: Disk, target: Path) -> None:
        disk.install()
        remove_output(target)

    for number in count():
        target = tmp_path / str(number) / "out"
        (target / "validation").mkdir(parents=True)
        (target / "config.json").write_text("old")
        (target / "validation" / "report.md").write_text("old")
        (target / "mine").write_text("mine")
        write_report(target, "config.json", "validation/report.md")
        code = forked(partial(work, Disk(target.parent, number, fault), target))
        replace(target)
        assert contents(target).keys() == {"config.json", "quantize-report.json"}
        assert (target / "config.json").read_text() == "new"
        assert contents(target.with_name("out.aside")) == {"mine": b"mine"}
        assert len(list(target.parent.iterdir())) == 2
        if code == 0:
            break
    assert number > 10


def test_a_kill_between_two_renames_gives_the_old_output_back(tmp_path: Path) -> None:
    target, old = tmp_path / "out", tmp_path / "out.old"
    old.mkdir()
    (old / "config.json").write_text("old")
    write_report(old, "config.json")
    OutputMark(REPLACEMENT_MARK, ["config.json", "quantize-report.json"]).write(old)
    with pytest.raises(OutputExists, match="out exists"), staged(target):
        pytest.fail("nothing may run")
    assert contents(target).keys() == {"config.json", "quantize-report.json"}
    assert not old.exists()


def test_a_folder_of_the_users_is_not_taken_for_an_output_that_gave_way(tmp_path: Path) -> None:
    old = tmp_path / "out.old"
    old.mkdir()
    (old / "config.json").write_text("my backup")
    write_report(old, "config.json")
    replace(tmp_path / "out")
    assert (old / "config.json").read_text() == "my backup"


# --- alone --------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with staged(target) as folder:
        (folder / "first").touch()
        with (
            refusal(
                OutputProblem,
                f"{target} is being written by another run",
                next_step="wait for it, or name another output",
                out=None,
            ),
            staged(target),
        ):
            pytest.fail("nothing may run")
    assert contents(target) == {"first": b""}


@pytest.mark.parametrize("end", ["renamed", "removed", "replaced"])
def test_a_folder_that_was_another_runs_until_now_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """The other run ends between our opening its folder and our locking it."""
    partial, lock = tmp_path / "out.partial", fcntl.flock
    partial.mkdir()
    (partial / "of the other").touch()

    def late(folder: int, how: int) -> None:
        partial.rename(tmp_path / "done")
        if end == "removed":
            shutil.rmtree(tmp_path / "done")
        if end == "replaced":
            partial.mkdir()
            (partial / "of a third").touch()
        lock(folder, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(OutputProblem, match="is being written by another run"):
        with staged(tmp_path / "out"):
            pytest.fail("nothing may run")
    left = {"renamed": ["done", "of the other"], "removed": [], "replaced": [
        "done", "of a third", "of the other", "out.partial"]}[end]  # fmt: skip
    assert sorted(path.name for path in tmp_path.rglob("*")) == left


def test_the_end_of_one_writer_leaves_the_next_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def renamed(path: Path, target: Path) -> Path:
        done = rename(path, target)
        path.mkdir()
        (path / "of the next").touch()
        return done

    with staged(tmp_path / "out"):
        monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.undo()
    assert contents(tmp_path / "out.partial") == {"of the next": b""}


# --- what else is there -------------------------------------------------------------------------


def test_a_link_in_place_of_the_partial_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo").touch()
    (tmp_path / "out.partial").symlink_to("mine")
    with pytest.raises(OutputProblem) as told, staged(tmp_path / "out"):
        pytest.fail("nothing may run")
    assert told.value.message == (
        f"{tmp_path / 'out'} cannot be written: Not a directory ({tmp_path / 'out.partial'})"
    )
    assert (tmp_path / "mine" / "photo").exists()


@pytest.mark.parametrize("force", [False, True])
def test_a_link_to_nothing_is_not_replaced(tmp_path: Path, force: bool) -> None:
    (tmp_path / "out").symlink_to("not mounted")
    with pytest.raises(OutputExists), staged(tmp_path / "out", force=force):
        pytest.fail("nothing may run")
    assert (tmp_path / "out").is_symlink()


def test_a_loop_of_links_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    target = tmp_path / "loop" / "out"
    require_separate_output(target, tmp_path / "input")
    with pytest.raises(OutputProblem) as told, staged(target):
        pytest.fail("nothing may run")
    assert told.value.message == (
        f"{target} cannot be written: Too many levels of symbolic links ({target}.partial)"
    )


def test_the_current_folder_can_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with staged(Path(), force=True) as folder:
        (folder / "new").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["here", "new"]


def test_what_has_the_name_of_the_old_output_is_kept(tmp_path: Path) -> None:
    target, backup = tmp_path / "out", tmp_path / "out.old"
    for folder in (target, backup):
        folder.mkdir()
        (folder / "quantize-report.json").touch()
    with (
        refusal(
            OutputExists,
            f"{backup} exists, and {target} would be moved there while it is replaced",
            next_step="remove it, or move it elsewhere",
            out=None,
        ),
        staged(target, force=True),
    ):
        pytest.fail("nothing may run")
    assert (backup / "quantize-report.json").exists()


# --- inputs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["in", ".", "in/side", "link", "link/side", "in/../in", "up/in"])
def test_an_output_and_an_input_are_kept_apart(tmp_path: Path, out: str) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (tmp_path / "link").symlink_to("in")
    (tmp_path / "up").symlink_to(".")
    with refusal(
        RecipeProblem,
        f"the output {tmp_path / out} is, holds or lies in the input {source}",
        next_step="name another output",
        out=None,
        exit_code=2,
    ):
        require_separate_output(tmp_path / out, Path("/elsewhere"), source)


def test_an_input_is_not_taken_for_what_an_earlier_run_left(tmp_path: Path) -> None:
    source = tmp_path / "out.partial"
    with refusal(
        RecipeProblem,
        f"the output {source} is, holds or lies in the input {source}",
        next_step="name another output",
        out=None,
        exit_code=2,
    ):
        require_separate_output(tmp_path / "out", source)


def test_an_output_that_an_input_links_to_is_not_replaced(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    (out / "model.safetensors").touch()
    (source / "model.safetensors").symlink_to("../out/model.safetensors")
    with refusal(
        RecipeProblem,
        f"the output {out} is, holds or lies in the input {source}",
        next_step="name another output",
        out=None,
        exit_code=2,
    ):
        require_separate_output(out, source)


@pytest.mark.parametrize("out", ["in2", "in-side", "other", "IN"])
def test_names_that_only_look_alike_are_apart(tmp_path: Path, out: str) -> None:
    (tmp_path / "in").mkdir()
    require_separate_output(tmp_path / out, tmp_path / "in")
