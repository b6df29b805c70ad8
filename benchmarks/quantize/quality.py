"""What the checkpoints are worth, as Markdown: perplexity and divergence on each text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks.quantize.bootstrap import Interval, ratio
from benchmarks.quantize.tools import OURS, PEERS, title
from benchmarks.tables import table

Figures = Mapping[str, Sequence[float]]  # tokens, kl and worse, each for every document
Quality = Mapping[str, Mapping[str, Figures]]  # by tool and text

BOUND = 0.85  # of our divergence over that of the best peer


class Closer(NamedTuple):
    """Our divergence held against that of one peer; the intervals of both must not touch."""

    name: str
    measure: Interval  # ours over theirs, on the same documents
    apart: bool
    asked: str = f"at most {BOUND}, intervals apart"

    @property
    def measured(self) -> str:
        """The ratio, and whether the intervals of the two are apart."""
        return f"{written(self.measure)}, {'apart' if self.apart else 'not apart'}"

    @property
    def met(self) -> bool:
        """Whether both conditions hold."""
        return self.apart and self.measure.value <= BOUND


def divergence(figures: Figures) -> Interval:
    """Mean KL(reference || candidate) of a token, nats."""
    return ratio(figures["kl"], figures["tokens"])


def perplexity_ratio(figures: Figures) -> Interval:
    """Perplexity of the candidate over that of the reference."""
    return Interval(*map(math.exp, ratio(figures["worse"], figures["tokens"])))


def targets(quality: Quality) -> list[Closer]:
    """On each text, ours against the best peer that writes the GPTQ format."""
    rivals = [tool for tool in quality if tool != OURS and PEERS[tool].gptq]
    if OURS not in quality or not rivals:
        return []
    found = []
    for text, ours in quality[OURS].items():
        best = min(rivals, key=lambda tool: divergence(quality[tool][text]).value)
        theirs = quality[best][text]
        found.append(
            Closer(
                f"KL on {text}: {OURS} / {title(best)}",
                ratio(ours["kl"], theirs["kl"]),
                divergence(ours).high < divergence(theirs).low,
            )
        )
    return found


def tables(quality: Quality) -> str:
    """One table for each text."""
    texts = next(iter(quality.values()))
    return "\n\n".join(_table(quality, text) for text in texts)


def written(interval: Interval, digits: int = 3) -> str:
    """An estimate with its interval."""
    value, low, high = (f"{number:.{digits}f}" for number in interval)
    return f"{value} ({low} - {high})"


def _table(quality: Quality, text: str) -> str:
    some = next(iter(quality.values()))[text]["tokens"]
    header = [
        f"{text}: {sum(some):,.0f} tokens, {len(some)} documents",
        "perplexity ratio",
        "mean KL, nats",
        f"KL of {OURS} over it",
    ]
    rows = []
    for tool, by_text in quality.items():
        own = by_text[text]
        over = ""
        if tool != OURS and OURS in quality:
            over = written(ratio(quality[OURS][text]["kl"], own["kl"]))
        figures = [written(perplexity_ratio(own)), written(divergence(own), digits=4)]
        rows.append([title(tool), *figures, over])
    return table(header, rows)
