"""The judge of other people's loaders and the document are right themselves; no loader is run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import Kind, kinds
from compatibility import BEGIN, END, unused, write
from loaders import CLIENTS, KNOWN, TABLES, Client, Outcome, judge, known
from wanted import NEW_TOKENS, Wanted

EXACT = Client("exact", "none", "loader:float32:")
ROUGH = Client("rough", "none", "loader:bfloat16:", exact=False)
SAID = list(range(NEW_TOKENS))
LOADED: dict[str, Any] = {"status": "loaded", "keys": {}, "said": [], "tokens": SAID}
WANTED = Wanted(np.array([[1.0, -4.0]], dtype=np.float32), SAID, rounding=1e-2)


@pytest.mark.parametrize(
    ("client", "found", "off", "word", "detail"),
    [
        (EXACT, {}, 1e-6, "ok", ""),
        (EXACT, {}, 1e-2, "wrong", "logits differ by 0.0025 of the largest"),
        (ROUGH, {}, 0.07, "ok", ""),
        (ROUGH, {}, 0.1, "wrong", "logits differ by 0.025 of the largest"),
        (ROUGH, {}, float("nan"), "wrong", "logits differ by nan of the largest"),
        (EXACT, {"tokens": [0, 1, *SAID[2:][::-1]]}, 0, "wrong", "only 2 tokens agree"),
        (ROUGH, {"tokens": [0, 1, *SAID[2:][::-1]]}, 0, "ok", ""),
        (EXACT, {"keys": {"unexpected_keys": ["q.g_idx"]}}, 0, "ok", ""),
        (EXACT, {"keys": {"missing_keys": ["q.g_idx"]}}, 0, "wrong", "missing keys: q.g_idx"),
        (EXACT, {"keys": {"unexpected_keys": ["q.w"]}}, 0, "wrong", "unexpected keys: q.w"),
        (ROUGH, {"said": ["w was not used"]}, 0, "wrong", "w was not used"),
        (ROUGH, {"said": ["q.g_idx was not used"]}, 0, "ok", ""),
        (ROUGH, {"keys": {"missing_keys": []}, "said": ["unexpected: g_idx"]}, 0, "ok", ""),
        (EXACT, {"status": "load failed", "error": "E: no"}, 0, "refused", "E: no"),
        (EXACT, {"status": "compute failed", "error": "E: no"}, 0, "fails", "E: no"),
        (EXACT, {"status": "died"}, 0, "fails", "the process died"),
    ],
)
def test_a_client_is_judged(
    client: Client, found: dict[str, Any], off: float, word: str, detail: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "logits.npy", WANTED.logits + np.float32(off))
    outcome = judge(client, LOADED | found, tmp_path / "logits.npy", WANTED)
    assert (outcome.word, outcome.detail) == (word, detail)


def test_the_document_gets_its_tables_and_keeps_its_words(tmp_path: Path) -> None:
    document = tmp_path / "compatibility.md"
    document.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nwords\n", encoding="utf-8")
    first, *_ = TABLES["AutoGPTQ and auto-round"]
    rows = [kind for kind in kinds() if kind.row == "GQA, 4 bits, sym" or "q unlike" in kind.row]
    found = {(first, kind): Outcome("ok", "", 3e-7, 20) for kind in rows}
    found[first, rows[3]] = Outcome("refused", "E: a | b")
    found[first, rows[4]] = Outcome("refused", "size mismatch")
    write(document, found, rows)
    text = document.read_text(encoding="utf-8")
    assert text.startswith("# Title\n\n") and text.endswith(f"{END}\n\nwords\n")
    assert "old" not in text
    assert "| GQA, 4 bits, sym | 3e-07 (32, 64, 128); refused [1] (row) | not run |" in text
    assert "| fewest equal tokens of 20 | 20 |" in text
    assert "1. Not expected: E: a   b\n2. AutoGPTQ and optimum 2.0 do not read" in text
    write(document, found, rows)
    assert document.read_text(encoding="utf-8") == text


def test_a_document_without_a_place_for_them_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# Title\n", encoding="utf-8")
    with pytest.raises(ValueError, match="lacks"):
        write(tmp_path / "other.md", {}, [])


def test_the_document_of_this_project_has_a_place_for_them() -> None:
    text = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text(encoding="utf-8")
    assert text.index(BEGIN) < text.index(END)


def test_the_document_of_this_project_has_the_words_of_its_generator() -> None:
    text = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text(encoding="utf-8")
    tables = text[text.index(BEGIN) : text.index(END)]
    assert re.findall(r"^### (.*)$", tables, re.MULTILINE) == list(TABLES)
    assert tables.count("| fewest equal tokens of 20 |") == len(TABLES)
    notes = re.findall(r"^\d+\. (.*)$", tables, re.MULTILINE)
    assert set(notes) == {entry.reason for entry in KNOWN}


def test_every_checkpoint_and_every_client_has_a_name_of_its_own() -> None:
    every: list[Kind] = list(kinds())
    assert len({kind.name for kind in every}) == len(every)
    assert len({str(client) for client in CLIENTS}) == len(CLIENTS)


def test_every_known_fault_is_that_of_some_client_and_checkpoint() -> None:
    pairs = {(client, kind): Outcome("ok", "") for client in CLIENTS for kind in kinds()}
    assert unused(pairs) == []
    words = {word for entry in KNOWN for word in entry.word.split("|")}
    assert words <= {"refused", "fails", "wrong", "any"}
    assert known(CLIENTS[0], next(kinds())) is None
