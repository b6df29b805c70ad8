"""What is written down agrees with what runs."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from camelpress.cli.commands import app
from camelpress.core.files.yaml_files import parse_yaml
from camelpress.pipeline.recipe import Recipe, read_recipe
from camelpress.reporting import validation_report
from camelpress.validate.settings import Gate

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
DOCUMENTS = [ROOT / "README.md", ROOT / "demo/README.md", *sorted(DOCS.rglob("*.md"))]
SOURCES = (ROOT, ROOT / "src/camelpress")  # a document names a module from either
MAX_README_LINES = 150
MAX_CODE_CHARACTERS = 92  # in a line of code; the site and GitHub show longer lines cut
COMMANDS = {command.name for command in app.registered_commands}


@pytest.mark.parametrize(
    ("of", "place", "schema"),
    [
        ("recipe", "recipes/schema.json", Recipe.model_json_schema),
        ("gate", "docs/gate.schema.json", Gate.model_json_schema),
        ("report", "docs/report.schema.json", validation_report.validation_schema),
    ],
)
def test_schemas_are_those_of_the_models(
    of: str, place: str, schema: Callable[[], dict[str, Any]]
) -> None:
    kept = json.loads((ROOT / place).read_text(encoding="utf-8"))
    assert kept == schema(), f"run: camelpress schema {of} > {place}"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_can_be_read(path: Path) -> None:
    assert read_recipe(path).publish.license != "unknown"


def test_every_command_has_help_and_stands_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in app.registered_commands:
        assert command.callback is not None and command.callback.__doc__
        assert f"camelpress {command.name}" in readme, command.name


def test_the_readme_names_no_command_that_is_not_there() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shell = "".join(re.findall(r"```sh\n(.*?)```", readme, re.DOTALL))
    assert set(re.findall(r"^camelpress ([a-z-]+)", shell, re.MULTILINE)) <= COMMANDS


def test_the_readme_is_short() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_images_in_documents_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", text)
    images = re.findall(r"\bsrc(?:set)?=\"([^\"]+)\"", text)
    for target in links + images:
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_of_code_in_documents_are_short(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w+\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    assert [line for line in lines if len(line) > MAX_CODE_CHARACTERS] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_that_documents_name_are_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for name in re.findall(r"`([\w/]+/[\w/]*(?:\.py|\.sh|/))`", text):
        assert any((folder / name).exists() for folder in SOURCES), f"{document.name}: {name}"


def test_the_glossary_has_each_term_once_and_every_home_exists() -> None:
    text = (DOCS / "glossary.md").read_text(encoding="utf-8")
    rows = [
        re.split(r" (?<!\\)\| ", line.strip("| ")) for line in text.splitlines() if "` |" in line
    ]
    terms = [row[0].lower() for row in rows]
    assert len(terms) > 100 and terms == sorted(set(terms))
    for term, meaning, *_, home in rows:
        assert meaning.endswith("."), term
        assert any((folder / home.strip("`")).exists() for folder in SOURCES), f"{term}: {home}"


@pytest.mark.parametrize("name", ["README.md", "docs/guides/python.md"])
def test_calls_of_python_in_documents_fit_the_signatures(name: str) -> None:
    api = importlib.import_module("camelpress.api")
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for node in ast.walk(ast.parse("\n".join(blocks))):
        function = getattr(api, getattr(getattr(node, "func", None), "id", ""), None)
        if isinstance(node, ast.Call) and function is not None:
            keywords = {str(keyword.arg): None for keyword in node.keywords}
            inspect.signature(function).bind(*node.args, **keywords)


def test_no_stage_imports_another() -> None:
    ended = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout


def test_gates_in_documents_can_be_read() -> None:
    for name in ("docs/guides/validate.md", "docs/formats.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        shown = [block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
        gates = [block for block in shown if re.search(r"^kl_mean:", block, re.MULTILINE)]
        assert len(gates) == 1, name
        assert Gate.parse(parse_yaml(gates[0], source=name), source=name) != Gate()
