"""The solver rarely waits for its device, and its products there have a fixed precision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import elsewhere
from camelpress.inference.streaming.process_group import ProcessGroup
from camelpress.quantize import block_quantizer
from camelpress.quantize.kernels import reference_kernel
from camelpress.quantize.settings import QuantizeSettings
from camelpress.quantize.solver import layer
from camelpress.quantize.solver.correction import correct_weight
from camelpress.quantize.solver.hessian import HessianAccumulator

COLS, ROWS = 64, 32
WAITS = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2"}
PRODUCTS = {"addmm_", "__matmul__", "matmul", "linalg_cholesky_ex", "cholesky_solve"}
pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA is not available")


class HostReads(TorchFunctionMode):
    """Counts copies from the pretended GPU to the host."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        before = bool(args) and isinstance(args[0], elsewhere.There)
        result = func(*args, **(kwargs or {}))
        after = isinstance(result, Tensor) and not isinstance(result, elsewhere.There)
        if before and (after or func is Tensor.tolist):
            self.counts["copy"] += 1
        return result


class Waits(TorchDispatchMode):
    """Counts operations that wait for a device: reads of a value, and shapes that depend on one."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name.startswith("index") and len(args) > 1 else ()
        indices = indices if isinstance(indices, list | tuple) else (indices,)
        masked = any(isinstance(each, Tensor) and each.dtype == torch.bool for each in indices)
        if name in WAITS or masked:
            self.counts["mask" if masked else name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted_waits() -> Iterator[Counter[str]]:
    counts: Counter[str] = Counter()
    with HostReads(counts), Waits(counts):
        yield counts


class Products(TorchFunctionMode):
    """Records the precision of CUDA at each product."""

    def __init__(self) -> None:
        super().__init__()
        self.precisions: list[tuple[str, str]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in PRODUCTS:
            self.precisions.append((name, torch.backends.cuda.matmul.fp32_precision))
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def reference(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (layer, block_quantizer):
        monkeypatch.setattr(module, "pick_kernel", lambda device: reference_kernel)


@pytest.fixture
def tf32_outside() -> Iterator[None]:
    mkldnn: Any = torch.backends.mkldnn
    matmul, cpu = torch.backends.cuda.matmul, mkldnn.matmul
    before = matmul.fp32_precision, cpu.fp32_precision
    matmul.fp32_precision = "tf32"
    yield
    torch.set_float32_matmul_precision("highest")
    matmul.fp32_precision, cpu.fp32_precision = before


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moments(device: torch.device, *, deviations: bool) -> HessianAccumulator:
    sums = HessianAccumulator(COLS, COLS if deviations else 0, device)
    inputs = random(200, COLS).to(device)
    sums.add_batch(inputs, random(200, COLS, seed=2).to(device) if deviations else None)
    return sums


def test_the_counters_count() -> None:
    with elsewhere.pretended() as device:
        there = torch.ones(3, device=device)
        with counted_waits() as counts:
            int(there[0])
            there.cpu()
            there[there > 0]
            bool((there == 1).all())
            there.to("cpu")
            there + 1
    assert counts == {"_local_scalar_dense": 2, "copy": 2, "mask": 1}


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("group_size", [16, 32, -1])
def test_a_matrix_waits_for_the_factor_and_for_the_sums_of_rows(group_size: int, sym: bool) -> None:
    settings = QuantizeSettings.model_validate({"group_size": group_size, "sym": sym})
    with elsewhere.pretended() as device:
        hessian = moments(device, deviations=False).full_hessian()
        weight = random(ROWS, COLS, seed=1).to(device)
        with counted_waits() as counts:
            rounded, _ = layer.round_layer(weight, hessian, ProcessGroup(), settings)
            rounded.pack_rows(slice(0, ROWS))
            rounded.dequantize_rows(slice(0, ROWS))
    # The last of these reads the number of infinite scales, which is on the host by then.
    assert counts == {"_local_scalar_dense": 2, "copy": 1}
    assert not isinstance(rounded.error, elsewhere.There)
    assert not isinstance(rounded.energy, elsewhere.There)


@pytest.mark.parametrize("writes", [True, False])
def test_a_correction_waits_for_its_factor_only(writes: bool) -> None:
    with elsewhere.pretended() as device:
        weight = random(COLS, COLS, seed=1).to(device)
        with counted_waits() as counts:
            sums = moments(device, deviations=True)
            correct_weight(weight, sums, strength=0.5, damp_percent=0.05, writes=writes)
    assert counts == {"_local_scalar_dense": 1}


@pytest.mark.usefixtures("tf32_outside")
def test_factorization_and_feedback_are_in_ieee_fp32() -> None:
    with elsewhere.pretended() as device, Products() as products:
        sums = moments(device, deviations=True)
        weight = random(COLS, COLS, seed=1).to(device)
        correct_weight(weight, sums, strength=0.5, damp_percent=0.05, writes=True)
        settings = QuantizeSettings(group_size=16)
        layer.round_layer(weight, sums.full_hessian(), ProcessGroup(), settings)
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    names = {name for name, _ in products.precisions}
    assert {"addmm_", "linalg_cholesky_ex", "cholesky_solve"} <= names
    assert {precision for _, precision in products.precisions} == {"ieee"}


@pytest.mark.parametrize(
    ("inputs", "deviations", "expected"),
    [
        (torch.float16, torch.float16, ["tf32", "tf32"]),
        (torch.bfloat16, torch.float32, ["tf32", "ieee"]),
        (torch.float32, torch.float16, ["ieee", "ieee"]),
    ],
)
def test_sums_of_16_bit_inputs_may_use_tf32(
    inputs: torch.dtype, deviations: torch.dtype, expected: list[str]
) -> None:
    with elsewhere.pretended() as device:
        sums = HessianAccumulator(COLS, 8, device)
        with Products() as products:
            sums.add_batch(
                random(20, COLS).to(device, inputs), random(20, 8, seed=1).to(device, deviations)
            )
    assert [precision for _, precision in products.precisions] == expected
