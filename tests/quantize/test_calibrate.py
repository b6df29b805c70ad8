"""Calibration sequences look like what the model was trained on, and are drawn by seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from camelpress.core.documents import encode_document, read_documents
from camelpress.core.errors import RecipeProblem
from camelpress.core.progress import Silence, listening
from camelpress.core.tokens import Tokenizer
from camelpress.quantize.calibrate import Calibration, draw

ALL = 1000  # samples, more than there are
LONG = 512  # tokens, longer than every conversation


class Notes(Silence):
    """A listener that remembers."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def note(self, text: str) -> None:
        self.heard.append(text)


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Tokenizer:
    return Tokenizer.load(base)


def drawn(
    tokenizer: Tokenizer, *files: Path, samples: int = ALL, length: int = LONG, seed: int = 0
) -> Calibration:
    return draw(files, tokenizer, samples=samples, sequence_length=length, seed=seed)


def whole(path: Path, tokenizer: Tokenizer) -> list[list[int]]:
    """Every document of a file, uncut and in order."""
    return [encode_document(document, tokenizer) for document in read_documents(path)]


def test_each_conversation_begins_with_bos_and_ends_with_eos(
    chat: Path, tokenizer: Tokenizer
) -> None:
    for sequence in drawn(tokenizer, chat).sequences:
        assert sequence[0] == tokenizer.bos
        assert sequence[-1] == tokenizer.eos
        assert sequence.count(1) == sequence.count(2) == 1


def test_a_conversation_reads_as_tulu_writes_it(tmp_path: Path, tokenizer: Tokenizer) -> None:
    turn = {"instruction": "say sea", "output": "sea"}
    (tmp_path / "one.json").write_text(json.dumps([turn]), encoding="utf-8")
    (sequence,) = drawn(tokenizer, tmp_path / "one.json").sequences
    assert tokenizer.decode(sequence) == "<s><|user|>\nsay sea\n<|assistant|>\nsea</s>"


def test_conversations_keep_their_own_lengths(chat: Path, tokenizer: Tokenizer) -> None:
    assert sorted(drawn(tokenizer, chat).sequences) == sorted(whole(chat, tokenizer))


def test_long_conversations_are_cut_on_the_right(chat: Path, tokenizer: Tokenizer) -> None:
    calibration = drawn(tokenizer, chat, length=60)
    expected = [ids[:60] for ids in whole(chat, tokenizer)]
    assert sorted(calibration.sequences) == sorted(expected)
    assert calibration.truncated == sum(len(ids) > 60 for ids in whole(chat, tokenizer)) > 0


def test_only_conversations_that_were_drawn_count_as_cut(chat: Path, tokenizer: Tokenizer) -> None:
    calibration = drawn(tokenizer, chat, samples=2, length=20)
    assert (len(calibration.sequences), calibration.truncated) == (2, 2)


def test_the_budget_of_tokens_is_met_exactly(chat: Path, tokenizer: Tokenizer) -> None:
    calibration = drawn(tokenizer, chat, samples=3, length=100)
    assert calibration.tokens == sum(map(len, calibration.sequences)) == 300
    assert max(map(len, calibration.sequences)) <= 100


def test_the_same_seed_draws_the_same(chat: Path, prose: Path, tokenizer: Tokenizer) -> None:
    first = drawn(tokenizer, chat, prose, samples=4, length=64, seed=5)
    assert drawn(tokenizer, chat, prose, samples=4, length=64, seed=5) == first


def test_another_seed_draws_others(chat: Path, tokenizer: Tokenizer) -> None:
    first = drawn(tokenizer, chat, samples=4, length=64, seed=5)
    assert drawn(tokenizer, chat, samples=4, length=64, seed=6).sequences != first.sequences


def test_plain_text_is_cut_into_windows_that_share_no_token(
    prose: Path, tokenizer: Tokenizer
) -> None:
    (stream,) = whole(prose, tokenizer)
    windows = [stream[start : start + 64] for start in range(0, len(stream) - 63, 64)]
    calibration = drawn(tokenizer, prose, length=64)
    assert sorted(calibration.sequences) == sorted(windows)
    assert calibration.truncated == 0


def test_plain_texts_are_joined_each_with_its_bos(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(name, encoding="utf-8")
    (window,) = drawn(tokenizer, tmp_path / "a.txt", tmp_path / "b.txt", length=4).sequences
    assert tokenizer.decode(window) == "<s>a<s>b"


def test_a_text_shorter_than_a_window_is_taken_whole(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "short.txt").write_text("sea", encoding="utf-8")
    assert drawn(tokenizer, tmp_path / "short.txt").sequences == whole(
        tmp_path / "short.txt", tokenizer
    )


def test_conversations_and_texts_are_drawn_together(
    chat: Path, prose: Path, tokenizer: Tokenizer
) -> None:
    sequences = drawn(tokenizer, chat, prose, length=64).sequences
    apart = [*drawn(tokenizer, chat, length=64).sequences]
    apart += drawn(tokenizer, prose, length=64).sequences
    assert sorted(sequences) == sorted(apart)
    assert len(drawn(tokenizer, chat, length=64).sequences) == 12


def test_fewer_tokens_than_asked_for_are_noted(chat: Path, tokenizer: Tokenizer) -> None:
    notes = Notes()
    with listening(notes):
        calibration = drawn(tokenizer, chat, samples=100, length=200)
    assert notes.heard == [
        f"calibration holds {calibration.tokens} tokens, fewer than the 100 x 200 asked for"
    ]


def test_enough_tokens_are_not_noted(chat: Path, tokenizer: Tokenizer) -> None:
    notes = Notes()
    with listening(notes):
        drawn(tokenizer, chat, samples=2, length=50)
    assert notes.heard == []


def test_no_files_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(RecipeProblem, match="there is no calibration text") as told:
        drawn(tokenizer)
    assert told.value.next_step == "give --calibration FILE, or --method rtn"


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", " \n"), ("a.jsonl", "\n"), ("a.json", "[]")]
)
def test_a_file_without_text_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(RecipeProblem, match=f"{name} holds no text"):
        drawn(tokenizer, tmp_path / name)
