"""Checks that a reference can show a loss: it is a different model, and not quantized."""

from __future__ import annotations

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import RecipeProblem
from camelpress.core.files.file_hashes import checkpoint_digest
from camelpress.core.files.json_files import read_json
from camelpress.inference.model.model_identity import (
    headers_digest,
    is_same_computation,
    is_same_model,
    weights_digest,
)
from camelpress.reporting.model_precision import is_quantized, model_precision
from camelpress.validate.scoring.unquantized_reference import ALLOW_OPTION, require_unquantized
from camelpress.validate.settings import ScoringSettings
from camelpress.validate.store.prediction_store import PredictionStore


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
        is_as_large = reference.header.reference.bytes == candidate.nbytes
        return is_as_large and reference.reference_hash == checkpoint_digest(candidate.folder)
    if reference.header.headers != headers_digest(candidate):
        return False
    config = read_json(reference.folder / "config.json")
    return is_same_computation(config, candidate.config) and (
        reference.header.weights == weights_digest(candidate)
    )
