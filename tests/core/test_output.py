"""An output has its name only when it is whole, and never at the cost of something else."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from pathlib import Path

import pytest

from camelpress.core.errors import (
    Interrupted,
    OutputExists,
    OutputProblem,
    Problem,
    RecipeProblem,
)
from camelpress.core.output import FINGERPRINT, keep_apart, staged
from refusal import refusal


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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
    assert told.value.what == f"{tmp_path / 'out'} exists"
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


def test_what_an_earlier_run_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "stale").touch()
    with staged(tmp_path / "out") as folder:
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_a_disk_that_refuses_is_told_in_one_line(tmp_path: Path, number: int) -> None:
    target = tmp_path / "out"
    with pytest.raises(OutputProblem) as told, staged(target):
        raise OSError(number, os.strerror(number))
    assert told.value.what == f"{target} cannot be written: {os.strerror(number)}"
    assert told.value.next_step == "free some space, or name a place that can be written"
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_too_long_is_told_in_one_line(tmp_path: Path) -> None:
    target = tmp_path / ("o" * 250)
    with pytest.raises(OutputProblem) as told, staged(target):
        pytest.fail("nothing may run")
    assert told.value.what == f"{target} cannot be written: File name too long ({target}.partial)"


def test_a_file_in_the_way_of_the_partial_folder_is_named(tmp_path: Path) -> None:
    target, partial = tmp_path / "out", tmp_path / "out.partial"
    partial.touch()
    with pytest.raises(OutputProblem) as told, staged(target):
        pytest.fail("nothing may run")
    assert told.value.what == f"{target} cannot be written: File exists ({partial})"
    assert partial.is_file()


def test_an_error_that_is_not_of_the_disk_passes_unchanged(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError), staged(tmp_path / "out"):
        raise ConnectionResetError(errno.ECONNRESET, "reset")
    assert list(tmp_path.iterdir()) == []


# --- resumable ----------------------------------------------------------------------------------

STOPPED = [Interrupted("stopped", next_step="go on"), KeyboardInterrupt()]


def leave(target: Path, fingerprint: str, error: BaseException = STOPPED[0]) -> None:
    """A block that is stopped after it wrote something."""
    with pytest.raises(type(error)), staged(target, resumable=fingerprint) as folder:
        (folder / "half").write_text("half")
        (folder / "below").mkdir()
        raise error


@pytest.mark.parametrize("error", STOPPED)
def test_what_was_stopped_is_found_again(tmp_path: Path, error: BaseException) -> None:
    leave(tmp_path / "out", "as before", error)
    with staged(tmp_path / "out", resumable="as before") as folder:
        assert (folder / "half").read_text() == "half"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["below", "half"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("now", ["otherwise", "as", ""])
def test_what_was_stopped_of_another_kind_is_cleared_away(tmp_path: Path, now: str) -> None:
    leave(tmp_path / "out", "as before")
    with staged(tmp_path / "out", resumable=now) as folder:
        assert {path.name for path in folder.iterdir()} <= {FINGERPRINT}
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("mark", [b"", b"\xff\xfe", b"as befor"])
def test_a_mark_that_was_damaged_is_no_mark(tmp_path: Path, mark: bytes) -> None:
    leave(tmp_path / "out", "as before")
    (tmp_path / "out.partial" / FINGERPRINT).write_bytes(mark)
    with staged(tmp_path / "out", resumable="as before") as folder:
        assert [path.name for path in folder.iterdir()] == [FINGERPRINT]


@pytest.mark.parametrize("error", [RuntimeError(), Problem("x", next_step="y"), MemoryError()])
def test_what_failed_is_not_kept(tmp_path: Path, error: Exception) -> None:
    leave(tmp_path / "out", "as before")
    with pytest.raises(type(error)), staged(tmp_path / "out", resumable="as before"):
        raise error
    assert list(tmp_path.iterdir()) == []


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
    assert told.value.what == (
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
    keep_apart(target, tmp_path / "input")
    with pytest.raises(OutputProblem) as told, staged(target):
        pytest.fail("nothing may run")
    assert told.value.what == (
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
        keep_apart(tmp_path / out, Path("/elsewhere"), source)


def test_an_input_is_not_taken_for_what_an_earlier_run_left(tmp_path: Path) -> None:
    source = tmp_path / "out.partial"
    with refusal(
        RecipeProblem,
        f"the output {source} is, holds or lies in the input {source}",
        next_step="name another output",
        out=None,
        exit_code=2,
    ):
        keep_apart(tmp_path / "out", source)


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
        keep_apart(out, source)


@pytest.mark.parametrize("out", ["in2", "in-side", "other", "IN"])
def test_names_that_only_look_alike_are_apart(tmp_path: Path, out: str) -> None:
    (tmp_path / "in").mkdir()
    keep_apart(tmp_path / out, tmp_path / "in")
