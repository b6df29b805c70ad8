"""Limits on the loss of a layer; a layer beyond its limit is lost and counts as a fallback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from camelpress.core.errors import NotPositiveDefinite, NumericsProblem
from camelpress.quantize.solver.gptq import FALLBACK

# fmt: off
LOSS_LIMITS: Mapping[int, float] = {  # mean row loss by bits, 3 to 50 times that of real layers
    2: 0.7,
    3: 0.35,
    4: 0.2,
    8: 0.02,
}
# fmt: on


class LayersLost(NumericsProblem):
    """Layers lost more than their bits explain."""

    can_resume = True  # a higher --max-fallbacks changes no finished layer


def exceeds_loss_limit(loss: float, bits: int) -> bool:
    """Returns true if a layer loses more than its bits explain."""
    return not loss <= LOSS_LIMITS[bits]


def require_failures_within(layers: Sequence[Mapping[str, Any]], limit: int) -> None:
    """Limits the number of failed layers: rounded to nearest for lack of a factor, or lost.

    Args:
        layers: facts of the layers so far.
        limit: maximum number of failed layers.
    Raises:
        NotPositiveDefinite: too many layers were rounded to nearest, and none is lost.
        LayersLost: too many layers failed, and at least one is lost.
    """
    lost = [layer for layer in layers if layer.get("lost")]
    nearest = [layer["name"] for layer in layers if layer["rescue"] == FALLBACK]
    if len({*nearest, *(layer["name"] for layer in lost)}) <= limit:
        return
    if not lost:
        raise NotPositiveDefinite(
            f"{', '.join(nearest)} could only be rounded to nearest",
            next_step="use more or other calibration text, or raise --max-fallbacks",
        )
    shares = ", ".join(f"{layer['name']} ({layer['loss']:.0%})" for layer in lost)
    scale = min(layer["scales"]["largest"] for layer in lost)
    raise LayersLost(
        f"too much of the output is lost in {shares}; the largest scale is {scale:.1e}, and "
        "the smallest float16 number is 6e-08",
        next_step="keep these layers in 16 bits (quantize.modules), use more bits, or raise "
        "--max-fallbacks",
    )
