"""How many items of each task fit into a time, and which: always the first ones of one shuffle."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Sequence

from camelpress.core.errors import RecipeProblem

SEED = 20_261_126
TRIAL = 1 / 4  # of the time, after which the speed is told
UNITS = {"s": 1, "m": 60, "h": 3600}
FORM = re.compile(r"(\d+(?:\.\d+)?)([smh])")


def seconds(text: str) -> float:
    """A time such as `10m`, `90s` or `1.5h`.

    Raises:
        RecipeProblem: it is none, or no time at all.
    """
    found = FORM.fullmatch(text.strip())
    if found is None or not float(found[1]):
        raise RecipeProblem(
            f"--budget {text!r} is not a time", next_step="give one such as 10m, 90s or 1.5h"
        )
    return float(found[1]) * UNITS[found[2]]


def fitting(
    total: int,
    share: float,
    answer: Callable[[int], float],
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """How many items a time is enough for; one at least.

    Items are answered until a quarter of the time is gone, in each round twice as many as there
    are. The last round tells the speed: what a round costs by itself counts least in it. The first
    round, of one item, is not counted, for it may have loaded the model.

    Args:
        total: items of the task.
        share: seconds.
        answer: answers the first so many items of the shuffle, and tells how many of them were not
            known before; the others cost nothing.
        clock: tells seconds.
    """
    done = 1
    answer(done)
    spent = speed = 0.0
    while done < total and spent < share * TRIAL:
        begun, more = clock(), min(2 * done, total - done)
        asked = answer(done + more)
        took = clock() - begun
        done, spent = done + more, spent + took
        speed = took / asked if asked else speed  # seconds an item
    if done == total:
        return total
    return min(total, done + int(max(0.0, share - spent) / max(speed, 1e-9)))


def subset(parts: Sequence[str], count: int, *, by_part: bool) -> list[int]:
    """Which items are asked, in order; more of them if the count is larger, never others.

    Args:
        parts: of each item of the task.
        count: items that fit.
        by_part: the parts count alike, so each gets as many items, and one at least.
    """
    order = random.Random(SEED).sample(range(len(parts)), len(parts))
    if not by_part:
        return sorted(order[:count])
    each = max(1, count // len(set(parts)))
    taken: dict[str, list[int]] = {}
    for place in order:
        taken.setdefault(parts[place], []).append(place)
    return sorted(place for places in taken.values() for place in places[:each])
