"""What is written down agrees with what runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from camelpress.cli import app
from camelpress.recipe import Recipe, read

ROOT = Path(__file__).parents[1]
COMMANDS = {command.name for command in app.registered_commands}


def test_the_schema_is_that_of_the_settings() -> None:
    kept = json.loads((ROOT / "recipes" / "schema.json").read_text(encoding="utf-8"))
    assert kept == Recipe.model_json_schema(), "run: camelpress schema > recipes/schema.json"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_can_be_read(path: Path) -> None:
    assert read(path).publish.license != "unknown"


def test_every_command_has_help_and_stands_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in app.registered_commands:
        assert command.callback is not None and command.callback.__doc__
        assert f"camelpress {command.name}" in readme, command.name


def test_the_readme_names_no_command_that_is_not_there() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shell = "".join(re.findall(r"```sh\n(.*?)```", readme, re.DOTALL))
    assert set(re.findall(r"^camelpress ([a-z-]+)", shell, re.MULTILINE)) <= COMMANDS


def test_links_in_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_no_stage_imports_another() -> None:
    ended = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
