"""Parts on single matrices: kernels, numerics of the Hessian, and the solver."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.ceilings import matmul_precision
from benchmarks.gpu.published_gptq import published_gptq
from benchmarks.gpu.session import Session
from camelpress.quantize.kernels import reference_kernel
from camelpress.quantize.kernels.device_kernels import pick_kernel
from camelpress.quantize.kernels.kernel import Kernel
from camelpress.quantize.solver.gptq import (
    GptqSolution,
    HessianFactor,
    activation_order,
    factorize_hessian,
    solve_gptq,
)
from camelpress.quantize.solver.grid import dequantize_codes
from camelpress.quantize.solver.hessian import HessianAccumulator
from camelpress.quantize.solver.layer import SOLVE_ROWS

GROUP_SIZE = 128
DAMP_PERCENT = 0.05
GRIDS = [(4, True), (3, False), (8, True)]  # bits and symmetry
MIN_EQUAL_CODES = 0.999  # share of codes; near ties round apart


def kernels(session: Session) -> None:
    """Compares the kernel of the device with the reference kernel on one group of columns."""
    rows = session.count(8192, 64)
    factor = _factor(_inputs(session, 4 * GROUP_SIZE, GROUP_SIZE))
    weight = torch.randn(rows, GROUP_SIZE, device=session.device)
    picked = pick_kernel(session.device)
    for bits, sym in GRIDS:
        expected = _solve(weight, factor, reference_kernel, bits, sym)
        solution = _solve(weight, factor, picked, bits, sym)
        equal_codes = _share_equal(solution.codes, expected.codes)
        session.report(
            kernel=picked.__name__,  # type: ignore[attr-defined]
            bits=bits,
            sym=sym,
            rows=rows,
            equal_scales=_share_equal(solution.grid.scales, expected.grid.scales),
            equal_codes=equal_codes,
            ok=equal_codes >= MIN_EQUAL_CODES,
            seconds=session.median_seconds(partial(_solve, weight, factor, picked, bits, sym)),
            reference_seconds=session.median_seconds(
                partial(_solve, weight, factor, reference_kernel, bits, sym)
            ),
        )


def numerics(session: Session) -> None:
    """Compares the Hessian in fp32 and TF32 with fp64, and the factor that follows from it."""
    cols = session.width(4096)
    inputs = _inputs(session, session.count(16384, 512), cols).to(torch.float16)
    exact = inputs.double().T @ inputs.double()
    for name, precision in (("fp32", "highest"), ("tf32", "high")):
        if name == "tf32" and not session.is_gpu:
            session.report(product=name, skipped="needs a GPU")
            continue
        with matmul_precision(precision):
            sums = HessianAccumulator(cols, 0, session.device)
            sums.add_batch(inputs)
            hessian = sums.full_hessian()
            factor = factorize_hessian(hessian, _order(hessian), damp_percent=DAMP_PERCENT)
        session.report(
            product=name,
            tokens=len(inputs),
            cols=cols,
            hessian_error=float((hessian - exact).norm() / exact.norm()),
            diagonal_error=float(
                ((hessian.diagonal() - exact.diagonal()) / exact.diagonal()).abs().max()
            ),
            factor_error=_factor_error(factor, exact),
            rescue=factor.rescue,
            ok=not factor.rescue,
        )


def solver(session: Session) -> None:
    """Sets the solver beside the published loop: seconds, error left, launches of a row block."""
    size = session.width(8192)
    inputs = _inputs(session, session.count(16384, 4 * size), size)
    hessian = inputs.T @ inputs
    weight = torch.randn(size, size, device=session.device)
    kernel = pick_kernel(session.device)

    def solve() -> Tensor:
        solution = _solve(weight, _factor_of(hessian), kernel, 4, True)
        return dequantize_codes(solution.codes, solution.grid)

    def solve_as_published() -> Tensor:
        return published_gptq(weight, hessian, bits=4, group_size=GROUP_SIZE)

    solve()  # compiles the kernels
    session.reset_peak()
    error, published_error = (
        _relative_error(weight, quantize(), hessian) for quantize in (solve, solve_as_published)
    )
    session.report(
        rows=size,
        cols=size,
        error=error,
        published_error=published_error,
        ok=error <= published_error,
        seconds=session.seconds(solve),
        published_seconds=session.seconds(solve_as_published),
        launches_of_row_block=session.launches(
            partial(_solve, weight[:SOLVE_ROWS], _factor_of(hessian), kernel, 4, True)
        ),
        row_block=min(SOLVE_ROWS, size),
        **session.peaks(),
    )


def _solve(
    weight: Tensor, factor: HessianFactor, kernel: Kernel, bits: int, sym: bool
) -> GptqSolution:
    return solve_gptq(weight, factor, kernel, bits=bits, group_size=GROUP_SIZE, sym=sym)


def _inputs(session: Session, tokens: int, cols: int) -> Tensor:
    """Draws inputs with columns of unlike size, as in real models."""
    generator = torch.Generator(session.device).manual_seed(0)
    options: dict[str, Any] = {"generator": generator, "device": session.device}
    return torch.randn(tokens, cols, **options) * torch.randn(cols, **options).exp()


def _order(hessian: Tensor) -> Tensor:
    return activation_order(hessian.diagonal(), group_size=min(GROUP_SIZE, len(hessian)))


def _factor_of(hessian: Tensor) -> HessianFactor:
    return factorize_hessian(hessian, _order(hessian), damp_percent=DAMP_PERCENT)


def _factor(inputs: Tensor) -> HessianFactor:
    return _factor_of(inputs.T @ inputs)


def _factor_error(factor: HessianFactor, hessian: Tensor) -> float:
    """Returns the largest element of |Uᵀ U H - 1| in fp64."""
    damping = factor.damp_percent * hessian.diagonal().mean()
    damped = hessian[factor.order[:, None], factor.order]
    damped.diagonal().add_(damping)
    upper = factor.upper.double()
    product = upper.T @ (upper @ damped)
    product.diagonal().sub_(1)
    return float(product.abs().max())


def _relative_error(weight: Tensor, quantized: Tensor, hessian: Tensor) -> float:
    error = quantized - weight
    return float(((error @ hessian) * error).sum() / ((weight @ hessian) * weight).sum())


def _share_equal(first: Tensor, second: Tensor) -> float:
    return float((first == second).float().mean())
