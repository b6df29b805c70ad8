"""Calibration sequences look like what the model was trained on, and are drawn by seed."""

from __future__ import annotations

import json
import os
from itertools import groupby, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pico
from camelpress.core.documents.document_reader import encode_document, read_documents
from camelpress.core.errors import RecipeProblem
from camelpress.core.files.file_hashes import sha256_file
from camelpress.core.progress import use_listener
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.core.text.tulu_format import Message, encode_chat, encode_with_loss_mask
from camelpress.inference.model.batch_sizes import SIZES
from camelpress.inference.model.token_batches import TokenBatches
from camelpress.quantize.calibration.calibration import Calibration, divide_budget, draw_calibration
from camelpress.quantize.settings import CalibrationMask, CalibrationSource
from notes import Notes

ROOT = Path(__file__).parents[2]
LLAMA = ROOT / os.environ.get("CAMELPRESS_LLAMA_TOKENIZER", ".models/llama-tokenizer")
DATA = ROOT / os.environ.get("CAMELPRESS_DATA", "../shared/data")

ALL = 1000  # samples, more than there are
LONG = 160  # tokens, longer than every conversation


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Tokenizer:
    return Tokenizer.load(base)


def drawn(
    tokenizer: Tokenizer,
    *files: Path | tuple[Path, float],
    samples: int = ALL,
    length: int = LONG,
    mask: CalibrationMask = "all",
    seed: int = 0,
) -> Calibration:
    """Draw from files, each alone or with its weight."""
    weighted = [file if isinstance(file, tuple) else (file, 1.0) for file in files]
    sources = [CalibrationSource(source=path, weight=weight) for path, weight in weighted]
    return draw_calibration(
        sources, tokenizer, samples=samples, sequence_length=length, mask=mask, seed=seed
    )


def answers(tokenizer: Tokenizer, ids: list[int], counted: list[bool]) -> list[str]:
    """The texts of the stretches that count."""
    marks = zip(ids, counted, strict=True)
    stretches = groupby(marks, key=lambda mark: mark[1])
    return [tokenizer.decode([id for id, _ in each]) for counts, each in stretches if counts]


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
    turn = {"task_prompt": "say sea", "task_output": "sea"}
    (tmp_path / "one.json").write_text(json.dumps([turn]), encoding="utf-8")
    (sequence,) = drawn(tokenizer, tmp_path / "one.json", length=36).sequences
    assert tokenizer.decode(sequence) == "<s><|user|>\nsay sea\n<|assistant|>\nsea</s>"


def test_conversations_keep_their_own_lengths(chat: Path, tokenizer: Tokenizer) -> None:
    assert sorted(drawn(tokenizer, chat).sequences) == sorted(whole(chat, tokenizer))


def test_long_conversations_are_cut_on_the_right(chat: Path, tokenizer: Tokenizer) -> None:
    calibration = drawn(tokenizer, chat, length=60)
    kept = [ids for ids in whole(chat, tokenizer) if ids[:60] in calibration.sequences]
    assert sorted(calibration.sequences) == sorted(ids[:60] for ids in kept)
    assert calibration.truncated == sum(len(ids) > 60 for ids in kept) > 0


def test_only_conversations_that_were_drawn_count_as_cut(chat: Path, tokenizer: Tokenizer) -> None:
    calibration = drawn(tokenizer, chat, samples=2, length=60)
    assert (len(calibration.sequences), calibration.truncated) == (2, 2)


def test_conversations_cut_before_their_answer_are_left_out(
    chat: Path, tokenizer: Tokenizer
) -> None:
    calibration = drawn(tokenizer, chat, length=60)
    (pool,) = calibration.sources
    assert pool.documents == 12
    assert pool.unanswered + len(pool.samples) == 12
    assert 0 < pool.unanswered < 12
    assert all(any(sample.token_mask) for sample in pool.samples)


def test_the_budget_of_tokens_is_met_exactly(chat: Path, tokenizer: Tokenizer) -> None:
    calibration = drawn(tokenizer, chat, samples=3, length=100)
    assert calibration.tokens == sum(map(len, calibration.sequences)) == 300
    assert max(map(len, calibration.sequences)) <= 100
    assert len(calibration.token_mask) == 300


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


def test_plain_texts_of_a_file_are_joined_each_with_its_bos(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n', encoding="utf-8")
    (window,) = drawn(tokenizer, tmp_path / "rows.jsonl", length=4).sequences
    assert tokenizer.decode(window) == "<s>a<s>b"


def test_a_text_shorter_than_a_window_is_taken_whole(
    tmp_path: Path, chat: Path, tokenizer: Tokenizer
) -> None:
    (tmp_path / "short.txt").write_text("sea", encoding="utf-8")
    sequences = drawn(tokenizer, chat, tmp_path / "short.txt").sequences
    assert sequences[-1:] == whole(tmp_path / "short.txt", tokenizer)


def test_conversations_and_texts_are_drawn_together(
    chat: Path, prose: Path, tokenizer: Tokenizer
) -> None:
    sequences = drawn(tokenizer, chat, prose, length=64).sequences
    apart = [*drawn(tokenizer, chat, length=64).sequences]
    apart += drawn(tokenizer, prose, length=64).sequences
    assert sorted(sequences) == sorted(apart)


def test_fewer_tokens_than_asked_for_are_noted(chat: Path, tokenizer: Tokenizer) -> None:
    notes = Notes()
    with use_listener(notes):
        calibration = drawn(tokenizer, chat, samples=100, length=200)
    assert notes.heard == [f"calibration holds {calibration.tokens} tokens, fewer than 100 x 200"]


def test_enough_tokens_are_not_noted(chat: Path, tokenizer: Tokenizer) -> None:
    notes = Notes()
    with use_listener(notes):
        drawn(tokenizer, chat, samples=2, length=90)
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


# --- weights ------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(1, 10_000)), min_size=1, max_size=6),
    st.integers(1, 20_000),
)
def test_a_budget_is_divided_by_weights_as_far_as_there_is_text(
    sources: list[tuple[int, int]], budget: int
) -> None:
    weights, held = [float(weight) for weight, _ in sources], [tokens for _, tokens in sources]
    given_ = divide_budget(budget, weights, held)
    assert sum(given_) == min(budget, sum(held))
    assert all(part <= most for part, most in zip(given_, held, strict=True))
    rates = [
        part / weight
        for part, weight, most in zip(given_, weights, held, strict=True)
        if part < most
    ]
    if rates:  # whoever gives all it has would have had to give at least as much
        assert max(rates) - min(rates) <= 2 / min(weights)
        full = [m / w for p, w, m in zip(given_, weights, held, strict=True) if p == m]
        assert all(rate <= max(rates) + 1 for rate in full)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Three sources, each with more than enough."""
    folder = tmp_path_factory.mktemp("mixed")
    return (
        pico.write_chat(folder / "a.jsonl", conversations=60, seed=1),
        pico.write_chat(folder / "b.jsonl", conversations=60, seed=2),
        pico.write_text(folder / "c.txt", words=2000, seed=3),
    )


@given(st.tuples(*[st.floats(0.2, 5.0)] * 3), st.integers(0, 9), st.integers(6, 12))
@settings(deadline=None, max_examples=25)
def test_every_source_gives_its_share_to_the_token_and_the_same_again(
    mixed: tuple[Path, Path, Path],
    tokenizer: Tokenizer,
    weights: tuple[float, float, float],
    seed: int,
    samples: int,
) -> None:
    files = list(zip(mixed, weights, strict=True))
    calibration = drawn(tokenizer, *files, samples=samples, length=128, seed=seed)
    assert calibration.tokens == samples * 128
    for pool, weight in zip(calibration.sources, weights, strict=True):
        assert abs(pool.tokens - calibration.tokens * weight / sum(weights)) < 1
        assert pool.samples
    assert drawn(tokenizer, *files, samples=samples, length=128, seed=seed) == calibration


def test_without_weights_sources_of_any_size_give_alike(
    chat: Path, mixed: tuple[Path, Path, Path], tokenizer: Tokenizer
) -> None:
    calibration = drawn(tokenizer, chat, mixed[2], samples=4, length=100)
    assert [pool.tokens for pool in calibration.sources] == [200, 200]


def test_what_a_source_lacks_the_others_give(
    chat: Path, mixed: tuple[Path, Path, Path], tokenizer: Tokenizer
) -> None:
    held = drawn(tokenizer, chat, length=100).tokens
    calibration = drawn(tokenizer, (chat, 100.0), mixed[0], mixed[1], samples=20, length=100)
    assert [pool.tokens for pool in calibration.sources] == [
        held, (2000 - held + 1) // 2, (2000 - held) // 2
    ]  # fmt: skip


def test_what_is_drawn_from_a_source_does_not_depend_on_what_others_hold(
    mixed: tuple[Path, Path, Path], tokenizer: Tokenizer
) -> None:
    one, other = (drawn(tokenizer, mixed[0], file, samples=4, length=100) for file in mixed[1:])
    assert one.sources[0] == other.sources[0]


# --- what counts --------------------------------------------------------------------------------

CONTENT = st.text(st.characters(codec="utf-8")).filter(str.strip)
TALK = st.lists(
    st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=CONTENT),
    min_size=1,
    max_size=5,
)


@given(TALK)
@settings(deadline=None, max_examples=100)
def test_answers_and_their_ends_count_and_nothing_else(
    tokenizer: Tokenizer, talk: list[Message]
) -> None:
    ids, counted = encode_with_loss_mask(talk, tokenizer)
    assert answers(tokenizer, ids, counted) == [
        message.content.strip() + "</s>" for message in talk if message.role == "assistant"
    ]
    assert ids == encode_chat(talk, tokenizer)


def test_with_the_assistant_s_mask_only_answers_and_plain_texts_count(
    chat: Path, prose: Path, tokenizer: Tokenizer
) -> None:
    calibration = drawn(tokenizer, chat, prose, length=64, mask="assistant")
    sequences = TokenBatches(calibration.sequences, limit=64)
    assert calibration.token_mask.shape == sequences.tokens.shape
    talk = calibration.sources[0].tokens
    assert 0 < int(calibration.token_mask[:talk].sum()) < talk / 2
    assert bool(calibration.token_mask[talk:].all())
    assert bool(drawn(tokenizer, chat, prose, length=64).token_mask.all())


def test_the_mask_changes_what_counts_and_not_what_is_drawn(
    chat: Path, tokenizer: Tokenizer
) -> None:
    every, some = (drawn(tokenizer, chat, mask=mask) for mask in ("all", "assistant"))
    assert every.sequences == some.sequences


def test_marks_follow_their_tokens_into_the_batches(chat: Path, tokenizer: Tokenizer) -> None:
    calibration = drawn(tokenizer, chat, mask="assistant")
    sequences = TokenBatches(calibration.sequences, limit=LONG)
    said = []
    for batch in sequences.batches:
        parts = (each[batch.tokens] for each in (sequences.tokens, calibration.token_mask))
        tokens, counted = (part.split(batch.lengths) for part in parts)
        for some, kept in zip(tokens, counted, strict=True):
            said.append(tokenizer.decode(some[kept].tolist()))
    expected = [
        document[-1].content + "</s>"
        for document in read_documents(chat)
        if not isinstance(document, str)
    ]
    assert sorted(said) == sorted(expected)


# --- what is told -------------------------------------------------------------------------------


def test_the_account_adds_up(chat: Path, prose: Path, tokenizer: Tokenizer) -> None:
    calibration = drawn(tokenizer, (chat, 2.0), prose, samples=9, length=64, mask="assistant")
    told = calibration.report_facts()
    talk, text = told["files"]
    assert (told["mask"], talk["weight"], text["weight"]) == ("assistant", 2.0, 1.0)
    assert told["tokens"] == calibration.tokens == 9 * 64
    assert talk["sha256"] == sha256_file(chat)
    assert (talk["documents"], text["documents"], told["documents"]) == (12, 1, 13)
    for key in ("samples", "tokens", "counted_tokens", "truncated"):
        assert talk[key] + text[key] == told[key]
    assert told["counted_tokens"] == int(calibration.token_mask.sum()) < told["tokens"]
    lengths = sorted(map(len, calibration.sequences))
    assert told["lengths"] == {
        "min": lengths[0],
        "median": lengths[(len(lengths) - 1) // 2],
        "p90": lengths[-(len(lengths) // 10) - 1],
        "max": 64,
    }
    assert json.loads(json.dumps(told)) == told


@given(st.lists(st.integers(1, 2048), min_size=1, max_size=300))
@settings(deadline=None, max_examples=50)
def test_batches_are_full_and_nothing_is_filled_up(lengths: list[int]) -> None:
    sequences = TokenBatches([[7] * length for length in lengths], limit=2048)
    sizes = [sum(batch.lengths) for batch in sequences.batches]
    assert [length for batch in sequences.batches for length in batch.lengths] == lengths
    assert all(one + other > SIZES["cpu"].batch for one, other in pairwise(sizes))


# --- real data ----------------------------------------------------------------------------------


def test_answers_of_real_conversations_count_under_llama_s_tokenizer() -> None:
    file = DATA / "calibration" / "dpo_en_demo_chosen.jsonl"
    if not (LLAMA.is_dir() and file.is_file()):
        pytest.skip(f"{LLAMA} or {file} is not there")
    llama = Tokenizer.load(LLAMA)
    for document in read_documents(file)[:40]:
        assert not isinstance(document, str)
        ids, counted = encode_with_loss_mask(document, llama)
        said = [turn.content.strip() + "</s>" for turn in document if turn.role == "assistant"]
        assert answers(llama, ids, counted) == said
