"""pyproject.toml declares every library that the package imports, and pins each in constraints."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
STAGES = ("convert", "quantize", "validate", "publish")
DISTRIBUTIONS = {"google": "protobuf", "yaml": "pyyaml"}  # of modules that several could provide
BACKENDS = {"auto_gptq", "gptqmodel", "optimum"}  # each in an environment of its own
IMPLIED = {  # a declared library is made of them or cannot be used without them
    "botocore": "s3fs", "cryptography": "pyopenssl", "requests": "oras", "triton": "torch",
    "markupsafe": "jinja2", "pydantic_core": "pydantic",
}  # fmt: skip


def modules() -> Iterator[Path]:
    for folder in (ROOT / "src" / "camelpress", *(ROOT / stage for stage in STAGES)):
        yield from folder.rglob("*.py")


def imported(tree: ast.AST) -> Iterator[str]:
    """Yields the first part of each absolute import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> set[str]:
    """Returns the names of all dependencies, those of extras too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = (project["dependencies"], *project["optional-dependencies"].values())
    texts = [text for requirements in lists for text in requirements]
    return {normalized(re.split(r"[\s\[<>=;!~]", text)[0]) for text in texts} - {"camelpress"}


def test_every_imported_library_is_declared() -> None:
    names = {name for path in modules() for name in imported(ast.parse(path.read_text("utf-8")))}
    libraries = names - sys.stdlib_module_names - BACKENDS - {"camelpress"}
    assert {"httpx2", "torch"} <= libraries
    provided = packages_distributions()
    known = DISTRIBUTIONS | IMPLIED
    wanted = {name: known.get(name) or provided.get(name, [name])[0] for name in libraries}
    assert not {name for name, library in wanted.items() if normalized(library) not in declared()}


def test_every_dependency_has_its_version_in_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {normalized(line.partition("==")[0]) for line in lines if "==" in line}
    elsewhere = {"vllm", "s3fs"}  # tried in environments of their own
    assert declared() - elsewhere <= pinned
