"""The site of the documents builds, refuses dead links, and lists what the code has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from camelpress.cli.commands import app
from camelpress.pipeline.recipe import Recipe
from camelpress.validate.settings import Gate
from scripts import script

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
COMMANDS = {command.name for command in app.registered_commands}


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
    reference = script(DOCS / "make/reference.py")
    pages = [DOCS / f"reference/{name}.md" for name in ("commands", "recipe")]
    commands, recipe = (
        reference.on_page_markdown(page.read_text(encoding="utf-8")) for page in pages
    )
    assert "generated:" not in commands + recipe
    assert set(re.findall(r"^## ([a-z-]+)$", commands, re.MULTILINE)) == COMMANDS
    schema = Recipe.model_json_schema()
    models = [
        key["$ref"].rpartition("/")[2] for key in schema["properties"].values() if "$ref" in key
    ]
    keys = [name for model in models for name in schema["$defs"][model]["properties"]]
    assert len(models) == 4 and all(f"| `{key}` |" in recipe for key in keys)
    assert all(f"| `{key}` |" in recipe for key in Gate.model_json_schema()["properties"])
    assert "| `--extra-rows` | `published`, `zero`, `mean`, `drop` |" in commands


def test_defaults_of_mappings_list_only_keys_with_a_value() -> None:
    reference = script(DOCS / "make/reference.py")
    recipe = reference.on_page_markdown("<!-- generated: recipe -->")
    defaults = re.findall(r"^\| `(?:gate|judge)` \| [^|]* \| ([^|]*) \|", recipe, re.MULTILINE)
    assert len(defaults) == 2 and all(cell.startswith("`") for cell in defaults)
    assert "null" not in "".join(defaults) and '`kl_mean: {"max": 0.03}`' in "".join(defaults)


def test_an_interval_is_not_broken_over_two_lines() -> None:
    reference = script(DOCS / "make/reference.py")
    cell = '<td>1.2 <span class="short">(1,093 - 1.3)</span></td>'
    assert reference.on_page_content("<td>1.2 (1,093 - 1.3)</td>") == cell
    assert reference.on_page_content("x - y (a - b)") == "x - y (a - b)"


def test_short_inline_code_is_marked_and_blocks_are_not() -> None:
    reference = script(DOCS / "make/reference.py")
    block = "<pre><code><span>--top-k 0</span></code></pre>"
    html = f"<p><code>--top-k 0</code> <code>{'long ' * 9}</code></p>{block}"
    marked = reference.on_page_content(html)
    assert marked == html.replace("<p><code>", '<p><code class="short">')
