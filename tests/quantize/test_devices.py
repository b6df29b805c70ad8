"""Every tensor is where it is used: on a GPU that is not there, nothing mixes and nothing changes.

The test marked `gpu` quantizes on a real one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import elsewhere
import gptq_reader
import stages
from camelpress.inference.model import batch_sizes
from camelpress.inference.streaming.process_group import ProcessGroup
from camelpress.quantize import block_quantizer, run
from camelpress.quantize.kernels import reference_kernel
from camelpress.quantize.settings import QuantizeSettings
from camelpress.quantize.solver import layer
from camelpress.quantize.solver.hessian import HessianAccumulator

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


class Alone(ProcessGroup):
    """A team of two of which only this one is there."""

    def all_gather(self, own: list[Any], count: int) -> list[Any]:
        """What is on the GPU of one process, another cannot read."""
        for each in filter(None, own):  # None: there was no problem
            assert each.solution.codes.device == each.error.device == elsewhere.CPU
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
        assert rounded.dequantize_rows(slice(0, 32)).device == rounded.error.device == device


@pytest.mark.parametrize(
    ("named", "expected"), [("cuda", "cuda:3"), ("cuda:1", "cuda:1"), ("cpu", "cpu")]
)
def test_every_rank_has_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, named: str, expected: str
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert ProcessGroup().device(torch.device(named)) == torch.device(expected)


# --- the stage on a real one ----------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("grid", GRIDS)
def test_nearly_the_same_on_a_real_one(
    base: Path, chat: Path, tmp_path: Path, grid: dict[str, Any]
) -> None:
    """Sums in another order move near ties: 5 % of the error and 10 % of the codes may change."""
    options = {**grid, "dtype": "float32"}
    expected, found = (
        stages.quantize(base, tmp_path / device, chat, device=device, **options)
        for device in ("cpu", "cuda")
    )
    assert found.facts.record["device"].startswith("cuda")
    for one, other in zip(
        expected.facts.record["layers"], found.facts.record["layers"], strict=True
    ):
        assert one["name"] == other["name"]
        assert other["relative_error"] == pytest.approx(one["relative_error"], rel=0.05)
    stored = [gptq_reader.tensors(tmp_path / device) for device in ("cpu", "cuda")]
    for name in stored[0]:
        if name.endswith(".qweight"):
            one, other = (gptq_reader.unpack(each[name].numpy().T, grid["bits"]) for each in stored)
            assert float((one != other).mean()) < 0.1
