"""Fits the number of items per task into a time budget, with one fixed shuffle per task."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from camelpress.core.errors import RecipeProblem

SHUFFLE_SEED = 20_261_126
FIRST_ROUND_REQUESTS = 16  # requests of the first round, for timing
MAX_ROUND_GROWTH = 8  # maximum ratio of a round to all previous requests
ANSWERING_SHARE = 0.9  # share of the budget; the rest covers loading and scoring
SECONDS_PER_UNIT = {"s": 1, "m": 60, "h": 3600}
DURATION_PATTERN = re.compile(r"(\d+(?:\.\d+)?)([smh])")


def parse_duration(text: str) -> float:
    """Parses a duration such as `10m`, `90s` or `1.5h` into seconds.

    Raises:
        RecipeProblem: The text is not a duration, or is zero.
    """
    match = DURATION_PATTERN.fullmatch(text.strip())
    if match is None or not float(match[1]):
        raise RecipeProblem(
            f"--budget {text!r} is not a time", next_step="give a time such as 10m, 90s or 1.5h"
        )
    return float(match[1]) * SECONDS_PER_UNIT[match[2]]


class RoundCost(NamedTuple):
    """The cost of a round of items."""

    uncached_items: float  # items without a stored answer
    fixed_seconds: float  # batch-size-independent part of the time, s


def answer_within_budget(
    total: int,
    seconds: float,
    answer: Callable[[int], RoundCost],
    *,
    first: int,
    unit: int = 1,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Answers as many items as fit into a time limit; returns their number.

    Rounds grow, up to eight times all previous items, while the next round is predicted to fit
    from the time per item and the fixed time of the last round.

    Args:
        total: number of items of the task.
        seconds: time limit, s; the first round runs regardless.
        answer: answers the first `n` items of the shuffle and returns the cost of the round.
        first: items of the first round.
        unit: rounds are multiples of this number, one item per part of a task.
        clock: monotonic clock, s.
    """
    first = -(-first // unit) * unit
    n_done, batch, n_uncached, seconds_used, seconds_per_item = 0, first, 0.0, 0.0, 0.0
    while batch > 0:
        batch = min(batch, total - n_done)
        start = clock()
        cost = answer(n_done + batch)
        elapsed = clock() - start
        n_done, n_uncached, seconds_used = (
            n_done + batch,
            n_uncached + cost.uncached_items,
            seconds_used + elapsed,
        )
        seconds_per_item = (
            max(0.0, elapsed - cost.fixed_seconds) / cost.uncached_items
            if cost.uncached_items
            else seconds_per_item
        )
        seconds_left = seconds - seconds_used - min(cost.fixed_seconds, elapsed)
        max_items = int(seconds_left / max(seconds_per_item, 1e-9)) if seconds_left > 0 else 0
        max_batch = min(max_items, MAX_ROUND_GROWTH * max(first, int(n_uncached)))
        batch = total - n_done if max_batch >= total - n_done else max_batch // unit * unit
    return n_done


def sample_items(parts: Sequence[str], count: int, *, by_part: bool) -> list[int]:
    """Returns sorted item indices; a larger count extends the sample of a smaller one.

    Args:
        parts: part name of each item of the task.
        count: number of items.
        by_part: draw equally many items from each part, at least one.
    """
    order = random.Random(SHUFFLE_SEED).sample(range(len(parts)), len(parts))
    if not by_part:
        return sorted(order[:count])
    per_part = max(1, count // len(set(parts)))
    part_indices: dict[str, list[int]] = {}
    for index in order:
        part_indices.setdefault(parts[index], []).append(index)
    return sorted(index for indices in part_indices.values() for index in indices[:per_part])
