"""Checks that a reference can show a loss: it is a different model, and not quantized."""

from __future__ import annotations

from pathlib import Path

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem, RecipeProblem
from camelpress.core.files.file_hashes import checkpoint_digest
from camelpress.core.files.json_files import read_json
from camelpress.inference.model.model_identity import (
    headers_digest,
    is_same_computation,
    is_same_model,
    weights_digest,
)
from camelpress.reporting.checkpoint_summary import summarize_checkpoint
from camelpress.reporting.lineage import describe_foreign_report, matches_weights
from camelpress.reporting.model_precision import dequantized_by, is_quantized, model_precision
from camelpress.reporting.stage_report import Report
from camelpress.validate.settings import ScoringSettings
from camelpress.validate.store.prediction_store import PredictionStore

ALLOW_OPTION = "--allow-quantized-reference"


def require_valid_reference(
    reference: Checkpoint | PredictionStore, candidate: Checkpoint, settings: ScoringSettings
) -> None:
    """Refuses a comparison that passes for any candidate.

    Args:
        reference: a model, or a store of its predictions.
        candidate: the model under test.
        settings: allow a quantized reference or not.
    Raises:
        RecipeProblem: both are the same model, or the reference is quantized and not allowed.
    """
    is_packed = candidate.quantization is not None
    if _is_same_weights(reference, candidate):
        raise RecipeProblem(
            f"{reference.folder} and {candidate.folder} are the same model: no difference can "
            "be measured",
            next_step="give the model that the candidate was quantized from as the reference"
            if is_packed
            else "give the quantized model as the candidate",
        )
    if isinstance(reference, PredictionStore):
        _require_unquantized_store(reference, settings)
    else:
        require_unquantized(reference, settings, plain_candidate=None if is_packed else candidate)


def require_unquantized(
    reference: Checkpoint, settings: ScoringSettings, *, plain_candidate: Checkpoint | None = None
) -> None:
    """Refuses a quantized reference unless the settings allow it.

    Args:
        reference: the model.
        settings: allow a quantized reference or not.
        plain_candidate: an unquantized candidate, probably the intended reference.
    Raises:
        RecipeProblem: the reference is quantized, and not allowed.
    """
    facts = summarize_checkpoint(reference)
    if settings.allow_quantized_reference or not is_quantized(facts):
        return
    if facts["dequantized"]:
        raise RecipeProblem(
            _history(reference.folder),
            next_step="give the model before it was quantized; remove that report if it belongs "
            f"to another model, or add {ALLOW_OPTION} to measure against it",
        )
    step = f"give the model before it was quantized, or add {ALLOW_OPTION} to measure against it"
    if plain_candidate is not None:
        step = f"swap them if {plain_candidate.folder} is the reference, or add {ALLOW_OPTION}"
    raise RecipeProblem(
        f"the reference {reference.folder} is itself quantized ({model_precision(facts)})",
        next_step=step,
    )


def _history(folder: Path) -> str:
    """Returns a sentence about the report that marks unquantized weights as dequantized."""
    name = str(dequantized_by(folder))
    try:
        is_of_weights = matches_weights(Report.read_report(folder / name), folder)
    except CheckpointProblem:  # an unreadable report still counts
        is_of_weights = True
    if is_of_weights:
        return f"the reference {folder} holds the weights of a quantized model ({name})"
    return (
        f"the reference may come from a quantized model: {describe_foreign_report(folder / name)}"
    )


def _require_unquantized_store(store: PredictionStore, settings: ScoringSettings) -> None:
    if is_quantized(store.header.reference) and not settings.allow_quantized_reference:
        raise RecipeProblem(
            f"{store.folder} holds the predictions of a quantized model "
            f"({model_precision(store.header.reference)})",
            next_step="make a store of the model before it was quantized, or add "
            f"{ALLOW_OPTION} to measure against it",
        )


def _is_same_weights(reference: Checkpoint | PredictionStore, candidate: Checkpoint) -> bool:
    if isinstance(reference, Checkpoint):
        return is_same_model(reference, candidate)
    if reference.header.headers is None:  # stores of earlier versions have file hashes only
        is_as_large = reference.header.reference.get("bytes") == candidate.nbytes
        return is_as_large and reference.reference_hash == checkpoint_digest(candidate.folder)
    if reference.header.headers != headers_digest(candidate):
        return False
    config = read_json(reference.folder / "config.json")
    return is_same_computation(config, candidate.config) and (
        reference.header.weights == weights_digest(candidate)
    )
