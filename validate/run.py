"""The stage: reference and candidate in, a report with verdicts and a page to look at out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import Any

import torch

from camelpress.core.blocks import StreamedModel, compute_dtype, pick_device
from camelpress.core.checkpoint import Checkpoint
from camelpress.core.documents import encode_document, read_documents
from camelpress.core.errors import CheckpointProblem, RecipeProblem
from camelpress.core.llama import EMBEDDING
from camelpress.core.output import keep_apart, require_free, staged
from camelpress.core.provenance import checkpoint_digest, sha256_file
from camelpress.core.report import Report, Stopwatch, Verdict
from camelpress.core.sequences import Sequences
from camelpress.core.summary import summary
from camelpress.core.tokens import Tokenizer
from camelpress.validate import page
from camelpress.validate.gate import judge
from camelpress.validate.score import Scores, score
from camelpress.validate.settings import Validate
from camelpress.validate.statistics import Estimate, clustered_mean

REPORT = "report.json"
LARGEST_LOG = 700.0  # of a float
PERCENTILES = (50.0, 90.0, 99.0, 99.9)
HISTOGRAM = tuple(10.0 ** (power / 4) for power in range(-28, 9))  # nats
POSITIONS = (0, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True)
class Text:
    """A text as token sequences."""

    name: str
    sha256: str
    sequences: list[list[int]]


def run(
    reference: Checkpoint,
    candidate: Checkpoint,
    out: Path,
    settings: Validate,
    *,
    force: bool = False,
) -> Report:
    """Score both models on the same tokens and hold the differences against the gate.

    Args:
        reference: the 16-bit model; its tokenizer is used.
        candidate: 16-bit or GPTQ, with the same vocabulary.
        out: a folder for report.json, report.md and report.html.
        settings: texts, windows, gate.
        force: replace `out`.
    Raises:
        RecipeProblem: no text, or an empty one.
        CheckpointProblem: the vocabularies differ.
    """
    watch = Stopwatch()
    keep_apart(out, reference.folder, candidate.folder)
    require_free(out, force=force)
    vocabulary = _same_vocabulary(reference, candidate)
    device = pick_device(settings.device)
    models = [
        StreamedModel(
            checkpoint,
            device=device,
            dtype=compute_dtype(device, reference.info(f"{EMBEDDING}.weight").dtype),
        )
        for checkpoint in (reference, candidate)
    ]
    limit = min(settings.sequence_length, *(model.positions for model in models))
    texts = _texts(settings, Tokenizer.load(reference.folder), limit)
    sequences = Sequences([ids for text in texts for ids in text.sequences], limit=limit)
    scores = score(models[0], models[1], sequences)
    overall = _estimates(scores)
    checks = judge(overall, settings.gate)
    report = Report(
        stage="validate",
        inputs={
            "reference": checkpoint_digest(reference.folder),
            "candidate": checkpoint_digest(candidate.folder),
        }
        | {f"text:{text.name}": text.sha256 for text in texts},
        settings=settings.model_dump(mode="json", exclude={"text", "device"})
        | {"text": [text.name for text in texts]},
        facts={
            "protocol": f"token-level; plain text in disjoint windows of {limit} tokens, each "
            "conversation a sequence of its own in the Tulu format cut at that length; every "
            f"token after the first of a sequence is scored; {models[0].dtype} on {device.type}",
            "vocabulary": vocabulary,
            "reference": summary(reference),
            "candidate": summary(candidate),
            **_headline(scores, overall),
            "kl_percentiles": _percentiles(scores),
            "kl_histogram": _histogram(scores),
            "by_position": _by_position(scores),
            "texts": _by_text(scores, texts),
        },
        checks=checks,
        verdict=Verdict.worst([check.verdict for check in checks]),
        cost=watch.cost(),
    )
    with staged(out, force=force) as folder:
        report.write(folder / REPORT)
        (folder / "report.md").write_text(page.markdown(report), encoding="utf-8")
        (folder / "report.html").write_text(page.html(report), encoding="utf-8")
    return report


def _same_vocabulary(reference: Checkpoint, candidate: Checkpoint) -> int:
    sizes = [
        checkpoint.info(f"{EMBEDDING}.weight").shape[0] for checkpoint in (reference, candidate)
    ]
    if sizes[0] != sizes[1]:
        raise CheckpointProblem(
            f"{reference.folder} has {sizes[0]} tokens and {candidate.folder} has {sizes[1]}",
            next_step="compare models with the same vocabulary",
        )
    return sizes[0]


def _texts(settings: Validate, tokenizer: Tokenizer, limit: int) -> list[Text]:
    if not settings.text:
        raise RecipeProblem("there is no text to score", next_step="give --text FILE")
    return [_text(path, tokenizer, limit, settings.max_tokens) for path in settings.text]


def _text(path: Path, tokenizer: Tokenizer, limit: int, max_tokens: int | None) -> Text:
    sequences: list[list[int]] = []
    left = max_tokens if max_tokens is not None else 2**62
    for document in read_documents(path):
        ids = encode_document(document, tokenizer)
        whole = ids if isinstance(document, str) else ids[:limit]
        for start in range(0, len(whole), limit):
            piece = whole[start : start + limit][:left]
            if len(piece) > 1:
                sequences.append(piece)
                left -= len(piece)
    if not sequences:
        raise RecipeProblem(f"{path} has no two tokens in a row", next_step="give a longer text")
    return Text(path.name, sha256_file(path), sequences)


def _estimates(scores: Scores) -> dict[str, Estimate]:
    """The gated figures; the ratio of perplexities is the exponential of a paired mean."""
    log_ratio = clustered_mean(scores.candidate_nll - scores.reference_nll, scores.sequence)
    return {
        "perplexity_ratio": Estimate(
            _exp(log_ratio.mean),
            _exp(log_ratio.low),
            _exp(log_ratio.high),
            log_ratio.n,
            log_ratio.clusters,
        ),
        "kl_mean": clustered_mean(scores.kl, scores.sequence),
        "top1_agreement": clustered_mean(scores.same_top.float(), scores.sequence),
    }


def _headline(scores: Scores, estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    told: dict[str, Any] = {
        "tokens": len(scores.kl),
        "sequences": len(scores.sequence.unique()),
        "reference_perplexity": _exp(float(scores.reference_nll.double().mean())),
        "candidate_perplexity": _exp(float(scores.candidate_nll.double().mean())),
    }
    for name, estimate in estimates.items():
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


def _by_text(scores: Scores, texts: Sequence[Text]) -> list[dict[str, Any]]:
    told = []
    first = 0
    for text in texts:
        last = first + len(text.sequences)
        part = scores.where((scores.sequence >= first) & (scores.sequence < last))
        told.append({"name": text.name, **_headline(part, _estimates(part))})
        first = last
    return told
