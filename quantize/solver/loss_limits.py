"""Limits of loss: a layer beyond them is a failure by name, and counts like a fallback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from camelpress.core.errors import NotPositiveDefinite, NumericsProblem
from camelpress.quantize.solver.gptq import FALLBACK

# fmt: off
LOSS_LIMITS: Mapping[int, float] = {  # bits: mean loss of a row, 3 to 50 times that of real layers
    2: 0.7,
    3: 0.35,
    4: 0.2,
    8: 0.02,
}
# fmt: on


class LayersLost(NumericsProblem):
    """Layers lose more than their bits can explain."""

    can_resume = True  # a higher --max-fallbacks changes no finished layer


def exceeds_loss_limit(loss: float, bits: int) -> bool:
    """Returns whether a layer loses more than bits can explain."""
    return not loss <= LOSS_LIMITS[bits]


def require_failures_within(layers: Sequence[Mapping[str, Any]], allowed: int) -> None:
    """Checks how many layers were rounded to nearest for want of a Hessian, or are lost.

    Args:
        layers: facts of the layers so far.
        allowed: number of such layers.
    Raises:
        NotPositiveDefinite: more of them were rounded to nearest.
        LayersLost: more of them failed, and one of them is lost.
    """
    lost = [layer for layer in layers if layer.get("lost")]
    nearest = [layer["name"] for layer in layers if layer["rescue"] == FALLBACK]
    if len({*nearest, *(layer["name"] for layer in lost)}) <= allowed:
        return
    if not lost:
        raise NotPositiveDefinite(
            f"{', '.join(nearest)} could only be rounded to nearest",
            next_step="use more or other calibration text, or raise --max-fallbacks",
        )
    shares = ", ".join(f"{layer['name']} ({layer['loss']:.0%})" for layer in lost)
    least = min(layer["scales"]["largest"] for layer in lost)
    raise LayersLost(
        f"too much of the output is lost in {shares}; the largest scale is {least:.1e}, and "
        "float16 ends at 6e-08",
        next_step="keep these layers in 16 bits (quantize.modules), use more bits, or raise "
        "--max-fallbacks",
    )
