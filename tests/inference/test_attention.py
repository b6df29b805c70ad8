"""Sequences end to end attend as each of them does alone."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from camelpress.inference.model.attention import attend_packed

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
