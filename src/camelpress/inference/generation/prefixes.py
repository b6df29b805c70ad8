"""Shared prefixes of texts, such as the examples before a question or a repeated prompt."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

MIN_PREFIX_TOKENS = 64  # smallest shared prefix in tokens


class PrefixedText(NamedTuple):
    """A text split into a shared prefix and a suffix of at least one token."""

    prefix: tuple[int, ...]
    suffix: Sequence[int]


def group_by_prefix(
    texts: Sequence[Sequence[int]],
    *,
    max_prefix_tokens: Sequence[int] | None = None,
    long_tokens: int | None = None,
) -> list[tuple[int, PrefixedText]]:
    """Splits texts into shared prefix and suffix; returns the index of each text with its split.

    Texts with the same prefix are neighbours, the shorter ones first.

    Args:
        texts: ids of each text, at least one text.
        max_prefix_tokens: largest prefix of each text in tokens; None for no limit.
        long_tokens: length in tokens from which a text without shared prefix gets a prefix of its
            own, so that shorter neighbours need no row of its length; None for no such prefix.
    """
    splits: list[tuple[int, PrefixedText]] = []
    for group in prefix_groups(texts):
        prefix_length = common_prefix_length([texts[index] for index in group])
        prefix_length = (
            min(prefix_length, *(max_prefix_tokens[index] for index in group))
            if max_prefix_tokens
            else prefix_length
        )
        if len(group) == 1 and long_tokens and len(texts[group[0]]) >= long_tokens:
            prefix_length = len(texts[group[0]]) - 1
        elif len(group) == 1 or prefix_length < MIN_PREFIX_TOKENS:
            prefix_length = 0
        for index in sorted(group, key=lambda index: len(texts[index])):
            splits.append(
                (
                    index,
                    PrefixedText(tuple(texts[index][:prefix_length]), texts[index][prefix_length:]),
                )
            )
    return splits


def prefix_groups(texts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Groups the indices of texts with a common prefix.

    In sorted order, a group ends between two neighbours with a common prefix shorter than half of
    the prefix that one of them shares with its other neighbour.
    """
    order = sorted(range(len(texts)), key=lambda index: [*texts[index]])
    common_lengths = [
        common_prefix_length([texts[left], texts[right]]) for left, right in pairwise(order)
    ]
    groups: list[list[int]] = []
    for number, index in enumerate(order):
        neighbour_lengths = common_lengths[max(0, number - 2) : number + 1]
        if not number or 2 * common_lengths[number - 1] < max(neighbour_lengths):
            groups.append([])
        groups[-1].append(index)
    return groups


def common_prefix_length(rows: Sequence[Sequence[int]]) -> int:
    """Returns the number of leading tokens common to all rows.

    At least one token of each row is left for the suffix.
    """
    lists = [[*row] for row in rows]
    first, last = min(lists), max(lists)  # the extremes in sorted order bound all others
    limit = min(map(len, rows)) - 1
    return next((index for index in range(limit) if first[index] != last[index]), limit)
