"""What a report quotes, from the scores of all tokens."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from typing import Any

import torch

from camelpress.validate.score import Scores
from camelpress.validate.statistics import Estimate, bootstrap_mean, clustered_quantile
from camelpress.validate.texts import Text

LARGEST_LOG = 700.0  # of a float
PERCENTILES = (50.0, 90.0, 99.0, 99.9)
HISTOGRAM = tuple(10.0 ** (power / 4) for power in range(-28, 9))  # nats
EARLY = 128  # tokens at the beginning of a window, where damage to short contexts shows
POSITIONS = (0, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


def estimates(scores: Scores) -> dict[str, Estimate]:
    """The gated figures; the ratio of perplexities is the exponential of a paired mean."""
    log_ratio = bootstrap_mean(scores.candidate_nll - scores.reference_nll, scores.sequence)
    return {
        "perplexity_ratio": Estimate(
            _exp(log_ratio.mean),
            _exp(log_ratio.low),
            _exp(log_ratio.high),
            log_ratio.n,
            log_ratio.clusters,
        ),
        "kl_mean": bootstrap_mean(scores.kl, scores.sequence),
        "top1_agreement": bootstrap_mean(scores.same_top.float(), scores.sequence),
    }


def figures(scores: Scores, texts: Sequence[Text]) -> dict[str, Any]:
    """All facts of a report that come from scores: overall, spread, by position and by text."""
    return {
        **_headline(scores),
        "kl_percentiles": _percentiles(scores),
        "kl_percentiles_interval": _percentile_intervals(scores),
        "kl_histogram": _histogram(scores),
        "by_position": _by_position(scores),
        "early": _early(scores),
        "texts": _by_text(scores, texts),
    }


def _headline(scores: Scores) -> dict[str, Any]:
    told: dict[str, Any] = {
        "tokens": len(scores.kl),
        "sequences": len(scores.sequence.unique()),
        "reference_perplexity": _exp(float(scores.reference_nll.double().mean())),
        "candidate_perplexity": _exp(float(scores.candidate_nll.double().mean())),
    }
    for name, estimate in estimates(scores).items():
        told[name] = estimate.mean
        told[f"{name}_interval"] = estimate.interval
    return told


def _exp(log: float) -> float:
    """The exponential, of a broken model too."""
    return exp(min(log, LARGEST_LOG))


def _percentiles(scores: Scores) -> dict[str, float]:
    ordered = scores.kl.sort().values
    told = {
        f"{percentile:g}": float(
            ordered[min(len(ordered) - 1, int(len(ordered) * percentile / 100))]
        )
        for percentile in PERCENTILES
    }
    return told | {"max": float(ordered[-1])}


def _percentile_intervals(scores: Scores) -> dict[str, tuple[float, float] | None]:
    return {
        f"{percentile:g}": clustered_quantile(scores.kl, scores.sequence, percentile / 100).interval
        for percentile in PERCENTILES
    }


def _histogram(scores: Scores) -> dict[str, list[float]]:
    edges = torch.tensor(HISTOGRAM)
    inside = scores.kl.clamp(HISTOGRAM[0], HISTOGRAM[-1] * (1 - 1e-6))
    places = torch.bucketize(inside, edges, right=True) - 1
    counts = torch.bincount(places, minlength=len(HISTOGRAM) - 1)
    return {"edges": list(HISTOGRAM), "counts": counts.tolist()}


def _by_position(scores: Scores) -> dict[str, list[float]]:
    last = int(scores.position.max())
    edges = [edge for edge in POSITIONS if edge <= last]
    edges.append(last + 1)
    parts = [
        scores.where((scores.position >= low) & (scores.position < high))
        for low, high in zip(edges, edges[1:], strict=False)
    ]
    return {
        "edges": [float(edge) for edge in edges],
        "kl_mean": [float(part.kl.mean()) for part in parts],
        "log_ratio": [float((part.candidate_nll - part.reference_nll).mean()) for part in parts],
        "tokens": [float(len(part.kl)) for part in parts],
    }


def _early(scores: Scores) -> dict[str, Any]:
    """Predictions from the first tokens of a window, apart from all others.

    A mean over long windows hides what happens at their beginning: there a model leans on few
    tokens, and so does most of what a user asks.
    """
    first = scores.position < EARLY
    rest = scores.where(~first)
    return {
        "context": EARLY,
        "first": _headline(scores.where(first)),
        "rest": _headline(rest) if len(rest.kl) else None,
    }


def _by_text(scores: Scores, texts: Sequence[Text]) -> list[dict[str, Any]]:
    told = []
    first = 0
    for text in texts:
        last = first + len(text.sequences)
        part = scores.where((scores.sequence >= first) & (scores.sequence < last))
        told.append({"name": text.name, **_headline(part)})
        first = last
    return told
