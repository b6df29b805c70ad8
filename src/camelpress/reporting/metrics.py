"""Table of all metrics: one row names a metric, its place in a report and its text everywhere.

The module needs no torch: settings, schemas and the gate are made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from camelpress.reporting.facts_model import FactsModel
from camelpress.reporting.limit_range import (
    AGREEMENT,
    BLOCK_ERROR,
    DIVERGENCE,
    ITEM_SHARE,
    NON_NEGATIVE,
    PROBABILITY,
    RATIO,
    LimitRange,
)

COUNT_UNIT = "#"
Surface = Literal[
    "gate_note", "fact_note", "page", "card", "card_column", "bom", "hub_type", "hub_name",
    "terminal_label", "terminal",
]  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """One measured quantity, 0 or more, with its text on each surface.

    A listed metric appears by default as a column of the page and of the Markdown summary, as a
    row and a column of the card, in the BOM and on the terminal; with `limits` also in the gate,
    and so in the checks and in JUnit. Both JSON Schemas follow. The front matter of a card shows a
    metric with a `hub_type`. Headline tiles and plots show chosen metrics.

    A text may hold {title}, {noun} (the title in lower case), {phrase} (noun and unit) and the
    names that its surface adds; an empty text leaves the metric out of that surface.
    """

    key: str  # name in facts, gates and checks
    title: str
    unit: str = ""  # `COUNT_UNIT` for a count, "%" for a share
    lossless_value: float | None = None  # value of a candidate equal to its reference
    limits: LimitRange | None = None  # possible limits in a gate; None: no check
    default_limit: float | None = None  # limit of the default gate
    path: str = ""  # path in the facts if they hold no `key`; see `_find_fact`
    has_interval: bool = True  # True if the interval decides, False if the value alone decides
    is_required: bool = False  # True if a valid report has it
    is_listed: bool = True  # False: in gate, checks and schemas only

    gate_note: str = "{phrase}"  # description in the schema of the gate
    fact_note: str = "{phrase}"  # description in the schema of the report
    page: str = "{title}"  # head of a column of the page, in lines
    interval_column: str = ""  # head of a Markdown column of the interval
    card: str = "{phrase}"  # row of the card; adds {reference}
    card_column: str = "{noun}"  # column of the card's texts; adds {reference}
    bom: str = "{phrase}"  # type in the BOM; adds {reference}
    hub_type: str = ""  # metric type in the front matter
    hub_name: str = "{phrase}"  # metric name in the front matter; adds {protocol}, {reference}
    terminal_label: str = "{noun}"
    terminal: str = "{estimate}"  # value on the terminal; adds {value}, {estimate}, {reference}

    @property
    def scale(self) -> float:
        """Factor from the report's value to the unit."""
        return 100.0 if self.unit == "%" else 1.0

    @property
    def direction(self) -> Literal["max", "min"]:
        """Side of a limit: `min` if a lossless candidate has the highest possible value."""
        at_top = self.limits is not None and self.lossless_value == self.limits.high
        return "min" if at_top else "max"

    @property
    def is_computed(self) -> bool:
        """True if a formula computes it from the scores of tokens, False for other facts."""
        return not self.path

    @property
    def fact(self) -> str:
        """Path of the value with dots, for messages."""
        return (self.path or self.key).replace("/", ".")

    def value(self, facts: FactsModel | None) -> Any:
        """Reads the value from all facts, from one text, or from the beginnings of windows."""
        return _find_fact(facts.record if facts else None, self.path or self.key)

    def interval(self, facts: FactsModel | None) -> Any:
        """Reads the 95 % interval; the interval of `a/b` is at `a_interval/b`."""
        head, slash, rest = (self.path or self.key).partition("/")
        return _find_fact(facts.record if facts else None, f"{head}_interval{slash}{rest}")

    def text(self, surface: Surface, **names: object) -> str:
        """Returns the text on a surface, with title, unit and the names filled in."""
        is_acronym = self.title[:2].isupper()
        noun = self.title if is_acronym else self.title[:1].lower() + self.title[1:]
        phrase = noun if self.unit in ("", "%", COUNT_UNIT) else f"{noun}, {self.unit}"
        template: str = getattr(self, surface)
        return template.format(title=self.title, noun=noun, phrase=phrase, **names)


def _table(*metrics: Metric) -> dict[str, Metric]:
    return {metric.key: metric for metric in metrics}


METRICS = _table(
    Metric(
        "reference_perplexity",
        "Reference perplexity",
        has_interval=False,
        is_required=True,
        fact_note="",
        page="Perplexity,\nreference",
        card="perplexity, {reference}",
        card_column="perplexity, {reference}",
        bom="",
        terminal_label="perplexity",
        terminal="{value:.4f} {reference}",
    ),
    Metric(
        "candidate_perplexity",
        "Candidate perplexity",
        has_interval=False,
        is_required=True,
        fact_note="",
        page="Perplexity,\ncandidate",
        card="perplexity, this model",
        card_column="perplexity, this model",
        bom="perplexity",
        hub_type="perplexity",
        hub_name="perplexity, {protocol}",
        terminal_label="",
        terminal="{value:.4f} candidate",
    ),
    Metric(
        "perplexity_ratio",
        "Perplexity ratio",
        lossless_value=1.0,
        limits=RATIO,
        default_limit=1.035,
        is_required=True,
        gate_note="candidate perplexity over reference perplexity",
        fact_note="candidate over reference, paired",
        interval_column="95 % interval",
        card_column="ratio",
        bom="perplexity over that of the {reference}",
        hub_type="perplexity_ratio",
        hub_name="perplexity over the {reference}'s",
        terminal_label="ratio",
    ),
    Metric(
        "kl_mean",
        "Mean KL divergence",
        "nats",
        lossless_value=0.0,
        limits=DIVERGENCE,
        default_limit=0.03,
        is_required=True,
        gate_note="mean divergence per token, nats",
        fact_note="mean KL(reference || candidate) of a token, nats",
        card="mean KL divergence, nats a token",
        card_column="mean KL",
        bom="mean KL divergence from the {reference}, nats a token",
        hub_type="kl",
        hub_name="mean KL from the {reference}, nats",
        terminal_label="KL divergence",
    ),
    Metric(
        "kl_reverse_mean",
        "Mean reverse KL divergence",
        "nats",
        lossless_value=0.0,
        limits=DIVERGENCE,
        is_listed=False,
        gate_note="mean of KL(candidate || reference) per token, nats",
        fact_note="mean KL(candidate || reference) of a token, nats",
    ),
    Metric(
        "kl_p90",
        "KL divergence, 90th percentile",
        "nats",
        lossless_value=0.0,
        limits=DIVERGENCE,
        path="kl_percentiles/90",
        is_listed=False,
        gate_note="90th percentile of the divergence, nats",
    ),
    Metric(
        "kl_p99",
        "KL divergence, 99th percentile",
        "nats",
        lossless_value=0.0,
        limits=DIVERGENCE,
        path="kl_percentiles/99",
        is_listed=False,
        gate_note="99th percentile of the divergence, nats",
    ),
    Metric(
        "kl_p99_9",
        "KL divergence, 99.9th percentile",
        "nats",
        lossless_value=0.0,
        limits=DIVERGENCE,
        path="kl_percentiles/99.9",
        is_listed=False,
        gate_note="99.9th percentile of the divergence, nats",
    ),
    Metric(
        "top1_agreement",
        "Top-1 agreement",
        "%",
        lossless_value=1.0,
        limits=AGREEMENT,
        default_limit=0.94,
        is_required=True,
        gate_note="share of tokens with the same likeliest next token",
        fact_note="share of tokens with the same likeliest next token",
        bom="top-1 agreement with the {reference}",
    ),
    Metric(
        "top5_agreement",
        "Top-5 agreement",
        "%",
        lossless_value=1.0,
        limits=AGREEMENT,
        is_listed=False,
        gate_note="shared tokens among the five likeliest next tokens, as a share",
        fact_note="",
    ),
    Metric(
        "non_finite",
        "Predictions that are not finite",
        COUNT_UNIT,
        lossless_value=0.0,
        limits=NON_NEGATIVE,
        default_limit=0.0,
        path="non_finite/candidate",
        has_interval=False,
        is_listed=False,
        gate_note="predictions with a logit that is not finite",
    ),
    Metric(
        "noise_floor",
        "Mean KL divergence of rounding",
        "nats",
        lossless_value=0.0,
        limits=NON_NEGATIVE,
        path="noise_floor/kl_mean",
        has_interval=False,
        is_listed=False,
        gate_note="mean divergence from rounding alone, nats per token",
    ),
    Metric(
        "block_error",
        "Largest error of a block",
        "%",
        lossless_value=0.0,
        limits=BLOCK_ERROR,
        path="blocks/*/relative_error",
        has_interval=False,
        is_listed=False,
        gate_note="largest relative error of the hidden states after a block",
    ),
)
TASK_METRICS = _table(
    Metric("accuracy_loss", "Loss of accuracy", "%", 0.0, ITEM_SHARE),
    Metric("significant_loss", "p-value of no loss", limits=PROBABILITY, has_interval=False),
)


def metrics_on(surface: Surface) -> list[Metric]:
    """Returns the listed metrics with a text on a surface, in the order of the table."""
    return [metric for metric in METRICS.values() if metric.is_listed and getattr(metric, surface)]


def _find_fact(facts: Any, path: str) -> Any:
    """Returns the value at a path of keys, or None; `*` is the largest item of a list."""
    head, _, rest = path.partition("/")
    if head == "*":
        values = [_find_fact(item, rest) for item in facts] if isinstance(facts, list) else []
        return max((value for value in values if value is not None), default=None)
    inner = facts.get(head) if isinstance(facts, Mapping) else None
    return _find_fact(inner, rest) if rest else inner
