"""Sequences end to end, and rows with a cache and shared prefixes, attend as each of them alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from camelpress.inference.model import attention
from camelpress.inference.model.attention import SharedPrefix, attend_packed, attend_prefixed

WIDTH = 8


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.sampled_from([1, 2, 4]))
@settings(max_examples=30, deadline=None)
def test_each_sequence_sees_itself_alone(lengths: list[int], shared: int) -> None:
    generator = torch.Generator().manual_seed(sum(lengths))
    query, key, value = (
        torch.randn(1, heads, sum(lengths), WIDTH, generator=generator)
        for heads in (4, shared, shared)
    )
    found = attend_packed(None, query, key, value, None, lengths=lengths, scaling=0.3)[0]
    expected, start = [], 0
    for length in lengths:
        part = slice(start, start + length)
        start += length
        q, k, v = (each[0, :, part].double() for each in (query, key, value))
        k, v = (each.repeat_interleave(4 // shared, dim=0) for each in (k, v))
        scores = 0.3 * q @ k.transpose(1, 2)
        later = torch.ones(length, length).triu(1).bool()
        weights = scores.masked_fill(later, -torch.inf).softmax(dim=-1)
        expected.append((weights @ v).transpose(0, 1))
    torch.testing.assert_close(found[0].double(), torch.cat(expected), rtol=1e-4, atol=1e-5)


def random_heads(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tile_scores", [1, 50, 2**18])
@pytest.mark.parametrize("new", [1, 3])
@pytest.mark.parametrize("shared", [1, 2, 4])
def test_a_row_sees_its_prefix_and_its_own_tokens(
    monkeypatch: pytest.MonkeyPatch, tile_scores: int, new: int, shared: int
) -> None:
    monkeypatch.setattr(attention, "TILE_SCORES", tile_scores)
    lengths = torch.tensor([4, 2, 0])
    query = random_heads(3, 4, new, WIDTH, seed=0)
    keys, values = (random_heads(3, shared, 4 + new, WIDTH, seed=seed) for seed in (1, 2))
    prefix_keys, prefix_values = (random_heads(shared, 7, WIDTH, seed=seed) for seed in (3, 4))
    prefix = SharedPrefix(torch.tensor([0, 2]), prefix_keys, prefix_values)
    context = attend_prefixed(query, keys, values, lengths, [prefix], scaling=0.3)
    for row, length in enumerate(lengths.tolist()):
        for number in range(new):
            seen = length + number + 1
            k, v = keys[row, :, :seen], values[row, :, :seen]
            if row in (0, 2):
                k, v = torch.cat([prefix_keys, k], 1), torch.cat([prefix_values, v], 1)
            k, v = (heads.repeat_interleave(4 // shared, dim=0).double() for heads in (k, v))
            weights = (0.3 * query[row, :, number, None].double() @ k.mT).softmax(dim=-1)
            expected = (weights @ v).flatten()
            torch.testing.assert_close(
                context[row, number].double(), expected, rtol=1e-4, atol=1e-5
            )


def test_both_forms_call_the_same_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """`enable_gqa` picks the kernel on CUDA, so each caller keeps its value."""
    flags: list[bool] = []

    def record(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        flags.append(options["enable_gqa"])
        return scaled_dot_product_attention(query, key, value, **options)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", record)
    heads = random_heads(1, 4, 3, WIDTH, seed=0)
    packed = attend_packed(None, heads, heads, heads, None, lengths=[3], scaling=0.3)[0]
    rows = attend_prefixed(heads, heads, heads, torch.tensor([0]), [], scaling=0.3)
    assert flags == [False, True]
    torch.testing.assert_close(packed.flatten(2), rows)
    attend_prefixed(heads[:, :, :1], heads, heads, torch.tensor([2]), [], scaling=0.3)
    assert len(flags) == 2  # a new token beside cached ones has sums in fp32
