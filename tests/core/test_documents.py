"""Texts and conversations come out of every layout, and a row that does not fit is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from camelpress.core.documents import (
    encode_document,
    read_documents,
    require_own_names,
)
from camelpress.core.errors import RecipeProblem
from camelpress.core.layouts import Document
from camelpress.core.prompt import Message, encode
from camelpress.core.templates import written
from camelpress.core.tokens import Tokenizer


def turns(*contents: str) -> Document:
    """A conversation that the user begins."""
    return tuple(
        Message(role="assistant" if place % 2 else "user", content=content)
        for place, content in enumerate(contents)
    )


def read(folder: Path, *rows: Any, suffix: str = ".jsonl") -> list[Document]:
    path = folder / f"rows{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows), encoding="utf-8")
    return read_documents(path)


def refused(path: Path, content: str | bytes) -> RecipeProblem:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(RecipeProblem) as told:
        read_documents(path)
    assert told.value.exit_code == 2
    assert len(str(told.value).splitlines()) == 1
    return told.value


# --- layouts ------------------------------------------------------------------------------------

HUMAN, MODEL = {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "some text"}, "some text"),
        (
            {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
            turns("Q", "A"),
        ),
        ({"conversations": [HUMAN, MODEL, HUMAN]}, turns("Q", "A")),
        ({"conversations": [HUMAN], "chosen": MODEL, "rejected": HUMAN}, turns("Q", "A")),
        (
            {"instruction": "Do", "input": "this", "output": "Done"},
            turns(written("Do", "this"), "Done"),
        ),
        ({"instruction": "Do", "input": " \n", "output": "Done"}, turns(written("Do", ""), "Done")),
        ({"instruction": "Do", "output": "Done"}, turns(written("Do", ""), "Done")),
        (
            {"instruction": "Do", "context": "it", "response": "OK"},
            turns(written("Do", "it"), "OK"),
        ),
        ({"instruction": "Do", "context": "", "response": "OK"}, turns(written("Do", ""), "OK")),
        ({"task_prompt": "Q", "task_output": "A"}, turns("Q", "A")),
        ({"prompt": "Q\n", "completions": [{"model": "m", "completion": "A"}]}, turns("Q\n", "A")),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_every_layout_is_read(tmp_path: Path, row: Any, expected: Document, suffix: str) -> None:
    extra = {"id": 1, "dataset": "x"}
    assert read(tmp_path, extra | row, row, suffix=suffix) == [expected, expected]


def test_a_compressed_file_is_read_as_what_is_in_it(tmp_path: Path) -> None:
    for name, content in [("a.jsonl.gz", '{"text": "sea"}'), ("b.txt.gz", "sea")]:
        (tmp_path / name).write_bytes(gzip.compress(content.encode()))
        assert read_documents(tmp_path / name) == ["sea"]


@pytest.mark.parametrize("damage", [b"", b"\x1f\x8b\x08", b"no gzip"])
def test_a_damaged_compressed_file_is_named(tmp_path: Path, damage: bytes) -> None:
    packed = gzip.compress(b"sea" * 1000)
    told = refused(tmp_path / "a.txt.gz", damage or packed[:20] + b"\0" * 9)
    assert told.what.startswith(f"{tmp_path / 'a.txt.gz'} cannot be read as UTF-8 text (")


def test_instruction_and_input_lose_the_blanks_around_them(tmp_path: Path) -> None:
    row = {"instruction": " Do\n", "input": "\nthis ", "output": " Done "}
    assert read(tmp_path, row) == [turns(written("Do", "this"), " Done ")]


@pytest.mark.parametrize(
    ("speaker", "role"),
    [("human", "user"), ("user", "user"), ("gpt", "assistant"), ("chatgpt", "assistant")],
)
def test_sharegpt_speakers_get_their_roles(tmp_path: Path, speaker: str, role: str) -> None:
    said = {"from": speaker, "value": "x"}
    row = {"conversations": [said, MODEL] if role == "user" else [HUMAN, said]}
    (document,) = read(tmp_path, row)
    assert Message.model_validate({"role": role, "content": "x"}) in document


@pytest.mark.parametrize("other", ["system", "bing", "tool"])
def test_sharegpt_conversations_with_others_are_dropped(tmp_path: Path, other: str) -> None:
    with_other = {"conversations": [{"from": other, "value": "x"}, HUMAN, MODEL]}
    documents = read(tmp_path, with_other, {"conversations": [HUMAN, MODEL]})
    assert documents == [turns("Q", "A")]


def test_rows_without_messages_are_dropped(tmp_path: Path) -> None:
    documents = read(tmp_path, {"messages": []}, {"conversations": []}, {"text": "t"})
    assert documents == ["t"]


@pytest.mark.parametrize("blank", ["", "  ", "\n\t"])
def test_blank_texts_are_dropped(tmp_path: Path, blank: str) -> None:
    assert read(tmp_path, {"text": blank}, {"text": "t"}) == ["t"]


def test_blank_lines_of_json_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"text": "a"}\n\n  \n{"text": "b"}')
    assert read_documents(path) == ["a", "b"]


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x85", "\x1c", "\x7f"])
def test_only_a_newline_ends_a_json_line(tmp_path: Path, inside: str) -> None:
    path = tmp_path / "rows.jsonl"
    text = f"one{inside}text"
    row = f'{{"text": "{text}"}}' if inside >= "\x20" else json.dumps({"text": text})
    path.write_text(row + "\r\n" + row + "\n", encoding="utf-8")
    assert read_documents(path) == [text, text]


@pytest.mark.parametrize("name", ["novel.txt", "novel", "README.md"])
def test_any_other_file_is_one_text(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('Call me Ishmael.\n\n{"text": "no row"}\n', encoding="utf-8")
    assert read_documents(path) == ['Call me Ishmael.\n\n{"text": "no row"}\n']


# --- what is refused ----------------------------------------------------------------------------


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeProblem) as told:
        read_documents(tmp_path / "no.txt")
    assert str(told.value) == (
        f"{tmp_path / 'no.txt'} cannot be read as UTF-8 text (FileNotFoundError); "
        "give a text, JSON or JSON lines file"
    )


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    told = refused(tmp_path / "latin.txt", "naïve".encode("latin-1"))
    assert str(told) == (
        f"{tmp_path / 'latin.txt'} cannot be read as UTF-8 text (UnicodeDecodeError); "
        "give a text, JSON or JSON lines file"
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.txt", ""),
        ("x.txt", " \n"),
        ("x.jsonl", "\n"),
        ("x.json", "[]"),
        ("x.jsonl", '{"messages": []}'),
        ("x.jsonl", '{"conversations": [{"from": "system", "value": "x"}]}'),
    ],
)
def test_a_file_without_text_is_refused(tmp_path: Path, name: str, content: str) -> None:
    told = refused(tmp_path / name, content)
    assert str(told) == f"{tmp_path / name} holds no text; give a file that does"


def test_a_broken_json_line_is_named_with_its_number(tmp_path: Path) -> None:
    told = refused(tmp_path / "x.jsonl", '{"text": "a"}\n\n{"text": "b"\n')
    assert told.what == (
        f"{tmp_path / 'x.jsonl'}:3 is not valid JSON (Expecting ',' delimiter: line 1 column 13 "
        "(char 12))"
    )
    assert told.next_step == "mend or leave out that line"


@pytest.mark.parametrize("content", ["[", "[" * 100_000, f"[{'9' * 5000}]"])
def test_broken_json_is_named(tmp_path: Path, content: str) -> None:
    told = refused(tmp_path / "x.json", content)
    assert told.what.startswith(f"{tmp_path / 'x.json'} is not valid JSON (")
    assert told.next_step == "give a list of rows"


def test_json_that_is_no_list_is_refused(tmp_path: Path) -> None:
    told = refused(tmp_path / "x.json", '{"title": "a"}')
    assert str(told) == f"{tmp_path / 'x.json'} is not a JSON list; give a list of rows"


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("x.jsonl", '{"text": "a"}\n\n["b"]', "x.jsonl:3"),
        ("x.json", '[{"text": "a"}, "b"]', "x.json[1]"),
    ],
)
def test_a_row_that_is_no_object_is_named(
    tmp_path: Path, name: str, content: str, place: str
) -> None:
    told = refused(tmp_path / name, content)
    assert str(told) == f"{tmp_path / place} is not an object; give a row with named fields"


def test_an_unknown_layout_is_named_with_the_known_ones(tmp_path: Path) -> None:
    told = refused(tmp_path / "x.jsonl", '{"text": "a"}\n{"prompt": "p", "completion": "c"}')
    assert told.what == f"{tmp_path / 'x.jsonl'}:2 has only the fields completion, prompt"
    assert told.next_step == (
        "use one of the layouts: messages; conversations; instruction, instances; "
        "instruction, output; instruction, response; message_tree_id, prompt; inputs, targets; "
        "Definition, Positive Examples, Instances; input with [|Human|]; task_prompt, task_output; "
        "prompt, completions; text"
    )


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": None}, "messages"),
        ({"conversations": [HUMAN, {"from": "gpt"}]}, "conversations"),
        ({"conversations": [{"from": ["gpt"], "value": "x"}]}, "conversations"),
        ({"conversations": [HUMAN], "chosen": "A"}, "conversations"),
        ({"instruction": 3, "output": "x"}, "instruction, output"),
        ({"instruction": "Do", "input": None, "output": "x"}, "instruction, output"),
        ({"instruction": "Do", "output": None}, "instruction, output"),
        ({"instruction": "Do", "response": ["x"]}, "instruction, response"),
        ({"task_prompt": "Do", "task_output": 7}, "task_prompt, task_output"),
        ({"prompt": "Q", "completions": None}, "prompt, completions"),
        ({"prompt": "Q", "completions": "A"}, "prompt, completions"),
        ({"prompt": "Q", "completions": [{"model": "m"}]}, "prompt, completions"),
        ({"prompt": "Q", "completions": [{"completion": None}]}, "prompt, completions"),
        ({"prompt": None, "completions": [{"completion": "A"}]}, "prompt, completions"),
        ({"text": None}, "text"),
        ({"text": 7}, "text"),
        ({"text": "half a camel \ud83d"}, "text"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "messages"),
    ],
)
def test_a_known_layout_in_another_form_is_named(tmp_path: Path, row: Any, fields: str) -> None:
    told = refused(tmp_path / "x.jsonl", "\n" + json.dumps(row))
    assert str(told) == (
        f"{tmp_path / 'x.jsonl'}:2 has the fields {fields}, but not in their usual form; "
        "mend or leave out that row"
    )


@pytest.mark.parametrize("models", [[], ["one", "other"]])
def test_a_prompt_has_one_completion(tmp_path: Path, models: list[str]) -> None:
    row = {"prompt": "Q", "completions": [{"model": model, "completion": "A"} for model in models]}
    told = refused(tmp_path / "x.jsonl", json.dumps(row))
    assert str(told) == (
        f"{tmp_path / 'x.jsonl'}:1 has the fields prompt, completions, "
        "but not exactly one completion; mend or leave out that row"
    )


# --- ids ----------------------------------------------------------------------------------------


def test_a_text_is_encoded_as_the_tokenizer_does_and_a_conversation_as_tulu(base: Path) -> None:
    tokenizer = Tokenizer.load(base)
    conversation = turns("Q", "A")
    assert not isinstance(conversation, str)
    assert encode_document("Q", tokenizer) == tokenizer.encode_document("Q")
    assert encode_document(conversation, tokenizer) == encode(conversation, tokenizer)


def test_files_of_one_name_are_refused() -> None:
    with pytest.raises(RecipeProblem, match="two texts are called a.txt") as told:
        require_own_names(["a.txt", "b.txt", "a.txt"])
    assert told.value.next_step == "rename one of them"
