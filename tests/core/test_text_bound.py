"""A text that a tokenizer cannot read in bounded memory is refused in one line that names it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from camelpress.core.documents.document_reader import read_documents
from camelpress.core.errors import RecipeProblem
from camelpress.core.input_limits import MAX_TEXT_BYTES
from camelpress.core.text import text_bound
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.core.text.text_bound import SPLIT, require_short_text

PROSE = "the river carries grain to the sea\n\n"
LONG = PROSE * (MAX_TEXT_BYTES // len(PROSE) + 1)


def refused(path: Path) -> RecipeProblem:
    with pytest.raises(RecipeProblem) as problem:
        read_documents(path)
    assert problem.value.exit_code == 2
    assert len(str(problem.value).splitlines()) == 1
    return problem.value


@pytest.mark.parametrize("gap", [0, 1])
def test_the_bound_counts_bytes_and_includes_itself(
    monkeypatch: pytest.MonkeyPatch, gap: int
) -> None:
    monkeypatch.setattr(text_bound, "MAX_TEXT_BYTES", 8 - gap)
    texts = ["sea", "é", "€"]  # 3, 2 and 3 bytes
    if not gap:
        return require_short_text("a.txt", *texts)
    with pytest.raises(RecipeProblem) as problem:
        require_short_text("a.txt", *texts)
    assert str(problem.value) == (
        f"a.txt is a text of 8 bytes, and at most 7 are tokenized at once; {SPLIT}"
    )


def test_half_a_surrogate_pair_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_bound, "MAX_TEXT_BYTES", 2)
    with pytest.raises(RecipeProblem, match="a text of 3 bytes"):
        require_short_text("a.txt", "\ud800")


def test_a_long_file_of_prose_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(LONG, encoding="utf-8")
    problem = refused(path)
    assert problem.message.startswith(f"{path} is a text of {len(LONG):,} bytes")
    assert problem.next_step == SPLIT
    rows = [json.dumps({"text": part}) for part in LONG.split("\n\n")[:1000]]
    path.write_text("\n".join(rows), encoding="utf-8")
    assert len(read_documents(path)) == 1000


def test_a_long_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"text": "sea"}, {"text": LONG}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert refused(path).message.startswith(f"{path}:2 is a text of {len(LONG):,} bytes")


def test_the_messages_of_a_conversation_count_together(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    half = LONG[: len(LONG) // 2 + 1]
    roles = ("user", "assistant")
    row = {"messages": [{"role": role, "content": half} for role in roles]}
    path.write_text(json.dumps(row), encoding="utf-8")
    problem = refused(path)
    assert problem.message.startswith(f"{path}:1 is a text of ")
    assert problem.next_step == "shorten its messages, or leave it out"


def test_a_tokenizer_reads_no_longer_text(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.load(base)
    ids = tokenizer.encode_document("the sea")
    monkeypatch.setattr(text_bound, "MAX_TEXT_BYTES", 7)
    assert tokenizer.encode_document("the sea") == ids
    for encode in (tokenizer.encode, tokenizer.encode_document, tokenizer.encode_template_text):
        with pytest.raises(RecipeProblem, match="a text of 8 bytes, and at most 7"):
            encode("the seas")
