"""What calibration tells of a layer: second moments of its inputs, summed over all tokens.

    hessian = sum x xᵀ        of the squared output error, x as the quantized model makes it
    cross   = sum d xᵀ        d is what the 16-bit model has more than the quantized one

where d is the difference of the layer's inputs, or of the residual stream that it writes to.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32
from torch import Tensor

PANEL_COLUMNS = 512  # columns; the part of a panel beyond the diagonal is computed for nothing


class HessianAccumulator:
    """Collects both sums in fp32, in the order the batches come, so that they repeat themselves.

    The factor 2/n of the papers is left out: it cancels in the solver. Of the Hessian, which is
    symmetric, only panels up to the diagonal are computed.

    Args:
        cols: inputs of the layers that share them.
        wanted: width of d; 0 where nobody asks for it.
        device: where they are summed.
    """

    def __init__(self, cols: int, wanted: int, device: torch.device) -> None:
        self.hessian: Float32[Tensor, "cols cols"] = torch.zeros(cols, cols, device=device)
        self.cross_moment: Float32[Tensor, "wanted cols"] = torch.zeros(wanted, cols, device=device)

    def zeros_like(self) -> HessianAccumulator:
        """Sums of nothing, of the same shapes."""
        return HessianAccumulator(len(self.hessian), len(self.cross_moment), self.hessian.device)

    def drop_cross_moment(self) -> None:
        """Go on without d."""
        self.cross_moment = self.cross_moment[:0].clone()

    def add_batch(
        self,
        inputs: Float[Tensor, "tokens cols"],
        wanted: Float[Tensor, "tokens wanted"] | None = None,
    ) -> None:
        """Take in some tokens; give real tokens only, no padding."""
        inputs = inputs.to(torch.float32)
        for start in range(0, inputs.shape[1], PANEL_COLUMNS):
            stop = min(start + PANEL_COLUMNS, inputs.shape[1])
            panel = self.hessian[start:stop, :stop]
            panel.addmm_(inputs[:, start:stop].T, inputs[:, :stop])
        if wanted is not None:
            self.cross_moment.addmm_(wanted.to(torch.float32).T, inputs)

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Both sums."""
        return self.hessian, self.cross_moment

    def merge(self, other: HessianAccumulator) -> None:
        """Add other sums to these."""
        self.hessian += other.hessian
        self.cross_moment += other.cross_moment

    def full_hessian(self) -> Float32[Tensor, "cols cols"]:
        """The Hessian with both its triangles, the upper one made in place."""
        for start in range(0, len(self.hessian), PANEL_COLUMNS):
            stop = min(start + PANEL_COLUMNS, len(self.hessian))
            self.hessian[start:stop, stop:] = self.hessian[stop:, start:stop].T
            corner = self.hessian[start:stop, start:stop].tril_()
            corner += corner.tril(-1).T
        return self.hessian
