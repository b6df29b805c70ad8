"""What a dry run tells, against what the run then does."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from camelpress.cli import entry_point
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import RecipeProblem
from camelpress.pipeline import run as pipeline
from camelpress.pipeline.plan import PlannedFile, plan_run
from camelpress.pipeline.recipe import read_recipe
from recipes import TEXT, write_recipe

RECIPE = TEXT.replace("[chat.jsonl]", "[chat.jsonl=2], sym: false").replace(
    "license: mit", 'license: mit, name: "A name"'
)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path, RECIPE)


def test_a_dry_run_does_nothing_and_tells_what_a_run_does(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["camelpress", "run", str(recipe), "--dry-run", "--json"]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit) as end:
        entry_point.main()
    assert end.value.code == 0
    steps = json.loads(capsys.readouterr().out)["steps"]
    out = recipe.parent / "out"
    assert not out.exists()
    assert [step["stage"] for step in steps] == ["recover", "quantize", "validate", "publish"]
    assert steps[2]["only_recipe"] == ["gate"]
    out.mkdir()
    pipeline.run_stages(
        pipeline.recipe_stages(read_recipe(recipe))[:2],
        pipeline.PipelineLock(out / pipeline.LOCK_FILE),
    )
    for step in steps[:2]:
        (writes,) = step["writes"]
        found = Checkpoint.open(Path(writes["place"])).nbytes
        assert (writes["size"], writes["exact"]) == (pytest.approx(found, rel=0.02), False)
    inputs = [*(recipe.parent / "base").iterdir(), *(recipe.parent / "diff").iterdir()]
    told = {each["place"]: each["size"] for each in steps[0]["reads"]}
    assert told == {str(path): path.stat().st_size for path in inputs}


def test_a_dry_run_tells_what_is_done_already_and_the_files_of_it(recipe: Path) -> None:
    assert not any(step.unchanged for step in plan_run(read_recipe(recipe)))
    pipeline.run(read_recipe(recipe))
    steps = plan_run(read_recipe(recipe))
    assert all(step.unchanged for step in steps)
    release = recipe.parent / "out" / "release"
    found = {str(path): path.stat().st_size for path in release.rglob("*") if path.is_file()}
    assert {each.place: each.size for each in steps[-1].writes} == found
    assert {each.exact for each in steps[-1].reads} == {True}
    steps = plan_run(read_recipe(recipe, ["publish.to=hf:org/name"]))
    assert [step.unchanged for step in steps] == [True, True, True, False, False]
    (size,) = {each.size for step in steps[3:] for each in step.writes}
    assert steps[4].writes == (PlannedFile("hf:org/name", size, exact=False),)
    before = {path: path.stat().st_mtime_ns for path in release.parent.rglob("*")}
    changed = plan_run(read_recipe(recipe, ["validate.max_tokens=500"]))
    assert [step.unchanged for step in changed] == [True, True, False, True]
    assert before == {path: path.stat().st_mtime_ns for path in release.parent.rglob("*")}


def test_the_commands_are_those_of_the_recipe(recipe: Path, tmp_path: Path) -> None:
    _, quantize, _, publish = plan_run(read_recipe(recipe))
    words = shlex.split(quantize.command)
    assert words[:2] == ["camelpress", "quantize"]
    assert "--asym" in words
    assert words[words.index("--calibration") + 1] == f"{tmp_path / 'chat.jsonl'}=2.0"
    words = shlex.split(publish.command)
    assert words[words.index("--to") + 1] == str(tmp_path / "out" / "release")
    assert words[words.index("--name") + 1] == "A name"
    assert "--gated-like" not in words
    (tmp_path / "diff" / "README.md").write_text("---\nlicense: mit\n---\n")
    words = shlex.split(plan_run(read_recipe(recipe))[-1].command)
    assert words[words.index("--gated-like") + 1] == str(tmp_path / "diff")


def test_an_upload_is_a_step_and_a_hub_is_not_asked(recipe: Path) -> None:
    told = plan_run(read_recipe(recipe, ["publish.to=hf:org/name", "diff=hf:org/diff"]))
    assert told[-1].stage == "upload"
    assert told[-1].writes == (PlannedFile("hf:org/name", None, exact=False),)
    assert told[0].reads[-1] == PlannedFile("hf:org/diff", None, exact=False)


def test_a_recipe_cannot_publish_to_another_folder(recipe: Path) -> None:
    with pytest.raises(
        RecipeProblem, match="a local release is always .*; leave publish.to out, or name"
    ):
        pipeline.run(read_recipe(recipe, ["publish.to=elsewhere"]))
