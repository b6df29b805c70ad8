"""Choice of a kernel for a device."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from camelpress.quantize.kernels.kernel import Kernel


def pick_kernel(device: torch.device) -> Kernel:
    """Returns the fastest kernel for a device."""
    if device.type == "cpu":
        from camelpress.quantize.kernels import cpu_kernel

        return cpu_kernel
    if device.type == "cuda" and find_spec("triton"):
        from camelpress.quantize.kernels import cuda_kernel

        return cuda_kernel
    from camelpress.quantize.kernels import reference_kernel

    return reference_kernel
