"""Every tensor is where it is used: on a GPU that is not there, nothing mixes and nothing changes.

The test marked `gpu` quantizes on a real one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import elsewhere
import gptq_reader
import pico
import stages
from camelpress.inference.model import batch_sizes
from camelpress.inference.streaming import state_checkpoints
from camelpress.inference.streaming.process_group import ProcessGroup
from camelpress.inference.streaming.rounding_facts import torch_threads
from camelpress.quantize import block_quantizer, model_quantizer, run
from camelpress.quantize.block_quantizer import BlockQuantizer
from camelpress.quantize.kernels import reference_kernel
from camelpress.quantize.settings import QuantizeSettings
from camelpress.quantize.solver import layer
from camelpress.quantize.solver.hessian import HessianAccumulator
from camelpress.reporting.stage_report import Report
from unfinished import stop

GRIDS = [
    {"bits": 4, "group_size": 32, "sym": True},
    {"bits": 3, "group_size": -1, "sym": False},
]
pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA is not available")


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain kernels for any device."""
    for module in (layer, block_quantizer):
        monkeypatch.setattr(module, "pick_kernel", lambda device: reference_kernel)


def on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "pick_device", lambda name: elsewhere.CUDA)


# --- the device that the tests pretend to have ----------------------------------------------------


def test_devices_do_not_mix() -> None:
    here = torch.ones(2, 2)
    with elsewhere.pretended() as device:
        there = torch.ones(2, 2, device=device)
        assert (there.device, here.device) == (elsewhere.CUDA, elsewhere.CPU)
        assert (there + there).device == here.to(device).device == there.device
        assert (there + torch.tensor(2.0)).device == there.device
        assert there.cpu().device == there.to(here).device == here.device
        assert torch.empty_like(there).device == there[:, 0].device == there.device
        moved = there.to(torch.float16).to("cpu")
        assert (moved.dtype, moved.device) == (torch.float16, here.device)
        for wrong in (
            lambda: here + there,
            lambda: there.add_(here),
            lambda: there[here > 0],
            lambda: here[there > 0],
            lambda: torch.nn.functional.linear(there, here),
            lambda: torch.cat([here, there]),
            lambda: torch.where(here > 0, there, there),
            lambda: there.__setitem__(0, here[0]),
        ):
            with pytest.raises(elsewhere.MixedDevices):
                wrong()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()


def test_a_copy_on_the_gpu_is_a_copy() -> None:
    here = torch.zeros(3)
    with elsewhere.pretended() as device:
        here.to(device).add_(1)
        there = here.to(device)
        assert there.to(device) is there
        there.cpu().add_(1)
        assert float(there.sum()) == 0
    assert float(here.sum()) == 0


# --- the stage on it ------------------------------------------------------------------------------


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_the_same_bytes_as_on_the_cpu(
    base: Path,
    chat: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    grid: dict[str, Any],
    method: str,
) -> None:
    sizes = batch_sizes.SIZES["cpu"]  # sums depend on them
    monkeypatch.setattr(batch_sizes, "SIZES", {"cpu": sizes, "cuda": sizes})
    options = {**grid, "dtype": "float32", "method": method}
    stages.quantize(base, tmp_path / "cpu", chat, device="cpu", **options)
    on_the_gpu(monkeypatch)
    with elsewhere.pretended():
        report = stages.quantize(base, tmp_path / "cuda", chat, device="cuda", **options)
    assert report.facts.record["device"] == "cuda:0"
    expected, found = (gptq_reader.tensors(tmp_path / name) for name in ("cpu", "cuda"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.usefixtures("plainly")
def test_sixteen_bits(
    base: Path, chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_the_gpu(monkeypatch)
    with elsewhere.pretended():
        report = stages.quantize(base, tmp_path / "cuda", chat, device="cuda")
    assert report.facts.record["dtype"] == "float16"


@pytest.mark.usefixtures("plainly")
def test_another_gpu_of_the_same_name_and_other_threads_resume_a_run(
    base: Path, chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walked: list[int] = []

    class Watched(BlockQuantizer):
        def __init__(self, model: Any, number: int, *others: Any) -> None:
            walked.append(number)
            super().__init__(model, number, *others)

    monkeypatch.setattr(model_quantizer, "BlockQuantizer", Watched)
    monkeypatch.setattr(state_checkpoints, "SAVE_SECONDS", 0.0)
    out = tmp_path / "place" / "out"
    out.parent.mkdir()
    with elsewhere.pretended():
        on_the_gpu(monkeypatch)
        stop(lambda: stages.quantize(base, out, chat, device="cuda", dtype="float32"), out, after=1)
        monkeypatch.setattr(run, "pick_device", lambda name: torch.device("cuda", 1))
        with torch_threads(2):
            stages.quantize(base, out, chat, device="cuda:1", dtype="float32")
    assert walked == [0, 1]


class Alone(ProcessGroup):
    """A team of two of which only this one is there."""

    def all_gather(self, own: list[Any], count: int) -> list[Any]:
        """What is on the GPU of one process, another cannot read."""
        for each in filter(None, own):  # None: there was no problem
            assert each.codes.device == each.error.device == elsewhere.CPU
        return own


def test_what_ranks_exchange_is_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "pick_kernel", lambda device: reference_kernel)
    inputs = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    with elsewhere.pretended() as device:
        moments = HessianAccumulator(64, 0, device)
        moments.add_batch(inputs.to(device))
        rounded, _ = layer.round_layer(
            weight.to(device), moments.full_hessian(), Alone(0, 2), QuantizeSettings(group_size=32)
        )
        assert rounded.dequantize_rows(slice(0, 32)).device == device
        assert rounded.error.device == rounded.energy.device == elsewhere.CPU


@pytest.mark.parametrize(
    ("named", "expected"), [("cuda", "cuda:3"), ("cuda:1", "cuda:1"), ("cpu", "cpu")]
)
def test_every_rank_has_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, named: str, expected: str
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert ProcessGroup().device(torch.device(named)) == torch.device(expected)


# --- the stage on a real one ----------------------------------------------------------------------


class Quantized(NamedTuple):
    """One quantized model with its report."""

    folder: Path
    report: Report

    def codes(self, name: str, bits: int) -> Any:
        """The codes of one layer."""
        packed = gptq_reader.tensors(self.folder)[f"{name}.qweight"]
        return gptq_reader.unpack(packed.numpy().T, bits)

    def errors(self) -> dict[str, float]:
        """The relative error of every layer."""
        return {
            layer["name"]: layer["relative_error"] for layer in self.report.facts.record["layers"]
        }


def require_nearly_the_same(expected: Quantized, found: Quantized, bits: int) -> None:
    """Require what holds for sums in another order: codes of equal inputs, and the total error.

    Near ties move, and every later layer is fitted to other inputs: a third of the codes of the
    last layer may change without a loss. Only q, k and v of the first block have equal inputs.
    """
    for part in "qkv":
        name = f"model.layers.0.self_attn.{part}_proj"
        assert float((expected.codes(name, bits) != found.codes(name, bits)).mean()) < 0.01, name
    before, after = expected.errors(), found.errors()
    assert before.keys() == after.keys()
    assert sum(after.values()) == pytest.approx(sum(before.values()), rel=0.05)


def quantized(model: Path, out: Path, chat: Path, **options: Any) -> Quantized:
    options = {"samples": 8, "dtype": "float32", **options}
    return Quantized(out, stages.quantize(model, out, chat, **options))


@pytest.mark.parametrize("seed", [0, 4, 5])
@pytest.mark.parametrize("grid", GRIDS)
def test_other_batches_on_a_cpu_keep_the_limits_of_another_device(
    chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grid: dict[str, Any], seed: int
) -> None:
    model = pico.write_model(tmp_path / "model", seed=seed)
    expected = quantized(model, tmp_path / "large", chat, **grid)
    sizes = batch_sizes.SIZES["cpu"]._replace(batch=64)
    monkeypatch.setitem(batch_sizes.SIZES, "cpu", sizes)
    found = quantized(model, tmp_path / "small", chat, **grid)
    assert expected.errors() != found.errors()
    require_nearly_the_same(expected, found, grid["bits"])


@pytest.mark.parametrize("change", [{"samples": 4}, {"damp_percent": 0.5}, {"group_size": 16}])
def test_another_calculation_exceeds_the_limits(
    base: Path, chat: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    expected = quantized(base, tmp_path / "expected", chat, bits=4)
    found = quantized(base, tmp_path / "found", chat, bits=4, **change)
    with pytest.raises(AssertionError):
        require_nearly_the_same(expected, found, 4)


@pytest.mark.gpu
@pytest.mark.parametrize("grid", GRIDS)
def test_nearly_the_same_on_a_real_one(
    base: Path, chat: Path, tmp_path: Path, grid: dict[str, Any]
) -> None:
    expected, found = (
        quantized(base, tmp_path / device, chat, device=device, **grid)
        for device in ("cpu", "cuda")
    )
    assert found.report.facts.record["device"].startswith("cuda")
    require_nearly_the_same(expected, found, grid["bits"])
