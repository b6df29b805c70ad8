"""Texts and conversations come out of every layout, and a row that does not fit is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from camelpress.core import documents
from camelpress.core.documents.dataset_formats import Document
from camelpress.core.documents.document_reader import (
    encode_document,
    read_corpus,
    read_documents,
    require_unique_names,
)
from camelpress.core.documents.instruction_templates import format_instruction
from camelpress.core.documents.omissions import MAX_REASONS, OTHER_REASONS
from camelpress.core.errors import RecipeProblem
from camelpress.core.progress import use_listener
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.core.text.tulu_format import Message, encode_chat
from notes import Notes


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
            turns(format_instruction("Do", "this"), "Done"),
        ),
        (
            {"instruction": "Do", "input": " \n", "output": "Done"},
            turns(format_instruction("Do", ""), "Done"),
        ),
        ({"instruction": "Do", "output": "Done"}, turns(format_instruction("Do", ""), "Done")),
        (
            {"instruction": "Do", "context": "it", "response": "OK"},
            turns(format_instruction("Do", "it"), "OK"),
        ),
        (
            {"instruction": "Do", "context": "", "response": "OK"},
            turns(format_instruction("Do", ""), "OK"),
        ),
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
    problem = refused(tmp_path / "a.txt.gz", damage or packed[:20] + b"\0" * 9)
    assert problem.message.startswith(f"{tmp_path / 'a.txt.gz'} is no whole gzip file (")
    assert problem.next_step == "download it again, or give it unpacked"


def test_instruction_and_input_lose_the_blanks_around_them(tmp_path: Path) -> None:
    row = {"instruction": " Do\n", "input": "\nthis ", "output": " Done "}
    assert read(tmp_path, row) == [turns(format_instruction("Do", "this"), " Done ")]


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

FULL = "use one of the layouts: messages; conversations; conversation; instruction, instances; "


@pytest.mark.parametrize(
    ("name", "content"), [("x.txt", " \n"), ("x.jsonl", "\n"), ("x.json", "[]")]
)
def test_a_file_without_text_is_refused(tmp_path: Path, name: str, content: str) -> None:
    problem = refused(tmp_path / name, content)
    assert str(problem) == f"{tmp_path / name} holds no text; give a file that does"


def test_an_unknown_layout_is_named_with_the_known_ones(tmp_path: Path) -> None:
    problem = refused(tmp_path / "x.jsonl", '\n{"prompt": "p", "reply": "c"}')
    path = tmp_path / "x.jsonl"
    assert problem.message == (
        f"{path} has no row that can be used: {path}:2 is left out because it has only the fields "
        "prompt, reply"
    )
    assert problem.next_step == (
        f"{FULL}instruction, output; instruction, response; message_tree_id, prompt; "
        "inputs, targets; Definition, Positive Examples, Instances; input with [|Human|]; "
        "task_prompt, task_output; prompt, completions; text; message_id, parent_id, role, text"
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (["b"], "it is a list, not an object with named fields"),
        ({}, "it has no fields"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "a turn has the role 'tool'"),
        ({"messages": [{"role": "user"}]}, "content is missing"),
        ({"messages": [{"content": "x"}]}, "role is missing"),
        ({"messages": ["x"]}, "messages holds something else than objects"),
        ({"messages": "hello"}, "messages is text, not a list"),
        ({"messages": None}, "messages is null"),
        ({"messages": []}, "messages is empty"),
        ({"conversations": [HUMAN, {"from": "gpt"}]}, "content is missing"),
        ({"conversations": [{"from": ["gpt"], "value": "x"}]}, "from is a list, not text"),
        ({"conversations": [HUMAN], "chosen": "A"}, "chosen is text, not an object"),
        ({"conversations": []}, "conversations is empty"),
        ({"instruction": 3, "output": "x"}, "instruction is a number, not text"),
        ({"instruction": "Do", "input": {}, "output": "x"}, "input is an object, not text"),
        ({"instruction": "Do", "output": None}, "output is null"),
        ({"instruction": "Do", "output": float("nan")}, "output is null"),
        ({"instruction": "Do", "response": ["x"]}, "response is a list, not text"),
        ({"task_prompt": "Do", "task_output": True}, "task_output is a truth value, not text"),
        ({"prompt": "Q", "completions": None}, "completions is null"),
        ({"prompt": "Q", "completions": "A"}, "completions is text, not a list"),
        ({"prompt": "Q", "completions": [{"model": "m"}]}, "completion is missing"),
        ({"prompt": "Q", "completions": [{"completion": None}]}, "completion is null"),
        ({"prompt": None, "completions": [{"completion": "A"}]}, "prompt is null"),
        ({"prompt": "Q", "completions": []}, "it has not exactly one completion"),
        (
            {"prompt": "Q", "completions": [{"completion": "A"}, {"completion": "B"}]},
            "it has not exactly one completion",
        ),
        ({"text": None}, "text is null"),
        ({"text": 7}, "text is a number, not text"),
        ({"text": " \n"}, "text is blank"),
        ({"text": "half a camel \ud83d"}, "its text has half of a surrogate pair"),
        (
            {"messages": [{"role": "user", "content": "\ud83d"}]},
            "its text has half of a surrogate pair",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_counted_with_its_reason(
    tmp_path: Path, row: Any, reason: str
) -> None:
    path = tmp_path / "x.jsonl"
    problem = refused(path, f"\n{json.dumps(row)}\n{json.dumps(row)}")
    assert problem.message == (
        f"{path} has no row that can be used: {path}:2 is left out because {reason}"
    )
    path.write_text('{"text": "a"}\n' + f"{json.dumps(row)}\n" * 2, encoding="utf-8")
    notes = Notes()
    with use_listener(notes):
        corpus = read_corpus(path)
    assert (corpus.documents, corpus.rows) == (["a"], 3)
    assert corpus.omissions == {"rows": {reason: 2}}
    assert notes.heard == [
        f"{path}: left out 2 of 3 rows (2 because {reason}); the first is in {path}:2"
    ]


def test_the_reasons_of_a_file_are_bounded(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": f"r{number}", "content": "x"}]} for number in range(99)]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, [{"text": "a"}, *rows])), encoding="utf-8")
    (reasons,) = read_corpus(path).omissions.values()
    assert len(reasons) == MAX_REASONS + 1
    assert (sum(reasons.values()), reasons[OTHER_REASONS]) == (99, 99 - MAX_REASONS)


def test_fields_that_nobody_reads_are_counted_and_not_noted(tmp_path: Path) -> None:
    turns_ = [{"role": "user", "content": "Q", "name": "Ann"}]
    rows = [{"messages": turns_, "id": 7, "empty": None}, {"text": "t", "a b": "x", "list": []}]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    notes = Notes()
    with use_listener(notes):
        corpus = read_corpus(path)
    assert corpus.omissions == {"fields": {"id": 1, "messages[].name": 1, "'a b'": 1}}
    assert notes.heard == []


# --- ids ----------------------------------------------------------------------------------------


def test_a_text_is_encoded_as_the_tokenizer_does_and_a_conversation_as_tulu(base: Path) -> None:
    tokenizer = Tokenizer.load(base)
    conversation = turns("Q", "A")
    assert not isinstance(conversation, str)
    assert encode_document("Q", tokenizer) == tokenizer.encode_document("Q")
    assert encode_document(conversation, tokenizer) == encode_chat(conversation, tokenizer)


def test_files_of_one_name_are_refused() -> None:
    with pytest.raises(RecipeProblem, match="two texts are called a.txt") as told:
        require_unique_names(["a.txt", "b.txt", "a.txt"])
    assert told.value.next_step == "rename one of them"


# --- tables that are not rows -------------------------------------------------------------------

ALPACA = [{"instruction": "Q", "output": "A"}, {"instruction": "R", "output": "B"}]
ORCA = [{"question": "Q", "response": "A"}, {"question": "R", "response": "B"}]


@pytest.mark.parametrize("orient", ["columns", "index", "split"])
@pytest.mark.parametrize("rows", [ALPACA, ORCA], ids=["a layout", "no layout"])
def test_a_table_of_pandas_in_another_order_is_named(
    tmp_path: Path, rows: list[dict[str, str]], orient: Any
) -> None:
    pandas = pytest.importorskip("pandas", reason="lm-evaluation-harness brings it")
    content = pandas.DataFrame(rows).to_json(orient=orient)
    problem = refused(tmp_path / "x.json", content)
    assert f"is a table in one object, in the order {orient!r} of pandas" in problem.message
    assert f"orient={orient!r}" in problem.next_step


@pytest.mark.parametrize("orient", ["columns", "index", "split"])
def test_the_next_step_for_a_table_of_pandas_works(tmp_path: Path, orient: Any) -> None:
    pandas = pytest.importorskip("pandas", reason="lm-evaluation-harness brings it")
    path, converted = tmp_path / "x.json", tmp_path / "rows.jsonl"
    path.write_text(pandas.DataFrame(ALPACA).to_json(orient=orient), encoding="utf-8")
    table = pandas.read_json(path, orient=orient, dtype=False)
    table.to_json(converted, orient="records", lines=True)
    assert len(read_corpus(converted).documents) == 2


def test_lists_of_values_are_columns(tmp_path: Path) -> None:
    for content in ('{"instruction": ["Q", "R"], "output": ["A", "B"]}', '{"text": ["a", "b"]}'):
        assert "in the order 'columns' of pandas" in refused(tmp_path / "x.json", content).message


def test_an_answer_of_the_dataset_viewer_is_named(tmp_path: Path) -> None:
    rows = [{"row_idx": 0, "row": ALPACA[0], "truncated_cells": ["output"]}]
    features = [{"feature_idx": 0, "name": "instruction"}]
    problem = refused(tmp_path / "x.json", json.dumps({"features": features, "rows": rows}))
    assert "is an answer of the hub's dataset viewer" in problem.message
    assert "load_dataset" in problem.next_step


@pytest.mark.parametrize(
    ("question", "answer", "names"),
    [
        ("question", "response", ("inputs", "targets")),
        ("prompt", "completion", ("inputs", "targets")),
        ("question", "answer", ("inputs", "targets")),
        ("input", "output", ("inputs", "targets")),
        ("instruction", "answer", ("instruction", "output")),
    ],
)
def test_the_next_step_renames_a_question_and_its_answer(
    tmp_path: Path, question: str, answer: str, names: tuple[str, str]
) -> None:
    row = {"system_prompt": "Be brief.", question: "How deep is it?", answer: "Very."}
    problem = refused(tmp_path / "x.jsonl", json.dumps(row))
    assert f"{answer} to {names[1]}" in problem.next_step
    renamed = {"system_prompt": "Be brief.", names[0]: "How deep is it?", names[1]: "Very."}
    (conversation,) = read(tmp_path, renamed)
    assert not isinstance(conversation, str)
    assert [turn.role for turn in conversation] == ["system", "user", "assistant"]


@pytest.mark.parametrize("row", [["Q", "A"], "Q", [{"role": "user", "content": "Q"}]])
def test_a_row_without_names_is_told_how_to_get_them(tmp_path: Path, row: Any) -> None:
    problem = refused(tmp_path / "x.json", json.dumps([row, row]))
    assert problem.next_step.startswith("write each row as an object")


@pytest.mark.parametrize("field", ["messages", "conversations"])
def test_the_only_row_of_a_file_may_be_a_conversation(tmp_path: Path, field: str) -> None:
    turns = {
        "messages": [
            {"role": "user", "content": "a whale"},
            {"role": "assistant", "content": "the sea"},
        ],
        "conversations": [
            {"from": "human", "value": "a whale"},
            {"from": "gpt", "value": "the sea"},
        ],
    }
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({field: turns[field]}), encoding="utf-8")
    assert len(read_documents(path)) == 1


def test_a_script_imports_the_reader_from_the_package(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Some prose.")
    assert documents.read_documents(tmp_path / "text.txt") == ["Some prose."]
