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

from camelpress.quantize.kernels import cpu_kernel, reference_kernel
from camelpress.quantize.kernels.device_kernels import pick_kernel
from camelpress.quantize.kernels.kernel import LAZY_BATCH_COLUMNS

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
HERE = Path(__file__)

if INTERPRETED or torch.cuda.is_available():
    from camelpress.quantize.kernels import cuda_kernel

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
def test_the_compiler_accepts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: int
) -> None:
    from triton import compile as compiled
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from camelpress.quantize.kernels import cuda_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = cuda_kernel._round_columns
    kinds = {"codes": "*u8", "top": "fp32", "rows": "i32", "cols": "i32", "width": "constexpr"}
    source = ASTSource(
        function,
        {argument: kinds.get(argument, "*fp32") for argument in function.arg_names},
        {"width": LAZY_BATCH_COLUMNS},
    )
    found = compiled(
        source, target=GPUTarget("cuda", capability, 32), options=cuda_kernel.LAUNCH_OPTIONS
    )
    told = found.asm["ptx"]
    assert "add.f32" in told and "0f4B400000" in told and "0fCB400000" in told  # still rounds
    assert "div.full" not in told and "div.approx" not in told


def test_a_kernel_for_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_kernel(torch.device("cpu")) is cpu_kernel
    assert pick_kernel(torch.device("meta")) is reference_kernel
    monkeypatch.setattr("camelpress.quantize.kernels.device_kernels.find_spec", lambda name: None)
    assert pick_kernel(torch.device("cuda")) is reference_kernel


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
    return reference_kernel.search_group(columns, torch.ones(len(columns)), bits=bits, sym=sym)


@pytest.mark.gpu
@pytest.mark.parametrize(("bits", "sym"), GRIDS)
@pytest.mark.parametrize("chunk", [40, 2**22])
def test_search(monkeypatch: pytest.MonkeyPatch, bits: int, sym: bool, chunk: int) -> None:
    monkeypatch.setattr(cuda_kernel, "SEARCH_ELEMENTS", chunk)
    columns = torch.randn(32, 7, generator=seeded(bits))
    importance = torch.rand(32, generator=seeded(1))
    expected = reference_kernel.search_group(columns, importance, bits=bits, sym=sym)
    found = cuda_kernel.search_group(*on_device(columns, importance), bits=bits, sym=sym)
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
    expected_codes, expected_errors = reference_kernel.round_columns(
        columns.clone(), upper, scales, zeros, top=2**bits - 1
    )
    codes, errors = cuda_kernel.round_columns(
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
        expected, lost = reference_kernel.round_columns(
            columns.clone(), upper, scales, zeros, top=top
        )
        codes, errors = cuda_kernel.round_columns(
            *on_device(columns, upper, scales, zeros), top=top
        )
        assert torch.equal(codes.cpu(), expected)
        assert torch.equal(errors.cpu(), lost)


@pytest.mark.gpu
def test_rows_do_not_depend_on_those_beside_them() -> None:
    columns = torch.randn(64, 21, generator=seeded(0))
    _, upper = factor(64, seed=0)
    scales, zeros = grid(columns, 4, True)
    all_of_them = cuda_kernel.round_columns(*on_device(columns, upper, scales, zeros), top=15)
    part = slice(6, 9)
    some = cuda_kernel.round_columns(
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
    expected, _ = reference_kernel.round_columns(
        columns[part].clone(), upper[part, part], scales, zeros, top=15
    )
    inside, larger, scales, zeros = on_device(columns, upper, scales, zeros)
    found, _ = cuda_kernel.round_columns(inside[part], larger[part, part], scales, zeros, top=15)
    assert differing(found, expected) < 0.01


@pytest.mark.gpu
def test_what_is_too_wide_for_a_program_is_done_plainly() -> None:
    cols = LAZY_BATCH_COLUMNS + 32
    weight = torch.randn(3, cols, generator=seeded(0))
    _, upper = factor(cols, seed=0)
    scales, zeros = grid(weight.T.contiguous(), 4, True)
    arguments = on_device(weight.T.contiguous(), upper, scales, zeros)
    codes, _ = cuda_kernel.round_columns(*arguments, top=15)
    expected, _ = reference_kernel.round_columns(
        weight.T.contiguous(), upper, scales, zeros, top=15
    )
    assert differing(codes, expected) < 0.01
