"""An output that is, or holds, one of the inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import damage
import stages
from camelpress.core.errors import OutputExists, RecipeProblem
from camelpress.core.files.file_hashes import FileHashCache
from refusal import refusal

RUNS: dict[str, Callable[[Path, Path, Path, Path], object]] = {
    "base": lambda folder, _, diff, out: stages.recover(folder, diff, out, force=True),
    "diff": lambda folder, base, _, out: stages.recover(base, folder, out, force=True),
    "tuned": lambda folder, base, _, out: stages.make_diff(base, folder, out, force=True),
    "model": lambda folder, _, __, out: stages.quantize(folder, out, method="rtn", force=True),
    "reference": lambda folder, base, _, out: stages.validate(folder, base, out, force=True),
    "candidate": lambda folder, base, _, out: stages.validate(base, folder, out, force=True),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
@pytest.mark.parametrize("place", [".", "..", "../folder", "link", "inside"])
def test_an_input_is_never_replaced(
    base: Path, diff: Path, tmp_path: Path, place: str,
    run: Callable[[Path, Path, Path, Path], object],
) -> None:  # fmt: skip
    folder = damage.copied(diff, tmp_path / "folder")
    (folder / "link").symlink_to("../folder")
    before = FileHashCache({}).tree_digest(tmp_path)
    out = folder / place
    with refusal(
        RecipeProblem,
        f"the output {out} is, holds or lies in the input {folder}",
        next_step="name another output",
        exit_code=2,
        out=None,
    ):
        run(folder, base, diff, out)
    assert FileHashCache({}).tree_digest(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("side", ["base", "diff"])
@pytest.mark.parametrize("place", ["real", "up/real", "link/../real", "weights", "real/new"])
def test_an_input_that_is_given_as_a_link_is_never_replaced(
    base: Path, diff: Path, tmp_path: Path, place: str, side: str
) -> None:
    inputs = {"base": base, "diff": diff}
    damage.copied(inputs[side], tmp_path / "real")
    inputs[side] = folder = tmp_path / "link"
    folder.symlink_to("real")
    (tmp_path / "up").symlink_to(".")
    (tmp_path / "weights").symlink_to("up/link")
    before = FileHashCache({}).tree_digest(tmp_path)
    with refusal(
        RecipeProblem,
        f"the output {tmp_path / place} is, holds or lies in the input {folder}",
        next_step="name another output",
        exit_code=2,
        out=None,
    ):
        stages.recover(inputs["base"], inputs["diff"], tmp_path / place, force=True)
    assert FileHashCache({}).tree_digest(tmp_path) == before


@pytest.mark.parametrize("side", ["base", "diff"])
def test_an_output_that_an_input_links_to_is_never_replaced(
    base: Path, diff: Path, tmp_path: Path, side: str
) -> None:
    inputs, out = {"base": base, "diff": diff}, tmp_path / "out"
    damage.copied(inputs[side], out)
    (out / "recover-report.json").touch()
    inputs[side] = folder = tmp_path / "folder"
    folder.mkdir()
    for path in out.iterdir():
        (folder / path.name).symlink_to(path)
    before = FileHashCache({}).tree_digest(tmp_path)
    with refusal(
        RecipeProblem,
        f"the output {out} is, holds or lies in the input {folder}",
        next_step="name another output",
        exit_code=2,
        out=None,
    ):
        stages.recover(inputs["base"], inputs["diff"], out, force=True)
    assert FileHashCache({}).tree_digest(tmp_path) == before


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
def test_an_input_is_not_taken_for_a_rest_of_an_earlier_run(
    base: Path, diff: Path, tmp_path: Path, run: Callable[[Path, Path, Path, Path], object]
) -> None:
    folder = damage.copied(diff, tmp_path / "model.partial")
    before = FileHashCache({}).tree_digest(tmp_path)
    with refusal(
        RecipeProblem,
        f"the output {folder} is, holds or lies in the input {folder}",
        next_step="name another output",
        exit_code=2,
        out=None,
    ):
        run(folder, base, diff, tmp_path / "model")
    assert FileHashCache({}).tree_digest(tmp_path) == before


def test_a_folder_that_is_called_old_is_never_removed(
    base: Path, diff: Path, tmp_path: Path
) -> None:
    stages.recover(base, diff, tmp_path / "out")
    kept = damage.copied(tmp_path / "out", tmp_path / "out.old")
    before = FileHashCache({}).tree_digest(tmp_path)
    with refusal(
        OutputExists,
        f"{kept} exists, and {tmp_path / 'out'} would be moved there while it is replaced",
        next_step="remove it, or move it elsewhere",
        out=None,
    ):
        stages.recover(base, diff, tmp_path / "out", force=True)
    assert FileHashCache({}).tree_digest(tmp_path) == before
