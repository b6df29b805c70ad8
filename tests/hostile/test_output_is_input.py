"""An output that is, or holds, one of the inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import damage
import stages
from camelpress.core.errors import RecipeProblem
from camelpress.core.provenance import Hashes
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
    before = Hashes({}).tree(tmp_path)
    out = folder / place
    with refusal(
        RecipeProblem,
        f"the output {out} is, holds or lies in the input {folder}",
        next_step="name another output",
        exit_code=2,
        out=None,
    ):
        run(folder, base, diff, out)
    assert Hashes({}).tree(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
