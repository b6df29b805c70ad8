"""Runs of words are found again whatever stands between them, and nothing else is."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from camelpress.core.documents import ngram_overlap
from camelpress.core.documents.document_reader import read_documents
from camelpress.core.documents.ngram_overlap import (
    MAX_SEQUENCES,
    MIN_OVERLAP_NGRAMS,
    NGRAM_WORDS,
    NgramFingerprint,
    hash_ngrams,
    split_words,
)
from camelpress.core.errors import CheckpointProblem

ROOT = Path(__file__).parents[2]
DATA = ROOT / os.environ.get("CAMELPRESS_DATA", "../shared/data")

SPEECH = [f"w{number}" for number in range(100)]
REMEDY = "quantize again, or remove it: then overlap is not checked"


def said(first: int, count: int) -> str:
    return " ".join(SPEECH[first : first + count])


def others(count: int) -> str:
    """Words that are in no calibration here."""
    return " ".join(f"x{number}" for number in range(count))


def slow_share(text: str, calibration: list[str]) -> float:
    """The share of runs, from the words themselves."""
    held = {
        tuple(found[place : place + NGRAM_WORDS])
        for found in map(split_words, calibration)
        for place in range(len(found) - NGRAM_WORDS + 1)
    }
    own = split_words(text)
    runs = [tuple(own[place : place + NGRAM_WORDS]) for place in range(len(own) - NGRAM_WORDS + 1)]
    return sum(run in held for run in runs) / max(1, len(runs))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop -- NOW!", ["don", "t", "stop", "now"]),
        ("do n't @-@ <unk>", ["do", "n", "t", "unk"]),
        ("snake_case 3.14", ["snake", "case", "3", "14"]),
        ("Straße, naïve", ["strasse", "naïve"]),
        (" \n…—", []),
    ],
)
def test_words_are_runs_of_letters_and_digits(text: str, expected: list[str]) -> None:
    assert split_words(text) == expected


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (12, 0), (13, 1), (40, 28)])
def test_there_is_a_run_from_the_thirteenth_word_on(count: int, expected: int) -> None:
    assert len(hash_ngrams(split_words(said(0, count)))) == expected


def test_hashes_stay_the_same_for_good() -> None:
    assert hash_ngrams(
        split_words("the quick brown fox jumps over the lazy dog and then goes home")
    ).tolist() == [7221193957194561096]


def test_the_order_of_words_matters() -> None:
    forward = hash_ngrams(SPEECH[:NGRAM_WORDS])
    assert forward != hash_ngrams(SPEECH[:NGRAM_WORDS][::-1])
    assert forward != hash_ngrams([*SPEECH[1:NGRAM_WORDS], SPEECH[0]])


@given(
    st.lists(st.lists(st.sampled_from("abc"), max_size=40).map(" ".join), max_size=4),
    st.lists(st.sampled_from("abc"), max_size=60).map(" ".join),
)
def test_shares_are_those_of_the_words_themselves(calibration: list[str], text: str) -> None:
    found = NgramFingerprint.from_texts(calibration).measure_overlap(split_words(text))
    assert found.share == pytest.approx(slow_share(text, calibration))


def test_the_first_run_is_told_in_words() -> None:
    found = NgramFingerprint.from_texts([said(10, 20)]).measure_overlap(
        split_words(f"Hello, {said(10, 20)}")
    )
    assert found.first_ngram == said(10, 13)


@pytest.mark.parametrize(
    ("shared", "own", "overlaps"),
    [
        (0, 100, False),
        (NGRAM_WORDS, 100, False),  # one run of a hundred
        (NGRAM_WORDS + 18, 80, False),  # 19 runs of 99
        (NGRAM_WORDS + 24, 75, True),  # 25 of 100
        (NGRAM_WORDS + MIN_OVERLAP_NGRAMS - 2, 2000, False),
        (NGRAM_WORDS + MIN_OVERLAP_NGRAMS - 1, 2000, True),
    ],
)
def test_a_fifth_of_the_runs_or_fifty_is_an_overlap(shared: int, own: int, overlaps: bool) -> None:
    fingerprint = NgramFingerprint.from_texts([said(0, 100)])
    assert (
        fingerprint.measure_overlap(split_words(f"{said(0, shared)} {others(own)}")).is_overlap
        is overlaps
    )


def test_a_template_does_not_count() -> None:
    template = said(0, 30)
    texts = [f"{template} {number} {others(number)}" for number in range(MAX_SEQUENCES + 1)]
    assert not NgramFingerprint.from_texts(texts).measure_overlap(split_words(template)).first_ngram
    assert NgramFingerprint.from_texts(texts[1:]).measure_overlap(split_words(template)).is_overlap


def test_of_many_runs_the_smallest_hashes_are_kept_and_shares_are_estimates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = " ".join(f"y{number}" for number in range(20_000))
    monkeypatch.setattr(ngram_overlap, "MAX_HASHES", 4000)
    fingerprint = NgramFingerprint.from_texts([text])
    assert fingerprint.is_sample
    assert len(fingerprint.hashes) == 4000
    part = split_words(text)[:1000]
    found = fingerprint.measure_overlap([*part, *split_words(others(1000))])
    assert found.share == pytest.approx(0.5, abs=0.08)
    assert fingerprint.measure_overlap(part).share == 1.0


def test_a_fingerprint_is_read_as_it_was_written(tmp_path: Path) -> None:
    for texts in ([said(0, 60), said(40, 30)], []):
        NgramFingerprint.from_texts(texts).write(tmp_path / "f.npy")
        again = NgramFingerprint.read(tmp_path / "f.npy")
        assert np.array_equal(again.hashes, NgramFingerprint.from_texts(texts).hashes)


@pytest.mark.parametrize(
    "content",
    [
        np.array([1.0]),
        np.array([[1]], dtype="<u8"),
        np.array([2, 1], dtype="<u8"),
        np.array([1, 1], dtype="<u8"),
        np.array(1, dtype="<u8"),
    ],
)
def test_another_array_is_refused(tmp_path: Path, content: np.ndarray) -> None:
    np.save(tmp_path / "f.npy", content)
    with pytest.raises(CheckpointProblem, match="is not a fingerprint of a calibration") as told:
        NgramFingerprint.read(tmp_path / "f.npy")
    assert told.value.next_step == REMEDY


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01", b"text", b"PK\x03\x04", b"\x80\x04."])
def test_what_is_no_array_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f.npy").write_bytes(content)
    with pytest.raises(CheckpointProblem, match="is not a fingerprint of a calibration"):
        NgramFingerprint.read(tmp_path / "f.npy")


def test_a_length_that_is_not_there_is_not_believed(tmp_path: Path) -> None:
    NgramFingerprint.from_texts([said(0, 60)]).write(tmp_path / "f.npy")
    content = (tmp_path / "f.npy").read_bytes()
    (tmp_path / "f.npy").write_bytes(content.replace(b"(48,)", b"(49,)"))
    with pytest.raises(CheckpointProblem, match="it has another length than it says"):
        NgramFingerprint.read(tmp_path / "f.npy")


# --- real texts, from which the thresholds come ---------------------------------------------------


def pieces(name: str) -> list[list[str]]:
    """The words of a file of real data, document by document, long ones 1,500 at a time."""
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{path} is not there; CAMELPRESS_DATA names the folder of real data")
    found = []
    for document in read_documents(path):
        whole = document if isinstance(document, str) else " ".join(t.content for t in document)
        own = split_words(whole)
        found += [own[start : start + 1500] for start in range(0, len(own), 1500)]
    return found


@pytest.mark.parametrize(
    ("calibration", "text", "sharing", "largest_share", "most_runs"),
    [
        ("calibration/alpaca_en_demo.json", "calibration/code_alpaca_2k.json", 75, 0.127, 9),
        ("calibration/dpo_en_demo_chosen.jsonl", "text/moby-dick.txt", 2, 0.011, 16),
        ("calibration/evals_longform_chatbot.jsonl", "text/c4_demo.jsonl", 1, 0.083, 13),
        ("calibration/alpaca_en_demo.json", "text/wikitext-2/test.txt", 0, 0, 0),
        ("calibration/alpaca_en_demo.json", "calibration/evals_longform_chatbot.jsonl", 0, 0, 0),
    ],
)
def test_texts_of_different_origin_do_not_overlap(
    calibration: str, text: str, sharing: int, largest_share: float, most_runs: int
) -> None:
    fingerprint = NgramFingerprint.from_texts(map(" ".join, pieces(calibration)))
    found = [fingerprint.measure_overlap(piece) for piece in pieces(text)]
    shared = [each for each in found if each.first_ngram]
    assert not [each for each in shared if each.is_overlap]
    assert len(shared) == sharing
    assert max((each.share for each in shared), default=0) == pytest.approx(largest_share, abs=1e-3)
    assert max((round(each.share * each.ngrams) for each in shared), default=0) == most_runs


def test_a_prompt_in_two_data_sets_is_found() -> None:
    fingerprint = NgramFingerprint.from_texts(
        map(" ".join, pieces("calibration/code_alpaca_2k.json"))
    )
    found = [
        fingerprint.measure_overlap(piece) for piece in pieces("tulu/eval_instances_tulu_1.jsonl")
    ]
    (over,) = [each for each in found if each.is_overlap]
    assert over.share == pytest.approx(0.38)
