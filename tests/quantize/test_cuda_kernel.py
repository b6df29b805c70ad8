"""The Triton kernels do what the plain ones do.

Every test here is marked `gpu` and runs on a real one where there is one. Without, the same tests
run in Triton's interpreter, which has to be chosen before triton is imported: in another process.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from camelpress.quantize.kernels import cpu_kernel, reference_kernel
from camelpress.quantize.kernels.device_kernels import pick_kernel
from camelpress.quantize.kernels.kernel import LAZY_BATCH_COLUMNS, Kernel
from camelpress.quantize.solver.gptq import HessianFactor, solve_gptq

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
HERE = Path(__file__)
FEW = settings(max_examples=10, derandomize=True, deadline=None, database=None)

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
@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("_round_group", {"sym": True, "width": LAZY_BATCH_COLUMNS}),
        ("_round_group", {"sym": False, "width": LAZY_BATCH_COLUMNS}),
        ("_search_group", {"sym": False, "width": LAZY_BATCH_COLUMNS}),
        ("_round_columns", {"width": LAZY_BATCH_COLUMNS}),
    ],
)
def test_the_compiler_accepts_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    constants: dict[str, int],
    capability: int,
) -> None:
    compiled = compile_kernel(tmp_path, monkeypatch, name, constants, capability)
    assembly = compiled.asm["ptx"]
    assert "add.f32" in assembly and "0f4B400000" in assembly and "0fCB400000" in assembly
    assert "div.full" not in assembly and "div.approx" not in assembly
    registers, spilled = resource_usage(tmp_path, compiled.asm["cubin"])
    assert spilled == 0
    assert registers <= 80  # 3 programs of 8 warps in the 65,536 registers of a multiprocessor


def compile_kernel(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    constants: dict[str, int],
    capability: int,
) -> Any:
    """Compiles a kernel for a device that need not be there."""
    from triton import compile as compile_source
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from camelpress.quantize.kernels import cuda_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    function = getattr(cuda_kernel, name)
    types = {"codes": "*u8", "top": "fp32", "step": "fp32"}
    types |= dict.fromkeys(("rows", "cols", "down", "right"), "i32")
    types |= dict.fromkeys(constants, "constexpr")
    signature = {argument: types.get(argument, "*fp32") for argument in function.arg_names}
    return compile_source(
        ASTSource(function, signature, constants),
        target=GPUTarget("cuda", capability, 32),
        options=cuda_kernel.LAUNCH_OPTIONS,
    )


def resource_usage(folder: Path, binary: bytes) -> tuple[int, int]:
    """Returns registers of a thread and bytes spilled by it."""
    import triton

    (folder / "kernel.cubin").write_bytes(binary)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    text = subprocess.run(
        [str(tool), "--dump-resource-usage", str(folder / "kernel.cubin")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", text)
    assert usage, text
    return int(usage[1]), int(usage[2]) + int(usage[3])


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
@pytest.mark.parametrize("cols", [32, LAZY_BATCH_COLUMNS + 44])
def test_search(bits: int, sym: bool, cols: int) -> None:
    columns = torch.randn(cols, 7, generator=seeded(bits))
    importance = torch.rand(cols, generator=seeded(1))
    expected = reference_kernel.search_group(columns, importance, bits=bits, sym=sym)
    result = cuda_kernel.search_group(*on_device(columns, importance), bits=bits, sym=sym)
    for found, best in zip(result, expected, strict=True):
        assert found.device.type == DEVICE.type
        torch.testing.assert_close(found.cpu(), best)


@st.composite
def drawn_columns(draw: st.DrawFn) -> Tensor:
    """Columns of a group, some of them zero, with rows without any weight."""
    cols = draw(st.sampled_from([16, 32, 48, 64, LAZY_BATCH_COLUMNS]))
    rows = draw(st.sampled_from([1, 5, 16, 19, 33]))
    columns = torch.randn(cols, rows, generator=seeded(draw(st.integers(0, 10_000))))
    columns *= torch.logspace(-3, 2, rows)
    columns[draw(st.lists(st.integers(0, cols - 1), max_size=3))] = 0
    columns[:, draw(st.lists(st.integers(0, rows - 1), max_size=2))] = 0
    return columns


@pytest.mark.gpu
@FEW
@given(drawn_columns(), st.sampled_from([2, 3, 4, 8]), st.booleans(), st.integers(0, 100))
def test_a_group_is_rounded_as_by_the_reference(
    columns: Tensor, bits: int, sym: bool, seed: int
) -> None:
    _, upper = factor(len(columns), seed)
    importance = upper.diagonal().square().reciprocal()
    expected = reference_kernel.round_group(columns, upper, importance, bits=bits, sym=sym)
    result = cuda_kernel.round_group(*on_device(columns, upper, importance), bits=bits, sym=sym)
    same = (result.scales.cpu() == expected.scales) & (result.zeros.cpu() == expected.zeros)
    same &= (result.codes.cpu() == expected.codes).all(dim=0)
    assert int((~same).sum()) <= max(1, columns.shape[1] // 8)  # near ties
    largest = columns.abs().amax(dim=0) / upper.diagonal().min()
    apart = (result.errors.cpu() - expected.errors).abs().amax(dim=0)
    assert bool((apart <= 1e-4 * largest)[same].all())


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("worst", [float("nan"), float("inf"), 1e38])
def test_without_a_finite_error_the_scale_is_infinite(worst: float, sym: bool) -> None:
    columns = torch.randn(16, 3, generator=seeded(0))
    columns[2, 1] = worst
    result = cuda_kernel.round_group(
        *on_device(columns, torch.eye(16), torch.ones(16)), bits=4, sym=sym
    )
    assert result.scales.cpu().isfinite().tolist() == [True, False, True]


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
@pytest.mark.parametrize(
    ("group_size", "cols", "sym"),
    [
        (16, 64, True),
        (LAZY_BATCH_COLUMNS, 2 * LAZY_BATCH_COLUMNS, False),
        (-1, LAZY_BATCH_COLUMNS + 32, True),
        (-1, LAZY_BATCH_COLUMNS + 32, False),
    ],
)
def test_a_matrix_is_solved_as_by_the_reference(group_size: int, cols: int, sym: bool) -> None:
    weight = torch.randn(6, cols, generator=seeded(0))
    _, upper = factor(cols, seed=0)
    order = torch.arange(cols)

    def solved(kernel: Kernel, *tensors: Tensor) -> Tensor:
        weight, order, upper, damping = tensors
        parts = HessianFactor(order, upper, damping, damp_percent=0.01, rescue="")
        return solve_gptq(weight, parts, kernel, bits=4, group_size=group_size, sym=sym).codes

    tensors = (weight, order, upper, torch.zeros(cols))
    codes = solved(cuda_kernel, *on_device(*tensors))
    apart = (codes.cpu() != solved(reference_kernel, *tensors)).any(dim=1)
    assert int(apart.sum()) <= 1
