"""Texts that begin alike: the examples before a question, a prompt that is asked many times."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

MIN_PREFIX_TOKENS = 64  # tokens that a common beginning has at least


class PrefixedText(NamedTuple):
    """A text: what it begins with as others do, and the rest, one token at least."""

    prefix: tuple[int, ...]
    suffix: Sequence[int]


def group_by_prefix(
    texts: Sequence[Sequence[int]], *, most: Sequence[int] | None = None, long: int | None = None
) -> list[tuple[int, PrefixedText]]:
    """Place of each text, and where what it has for itself begins.

    One family comes after the other, and in each the shorter texts come first.

    Args:
        texts: at least one.
        most: tokens that may be taken for a beginning, of each.
        long: tokens of a text from which on it is its own beginning if it shares none, so that
            shorter ones beside it need not have as much room.
    """
    found: list[tuple[int, PrefixedText]] = []
    for family in prefix_groups(texts):
        same = common_prefix_length([texts[place] for place in family])
        same = min(same, *(most[place] for place in family)) if most else same
        if len(family) == 1 and long and len(texts[family[0]]) >= long:
            same = len(texts[family[0]]) - 1
        elif len(family) == 1 or same < MIN_PREFIX_TOKENS:
            same = 0
        for place in sorted(family, key=lambda place: len(texts[place])):
            found.append((place, PrefixedText(tuple(texts[place][:same]), texts[place][same:])))
    return found


def prefix_groups(texts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Places of texts, those together that begin alike.

    In their order, a family ends where two neighbours share less than half of what one of them
    shares with its other neighbour.
    """
    order = sorted(range(len(texts)), key=lambda place: [*texts[place]])
    common = [common_prefix_length([texts[one], texts[two]]) for one, two in pairwise(order)]
    found: list[list[int]] = []
    for number, place in enumerate(order):
        near = common[max(0, number - 2) : number + 1]
        if not number or 2 * common[number - 1] < max(near):
            found.append([])
        found[-1].append(place)
    return found


def common_prefix_length(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with, one at least left over of each."""
    listed = [[*row] for row in rows]
    first, last = min(listed), max(listed)  # all others lie between, so they share what these do
    most = min(map(len, rows)) - 1
    return next((place for place in range(most) if first[place] != last[place]), most)
