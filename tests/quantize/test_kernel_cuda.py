"""The Triton kernels do what the plain ones do.

Every test here is marked `gpu` and runs on a real one where there is one. Without, the same tests
run in Triton's interpreter, which has to be chosen before triton is imported: in another process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from camelpress.quantize import kernel_cpu, kernel_plain
from camelpress.quantize.kernel import COLUMNS, kernel

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
HERE = Path(__file__)

if INTERPRETED or torch.cuda.is_available():
    from camelpress.quantize import kernel_cuda

needs_triton = pytest.mark.skipif(not find_spec("triton"), reason="triton is not installed")


@needs_triton
def test_all_of_this_in_the_interpreter() -> None:
    arguments = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu"]
    done = subprocess.run(
        [*arguments, str(HERE)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=HERE.parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


@needs_triton
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", ["_round_columns", "_refine_columns"])
def test_the_compiler_accepts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, capability: int
) -> None:
    from triton import compile as compiled
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from camelpress.quantize import kernel_cuda

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(kernel_cuda, name)
    kinds = {"codes": "*u8" if name == "_round_columns" else "*fp32", "top": "fp32"}
    kinds |= {"rows": "i32", "cols": "i32", "groups": "i32", "width": "constexpr"}
    source = ASTSource(
        function,
        {argument: kinds.get(argument, "*fp32") for argument in function.arg_names},
        {"width": COLUMNS},
    )
    found = compiled(source, target=GPUTarget("cuda", capability, 32), options=kernel_cuda.OPTIONS)
    told = found.asm["ptx"]
    assert "add.f32" in told and "0f4B400000" in told and "0fCB400000" in told  # still rounds
    assert "div.full" not in told and "div.approx" not in told


def test_a_kernel_for_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel(torch.device("cpu")) is kernel_cpu
    assert kernel(torch.device("meta")) is kernel_plain
    monkeypatch.setattr("camelpress.quantize.kernel.find_spec", lambda name: None)
    assert kernel(torch.device("cuda")) is kernel_plain


# --- run on a GPU or in the interpreter -----------------------------------------------------------


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def factor(cols: int, seed: int) -> tuple[Tensor, Tensor]:
    """A Hessian of correlated inputs, and the upper Cholesky factor of its inverse."""
    mixed = torch.randn(cols, cols, generator=seeded(seed)) * 0.3 + torch.eye(cols)
    inputs = torch.randn(4 * cols, cols, generator=seeded(seed + 1)) @ mixed
    hessian = inputs.T @ inputs
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(cols)
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)).T)
    return hessian, upper.T.contiguous()


def on_device(*tensors: Tensor) -> list[Tensor]:
    return [tensor.clone().to(DEVICE) for tensor in tensors]


def differing(found: Tensor, expected: Tensor) -> float:
    return float((found.cpu() != expected).float().mean())


GRIDS = [(2, False), (3, True), (4, True), (8, False)]


def grid(columns: Tensor, bits: int, sym: bool) -> tuple[Tensor, Tensor]:
    return kernel_plain.search(columns, torch.ones(len(columns)), bits=bits, sym=sym)


@pytest.mark.gpu
@pytest.mark.parametrize(("bits", "sym"), GRIDS)
@pytest.mark.parametrize("chunk", [40, 2**22])
def test_search(monkeypatch: pytest.MonkeyPatch, bits: int, sym: bool, chunk: int) -> None:
    monkeypatch.setattr(kernel_cuda, "CHUNK", chunk)
    columns = torch.randn(32, 7, generator=seeded(bits))
    importance = torch.rand(32, generator=seeded(1))
    expected = kernel_plain.search(columns, importance, bits=bits, sym=sym)
    found = kernel_cuda.search(*on_device(columns, importance), bits=bits, sym=sym)
    for one, other in zip(found, expected, strict=True):
        assert one.device.type == DEVICE.type
        torch.testing.assert_close(one.cpu(), other)


@pytest.mark.gpu
@pytest.mark.parametrize(("bits", "sym"), GRIDS)
@pytest.mark.parametrize(("rows", "cols"), [(5, 16), (19, 128)])
def test_round_columns(bits: int, sym: bool, rows: int, cols: int) -> None:
    columns = torch.randn(cols, rows, generator=seeded(bits + rows))
    _, upper = factor(cols, seed=bits)
    scales, zeros = grid(columns, bits, sym)
    expected_codes, expected_errors = kernel_plain.round_columns(
        columns.clone(), upper, scales, zeros, top=2**bits - 1
    )
    codes, errors = kernel_cuda.round_columns(
        *on_device(columns, upper, scales, zeros), top=2**bits - 1
    )
    apart = (codes.cpu() != expected_codes).any(dim=0)  # a near tie moves all that follow in a row
    assert float(apart.float().mean()) <= 1 / rows
    torch.testing.assert_close(
        errors.cpu()[:, ~apart], expected_errors[:, ~apart], rtol=1e-3, atol=1e-3
    )


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:overflow")  # the interpreter's, where a GPU just says infinity
@pytest.mark.parametrize("top", [3, 15])
def test_round_columns_at_every_tie_and_far_outside(top: int) -> None:
    ticks = torch.arange(-3 * top, 3 * top + 1) / 2
    far = torch.tensor([3e38, -3e38, 1e9, -1e9, 2.0**23 + 1, -(2.0**22) - 0.5, 0.0, -0.0, 1e-40])
    columns = torch.cat([ticks, far])[None].repeat(3, 1)
    upper = torch.eye(3)
    signs = torch.where(torch.arange(columns.shape[1]) % 3 > 0, 0.5, -1.0)
    for scales in (torch.ones_like(columns[0]), signs):
        zeros = torch.full_like(scales, (top + 1) // 2)
        expected, lost = kernel_plain.round_columns(columns.clone(), upper, scales, zeros, top=top)
        codes, errors = kernel_cuda.round_columns(
            *on_device(columns, upper, scales, zeros), top=top
        )
        assert torch.equal(codes.cpu(), expected)
        assert torch.equal(errors.cpu(), lost)


@pytest.mark.gpu
def test_rows_do_not_depend_on_those_beside_them() -> None:
    columns = torch.randn(64, 21, generator=seeded(0))
    _, upper = factor(64, seed=0)
    scales, zeros = grid(columns, 4, True)
    all_of_them = kernel_cuda.round_columns(*on_device(columns, upper, scales, zeros), top=15)
    part = slice(6, 9)
    some = kernel_cuda.round_columns(
        *on_device(columns[:, part], upper, scales[part], zeros[part]), top=15
    )
    for whole, few in zip(all_of_them, some, strict=True):
        assert torch.equal(whole[:, part], few)


@pytest.mark.gpu
def test_a_part_of_a_larger_factor() -> None:
    columns = torch.randn(96, 9, generator=seeded(0))
    _, upper = factor(96, seed=0)
    scales, zeros = grid(columns, 4, True)
    part = slice(32, 64)
    expected, _ = kernel_plain.round_columns(
        columns[part].clone(), upper[part, part], scales, zeros, top=15
    )
    inside, larger, scales, zeros = on_device(columns, upper, scales, zeros)
    found, _ = kernel_cuda.round_columns(inside[part], larger[part, part], scales, zeros, top=15)
    assert differing(found, expected) < 0.01


@pytest.mark.gpu
@pytest.mark.parametrize(("bits", "sym"), GRIDS)
@pytest.mark.parametrize(("rows", "cols", "groups"), [(19, 32, 2), (5, 96, 1)])
def test_refine_columns(bits: int, sym: bool, rows: int, cols: int, groups: int) -> None:
    weight = torch.randn(rows, cols, generator=seeded(bits))
    hessian, _ = factor(cols, seed=bits)
    found = [grid(part.T.contiguous(), bits, sym) for part in weight.split(cols // groups, dim=1)]
    scales, zeros = (torch.stack(each, dim=1) for each in zip(*found, strict=True))
    wide = [each.repeat_interleave(cols // groups, dim=1) for each in (scales, zeros)]
    codes = ((weight / wide[0]).round() + wide[1]).clamp(0, 2**bits - 1)
    error = (codes - wide[1]) * wide[0] - weight
    state = [error @ hessian, hessian, codes, error, scales, zeros]
    ours = on_device(*state)
    kernel_plain.refine_columns(*state, top=2**bits - 1)
    kernel_cuda.refine_columns(*ours, top=2**bits - 1)
    gradient, _, refined, missed, moved, _ = (each.cpu() for each in ours)
    same = (refined == state[2]).all(dim=1) & (moved == state[4]).all(dim=1)
    assert float((~same).float().mean()) <= 1 / rows
    torch.testing.assert_close(missed[same], state[3][same], rtol=1e-3, atol=1e-4)
    tolerance = 1e-5 * float(hessian.abs().max())
    torch.testing.assert_close(gradient[same], state[0][same], rtol=1e-3, atol=tolerance)
    steps = (refined - wide[1]) * moved.repeat_interleave(cols // groups, dim=1)
    torch.testing.assert_close(missed, steps - weight, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_refine_columns_keeps_a_scale_that_nothing_depends_on() -> None:
    hessian = torch.eye(32)
    scales, zeros = torch.full((3, 1), 0.5), torch.full((3, 1), 8.0)
    codes = torch.full((3, 32), 8.0)  # all of them mean zero: no curvature
    state = on_device(torch.zeros(3, 32), hessian, codes, torch.zeros(3, 32), scales, zeros)
    kernel_cuda.refine_columns(*state, top=15)
    assert torch.equal(state[4].cpu(), scales)
    assert torch.equal(state[2].cpu(), codes)


@pytest.mark.gpu
def test_a_scale_stays_large_enough_to_divide_by_and_may_turn_round() -> None:
    hessian = torch.eye(32)
    zeros = torch.full((2, 1), 8.0)
    scales = torch.full((2, 1), 0.01)
    codes = torch.full((2, 32), 9.0)
    gradient = torch.tensor([[0.01], [0.03]]).repeat(1, 32)  # wants 0 and -0.02
    state = [gradient, hessian, codes, torch.zeros(2, 32), scales, zeros]
    ours = on_device(*state)
    kernel_plain.refine_columns(*state, top=15)
    kernel_cuda.refine_columns(*ours, top=15)
    for one, other in zip(ours, state, strict=True):
        torch.testing.assert_close(one.cpu(), other)
    assert float(state[4][0]) == 2.0**-14
    assert float(state[4][1]) < 0


@pytest.mark.gpu
def test_what_is_too_wide_for_a_program_is_done_plainly() -> None:
    cols = COLUMNS + 32
    weight = torch.randn(3, cols, generator=seeded(0))
    hessian, upper = factor(cols, seed=0)
    scales, zeros = grid(weight.T.contiguous(), 4, True)
    arguments = on_device(weight.T.contiguous(), upper, scales, zeros)
    codes, _ = kernel_cuda.round_columns(*arguments, top=15)
    expected, _ = kernel_plain.round_columns(weight.T.contiguous(), upper, scales, zeros, top=15)
    assert differing(codes, expected) < 0.01
    start = (weight / scales[:, None]).round().add(8).clamp(0, 15)
    error = (start - 8) * scales[:, None] - weight
    state = [error @ hessian, hessian, start, error, scales[:, None], zeros[:, None]]
    ours = on_device(*state)
    kernel_plain.refine_columns(*state, top=15)
    kernel_cuda.refine_columns(*ours, top=15)
    assert differing(ours[2], state[2]) < 0.01
