"""The files around the code: checks before a commit, workflows, templates, contribution guide."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import camelpress

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
QUICK = (ROOT / "tests" / "quick.txt").read_text(encoding="utf-8").splitlines()
COMMANDS = {  # of what a workflow may call without a path of this repository
    "make", "python", "grep", "camelpress", ".ci/run",
}  # fmt: skip


def load_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def recipe_lines(target: str) -> list[str]:
    """Returns the commands of a target of the Makefile, with BIN filled in."""
    rule = re.search(rf"^{target}:.*\n((?:\t.*\n)*)", MAKEFILE, re.MULTILINE)
    assert rule, f"the Makefile has no target {target}"
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in rule[1].splitlines()]


def prerequisites(target: str) -> list[str]:
    rule = re.search(rf"^{target}:([^#\n]*)", MAKEFILE, re.MULTILINE)
    assert rule, f"the Makefile has no target {target}"
    return rule[1].split()


def steps(path: Path) -> Iterator[Mapping[str, Any]]:
    for job in load_yaml(path)["jobs"].values():
        yield from job["steps"]


def test_hooks_before_a_commit_run_what_make_check_runs() -> None:
    config = load_yaml(ROOT / ".pre-commit-config.yaml")
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert all(repo["repo"] == "local" for repo in config["repos"])
    assert all(hook["language"] == "system" and not hook["pass_filenames"] for hook in hooks)
    assert prerequisites("check") == ["lint", "quick"]
    assert [hook["entry"] for hook in hooks] == [*recipe_lines("lint"), *recipe_lines("quick")]


def test_every_check_runs_once_in_continuous_integration() -> None:
    targets = re.findall(
        r"^make (?:--jobs=\d+ )?(\S+)", (ROOT / ".ci/run").read_text("utf-8"), re.M
    )
    assert targets == ["demo", "test"]
    assert "lint" in prerequisites("test") and "quick" not in prerequisites("test")
    assert "check" not in prerequisites("test")


def test_quick_tests_are_files_that_exist() -> None:
    assert QUICK == sorted(set(QUICK))
    assert not [path for path in QUICK if not (ROOT / path).is_file()]
    assert prerequisites("quick") == [".venv/installed-test"]  # and no model
    assert "@tests/quick.txt" in recipe_lines("quick")[0].split()


def test_quick_tests_cover_every_room() -> None:
    rooms = {path.parent.name for path in (ROOT / "src" / "camelpress").glob("*/__init__.py")}
    assert {"core", "convert", "reporting"} < rooms
    assert rooms - {Path(path).parent.name for path in QUICK} == set()


@pytest.mark.parametrize("name", ["Makefile", "docs/numbers.md"])
def test_benchmarks_that_are_named_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    modules = set(re.findall(r"python -m (benchmarks(?:\.\w+)+)", text))
    files = [ROOT / module.replace(".", "/") for module in sorted(modules)]
    assert len(files) >= 5
    assert not [
        path
        for path in files
        if not path.with_suffix(".py").is_file() and not (path / "__main__.py").is_file()
    ]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_targets_and_scripts_that_exist(path: Path) -> None:
    for command in (step["run"] for step in steps(path) if "run" in step):
        program, *words = shlex.split(command)
        assert "${{" not in command, "a value of an event must not become part of a script"
        assert program in COMMANDS
        if program == "make":
            assert all(recipe_lines(target) or prerequisites(target) for target in words)
        if program.startswith("."):
            assert (ROOT / program).stat().st_mode & 0o100


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_pins_actions_and_asks_for_few_rights(path: Path) -> None:
    actions = [step["uses"] for step in steps(path) if "uses" in step]
    assert actions and all(re.fullmatch(r"[\w./-]+@v\d+\.\d+\.\d+", action) for action in actions)
    assert load_yaml(path)["permissions"] == {"contents": "read"}


def test_a_release_is_tested_attested_and_published_without_a_token() -> None:
    path = ROOT / ".github" / "workflows" / "release.yml"
    jobs = load_yaml(path)["jobs"]
    assert jobs["test-wheel"]["needs"] == "build"
    assert set(jobs["publish"]["needs"]) == {"build", "test-wheel"}
    assert jobs["publish"]["permissions"]["id-token"] == "write"
    assert "secrets." not in path.read_text(encoding="utf-8")
    used = [step.get("uses", "").partition("@")[0] for step in jobs["publish"]["steps"]]
    assert used[-2:] == ["actions/attest-build-provenance", "pypa/gh-action-pypi-publish"]


def test_a_tag_is_compared_with_the_line_of_the_version() -> None:
    lines = (ROOT / "src/camelpress/__init__.py").read_text(encoding="utf-8").splitlines()
    assert lines.count(f'__version__ = "{camelpress.__version__}"') == 1
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## [{camelpress.__version__}] - " in changelog


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_an_issue_template_is_a_form(path: Path) -> None:
    form = load_yaml(path)
    if path.stem == "config":
        assert form == {"blank_issues_enabled": True}
        return
    assert {"name", "description", "body"} <= form.keys()
    fields = [item for item in form["body"] if item["type"] != "markdown"]
    assert len({item["id"] for item in fields}) == len(fields)
    assert all(item["attributes"]["label"] for item in fields)


def test_the_contribution_guide_names_files_and_targets_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w./-]+/[\w./-]*|[\w.-]+\.(?:py|txt|md))`", text))
    known = {"settings.py", "run.py", "api.py"}  # in several rooms, or named in full elsewhere
    rooms = {
        "compat/": "src/camelpress/compat",
        "support/": "tests/support",
        "hostile/": "tests/hostile",
        "camelpress/__init__.py": "src/camelpress/__init__.py",
    }
    assert len(named) > 15
    assert not [name for name in named - known if not (ROOT / rooms.get(name, name)).exists()]
    assert all(
        recipe_lines(target) or prerequisites(target)
        for target in re.findall(r"\bmake ([a-z0-9-]+)", text)
    )
