"""Decides whether a reference shows a loss: it is another model, and not a quantized one."""

from __future__ import annotations

from pathlib import Path

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem, RecipeProblem
from camelpress.core.files.file_hashes import checkpoint_digest
from camelpress.core.files.json_files import read_json
from camelpress.inference.model.model_identity import (
    computes_alike,
    headers_digest,
    is_same_model,
    weights_digest,
)
from camelpress.reporting.checkpoint_summary import summary
from camelpress.reporting.lineage import describes, foreign_report
from camelpress.reporting.model_precision import dequantized_by, is_quantized, precision
from camelpress.reporting.stage_report import Report
from camelpress.validate.settings import Scoring
from camelpress.validate.store.prediction_store import Store

ALLOWANCE = "--allow-quantized-reference"


def require_sound_reference(
    reference: Checkpoint | Store, candidate: Checkpoint, settings: Scoring
) -> None:
    """Refuses a comparison that would pass whatever the candidate is worth.

    Args:
        reference: a model, or a store of its predictions.
        candidate: the model that is judged.
        settings: say whether a quantized reference is allowed.
    Raises:
        RecipeProblem: both are the same model, or the reference is quantized and not allowed.
    """
    packed = candidate.quantization is not None
    if _is_same(reference, candidate):
        raise RecipeProblem(
            f"{reference.folder} and {candidate.folder} are the same model: no difference can "
            "be measured",
            next_step="give the model that the candidate was quantized from as the reference"
            if packed
            else "give the quantized model as the candidate",
        )
    if isinstance(reference, Store):
        _require_plain_store(reference, settings)
    else:
        require_plain(reference, settings, swapped=None if packed else candidate)


def require_plain(
    reference: Checkpoint, settings: Scoring, *, swapped: Checkpoint | None = None
) -> None:
    """Refuses a quantized reference unless the settings allow it.

    Args:
        reference: the model.
        settings: say whether that is allowed.
        swapped: a plain candidate, which is probably the reference that was meant.
    Raises:
        RecipeProblem: it is quantized, and not allowed.
    """
    facts = summary(reference)
    if settings.allow_quantized_reference or not is_quantized(facts):
        return
    if facts["dequantized"]:
        raise RecipeProblem(
            _history(reference.folder),
            next_step="give the model before it was quantized; remove that report if it belongs "
            f"to another model, or add {ALLOWANCE} to measure against it",
        )
    step = f"give the model before it was quantized, or add {ALLOWANCE} to measure against it"
    if swapped is not None:
        step = f"swap them if {swapped.folder} is the reference, or add {ALLOWANCE}"
    raise RecipeProblem(
        f"the reference {reference.folder} is itself quantized ({precision(facts)})",
        next_step=step,
    )


def _history(folder: Path) -> str:
    """Returns the sentence about the report that makes plain weights count as dequantized."""
    name = str(dequantized_by(folder))
    try:
        is_of_weights = describes(Report.read(folder / name), folder)
    except CheckpointProblem:  # not a report, and the file may still tell the history
        is_of_weights = True
    if is_of_weights:
        return f"the reference {folder} holds the weights of a quantized model ({name})"
    return f"the reference may come from a quantized model: {foreign_report(folder / name)}"


def _require_plain_store(store: Store, settings: Scoring) -> None:
    if is_quantized(store.facts.reference) and not settings.allow_quantized_reference:
        raise RecipeProblem(
            f"{store.folder} holds the predictions of a quantized model "
            f"({precision(store.facts.reference)})",
            next_step="make a store of the model before it was quantized, or add "
            f"{ALLOWANCE} to measure against it",
        )


def _is_same(reference: Checkpoint | Store, candidate: Checkpoint) -> bool:
    if isinstance(reference, Checkpoint):
        return is_same_model(reference, candidate)
    if reference.facts.headers is None:  # stores of earlier versions know the files alone
        is_as_large = reference.facts.reference.get("bytes") == candidate.nbytes
        return is_as_large and reference.model == checkpoint_digest(candidate.folder)
    if reference.facts.headers != headers_digest(candidate):
        return False
    config = read_json(reference.folder / "config.json")
    return computes_alike(config, candidate.config) and (
        reference.facts.weights == weights_digest(candidate)
    )
