"""What a dry run tells, against what the run then does."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from camelpress import cli, pipeline
from camelpress.core.checkpoint import Checkpoint
from camelpress.core.errors import RecipeProblem
from camelpress.plan import plan
from camelpress.recipe import read
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
        cli.main()
    assert end.value.code == 0
    steps = json.loads(capsys.readouterr().out)["steps"]
    out = recipe.parent / "out"
    assert not out.exists()
    assert [step["stage"] for step in steps] == ["recover", "quantize", "validate", "publish"]
    assert steps[2]["only_recipe"] == ["gate"]
    out.mkdir()
    pipeline.follow(pipeline.stages(read(recipe))[:2], pipeline.Lock(out / "lock"))
    for step in steps[:2]:
        place, size = step["writes"]
        assert size == pytest.approx(Checkpoint.open(Path(place)).nbytes, rel=0.02)
    for place, size in steps[0]["reads"]:
        assert size == sum(path.stat().st_size for path in Path(place).iterdir())


def test_the_commands_are_those_of_the_recipe(recipe: Path, tmp_path: Path) -> None:
    _, quantize, _, publish = plan(read(recipe))
    words = shlex.split(quantize.command)
    assert words[:2] == ["camelpress", "quantize"]
    assert "--asym" in words
    assert words[words.index("--calibration") + 1] == f"{tmp_path / 'chat.jsonl'}=2.0"
    words = shlex.split(publish.command)
    assert words[words.index("--to") + 1] == str(tmp_path / "out" / "release")
    assert words[words.index("--name") + 1] == "A name"


def test_an_upload_is_a_step_and_a_hub_is_not_asked(recipe: Path) -> None:
    told = plan(read(recipe, ["publish.to=hf:org/name", "diff=hf:org/diff"]))
    assert told[-1].stage == "upload"
    assert told[-1].writes == ("hf:org/name", None)
    assert told[0].reads[1] == ("hf:org/diff", None)


def test_a_recipe_cannot_publish_to_another_folder(recipe: Path) -> None:
    with pytest.raises(RecipeProblem, match="a release here is always .*; leave it out, or name"):
        pipeline.run(read(recipe, ["publish.to=elsewhere"]))
