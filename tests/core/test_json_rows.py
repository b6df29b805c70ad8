"""JSON is recognised by its content, whatever a file is called, and prose stays prose."""

from __future__ import annotations

import codecs
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camelpress.core.documents.document_reader import read_corpus, read_documents
from camelpress.core.errors import RecipeProblem

ROWS: list[Any] = [
    {"instruction": "Name a river", "input": "", "output": "The Nile"},
    {"messages": [{"role": "user", "content": "é\u2028{"}, {"role": "assistant", "content": "]"}]},
    {"text": 'She turns "[1]".\nThen {left}.'},
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
LIST = json.dumps(ROWS)
FORMS = {
    "JSON lines": LINES,
    "a list": LIST,
    "an indented list": json.dumps(ROWS, indent=1),
    "indented rows": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "rows on one line": " ".join(map(json.dumps, ROWS)),
    "lines that end in CRLF": LINES.replace("\n", "\r\n"),
    "lines that end in CR": LINES.replace("\n", "\r"),
    "blank lines": "\n\n" + LINES.replace("\n", "\n \n"),
    "a list in data": json.dumps({"version": "1", "data": ROWS}),
    "a list in train": json.dumps({"train": ROWS}),
    "a list in rows": json.dumps({"rows": ROWS}, indent=4),
    "files with marks, put together": "".join(f"\ufeff{json.dumps(row)}\n" for row in ROWS),
}
NAMES = ["a.jsonl", "a.json", "a.ndjson", "a.JSONL", "a.jsonlines", "a.jsonl.txt", "a.txt", "a"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    path = tmp_path_factory.mktemp("expected") / "a.jsonl"
    path.write_text(LINES, encoding="utf-8")
    return read_documents(path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_read_under_any_name(
    tmp_path: Path, name: str, form: str, expected: list[Any]
) -> None:
    (tmp_path / name).write_bytes(FORMS[form].encode())
    corpus = read_corpus(tmp_path / name)
    assert corpus.documents == expected
    assert corpus.rows == len(ROWS)
    assert set(corpus.omissions) <= {"fields"}


@pytest.mark.parametrize(
    ("mark", "codec"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
@pytest.mark.parametrize("content", [LINES, LIST])
def test_a_byte_order_mark_is_no_part_of_the_data(
    tmp_path: Path, mark: bytes, codec: str, content: str, expected: list[Any]
) -> None:
    (tmp_path / "a.jsonl").write_bytes(mark + content.encode(codec))
    assert read_documents(tmp_path / "a.jsonl") == expected
    (tmp_path / "a.txt").write_bytes(mark + "Straße\r\n".encode(codec))
    assert read_documents(tmp_path / "a.txt") == ["Straße\r\n"]


@pytest.mark.parametrize("name", ["a.gz", "a.jsonl.gz", "a.bin"])
def test_a_compressed_file_is_known_by_its_first_bytes(
    tmp_path: Path, name: str, expected: list[Any]
) -> None:
    (tmp_path / name).write_bytes(gzip.compress(LINES.encode()))
    assert read_documents(tmp_path / name) == expected


@pytest.mark.parametrize(
    "prose",
    [
        "[1] Introduction\n\nThe river rises.",
        "[[File:Nile.jpg]] The Nile is a river.",
        "{{Infobox river\n| name = Nile\n}}\nThe Nile is a river.",
        '"Call me Ishmael," he turns.\n',
        '"Yes."\n"No."\n"Yes."\n',
        '{"a": 1} is an object, and [1] a list.\n',
        "{not json}\n{either}\n",
        "[Chorus]\nSing, sing.\n",
        'Call me Ishmael.\n\n{"text": "no row"}\n',
        'The answer is JSON:\n```\n{"text": "a"}\n```\n',
        "---\ntitle: a, b\n---\nProse, prose.\n",
        "Hello, world.\nGood, bye.\n",
        "Text, context and question are three words.\nThat, indeed, is so.\n",
        "\tAn indented line.\n\tAnother.\n\tA third.\n",
        "One\ttab.\nNone.\nNone.\n",
    ],
)
def test_prose_stays_prose(tmp_path: Path, prose: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(prose, encoding="utf-8", newline="")
    assert read_documents(path) == [prose]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
@settings(deadline=None)
def test_a_text_in_a_row_comes_back_whatever_it_holds(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_text(json.dumps({"text": f"{text}."}, ensure_ascii=False), encoding="utf-8")
    assert read_documents(path) == [f"{text}."]


# --- damaged JSON is named by its line, and never read as prose -----------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt"])
@pytest.mark.parametrize(
    ("content", "place"),
    [
        ('{"text": "a"}\n\n{"text": "b"\n', 3),
        ('{"text": "a"}\n{"text": "b"\n{"text": "c"}\n', 2),
        ('{"text": "a"},\n{"text": "b"},\n', 1),
        ('{"text": "a"}\n{"text": "b"},\n{"text": "c"},\n', 2),
        ('{"text": "a"}\n{"text": "b",}\n', 2),
        ('[\n{"text": "a"},\n{"text": "b"},\n]', 3),
        ('[\n{"text": "a"}\n{"text": "b"}\n]', 2),
        ('[{"text": "a"}, {"text": "b', 1),
        ('["Is it?", "yes"]\n["Was it?", "no]\n["Will it?", "no"]\n', 2),
        ('# rows\n{"text": "a"}\n{"text": "b"}\n', 1),
        ('{"text": "a"}\n{"text": "b", "text": "c"}\n', 2),
        ('{"text": "a"}\n\n{"text": "b\nc"}\n', 3),
    ],
)
def test_damaged_json_is_named_by_its_line(
    tmp_path: Path, name: str, content: str, place: int
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(RecipeProblem) as problem:
        read_documents(path)
    assert problem.value.message.startswith(f"{path}:{place} is not valid JSON (")
    assert problem.value.exit_code == 2
    assert len(str(problem.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
@pytest.mark.parametrize(
    ("content", "place"),
    [
        ('["Is it?", "yes"]\n["Was it?", "no"]\n', ":1"),
        ('[["Is it?", "yes"], ["Was it?", "no"]]', "[0]"),
        ('["Is it?", "Was it?"]', "[0]"),
        ('{"title": "a"}', ":1"),
        ('{"data": {"train": [{"text": "a"}]}}', ":1"),
    ],
)
def test_json_without_rows_is_never_prose(
    tmp_path: Path, name: str, content: str, place: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(RecipeProblem) as problem:
        read_documents(path)
    assert f"can be used: {path}{place} is left out because it" in problem.value.message


@pytest.mark.parametrize("content", ["[", "[" * 100_000, f"[{'9' * 5000}]", "prose", "[1] prose"])
def test_a_name_that_promises_json_is_believed(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.JSON").write_text(content, encoding="utf-8")
    with pytest.raises(RecipeProblem, match=r"a\.JSON:1 is not valid JSON \("):
        read_documents(tmp_path / "a.JSON")


def test_a_file_that_ends_in_the_middle_is_to_be_downloaded_again(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(LIST[:-20], encoding="utf-8")
    with pytest.raises(RecipeProblem) as problem:
        read_documents(tmp_path / "a.json")
    assert problem.value.next_step == "download the file again, or leave out its last row"


def test_an_object_with_several_lists_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"train": ROWS, "test": ROWS}), encoding="utf-8")
    with pytest.raises(
        RecipeProblem, match=r"holds several lists of rows \(train, test\)"
    ) as problem:
        read_documents(tmp_path / "a.json")
    assert problem.value.next_step == "save one of them as a list of its own"


def test_fields_beside_the_list_of_rows_are_counted(tmp_path: Path) -> None:
    licence = [{"name": "CC0"}]
    content = {"version": 1, "system": "Be brief.", "licences": licence, "data": ROWS[:1]}
    (tmp_path / "a.json").write_text(json.dumps(content), encoding="utf-8")
    corpus = read_corpus(tmp_path / "a.json")
    assert corpus.omissions == {"fields": {"version": 1, "system": 1, "licences": 1}}


@pytest.mark.parametrize(
    ("rows", "place"),
    [
        ([{"text": "a"}, {"text": None}], "[1]"),
        ({"data": [{"text": "a"}, {"text": None}]}, ":data[1]"),
    ],
)
def test_the_first_row_that_is_left_out_has_a_place(tmp_path: Path, rows: Any, place: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    first = read_corpus(path).first_omission
    assert first and first[0] == f"{path}{place}"


def test_a_key_that_a_row_has_twice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b", "text": "c"}\n')
    with pytest.raises(RecipeProblem, match="the key 'text' appears twice"):
        read_documents(path)
