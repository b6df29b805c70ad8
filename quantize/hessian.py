"""The Hessian of a layer's squared output error: the sum of x xᵀ over all calibration tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32
from torch import Tensor


class Hessian:
    """Collects x xᵀ in fp32, in the order the batches come, so that the sum repeats itself.

    The factor 2/n of the papers is left out: it cancels in the solver.

    Args:
        cols: inputs of the layers that share it.
        device: where it is summed.
    """

    def __init__(self, cols: int, device: torch.device) -> None:
        self.sum: Float32[Tensor, "cols cols"] = torch.zeros(cols, cols, device=device)
        self.tokens = 0

    def add(self, inputs: Float[Tensor, "tokens cols"]) -> None:
        """Take in the inputs of some tokens; give real tokens only, no padding."""
        inputs = inputs.to(torch.float32)
        self.sum.addmm_(inputs.T, inputs)
        self.tokens += len(inputs)
