"""What is written down agrees with what runs."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from camelpress.cli.commands import app
from camelpress.convert.settings import Recover
from camelpress.core.files.yaml_files import parse_yaml
from camelpress.pipeline.recipe import Recipe, read
from camelpress.publish.settings import Publish
from camelpress.quantize.settings import Quantize
from camelpress.reporting.facts import validation_facts
from camelpress.validate.settings import Gate, Validate

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
DOCUMENTS = [ROOT / "README.md", ROOT / "demo/README.md", *sorted(DOCS.rglob("*.md"))]
SOURCES = (ROOT, ROOT / "src/camelpress")  # a document names a module from either
MAX_README_LINES = 150
COMMANDS = {command.name for command in app.registered_commands}


@pytest.mark.parametrize(
    ("of", "place", "schema"),
    [
        ("recipe", "recipes/schema.json", Recipe.model_json_schema),
        ("gate", "docs/gate.schema.json", Gate.model_json_schema),
        ("report", "docs/report.schema.json", validation_facts.schema),
    ],
)
def test_schemas_are_those_of_the_models(
    of: str, place: str, schema: Callable[[], dict[str, Any]]
) -> None:
    kept = json.loads((ROOT / place).read_text(encoding="utf-8"))
    assert kept == schema(), f"run: camelpress schema {of} > {place}"


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
def test_modules_that_documents_name_are_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for name in re.findall(r"`([\w/]+/[\w/]*(?:\.py|\.sh|/))`", text):
        assert any((folder / name).exists() for folder in SOURCES), f"{document.name}: {name}"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    built = build_site(ROOT / "mkdocs.yml", tmp_path)
    assert built.returncode == 0, built.stderr


@pytest.mark.parametrize("link", ["absent.md", "index.md#absent", "#absent"])
def test_a_dead_link_or_anchor_fails_the_site(tmp_path: Path, link: str) -> None:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    start = config.index("\nnav:")
    (tmp_path / "mkdocs.yml").write_text(
        re.sub(r"(?m)^(hooks|extra_css): .*\n", "", config[:start]) + "\nnav: [index.md]\n"
    )
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text(f"# Home\n\n[dead]({link})\n")
    built = build_site(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert built.returncode != 0 and "absent" in built.stderr


def build_site(config: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = ["mkdocs", "build", "--strict", "--config-file", config, "--site-dir", out]
    return subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_reference_lists_every_command_option_and_key() -> None:
    reference = script("reference")
    pages = [DOCS / f"reference/{name}.md" for name in ("commands", "recipe")]
    commands, recipe = (
        reference.on_page_markdown(page.read_text(encoding="utf-8")) for page in pages
    )
    assert "generated:" not in commands + recipe
    assert set(re.findall(r"^## ([a-z-]+)$", commands, re.MULTILINE)) == COMMANDS
    for settings in (Recover, Quantize, Validate, Publish, Gate):
        for name, field in settings.model_fields.items():
            assert f"| `{field.alias or name}` |" in recipe, name
    assert "| `--extra-rows` | `published`, `zero`, `mean`, `drop` |" in commands


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


def test_pictures_are_small_and_those_of_the_demo() -> None:
    for picture in (DOCS / "pictures").iterdir():
        assert picture.stat().st_size < 200_000, picture.name
    done = subprocess.run(
        [sys.executable, str(DOCS / "make/pictures.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_changed_word_makes_pictures_stale_and_a_changed_figure_does_not() -> None:
    pictures = script("pictures")
    page = '<h2>Checks</h2><p>ratio 1.0270, {}</p><svg><text x="{}">all texts</text></svg>'

    def digests(word: str, place: str) -> dict[str, str]:
        page_now = page.format(word, place)
        return dict(pictures.DemoOutput(page_now, "card", "text").digests())

    assert digests("0.5 s", "1.5") == digests("12.75 s", "3")
    assert digests("0.5 s", "1.5") != digests("0.5 seconds", "1.5")


def test_both_pictures_of_the_pipeline_differ_in_colours_only() -> None:
    light, dark = (
        (DOCS / f"{name}.svg").read_text(encoding="utf-8") for name in ("pipeline", "pipeline-dark")
    )
    assert light != dark
    assert re.sub(r"#[0-9a-f]{6}", "", light) == re.sub(r"#[0-9a-f]{6}", "", dark)


def script(name: str) -> ModuleType:
    """A script of the documents, imported from its file."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"make/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
