"""Fills the reference pages of the site from the command line and the settings.

mkdocs calls `on_page_markdown` for each page; a line `<!-- generated: NAME -->` becomes the table
or the list of that name. The pages are therefore never older than the code. `on_page_content` marks
intervals and short inline code, such as an option, so that no line breaks inside them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import typer.main

from camelpress.cli.commands import app
from camelpress.pipeline.recipe import Recipe
from camelpress.reporting.tables.markdown_table import LEFT, markdown_table
from camelpress.validate.settings import Gate

MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
INTERVAL = re.compile(r"\([\d.,]+ - [\d.,]+\)")
SHORT_CODE = re.compile(r"<code>([^<\n]{1,32})</code>")  # inline code has no elements inside
MAX_NAMES = 6  # keys of a mapping that a cell lists
NAMES = {"Path": "path", "int": "number", "float": "number", "list": "texts"}
SECTIONS = ("recover", "quantize", "validate", "publish")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Returns the Markdown of a page with its generated parts in place."""
    return MARK.sub(lambda match: GENERATED[match[1]](), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Returns the HTML of a page with the class `short` on intervals and short inline code."""
    html = INTERVAL.sub(r'<span class="short">\g<0></span>', html)
    return SHORT_CODE.sub(r'<code class="short">\1</code>', html)


def commands() -> str:
    """Returns a section for each command, with the options that not every command has."""
    group: Any = typer.main.get_command(app)
    shared = set.intersection(
        *({each.name for each in group.commands[name].params} for name in group.commands)
    )
    return "\n\n".join(_command(name, group.commands[name], shared) for name in group.commands)


def recipe() -> str:
    """Returns a table for the top of a recipe and one for each of its sections."""
    schema = Recipe.model_json_schema()
    definitions = schema["$defs"]
    top = {name: value for name, value in schema["properties"].items() if name not in SECTIONS}
    parts = ["## Top level", _keys(top, definitions)]
    for section in SECTIONS:
        model = schema["properties"][section]["$ref"].rpartition("/")[2]
        parts += [f"## `{section}`", _keys(definitions[model]["properties"], definitions)]
    return "\n\n".join(parts)


def gate() -> str:
    """Returns a table of the keys of a gate."""
    schema = Gate.model_json_schema()
    return _keys(schema["properties"], schema["$defs"])


def _command(name: str, command: Any, shared: Set[str]) -> str:
    arguments = [each for each in command.params if not _is_option(each)]
    options = [each for each in command.params if _is_option(each) and each.name not in shared]
    usage = " ".join(["camelpress", name, *map(_argument, arguments), "[OPTIONS]"])
    rows = [(_flags(option), _values(option), _plain(option.help)) for option in options]
    table = [_table(("option", "values", "meaning"), rows)] if rows else []
    return "\n\n".join([f"## {name}", _plain(command.help), f"```sh\n{usage}\n```", *table])


def _is_option(parameter: Any) -> bool:
    return str(parameter.opts[0]).startswith("-")


def _argument(parameter: Any) -> str:
    name = str(parameter.metavar or parameter.name).strip("[]").upper()
    return name if parameter.required else f"[{name}]"


def _flags(option: Any) -> str:
    return ", ".join(f"`{flag}`" for flag in [*option.opts, *option.secondary_opts])


def _values(option: Any) -> str:
    if option.is_flag:
        return ""
    if option.metavar:
        return ", ".join(f"`{value}`" for value in option.metavar.split("|"))
    kind = str(getattr(option.type_descriptor.annotation, "__name__", "text"))
    return NAMES.get(kind, "text")


def _keys(properties: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    rows = [
        (f"`{name}`", _type(value, definitions), _default(value), _plain(_meaning(value)))
        for name, value in properties.items()
    ]
    return _table(("key", "values", "default", "meaning"), rows)


def _meaning(value: Mapping[str, Any]) -> str:
    return str(value.get("description", ""))


def _default(value: Mapping[str, Any]) -> str:
    if "default" not in value:
        return "required"
    default = value["default"]
    if isinstance(default, dict):
        return ", ".join(
            _code(f"{key}: ", item) for key, item in default.items() if not _is_empty(item)
        )
    return "" if _is_empty(default) else _code("", default)


def _is_empty(default: object) -> bool:
    return default in (None, [], {})


def _code(prefix: str, default: object) -> str:
    return f"`{prefix}{default if isinstance(default, str) else json.dumps(default)}`"


def _type(value: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "enum" in value:
        return ", ".join(f"`{each}`" for each in value["enum"])
    if "anyOf" in value:
        kinds = [_type(each, definitions) for each in value["anyOf"]]
        return " or ".join(kind for kind in kinds if kind != "null")
    if "$ref" in value:
        model = definitions[value["$ref"].rpartition("/")[2]]
        names = [f"`{name}`" for name in model["properties"]]
        return "{" + ", ".join(names[:MAX_NAMES]) + ", ..." * (len(names) > MAX_NAMES) + "}"
    if value.get("type") == "array":
        return f"list of {_type(value.get('items', {}), definitions)}"
    if value.get("type") == "object":
        return f"patterns to {_type(value.get('additionalProperties', {}), definitions)}"
    return "path" if value.get("format") == "path" else str(value.get("type", ""))


def _plain(text: str | None) -> str:
    """Returns a help text as Markdown: one paragraph in one line, without the markup of rich."""
    line = " ".join((text or "").split("\n\n")[0].split()).replace("\\[", "[")
    return re.sub(r"([<>*_|])", r"\\\1", line)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return markdown_table(head, rows, [LEFT] * len(head))


GENERATED: Mapping[str, Callable[[], str]] = {"commands": commands, "recipe": recipe, "gate": gate}
