"""Every published data set becomes the conversations, and the ids, that Tulu was trained on.

The ids are written down by hand from the format (`core/text/tulu_format.py`) and the pieces of
LLaMA's tokenizer; the texts between them are what open-instruct's conversion leaves of each row.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from camelpress.core.documents.dataset_formats import (
    DATASET_FORMATS,
    FEW_SHOT_INSTANCES,
    ZERO_SHOT_INSTANCES,
    Document,
)
from camelpress.core.documents.document_reader import encode_document, read_documents
from camelpress.core.documents.instruction_templates import (
    TEMPLATES_WITH_INPUT,
    TEMPLATES_WITHOUT_INPUT,
    format_few_shot,
    format_instruction,
)
from camelpress.core.errors import RecipeProblem
from camelpress.core.files.file_hashes import sha256_json
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.core.text.tulu_format import Message

ROOT = Path(__file__).parents[2]
LLAMA = ROOT / os.environ.get("CAMELPRESS_LLAMA_TOKENIZER", ".models/llama-tokenizer")
DATA = ROOT / os.environ.get("CAMELPRESS_DATA", "../shared/data")

# fmt: off
BOS, EOS, NEWLINE = 1, 2, 13
USER      = [529, 29989, 1792, 29989, 29958, 13]         # "▁<", "|", "user", "|", ">", newline
ASSISTANT = [29966, 29989, 465, 22137, 29989, 29958, 13]  # "<", "|", "ass", "istant", "|", ">"
HELLO, HI, SING, BYE     = [10994], [18567], [10873], [2059, 29872]  # after a newline
DO, DONE, THIS           = [6132], [25632], [1366]
BE_BRIEF  = [915, 11473]
INPUT     = [4290, 29901]                                # "Input", ":"
OUTPUT    = [6466, 29901]
X, Y      = [29916], [29891]
# fmt: on


def turn(user: list[int], answer: list[int]) -> list[int]:
    return [*USER, *user, NEWLINE, *ASSISTANT, *answer, EOS]


HUMAN, GPT = {"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}
TASK = {
    "Definition": ["Do\n"],
    "Positive Examples": [{"input": "x", "output": "y", "explanation": "none"}],
    "Instances": [{"id": "1", "input": "this", "output": ["Done", "or not"]}],
}


def node(role: str, text: str, *replies: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "text": text, "replies": list(replies), **more}


TREE = {
    "message_tree_id": "0",
    "prompt": node(
        "prompter",
        "Hello\n",
        node("assistant", "Hi", node("prompter", "Do", node("assistant", "Done"))),
        node("assistant", "Bye", deleted=True),
    ),
}

# fmt: off
GOLDEN: list[tuple[str, Any, list[list[int]]]] = [
    ("dolly",
     {"instruction": "Sing", "context": "", "response": "Hi\n", "category": "creative_writing"},
     [turn(SING, HI)]),
    ("dolly with a context",
     {"instruction": "Hello", "context": "this\n", "response": "Done", "category": "closed_qa"},
     [turn([*HELLO, NEWLINE, *THIS], DONE)]),
    ("oasst1", TREE,
     [turn(HELLO, HI), turn(HELLO, HI) + turn(DO, DONE), turn(HELLO, BYE)]),
    ("code_alpaca, gpt4_alpaca, stanford_alpaca",
     {"instruction": "Hello", "input": "this", "output": "Done"},
     [turn([*HELLO, NEWLINE, *THIS], DONE)]),
    ("self_instruct",
     {"instruction": "Sing\n", "input": "", "output": " Done\n\n"},
     [turn(SING, DONE)]),
    ("flan_v2, cot",
     {"inputs": "Do\n\n", "targets": "\nDone ", "task": "any"},
     [turn(DO, DONE)]),
    ("sharegpt",
     {"id": "a_0", "conversations": [HUMAN, GPT, {"from": "user", "value": "Do"},
                                     {"from": "chatgpt", "value": "Done"}]},
     [turn(HELLO, HI) + turn(DO, DONE)]),
    ("wizardlm", {"idx": "a", "conversations": [HUMAN, GPT]}, [turn(HELLO, HI)]),
    ("unnatural",
     {"instruction": "Hello", "instances": [
         {"input": "this", "output": "Hi", "constraints": "be brief"},
         {"input": "this", "constraints": "None.", "output": "Done"},
     ]},
     [turn([*HELLO, NEWLINE, *BE_BRIEF, NEWLINE, NEWLINE, *THIS], HI),
      turn([*HELLO, NEWLINE, *THIS], DONE)]),
    ("super_ni",
     TASK | {"Definition": ["Hello"]},
     [turn([*HELLO, NEWLINE, *THIS], DONE)]),
    ("baize",
     {"topic": "t", "input": "The conversation between human and AI assistant.\n[|Human|] Hello\n"
                             "[|AI|] Hi\n[|Human|] Do\n[|AI|] Done\n[|Human|] "},
     [turn(HELLO, HI) + turn(DO, DONE)]),
    ("tulu",
     {"dataset": "x", "id": "x_0", "messages": [{"role": "user", "content": " Hello "},
                                                {"role": "assistant", "content": "Hi\n"}]},
     [turn(HELLO, HI)]),
]
# fmt: on


# of `test_documents_of_whole_data_are_the_same_as_ever`
DOCUMENTS = 258
DIGEST = "72a76b9ec2eceac8e6f09051a3efb0d16d8cb36643421c6c3b4a459dd29fdf26"


@pytest.fixture(scope="module")
def llama() -> Tokenizer:
    if not LLAMA.is_dir():
        pytest.skip(f"{LLAMA} is not there; make it: python tests/models/llama_tokenizer.py DIR")
    return Tokenizer.load(LLAMA)


def read(folder: Path, *rows: Any) -> list[Document]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_documents(path)


def said(*contents: str) -> Document:
    """A conversation that the user begins."""
    return tuple(
        Message(role="assistant" if place % 2 else "user", content=content)
        for place, content in enumerate(contents)
    )


@pytest.mark.parametrize(
    ("row", "expected"), [each[1:] for each in GOLDEN], ids=[g[0] for g in GOLDEN]
)
def test_ids_are_those_of_the_training(
    llama: Tokenizer, tmp_path: Path, row: Any, expected: list[list[int]]
) -> None:
    found = [encode_document(document, llama) for document in read(tmp_path, row)]
    assert found == [[BOS, *ids] for ids in expected]


def test_examples_of_a_task_stand_before_the_question(llama: Tokenizer, tmp_path: Path) -> None:
    task = TASK | {"Instances": [{"input": "x", "output": ["y"]}] * (ZERO_SHOT_INSTANCES + 1)}
    *_, last = read(tmp_path, task)
    one = [*INPUT, NEWLINE, *X, NEWLINE, *OUTPUT]
    asked = [*DO, NEWLINE, NEWLINE, *one, NEWLINE, *Y, NEWLINE, NEWLINE, *one]
    assert encode_document(last, llama) == [BOS, *turn(asked, Y)]


# --- templates ----------------------------------------------------------------------------------


@pytest.mark.parametrize("templates", [TEMPLATES_WITH_INPUT, TEMPLATES_WITHOUT_INPUT])
def test_shares_of_templates_add_up(templates: tuple[tuple[int, str], ...]) -> None:
    assert sum(share for share, _ in templates) == 100
    assert len({text for _, text in templates}) == len(templates)
    assert all(text == text.strip() for _, text in templates)


@pytest.mark.parametrize(
    ("templates", "given"), [(TEMPLATES_WITH_INPUT, "this"), (TEMPLATES_WITHOUT_INPUT, " \n")]
)
def test_templates_are_drawn_by_their_shares(
    templates: tuple[tuple[int, str], ...], given: str
) -> None:
    drawn = 10_000
    found = Counter(
        format_instruction(f"[{number}]", given)
        .replace(f"[{number}]", "{instruction}")
        .replace("this", "{input}")
        if given == "this"
        else format_instruction(f"[{number}]", given).replace(f"[{number}]", "{instruction}")
        for number in range(drawn)
    )
    for share, text in templates:
        count = found.pop(text.replace("with this", "with {input}") if given == "this" else text)
        assert abs(count - drawn * share / 100) < 4 * (drawn * share / 100) ** 0.5
    assert not found


def test_braces_in_an_instruction_are_text() -> None:
    assert "{input} {0}" in format_instruction("{input} {0}", "{instruction}")


def test_the_same_row_is_always_written_alike(tmp_path: Path) -> None:
    rows = [{"instruction": f"Do {number}", "output": "Done"} for number in range(40)]
    assert read(tmp_path, *rows)[::-1] == read(tmp_path, *rows[::-1])


def test_few_shot_examples_lose_their_blanks() -> None:
    examples = [{"input": " a\n", "output": "\nb "}]
    assert (
        format_few_shot(" I ", examples, "c\n")
        == "I\n\nInput:\na\nOutput:\nb\n\nInput:\nc\nOutput:"
    )


# --- quirks that are kept, and those that are not ------------------------------------------------


def test_every_answer_of_a_tree_ends_a_conversation_in_the_order_of_a_walk(tmp_path: Path) -> None:
    assert read(tmp_path, TREE) == [
        said("Hello\n", "Hi"),
        said("Hello\n", "Hi", "Do", "Done"),
        said("Hello\n", "Bye"),
    ]


def test_a_tree_may_be_deeper_than_python_calls(tmp_path: Path) -> None:
    deep = node("assistant", "Hi")
    for number in range(300):
        deep = node("prompter" if number % 2 == 0 else "assistant", "Hi", deep)
    assert len(read(tmp_path, {"message_tree_id": "0", "prompt": deep})) == 151


def test_an_unknown_role_in_a_tree_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeProblem, match="because a turn has the role 'narrator'"):
        read(tmp_path, {"message_tree_id": "0", "prompt": node("narrator", "Hi")})


def test_constraints_stand_below_the_instruction(tmp_path: Path) -> None:
    instance = {"input": "", "output": "Hi"}
    rows = [
        {"instruction": "Sing", "instances": [instance | {"constraints": constraints}]}
        for constraints in ("low", "NONE", "none.", "", None)
    ]
    asked = [format_instruction(text, "") for text in ("Sing\nlow", "Sing", "Sing", "Sing", "Sing")]
    assert read(tmp_path, *rows) == [said(text, "Hi") for text in asked]


def test_a_task_gives_60_instances_alone_and_20_with_examples(tmp_path: Path) -> None:
    instances = [{"input": f"x{number}", "output": [f"y{number}"]} for number in range(200)]
    examples = [{"input": f"e{number}", "output": f"f{number}"} for number in range(5)]
    task = TASK | {"Instances": instances, "Positive Examples": examples}
    documents = read(tmp_path, task)
    shown = [str(document[0]).count("Output:\\nf") for document in documents]
    assert shown == [0] * ZERO_SHOT_INSTANCES + [2] * FEW_SHOT_INSTANCES
    assert len({document[1] for document in documents}) == 80
    assert read(tmp_path, task) == documents


def test_a_file_that_is_one_task_is_read(tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text(json.dumps(TASK), encoding="utf-8")
    assert read_documents(tmp_path / "task.json") == read(tmp_path, TASK)


def test_a_sharegpt_conversation_ends_in_an_answer_and_alternates(tmp_path: Path) -> None:
    rows = [[HUMAN, GPT, HUMAN], [GPT, HUMAN], [HUMAN, HUMAN], [HUMAN], [HUMAN, GPT]]
    documents = read(tmp_path, *({"conversations": row} for row in rows))
    assert documents == [said("Hello", "Hi")] * 2


def test_a_round_of_baize_without_answer_is_dropped(tmp_path: Path) -> None:
    row = {"input": "-[|Human|]a[|Human|] b [|AI|] c [|Human|] "}
    assert read(tmp_path, row) == [said(" b ", " c ")]


def test_a_round_of_baize_with_two_answers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeProblem, match=r"\[\|AI\|\] stands twice in one round"):
        read(tmp_path, {"input": "[|Human|]a[|AI|]b[|AI|]c"})


def test_input_alone_is_no_layout(tmp_path: Path) -> None:
    with pytest.raises(RecipeProblem, match="has only the fields input, reply") as told:
        read(tmp_path, {"input": "Q", "reply": "A"})
    assert "input with [|Human|]" in told.value.next_step


@pytest.mark.parametrize("layout", DATASET_FORMATS, ids=lambda layout: layout.name)
def test_a_row_of_nothing_but_the_keys_is_left_out_by_one_of_them(
    tmp_path: Path, layout: Any
) -> None:
    reason = rf"because ({'|'.join(layout.keys)}) (is|holds) "
    with pytest.raises(RecipeProblem, match=reason if not layout.mark else "has only the fields"):
        read(tmp_path, dict.fromkeys(layout.keys, [layout.mark or 7]) | {"number": 1})


# --- real files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "documents"),
    [
        ("code_alpaca_2k.json", 2017),
        ("alpaca_en_demo.json", 999),
        ("dpo_en_demo_chosen.jsonl", None),
        ("evals_longform_chatbot.jsonl", 320),
    ],
)
def test_real_files_are_read(name: str, documents: int | None) -> None:
    path = DATA / "calibration" / name
    if not path.is_file():
        pytest.skip(f"{path} is not there; CAMELPRESS_DATA names the folder of real data")
    found = read_documents(path)
    assert len(found) == documents if documents else found
    assert all(
        document[-1].role == "assistant" for document in found if isinstance(document, tuple)
    )


def test_documents_of_whole_data_are_the_same_as_ever(tmp_path: Path) -> None:
    """The digest was taken before rows were counted; calibrations depend on every letter of it."""
    many = [
        {"input": f"x{number}", "output": [f"y{number}"], "constraints": "be brief"}
        for number in range(100)
    ]
    examples = [{"input": f"e{number}", "output": f"f{number}"} for number in range(5)]
    flat = [each | {"output": each["output"][0]} for each in many]
    rows = [
        *(row for _, row, _ in GOLDEN),
        *(
            {"instruction": f"Do {n}", "input": "" if n % 3 else "it", "output": "a"}
            for n in range(60)
        ),
        TASK | {"Definition": ["Add"], "Instances": many, "Positive Examples": examples},
        {"instruction": "Unite", "instances": flat},
        {"conversations": [HUMAN, GPT, HUMAN], "chosen": GPT, "rejected": GPT},
        {"conversations": [HUMAN, GPT, GPT]},
        {"conversations": [{"from": "system", "value": "S"}, HUMAN, GPT]},
        {"text": " a text\u2028\n"},
        {"text": " \n"},
        {"messages": []},
    ]
    documents = [
        document if isinstance(document, str) else [(turn.role, turn.content) for turn in document]
        for document in read(tmp_path, *rows)
    ]
    assert len(documents) == DOCUMENTS
    assert sha256_json(documents) == DIGEST
