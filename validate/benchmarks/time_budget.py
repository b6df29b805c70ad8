"""How many items of each task fit into a time, and which: always the first ones of one shuffle."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from camelpress.core.errors import RecipeProblem

SHUFFLE_SEED = 20_261_126
FIRST_ROUND_REQUESTS = 16  # requests that are made to see how long they take
MAX_ROUND_GROWTH = 8
ANSWERING_SHARE = 0.9  # of the time; the rest is for reading models and data, and for marking
SECONDS_PER_UNIT = {"s": 1, "m": 60, "h": 3600}
DURATION_PATTERN = re.compile(r"(\d+(?:\.\d+)?)([smh])")


def parse_duration(text: str) -> float:
    """A time such as `10m`, `90s` or `1.5h`.

    Raises:
        RecipeProblem: it is none, or no time at all.
    """
    found = DURATION_PATTERN.fullmatch(text.strip())
    if found is None or not float(found[1]):
        raise RecipeProblem(
            f"--budget {text!r} is not a time", next_step="give one such as 10m, 90s or 1.5h"
        )
    return float(found[1]) * SECONDS_PER_UNIT[found[2]]


class RoundCost(NamedTuple):
    """What it took to answer some items more."""

    uncached_items: float  # that were not known
    fixed_seconds: float  # seconds that more items beside would not have added to


def answer_within_budget(
    total: int,
    share: float,
    answer: Callable[[int], RoundCost],
    *,
    first: int,
    unit: int = 1,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """How many items are answered in a time; all of them are when this returns.

    Rounds become larger, up to eight times all that was asked before, as long as the next one fits:
    by what the last one took for each item, and by itself.

    Args:
        total: items of the task.
        share: seconds; the first round has no other choice than to take what it takes.
        answer: answers the first so many items of the shuffle.
        first: items of the first round.
        unit: items that belong together, one of each part of a task.
        clock: tells seconds.
    """
    first = -(-first // unit) * unit
    done, more, new, spent, speed = 0, first, 0.0, 0.0, 0.0
    while more > 0:
        more = min(more, total - done)
        begun = clock()
        asked = answer(done + more)
        took = clock() - begun
        done, new, spent = done + more, new + asked.uncached_items, spent + took
        speed = (
            max(0.0, took - asked.fixed_seconds) / asked.uncached_items
            if asked.uncached_items
            else speed
        )
        left = share - spent - min(asked.fixed_seconds, took)
        fits = int(left / max(speed, 1e-9)) if left > 0 else 0
        most = min(fits, MAX_ROUND_GROWTH * max(first, int(new)))
        more = total - done if most >= total - done else most // unit * unit
    return done


def sample_items(parts: Sequence[str], count: int, *, by_part: bool) -> list[int]:
    """Which items are asked, in order; more of them if the count is larger, never others.

    Args:
        parts: of each item of the task.
        count: items that fit.
        by_part: the parts count alike, so each gets as many items, and one at least.
    """
    order = random.Random(SHUFFLE_SEED).sample(range(len(parts)), len(parts))
    if not by_part:
        return sorted(order[:count])
    each = max(1, count // len(set(parts)))
    taken: dict[str, list[int]] = {}
    for place in order:
        taken.setdefault(parts[place], []).append(place)
    return sorted(place for places in taken.values() for place in places[:each])
