"""Aggregates the scores of all tokens to the facts of a report."""

from __future__ import annotations

from collections.abc import Sequence
from math import log, log10
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from camelpress.reporting.metrics import METRICS
from camelpress.validate.corpus.held_out_text import HeldOutText
from camelpress.validate.scoring.metric_formulas import bounded_exp, estimate_metrics
from camelpress.validate.scoring.scored_positions import piece_numbers
from camelpress.validate.scoring.token_scores import TokenScores
from camelpress.validate.statistics.clustered import clustered_quantile, effective_clusters

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
KL_BIN_EDGES = tuple(10.0 ** (power / 4) for power in range(-28, 9))  # nats
CONFIDENCE_BIN_EDGES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)  # probability of the likeliest token
WINDOW_START_TOKENS = 128  # tokens at the beginning of a window, to show damage to short contexts
POSITION_BIN_EDGES = (0, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)  # tokens


def aggregate_scores(scores: TokenScores, texts: Sequence[HeldOutText]) -> dict[str, Any]:
    """Returns all facts from scores: means, distribution, by position and by text."""
    piece = torch.tensor(piece_numbers([text.windows for text in texts]))
    return {
        **_mean_metrics(scores),
        **_count_duplicates(scores, piece),
        **_distribution(scores),
        "kl_percentiles_interval": _percentile_intervals(scores),
        "kl_histogram": _histogram(scores),
        "kl_by_confidence": _by_confidence(scores),
        **_word_and_byte_perplexity(scores, texts),
        "by_position": _by_position(scores),
        "early": _by_window_start(scores),
        "texts": _by_text(scores, texts, piece),
    }


def noise_floor_facts(kind: str, scores: TokenScores) -> dict[str, Any]:
    """Returns the facts of the noise floor: the divergence of the reference from its own rerun.

    No candidate can be shown to be closer than this.

    Args:
        kind: changed condition of the rerun, as in the settings.
        scores: scores of the reference against its rerun.
    """
    return {"kind": kind, **_mean_metrics(scores), **_distribution(scores)}


def block_error_facts(errors: Sequence[float]) -> list[dict[str, Any]] | None:
    """Returns the error of the hidden states after each block; None if there are no errors.

    Args:
        errors: relative error after each block.
    Returns:
        for each block the relative error, the signal-to-noise ratio in dB (null without noise), and
        `worst` for the block with the largest increase of the squared error.
    """
    if not errors:
        return None
    increases = [
        after**2 - before**2 for before, after in zip([0.0, *errors], errors, strict=False)
    ]
    worst_block = max(range(len(increases)), key=increases.__getitem__) if any(errors) else None
    return [
        {
            "relative_error": error,
            "sqnr_db": -20 * log10(error) if error else None,
            "worst": number == worst_block,
        }
        for number, error in enumerate(errors)
    ]


def _distribution(scores: TokenScores) -> dict[str, Any]:
    change = (-scores.candidate_nll.double()).exp() - (-scores.reference_nll.double()).exp()
    return {
        "kl_percentiles": _percentiles(scores),
        "probability_change": {
            "mean": float(change.mean()),
            "rms": float(change.square().mean().sqrt()),
        },
    }


def _mean_metrics(scores: TokenScores) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "tokens": len(scores.kl),
        "sequences": len(scores.cluster.unique()),
        "effective_sequences": effective_clusters(scores.cluster),
    }
    for name, estimate in estimate_metrics(scores).items():
        facts[name] = estimate.mean if estimate else None
        if METRICS[name].has_interval:
            facts[f"{name}_interval"] = estimate.interval if estimate else None
    return facts


def _count_duplicates(scores: TokenScores, piece: Int64[Tensor, " windows"]) -> dict[str, int]:
    """Counts the pieces of text that repeat another one."""
    return {"repeats": len(piece[scores.sequence].unique()) - len(scores.cluster.unique())}


def _percentiles(scores: TokenScores) -> dict[str, float]:
    sorted_kl = scores.kl.sort().values
    percentiles = {
        f"{percentile:g}": float(
            sorted_kl[min(len(sorted_kl) - 1, int(len(sorted_kl) * percentile / 100))]
        )
        for percentile in PERCENTILES
    }
    return percentiles | {"max": float(sorted_kl[-1])}


def _percentile_intervals(scores: TokenScores) -> dict[str, tuple[float, float] | None]:
    return {
        f"{percentile:g}": clustered_quantile(scores.kl, scores.cluster, percentile / 100).interval
        for percentile in PERCENTILES
    }


def _histogram(scores: TokenScores) -> dict[str, list[float]]:
    edges = torch.tensor(KL_BIN_EDGES)
    inside = scores.kl.clamp(KL_BIN_EDGES[0], KL_BIN_EDGES[-1] * (1 - 1e-6))
    bins = torch.bucketize(inside, edges, right=True) - 1
    counts = torch.bincount(bins, minlength=len(KL_BIN_EDGES) - 1)
    return {"edges": list(KL_BIN_EDGES), "counts": counts.tolist()}


def _by_confidence(scores: TokenScores) -> dict[str, Any]:
    """Returns the divergence by the reference probability of its likeliest token.

    Empty bins have a mean of null.
    """
    inner = torch.tensor(CONFIDENCE_BIN_EDGES[1:-1])
    bucket = torch.bucketize(scores.confidence, inner, right=True)
    parts = [
        scores.kl[bucket == number].double() for number in range(len(CONFIDENCE_BIN_EDGES) - 1)
    ]
    return {
        "edges": list(CONFIDENCE_BIN_EDGES),
        "kl_mean": [float(part.mean()) if len(part) else None for part in parts],
        "tokens": [len(part) for part in parts],
    }


def _word_and_byte_perplexity(scores: TokenScores, texts: Sequence[HeldOutText]) -> dict[str, Any]:
    """Returns perplexities per word and per byte, if the protocol counts words and bytes.

    Source:
        EleutherAI/lm-evaluation-harness 0.4.13, api/metrics.py (weighted_perplexity).
    """
    word_count = sum(text.word_count for text in texts)
    byte_count = sum(text.byte_count for text in texts)
    if not word_count:
        return {}
    facts: dict[str, Any] = {"words": word_count, "bytes": byte_count}
    for model, nll in (("reference", scores.reference_nll), ("candidate", scores.candidate_nll)):
        total = float(nll.double().sum())
        facts[f"{model}_word_perplexity"] = bounded_exp(total / word_count)
        facts[f"{model}_byte_perplexity"] = bounded_exp(total / byte_count)
        facts[f"{model}_bits_per_byte"] = total / byte_count / log(2)
    return facts


def _by_position(scores: TokenScores) -> dict[str, list[float]]:
    """Returns means by position in the window, in the bins of `POSITION_BIN_EDGES`.

    An empty bin joins the one before it. Positions before the first scored prediction have no bin.
    """
    last = int(scores.position.max())
    bins = torch.bucketize(
        scores.position, torch.tensor(POSITION_BIN_EDGES[1:]), right=True
    ).unique()
    edges = [*(POSITION_BIN_EDGES[index] for index in bins.tolist()), last + 1]
    parts = [
        scores.select((scores.position >= low) & (scores.position < high))
        for low, high in zip(edges, edges[1:], strict=False)
    ]
    return {
        "edges": [float(edge) for edge in edges],
        "kl_mean": [float(part.kl.mean()) for part in parts],
        "log_ratio": [float((part.candidate_nll - part.reference_nll).mean()) for part in parts],
        "tokens": [float(len(part.kl)) for part in parts],
    }


def _by_window_start(scores: TokenScores) -> dict[str, Any]:
    """Returns the metrics of predictions near the beginning of a window, and those of all others.

    A mean over long windows hides damage at their beginning, where a model relies on few tokens.
    Most user prompts are as short.
    """
    early = scores.position < WINDOW_START_TOKENS
    first, rest = (scores.select(mask) for mask in (early, ~early))
    return {
        "context": WINDOW_START_TOKENS,
        "first": _mean_metrics(first) if len(first.kl) else None,
        "rest": _mean_metrics(rest) if len(rest.kl) else None,
    }


def _by_text(
    scores: TokenScores, texts: Sequence[HeldOutText], piece: Int64[Tensor, " windows"]
) -> list[dict[str, Any]]:
    rows = []
    first = 0
    for text in texts:
        last = first + len(text.windows)
        part = scores.select((scores.sequence >= first) & (scores.sequence < last))
        text_facts = (
            _mean_metrics(part)
            | _count_duplicates(part, piece)
            | _word_and_byte_perplexity(part, [text])
        )
        omissions = {"rows": text.row_count, "omissions": text.omissions}
        rows.append({"name": text.name, **omissions, **text_facts})
        first = last
    return rows


def empty_figures() -> dict[str, Any]:
    """Returns the facts of a report without text: all keys, without values."""
    required = [metric for metric in METRICS.values() if metric.is_required]
    return {
        "tokens": 0,
        "sequences": 0,
        **dict.fromkeys(metric.key for metric in required),
        **dict.fromkeys(f"{metric.key}_interval" for metric in required if metric.has_interval),
        "kl_percentiles": {},
        "kl_histogram": {"edges": [], "counts": []},
        "by_position": {"edges": [], "kl_mean": [], "log_ratio": [], "tokens": []},
        "early": None,
        "texts": [],
    }
