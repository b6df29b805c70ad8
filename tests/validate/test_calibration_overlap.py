"""A text that the candidate was calibrated on is not scored, unless that is wanted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import stages
from camelpress.core.documents.ngram_overlap import NGRAM_FILE
from camelpress.core.errors import CheckpointProblem, RecipeProblem
from camelpress.core.files.file_hashes import checkpoint_digest, sha256_file
from refusal import refusal

REMEDY = "score a text that was held out, calibrate without this one, or give --allow-overlap"


def text(path: Path, *parts: str) -> Path:
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


SEEN, UNSEEN = " ".join(f"a{n:02}" for n in range(60)), " ".join(f"b{n:02}" for n in range(60))


@pytest.fixture(scope="module")
def candidate(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pico model, calibrated on a text in windows of 128 tokens, a token a letter."""
    folder = tmp_path_factory.mktemp("overlap")
    seen = text(folder / "seen.txt", SEEN)
    stages.quantize(base, folder / "candidate", seen, sequence_length=128, samples=1)
    return folder / "candidate"


def test_a_text_of_the_calibration_is_refused_with_its_words(
    base: Path, candidate: Path, tmp_path: Path
) -> None:
    held = text(tmp_path / "held.txt", UNSEEN, SEEN)
    with refusal(
        RecipeProblem,
        "held.txt overlaps the calibration in 1 of 4 sequences; sequence 3 shares 80% of its runs "
        'of 13 words with it, first "a04 a05 a06 a07 a08 a09 a10 a11 a12 a13 a14 a15 a16"',
        next_step=REMEDY,
        exit_code=2,
        out=tmp_path / "out",
    ):
        stages.validate(
            base, candidate, tmp_path / "out", held, sequence_length=128, max_tokens=512
        )


def test_with_leave_it_is_scored_and_told(base: Path, candidate: Path, tmp_path: Path) -> None:
    held, clean = text(tmp_path / "held.txt", SEEN), text(tmp_path / "clean.txt", UNSEEN)
    report = stages.validate(
        base, candidate, tmp_path / "out", clean, held, sequence_length=128, allow_overlap=True
    )
    told = report.facts.record["overlap"]
    assert report.settings["allow_overlap"] is True
    assert told["checked"] is True
    assert told["fingerprint"] == sha256_file(candidate / NGRAM_FILE)
    assert [(each["name"], each["sharing"], each["overlapping"]) for each in told["texts"]] == [
        ("clean.txt", 0, 0),
        ("held.txt", 1, 1),
    ]


def test_a_text_that_was_held_out_passes(base: Path, candidate: Path, tmp_path: Path) -> None:
    clean = text(tmp_path / "clean.txt", UNSEEN)
    report = stages.validate(base, candidate, tmp_path / "out", clean, sequence_length=128)
    (told,) = report.facts.record["overlap"]["texts"]
    assert (told["sequences"], told["long_enough"], told["overlapping"]) == (2, 2, 0)


def test_only_what_is_scored_is_looked_at(base: Path, candidate: Path, tmp_path: Path) -> None:
    later = text(tmp_path / "later.txt", UNSEEN, SEEN)
    stages.validate(base, candidate, tmp_path / "out", later, sequence_length=64, max_tokens=128)


def test_a_candidate_without_a_fingerprint_is_not_checked(
    base: Path, candidate: Path, tmp_path: Path
) -> None:
    bare = shutil.copytree(candidate, tmp_path / "bare")
    (bare / NGRAM_FILE).unlink()
    report = stages.validate(base, bare, tmp_path / "out", text(tmp_path / "held.txt", SEEN))
    assert report.facts.record["overlap"] == {"checked": False, "fingerprint": None, "texts": []}


def test_a_broken_fingerprint_is_refused(base: Path, candidate: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(candidate, tmp_path / "broken")
    (broken / NGRAM_FILE).write_bytes(b"no array")
    with refusal(
        CheckpointProblem,
        f"{broken / NGRAM_FILE} is not a fingerprint of a calibration (ValueError)",
        next_step="quantize again, or remove it: then overlap is not checked",
        out=tmp_path / "out",
    ):
        stages.validate(base, broken, tmp_path / "out", text(tmp_path / "held.txt", SEEN))


def test_the_fingerprint_is_no_part_of_what_the_model_is(candidate: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(candidate, tmp_path / "bare")
    (bare / NGRAM_FILE).unlink()
    assert checkpoint_digest(bare) == checkpoint_digest(candidate)
