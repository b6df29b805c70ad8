"""Holds names, docstrings and folders to the rules of CONTRIBUTING.md."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("convert", "quantize", "validate", "publish", "src/camelpress")
RELATIVE = re.compile(r"\b(that|which|what|who|whom|whose|where|whether)\b", re.IGNORECASE)
FRAGMENT = re.compile(
    r"(what|who|whom|whose|how|where|whether|which|as|of|and|that)\b", re.IGNORECASE
)
VAGUE_NAMES = {  # participles, pronouns and adjectives in the place of a noun
    "told", "said", "asked", "wanted", "found", "each", "own", "most", "least", "given", "made",
    "written", "taken", "begun", "alike", "twin", "elsewhere", "ours", "theirs", "one", "other",
}  # fmt: skip
ALLOWED_NAMES = {"one", "other"}  # operands of a binary method, arguments of `camelpress diff`
REPEATED_STEMS = {"__init__", "__main__", "run", "settings"}
MAX_MODULES = 14  # modules of a folder, `__init__` aside
NUMBER_ROOMS = ("src/camelpress/reporting/", "validate/gate/", "publish/")
NUMBER_MODULES = {"number_format", "terminal_summary", "limit_range"}  # modules with own digits
MAX_RELATIVE_WORDS = 2.0  # per 100 words of the first paragraphs of docstrings


def modules() -> Iterator[tuple[str, str, ast.Module]]:
    """Yields path, text and syntax tree of every module; links are not followed."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            if not any(folder.is_symlink() for folder in [path, *path.parents]):
                text = path.read_text(encoding="utf-8")
                yield path.relative_to(ROOT).as_posix(), text, ast.parse(text)


MODULES = [*modules()]


def summaries() -> Iterator[tuple[str, str]]:
    """Yields place and first paragraph of every docstring."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for path, _, tree in MODULES:
        for node in ast.walk(tree):
            if isinstance(node, kinds) and (text := ast.get_docstring(node)):
                yield f"{path}:{getattr(node, 'lineno', 1)}", text.split("\n\n")[0]


def bound_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields line and name of every binding: variables, arguments, functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name.strip("_")


def test_the_modules_are_found() -> None:
    assert len(MODULES) > 300


def test_no_docstring_begins_as_a_fragment() -> None:
    assert [place for place, text in summaries() if FRAGMENT.match(text)] == []


def test_docstrings_are_short_sentences() -> None:
    texts = [text for _, text in summaries()]
    words = sum(len(text.split()) for text in texts)
    relatives = sum(len(RELATIVE.findall(text)) for text in texts)
    assert 100 * relatives / words <= MAX_RELATIVE_WORDS


def test_no_comment_of_a_constant_is_a_fragment() -> None:
    comments = [
        (f"{path}:{number}", comment[1])
        for path, text, _ in MODULES
        for number, line in enumerate(text.splitlines(), start=1)
        if re.match(r"[A-Z][A-Z0-9_]*\b.*=", line)
        and (comment := re.search(r"[^#'\"]#\s+(\S.*)$", line))
    ]
    assert len(comments) > 100
    assert [place for place, comment in comments if FRAGMENT.match(comment)] == []


def test_no_name_is_vague() -> None:
    names = [(path, *name) for path, _, tree in MODULES for name in bound_names(tree)]
    vague = [
        f"{path}:{line}: {name}"
        for path, line, name in names
        if name in VAGUE_NAMES - ALLOWED_NAMES
    ]
    assert vague == []


def test_a_public_class_has_its_name_for_itself() -> None:
    classes = Counter(
        node.name
        for _, _, tree in MODULES
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in classes.items() if count > 1] == []


def test_a_module_has_its_name_for_itself() -> None:
    stems = Counter(Path(path).stem for path, _, _ in MODULES)
    assert {stem for stem, count in stems.items() if count > 1} <= REPEATED_STEMS


def test_no_folder_is_crowded() -> None:
    folders = Counter(
        Path(path).parent.as_posix() for path, _, _ in MODULES if Path(path).stem != "__init__"
    )
    assert [folder for folder, count in folders.items() if count > MAX_MODULES] == []


def formatted_numbers(tree: ast.Module) -> Iterator[int]:
    """Yields the line of every f-string that formats a value itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FormattedValue) and node.format_spec is not None:
            yield node.lineno


def test_reports_cards_and_gates_leave_numbers_to_one_module() -> None:
    places = [
        f"{path}:{line}"
        for path, _, tree in MODULES
        if path.startswith(NUMBER_ROOMS) and Path(path).stem not in NUMBER_MODULES
        for line in formatted_numbers(tree)
    ]
    assert places == []


def imports() -> dict[str, set[str]]:
    """Returns module to the modules of this project that it imports, lazily or not."""
    names = {
        path.removeprefix("src/camelpress/").removesuffix(".py").removesuffix("/__init__"): tree
        for path, _, tree in MODULES
    }
    graph: dict[str, set[str]] = {name: set() for name in names}
    for name, tree in names.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("camelpress."):
                package = str(node.module).removeprefix("camelpress.").replace(".", "/")
                targets = {f"{package}/{alias.name}" for alias in node.names} | {package}
                graph[name] |= (targets & graph.keys()) - {name}
    return graph


def folder_imports(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Returns folder to the folders of the same stage or floor that it imports.

    A folder stands directly below its stage or floor, and includes its subfolders. A module beside
    the folders counts as one of them, but `settings` and `run`: both stand above all folders.
    """
    folders = {
        name: "/".join(name.split("/")[:2])
        for name in graph
        if name.count("/") and name.split("/")[1:] not in (["settings"], ["run"])
    }
    imported: dict[str, set[str]] = {folder: set() for folder in folders.values()}
    for name, folder in folders.items():
        targets = {folders[target] for target in graph[name] & folders.keys()} - {folder}
        imported[folder] |= {
            target for target in targets if target.split("/")[0] == name.split("/")[0]
        }
    return imported


def circles(graph: Mapping[str, set[str]]) -> list[str]:
    """Returns the names in circles, and those that import them."""
    rest = dict(graph)
    while leaves := {name for name, targets in rest.items() if not targets & rest.keys()}:
        rest = {name: targets for name, targets in rest.items() if name not in leaves}
    return sorted(rest)


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = imports()
    assert sum(map(len, graph.values())) > 1000
    assert circles(graph) == []


def test_no_folders_of_a_stage_import_each_other_in_a_circle() -> None:
    graph = folder_imports(imports())
    assert sum(map(len, graph.values())) > 100
    assert circles(graph) == []


def test_a_circle_of_folders_without_a_circle_of_modules_is_recognized() -> None:
    graph = {
        "validate/run": {"validate/store/build"},
        "validate/store/build": {"validate/comparison/compare"},
        "validate/comparison/compare": {"validate/store/inner/read"},
        "validate/store/inner/read": {"core/errors", "validate/settings"},
        "validate/settings": {"validate/corpus/text"},
        "validate/corpus/text": set[str](),
        "core/errors": set[str](),
    }
    assert circles(graph) == []
    assert circles(folder_imports(graph)) == ["validate/comparison", "validate/store"]
    graph["validate/comparison/compare"] = {"validate/corpus/text"}
    assert circles(folder_imports(graph)) == []


@pytest.mark.parametrize("text", ["What a layer keeps.", "Of the base.", "and no more"])
def test_a_fragment_is_recognized(text: str) -> None:
    assert FRAGMENT.match(text)
    assert not FRAGMENT.match("Offset of a row.") and not FRAGMENT.match("Assembles a row.")
