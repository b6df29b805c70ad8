"""Settings and YAML are read strictly, and every fault is told at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field, ValidationError

from camelpress.core.errors import RecipeProblem
from camelpress.core.files.yaml_files import parse_yaml, read_yaml
from camelpress.core.settings import Settings


class Inner(Settings):
    size: int = Field(default=2, gt=0)
    share: float = 0.5


class Outer(Settings):
    name: str = "x"
    on: bool = True
    kind: Literal["a", "b"] = "a"
    files: tuple[Path, ...] = ()
    inner: Inner = Inner()


def refused(values: dict[str, Any]) -> str:
    with pytest.raises(RecipeProblem) as told:
        Outer.parse(values, source="here.yaml")
    assert told.value.next_step == "correct these entries"
    assert told.value.exit_code == 2
    assert len(str(told.value).splitlines()) == 1
    return told.value.message


def test_a_value_that_holds_itself_is_refused() -> None:
    assert not_yaml("files: &here [*here]").startswith(
        "here.yaml is not valid YAML (it has a value that contains itself in"
    )


# --- settings -----------------------------------------------------------------------------------


def test_nothing_given_gives_the_defaults() -> None:
    assert Outer.parse({}, source="") == Outer()


def test_plain_values_become_what_the_fields_say() -> None:
    found = Outer.parse({"files": ["a", "b/c"], "inner": {"share": 1}}, source="")
    assert found.files == (Path("a"), Path("b/c"))
    assert found.inner == Inner(share=1.0)


def test_paths_may_be_given_as_paths() -> None:
    assert Outer.parse({"files": [Path("a")]}, source="").files == (Path("a"),)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Outer().name = "y"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"nmae": "x"}, "nmae: Extra inputs are not permitted (did you mean name?)"),
        (
            {"inner": {"sizes": 3}},
            "inner.sizes: Extra inputs are not permitted (did you mean size?)",
        ),
        ({"on": "no"}, "on: Input should be a valid boolean"),
        ({"on": 1}, "on: Input should be a valid boolean"),
        ({"name": 4}, "name: Input should be a valid string"),
        ({"inner": {"size": "4"}}, "inner.size: Input should be a valid integer"),
        ({"inner": {"size": 4.0}}, "inner.size: Input should be a valid integer"),
        ({"inner": {"size": True}}, "inner.size: Input should be a valid integer"),
        ({"inner": {"size": 0}}, "inner.size: Input should be greater than 0"),
        ({"inner": {"share": "1e-2"}}, "inner.share: Input should be a valid number"),
        ({"inner": None}, "inner: Input should be an object"),
        ({"kind": "c"}, "kind: Input should be 'a' or 'b'"),
        ({"files": "a"}, "files: Input should be a valid array"),
        ({"files": ["a", 3]}, "files.1: Input should be a valid string"),
    ],
)
def test_a_fault_is_named_with_its_dotted_path(values: dict[str, Any], fault: str) -> None:
    assert refused(values) == f"here.yaml: {fault}"


def test_all_faults_come_in_one_message() -> None:
    told = refused({"on": "yes", "inner": {"size": 0, "colour": "red"}, "kind": "z"})
    assert told == (
        "here.yaml: on: Input should be a valid boolean, kind: Input should be 'a' or 'b', "
        "inner.size: Input should be greater than 0, "
        "inner.colour: Extra inputs are not permitted"
    )


# --- YAML ---------------------------------------------------------------------------------------


def not_yaml(text: str) -> str:
    with pytest.raises(RecipeProblem) as told:
        parse_yaml(text, source="here.yaml")
    assert len(str(told.value).splitlines()) == 1
    return told.value.message


def test_a_mapping_is_read() -> None:
    assert parse_yaml("a: 1\nb: {c: [x, 'y']}\n", source="") == {"a": 1, "b": {"c": ["x", "y"]}}


@pytest.mark.parametrize("text", ["a: 1\na: 2", "a: 1\na: 1", "{a: 1, b: 2, a: 3}"])
def test_a_key_given_twice_is_refused(text: str) -> None:
    assert "the key 'a' appears twice" in not_yaml(text)


def test_a_key_given_twice_deep_inside_is_refused_with_its_line() -> None:
    told = not_yaml("x:\n  - y:\n      a: 1\n      b: 2\n      a: 3\n")
    assert told.startswith("here.yaml is not valid YAML (the key 'a' appears twice in ")
    assert "line 5, column 7" in told


@pytest.mark.parametrize("key", ["3", "on", "1e-2", "null", "1.5"])
def test_a_key_that_is_no_name_is_refused(key: str) -> None:
    assert " is not a name in " in not_yaml(f"x: {{{key}: 1}}")
    assert parse_yaml(f"x: {{'{key}': 1}}", source="") == {"x": {key: 1}}


def test_the_same_key_in_two_mappings_is_fine() -> None:
    assert parse_yaml("x: {a: 1}\ny: {a: 2}", source="") == {"x": {"a": 1}, "y": {"a": 2}}


def test_a_tag_that_makes_objects_is_refused() -> None:
    told = not_yaml("a: !!python/object/apply:os.system ['true']")
    assert told.startswith("here.yaml is not valid YAML (could not determine a constructor")


@pytest.mark.parametrize(
    "text",
    [
        "a: [1",
        "a: b: c",
        "\ta: 1",
        "a: \x07",
        "? [x]\n: 1",
        "a: !!int x",
        "a: !!bool maybe",
        "a: !!timestamp x",
        "a: " + "9" * 5000,
        "a: " + "[" * 5000,
    ],
)
def test_what_is_not_yaml_is_told_in_one_line(text: str) -> None:
    assert not_yaml(text).startswith("here.yaml is not valid YAML (")


@pytest.mark.parametrize("text", ["", "- a", "text", "3"])
def test_yaml_that_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(RecipeProblem) as told:
        parse_yaml(text, source="here.yaml")
    assert str(told.value) == "here.yaml is not a mapping; give `name: value` lines"


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: naïve", encoding="utf-8")
    assert read_yaml(tmp_path / "x.yaml") == {"a": "naïve"}


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeProblem) as told:
        read_yaml(path)
    reason = "is not UTF-8 text" if content else "cannot be read (No such file or directory)"
    assert str(told.value) == f"{path} {reason}; give a YAML file"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-2", 0.03),
        ("1e-2", 0.01),
        (".5", 0.5),
        ("1E5", 1e5),
        ("-2.5e+3", -2500.0),
        ("1_000", 1000),
        ("0x1f", 31),
        ("2024-01-01", "2024-01-01"),
        ("1:30", "1:30"),
        ("1.2.3", "1.2.3"),
        ("0123", "0123"),
        ("12e4567", "12e4567"),
        ("e5", "e5"),
        ('"3e-2"', "3e-2"),
        ("!!str 3", "3"),
        ("on", True),
        ("~", None),
    ],
)
def test_plain_values_follow_yaml_1_2(text: str, value: object) -> None:
    read = parse_yaml(f"a: {text}", source="here.yaml")["a"]
    assert (read, type(read)) == (value, type(value))
