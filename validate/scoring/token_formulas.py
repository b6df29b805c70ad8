"""Formulas of metrics that need the whole distributions of both models at each position."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

LogProbs = Float32[Tensor, "chunk vocabulary"]
TokenFormula = Callable[[LogProbs, LogProbs, Int64[Tensor, " chunk"]], Float32[Tensor, " chunk"]]

TOKEN_FORMULAS: dict[str, TokenFormula] = {  # key of a metric to its number for each token
}


def apply_token_formulas(
    reference: LogProbs, candidate: LogProbs, targets: Int64[Tensor, " chunk"]
) -> Float32[Tensor, "chunk formulas"]:
    """Computes one number per prediction and formula, in the order of `TOKEN_FORMULAS`.

    A formula sees natural log-probabilities in fp32 over the ids that both models share, each row
    the log-softmax of raw logits. So a row differs from the raw logits by a constant: a formula
    about logits takes the difference of two ids of a row, or subtracts the mean of the row. It
    runs once per chunk on the compute device, and never changes its arguments.

    Args:
        reference, candidate: log-probabilities of both models.
        targets: ids of the target tokens.
    """
    if not TOKEN_FORMULAS:
        return reference.new_empty(len(reference), 0)
    columns = [formula(reference, candidate, targets) for formula in TOKEN_FORMULAS.values()]
    return torch.stack(columns, dim=1)


def unknown_formula_values(candidate: LogProbs) -> Float32[Tensor, "chunk formulas"]:
    """Returns NaN for each prediction and formula, against a reference without distributions."""
    return candidate.new_full((len(candidate), len(TOKEN_FORMULAS)), torch.nan)
