"""Null means "not given", words for speakers are understood, and what is left out is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from camelpress.core.documents.dataset_formats import Document
from camelpress.core.documents.document_reader import Corpus, read_corpus
from camelpress.core.documents.instruction_templates import format_instruction
from camelpress.core.documents.omissions import describe_omissions, merge_counts, omission_rows
from camelpress.core.text.tulu_format import Message

NAN = float("nan")


def corpus_of(folder: Path, *rows: Any) -> Corpus:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_corpus(path)


def talk(*contents: str, system: str = "") -> Document:
    """A conversation that the user begins, perhaps after a system message."""
    first = (Message(role="system", content=system),) if system else ()
    return first + tuple(
        Message(role="assistant" if place % 2 else "user", content=content)
        for place, content in enumerate(contents)
    )


def turns(*pairs: tuple[Any, Any], keys: tuple[str, str] = ("role", "content")) -> list[Any]:
    return [dict(zip(keys, pair, strict=True)) for pair in pairs]


SHAREGPT = ("from", "value")
QA = turns(("user", "Q"), ("assistant", "A"))
HUMAN_GPT = turns(("human", "Q"), ("gpt", "A"), keys=SHAREGPT)


@pytest.mark.parametrize("nothing", [None, NAN])
@pytest.mark.parametrize(
    ("row", "key", "expected"),
    [
        ({"instruction": "Do", "output": "A"}, "input", talk(format_instruction("Do", ""), "A")),
        (
            {"instruction": "Do", "response": "A"},
            "context",
            talk(format_instruction("Do", ""), "A"),
        ),
        ({"instruction": "Do", "output": "A"}, "system", talk(format_instruction("Do", ""), "A")),
        ({"instruction": "Do", "output": "A"}, "history", talk(format_instruction("Do", ""), "A")),
        ({"conversations": HUMAN_GPT}, "system", talk("Q", "A")),
        ({"conversations": HUMAN_GPT}, "chosen", talk("Q", "A")),
        ({"messages": QA}, "conversations", talk("Q", "A")),
        ({"text": "sea"}, "messages", "sea"),
        ({"text": "sea"}, "role", "sea"),
        ({"text": "sea", "role": "captain", "parent_id": 1}, "from", "sea"),
        (
            {"instruction": "Do", "output": "A"},
            "conversations",
            talk(format_instruction("Do", ""), "A"),
        ),
        (
            {"instruction": "Do", "output": "A"},
            "instances",
            talk(format_instruction("Do", ""), "A"),
        ),
    ],
)
def test_null_means_not_given(
    tmp_path: Path, nothing: Any, row: Any, key: str, expected: Document
) -> None:
    corpus = corpus_of(tmp_path, {key: nothing} | row, row)
    assert corpus.documents == [expected] * 2
    assert set(corpus.omissions) <= {"fields"}


def test_a_row_without_its_answer_is_left_out_and_not_read_as_plain_text(tmp_path: Path) -> None:
    row = {"instruction": "Do", "output": None, "text": "### Instruction: Do"}
    corpus = corpus_of(tmp_path, row, {"text": "sea"})
    assert corpus.documents == ["sea"]
    assert corpus.omissions == {"rows": {"output is null": 1}}


@pytest.mark.parametrize(
    "keys", [("role", "content"), SHAREGPT, ("role", "value"), ("from", "text")]
)
@pytest.mark.parametrize("name", ["messages", "conversations", "conversation"])
@pytest.mark.parametrize(
    ("user", "model"),
    [
        ("user", "assistant"),
        ("human", "gpt"),
        ("Human", "GPT"),
        ("prompter", "bot"),
        ("USER", "model"),
        (" user ", "ChatGPT"),
        ("human", "ai"),
    ],
)
def test_a_turn_may_be_written_in_many_ways(
    tmp_path: Path, keys: tuple[str, str], name: str, user: str, model: str
) -> None:
    row = {name: turns((user, "Q"), (model, "A"), (user, "R"), (model, "B"), keys=keys)}
    corpus = corpus_of(tmp_path, row)
    assert corpus.documents == [talk("Q", "A", "R", "B")]
    assert corpus.omissions == {}


@pytest.mark.parametrize("name", ["messages", "conversations"])
def test_a_system_turn_stays_where_roles_are_written_as_roles(tmp_path: Path, name: str) -> None:
    row = {name: [{"role": "System", "content": "Be brief."}, *QA]}
    assert corpus_of(tmp_path, row).documents == [talk("Q", "A", system="Be brief.")]


@pytest.mark.parametrize("key", ["system", "system_prompt", "system_message"])
@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"conversations": HUMAN_GPT}, ("Q", "A")),
        ({"messages": QA}, ("Q", "A")),
        ({"messages": [{"role": "system", "content": "Be brief."}, *QA]}, ("Q", "A")),
        (
            {"instruction": "Do", "input": "it", "output": "A"},
            (format_instruction("Do", "it"), "A"),
        ),
        ({"instruction": "Do", "response": "A"}, (format_instruction("Do", ""), "A")),
        ({"inputs": "Q", "targets": "A"}, ("Q", "A")),
    ],
)
def test_a_system_field_comes_first_in_the_conversation(
    tmp_path: Path, key: str, row: Any, expected: tuple[str, str]
) -> None:
    corpus = corpus_of(tmp_path, row | {key: "Be brief."}, row | {key: " "})
    assert corpus.documents[0] == talk(*expected, system="Be brief.")
    assert len(corpus.documents) == 2
    assert corpus.omissions == {}


def test_a_history_comes_before_the_instruction(tmp_path: Path) -> None:
    row = {"instruction": "Do", "output": "A", "history": [["Q", "B"], ["R", "C"]]}
    corpus = corpus_of(tmp_path, row, row | {"history": []}, row | {"history": ["Q"]})
    last = (format_instruction("Do", ""), "A")
    assert corpus.documents == [talk("Q", "B", "R", "C", *last), talk(*last)]
    assert corpus.omissions == {"rows": {"history is not a list of pairs of texts": 1}}


def test_input_and_context_stand_for_one_another(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Do", "context": "it", "output": "A"},
        {"instruction": "Do", "input": "it", "response": "A"},
        {"instruction": "Do", "input": "it", "context": "that", "output": "A"},
    ]
    corpus = corpus_of(tmp_path, *rows)
    assert corpus.documents == [talk(format_instruction("Do", "it"), "A")] * 3
    assert corpus.omissions == {"fields": {"context": 1}}


@pytest.mark.parametrize("content", ["sea", [{"type": "text", "text": "sea"}], [{"text": "sea"}]])
def test_a_content_may_be_a_list_of_parts(tmp_path: Path, content: Any) -> None:
    row = {"messages": turns(("user", content), ("assistant", content))}
    assert corpus_of(tmp_path, row).documents == [talk("sea", "sea")]


def test_parts_of_one_content_are_put_end_to_end(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": text} for text in ("the ", "sea", "\n")]
    row = {"messages": turns(("user", parts), ("assistant", "A"))}
    assert corpus_of(tmp_path, row).documents == [talk("the sea\n", "A")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"messages": [QA[0], {"role": "assistant", "content": None, "tool_calls": [{}]}]},
            "a turn calls a tool",
        ),
        (
            {"messages": [QA[0], {"role": "assistant", "content": "A", "function_call": {"a": 1}}]},
            "a turn calls a tool",
        ),
        ({"messages": turns(("user", "Q"), ("function", "3"))}, "a turn has the role 'function'"),
        ({"messages": turns(("user", "Q"), ("\x1b[31m", "3"))}, "a turn has the role '\\x1b[31m'"),
        (
            {"messages": turns(("user", "Q"), ("r" * 99, "3"))},
            f"a turn has the role '{'r' * 40}...'",
        ),
        ({"messages": turns(("user", "Q"), ("assistant", None))}, "content is null"),
        ({"messages": turns((None, "Q"), ("assistant", "A"))}, "role is null"),
        (
            {"messages": turns(("user", [{"type": "image_url", "image_url": {}}]))},
            "a turn has a part of type 'image_url'",
        ),
        ({"messages": turns(("user", ["Q"]))}, "content holds something else than objects"),
        (
            {"conversations": turns(("human", "Q"), ("bard", "A"), keys=SHAREGPT)},
            "a turn has the role 'bard'",
        ),
        (
            {"conversations": turns(("gpt", "A"), ("human", "Q"), keys=SHAREGPT)},
            "user and assistant do not take turns, the user first",
        ),
        (
            {"conversations": turns(("human", "Q"), ("human", "R"), keys=SHAREGPT)},
            "user and assistant do not take turns, the user first",
        ),
        ({"conversations": turns(("human", "Q"), keys=SHAREGPT)}, "no answer follows"),
        (
            {"conversations": [{"from": "system", "value": "S"}, *HUMAN_GPT]},
            "a turn has the role 'system', and training left out such conversations",
        ),
        (
            {"role": "user", "text": "Q"},
            "it is one message of a conversation, without a message_id",
        ),
        (
            {"from": "Human", "text": "Q"},
            "it is one message of a conversation, without a message_id",
        ),
        ({"instruction": "Do", "instances": None}, "instances is null"),
        ({"Definition": [], "Positive Examples": [], "Instances": []}, "Definition is empty"),
        ({"inputs": "Q", "targets": None}, "targets is null"),
        ({"input": "[|Human|] Q [|Human|] "}, "no answer follows"),
        ({"question": "Q", "answer": "A"}, "it has only the fields answer, question"),
    ],
)
def test_a_row_is_left_out_for_a_reason(tmp_path: Path, row: Any, reason: str) -> None:
    corpus = corpus_of(tmp_path, {"text": "sea"}, row)
    assert corpus.documents == ["sea"]
    assert corpus.omissions["rows"] == {reason: 1}
    assert corpus.first_omission and corpus.first_omission[0].endswith("rows.jsonl:2")


def test_parts_of_rows_are_counted_by_themselves(tmp_path: Path) -> None:
    instance = {"input": "it", "output": "A"}
    corpus = corpus_of(
        tmp_path,
        {"conversations": [*HUMAN_GPT, HUMAN_GPT[0]]},
        {"input": "[|Human|] Q [|Human|] R [|AI|] A [|Human|] "},
        {"instruction": "Do", "instances": [instance, {"input": "", "output": None}, instance]},
        {
            "Definition": ["Do"],
            "Positive Examples": [],
            "Instances": [{"input": f"{number}", "output": ["A"]} for number in range(83)],
        },
    )
    assert len(corpus.documents) == 1 + 1 + 2 + 80
    assert corpus.omissions == {
        "turns": {"it is the last of an odd number": 1, "no answer follows": 1},
        "instances": {"output is null": 1, "training took 80 of a task": 3},
    }


def test_counts_are_told_in_one_line() -> None:
    counts = {"rows": {"output is null": 2, "text is blank": 1}, "turns": {"no answer follows": 4}}
    assert describe_omissions(counts, 1200) == (
        "3 of 1,200 rows (2 because output is null, 1 because text is blank), "
        "4 turns (4 because no answer follows)"
    )
    assert merge_counts([counts, {"rows": {"text is blank": 5}}]) == {
        "rows": {"output is null": 2, "text is blank": 6},
        "turns": {"no answer follows": 4},
    }


def test_a_report_without_counts_has_no_rows_of_them() -> None:
    assert omission_rows("a.txt", None, None) == omission_rows("b", {}, 1) == []
    fields = {"fields": {"id": 1, "label": 1}}
    assert omission_rows("c", fields, 1) == [("not read", "c: fields id, label")]
    unanswered = omission_rows("d", {}, 9, 2)
    assert unanswered == [("left out", "d: 2 cut before an answer begins")]
