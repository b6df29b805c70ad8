"""Lanes hold every token once and in order, and two versions of what passes through them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import small_lanes
from camelpress.inference.model.batch_sizes import batch_sizes
from camelpress.inference.model.token_batches import put_batch, take_batch
from camelpress.inference.streaming.process_group import ProcessGroup
from camelpress.quantize import calibration_shards as module
from camelpress.quantize.calibration_shards import CalibrationShard, calibration_shards

FEW = settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
CPU = torch.device("cpu")
LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=20)


def sequences(lengths: list[int]) -> list[list[int]]:
    """Every token is another one."""
    ids = iter(range(sum(lengths)))
    return [[next(ids) for _ in range(length)] for length in lengths]


def cut(
    ids: list[list[int]], folder: Path, tokens: int, *, paired: int = 0
) -> list[CalibrationShard]:
    """Lanes of a number of tokens; of the sequences, every third token counts."""
    counted = torch.tensor([each % 3 == 0 for sequence in ids for each in sequence])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_lanes.TABLE, small_lanes.resized(shard=tokens))
        patch.setattr(module, "REFERENCE_TOKENS_PER_COLUMN", 1)
        patch.setattr(module, "MIN_REFERENCE_TOKENS", 0)
        return calibration_shards(
            ids, counted, folder, sizes=batch_sizes(CPU), limit=60, columns=paired
        )


def one(folder: Path, *, paired: bool = False) -> CalibrationShard:
    return cut(sequences([5, 3]), folder, 100, paired=paired)[0]


@FEW
@given(LENGTHS, st.integers(1, 100))
def test_lanes_hold_every_token_once_and_in_order(
    tmp_path: Path, lengths: list[int], tokens: int
) -> None:
    made = cut(sequences(lengths), tmp_path, tokens)
    assert torch.cat([lane.sequences.tokens for lane in made]).tolist() == [*range(sum(lengths))]
    assert [each for lane in made for each in lane.sequences.lengths] == lengths


@FEW
@given(LENGTHS, st.integers(1, 100))
def test_lanes_are_full_but_not_much_more(tmp_path: Path, lengths: list[int], tokens: int) -> None:
    made = cut(sequences(lengths), tmp_path, tokens)
    sizes = [len(lane.sequences.tokens) for lane in made]
    assert all(tokens <= size < tokens + 60 for size in sizes[:-1])
    assert 0 < sizes[-1] < tokens + 60


@FEW
@given(LENGTHS, st.integers(1, 100))
def test_batches_know_which_tokens_count(tmp_path: Path, lengths: list[int], size: int) -> None:
    found = []
    for lane in cut(sequences(lengths), tmp_path, size):
        for batch in lane.sequences.batches:
            tokens = take_batch(lane.sequences.tokens[:, None].float(), batch, torch.device("cpu"))
            found += lane.select_tokens(batch, tokens).flatten().int().tolist()
    assert sorted(found) == [each for each in range(sum(lengths)) if each % 3 == 0]


@FEW
@given(LENGTHS, st.integers(1, 100), st.integers(1, 5))
def test_ranks_take_every_lane_once_and_have_no_say_in_their_number(
    tmp_path: Path, lengths: list[int], tokens: int, size: int
) -> None:
    made = cut(sequences(lengths), tmp_path, tokens)
    taken = [lane for rank in range(size) for lane in ProcessGroup(rank, size).items_of_rank(made)]
    assert len(taken) == len(made)
    assert {*map(id, taken)} == {*map(id, made)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["hidden", "reference", "mlp.down_proj"])
def test_what_is_written_is_read(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    lane = one(tmp_path)
    values = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    lane.write_states(name, values)
    assert torch.equal(lane.read_states(name, 6, dtype), values)


def test_batches_pass_through_a_lane_and_back(tmp_path: Path) -> None:
    lane = one(tmp_path)
    hidden = torch.arange(16.0).reshape(8, 2)
    passed = torch.zeros(8, 2)
    for batch in lane.sequences.batches:
        put_batch(passed, batch, take_batch(hidden, batch, torch.device("cpu")))
    assert torch.equal(passed, hidden)


def test_what_leaves_a_block_is_what_enters_the_next(tmp_path: Path) -> None:
    lane = one(tmp_path)
    lane.select_block(0)
    lane.write_states("hidden", torch.zeros(8, 2))
    for block in range(4):
        lane.select_block(block)
        assert torch.equal(
            lane.read_states("hidden", 2, torch.float32), torch.full((8, 2), float(block))
        )
        lane.write_states("hidden", torch.full((8, 2), block + 1.0), after=True)


def test_what_enters_a_block_is_whole_until_the_block_is_finished(tmp_path: Path) -> None:
    lane = one(tmp_path)
    for block in range(3):
        lane.select_block(block)
        lane.write_states("hidden", torch.zeros(8, 2))
        lane.write_states("hidden", torch.ones(8, 2), after=True)
        assert not bool(lane.read_states("hidden", 2, torch.float32).any())
        assert bool(lane.read_states("hidden", 2, torch.float32, after=True).all())


def test_lanes_do_not_share_files(tmp_path: Path) -> None:
    first, second = cut(sequences([10, 10]), tmp_path, 10)
    for lane, value in ((first, 1.0), (second, 2.0)):
        lane.write_states("hidden", torch.full((10, 1), value))
    assert float(first.read_states("hidden", 1, torch.float32).max()) == 1.0


@pytest.mark.parametrize("changed", ["hidden", "reference"])
def test_the_digest_is_of_both_states_that_enter(tmp_path: Path, changed: str) -> None:
    lane = one(tmp_path, paired=True)
    for name in ("hidden", "reference"):
        lane.write_states(name, torch.zeros(8, 2))
    before = lane.states_digest(0)
    lane.write_states("mlp.down_proj", torch.ones(8, 2))
    lane.write_states(changed, torch.ones(8, 2), after=True)
    assert lane.states_digest(0) == before
    lane.write_states(changed, torch.ones(8, 2))
    assert lane.states_digest(0) != before


@pytest.mark.parametrize("paired", [True, False])
def test_without_its_states_a_lane_has_no_digest(tmp_path: Path, paired: bool) -> None:
    lane = one(tmp_path, paired=paired)
    assert lane.states_digest(0) == ""
    lane.write_states("hidden", torch.zeros(8, 2))
    assert (lane.states_digest(0) == "") is paired


@FEW
@given(LENGTHS, st.integers(1, 100), st.integers(0, 400))
def test_about_so_many_tokens_are_in_paired_lanes_if_there_are_so_many(
    tmp_path: Path, lengths: list[int], tokens: int, paired: int
) -> None:
    ids = sequences(lengths)
    made = cut(ids, tmp_path, tokens, paired=paired)
    kinds = [lane.has_reference for lane in made]
    assert kinds == sorted(kinds, reverse=True)  # they go first
    assert [lane.number for lane in made] == [*range(len(made))]
    counted = sum(each % 3 == 0 for sequence in ids for each in sequence)
    assert sum(kinds) == min(len(made), -(-paired * len(made) // counted))


def test_paired_lanes_are_spread_evenly(tmp_path: Path) -> None:
    made = cut(sequences([30] * 20), tmp_path, 30, paired=40)  # a fifth of those that count
    first = [int(lane.sequences.tokens[0]) // 30 for lane in made]
    assert first == [2, 7, 12, 17, *(place for place in range(20) if place % 5 != 2)]


def test_few_tokens_are_all_paired_where_any_are(tmp_path: Path) -> None:
    ids = sequences([30] * 20)
    counted = torch.ones(600, dtype=torch.bool)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_lanes.TABLE, small_lanes.resized(shard=30))
        for columns in (0, 1):
            made = calibration_shards(
                ids, counted, tmp_path, sizes=batch_sizes(CPU), limit=60, columns=columns
            )
            assert all(lane.has_reference for lane in made) is any(
                lane.has_reference for lane in made
            )
            assert made[0].has_reference is (columns > 0)
