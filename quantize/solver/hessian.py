"""Hessian and cross moment of a layer's inputs, summed over the calibration tokens.

    hessian      = sum x xᵀ   x: input in the quantized model
    cross_moment = sum d xᵀ   d: deviation, 16-bit model minus quantized model

The deviation is of the layer's inputs, or of the residual stream for a layer that writes to it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from camelpress.inference.model.matmul_precision import exact_products

PANEL_COLUMNS = 512  # columns of one product; half of the diagonal block is wasted work


class HessianAccumulator:
    """Accumulates the Hessian and the cross moment of one layer input in fp32.

    Batches are added in order, for reproducible sums, and products of 16-bit inputs are exact. The
    factor 2/n of the papers is left out: it cancels in the solver. The Hessian is symmetric, so
    only panels up to the diagonal are computed.

    Args:
        cols: number of input features.
        deviation_width: width of a deviation; 0 for no cross moment.
        device: device of the sums.
    """

    def __init__(self, cols: int, deviation_width: int, device: torch.device) -> None:
        self.hessian: Float32[Tensor, "cols cols"] = torch.zeros(cols, cols, device=device)
        self.cross_moment: Float32[Tensor, "width cols"] = torch.zeros(
            deviation_width, cols, device=device
        )

    def zeros_like(self) -> HessianAccumulator:
        """Returns an empty accumulator of the same shape."""
        return HessianAccumulator(len(self.hessian), len(self.cross_moment), self.hessian.device)

    def drop_cross_moment(self) -> None:
        """Drops the cross moment; later batches add to the Hessian only."""
        self.cross_moment = self.cross_moment[:0].clone()

    def add_batch(
        self,
        inputs: Float[Tensor, "tokens cols"],
        deviations: Float[Tensor, "tokens width"] | None = None,
    ) -> None:
        """Adds a batch of tokens without padding.

        Args:
            inputs: inputs in the quantized model, one row a token.
            deviations: deviations of the same tokens; none to add to the Hessian only.
        """
        fp32_inputs = inputs.to(torch.float32)
        with exact_products(inputs):
            for start in range(0, inputs.shape[1], PANEL_COLUMNS):
                stop = min(start + PANEL_COLUMNS, inputs.shape[1])
                panel = self.hessian[start:stop, :stop]
                panel.addmm_(fp32_inputs[:, start:stop].T, fp32_inputs[:, :stop])
        if deviations is not None:
            with exact_products(inputs, deviations):
                self.cross_moment.addmm_(deviations.to(torch.float32).T, fp32_inputs)

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Hessian and cross moment."""
        return self.hessian, self.cross_moment

    def merge(self, other: HessianAccumulator) -> None:
        """Adds the sums of another accumulator."""
        self.hessian += other.hessian
        self.cross_moment += other.cross_moment

    def full_hessian(self) -> Float32[Tensor, "cols cols"]:
        """Returns the Hessian with both triangles; fills the upper one in place."""
        for start in range(0, len(self.hessian), PANEL_COLUMNS):
            stop = min(start + PANEL_COLUMNS, len(self.hessian))
            self.hessian[start:stop, stop:] = self.hessian[stop:, start:stop].T
            corner = self.hessian[start:stop, start:stop].tril_()
            corner += corner.tril(-1).T
        return self.hessian
