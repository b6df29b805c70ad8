"""Checks that a reference is not quantized, and was not quantized before."""

from __future__ import annotations

from pathlib import Path

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem, RecipeProblem
from camelpress.reporting.checkpoint_summary import summarize_checkpoint
from camelpress.reporting.lineage import describe_foreign_report, matches_weights
from camelpress.reporting.model_precision import dequantized_by, is_quantized, model_precision
from camelpress.reporting.report_classes import read_report
from camelpress.validate.settings import ScoringSettings

ALLOW_OPTION = "--allow-quantized-reference"


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
    if facts.dequantized:
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
        is_of_weights = matches_weights(read_report(folder / name), folder)
    except CheckpointProblem:  # an unreadable report still counts
        is_of_weights = True
    if is_of_weights:
        return f"the reference {folder} holds the weights of a quantized model ({name})"
    return (
        f"the reference may come from a quantized model: {describe_foreign_report(folder / name)}"
    )
