"""The benchmark of a GPU runs dry on a CPU, part by part, and says what needs a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benches import ROOT, on_linux, part

pytestmark = on_linux
CPU = torch.device("cpu")


def lines_of(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What a part prints on a CPU."""
    session = part("gpu.session").Session(name, CPU, folder)
    part("gpu.__main__").PARTS[name].run(session)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {(line["part"], line["device"]) for line in lines} == {(name, "cpu")}
    assert not session.differences
    return lines


@pytest.mark.parametrize("name", ["tests", "launches"])
def test_a_part_that_needs_a_gpu_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (line,) = lines_of(name, tmp_path, capsys)
    assert line["skipped"] == "needs a GPU"


def test_the_tests_for_a_gpu_are_those_that_are_marked() -> None:
    files = {Path(path).name for path in part("gpu.stage_parts").gpu_test_files()}
    assert {"test_cuda_kernel.py", "test_devices.py"} <= files
    assert "test_gptq.py" not in files


def test_facts_and_ceilings_name_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (facts,) = lines_of("facts", tmp_path, capsys)
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["rounding"]["device"] == "cpu"
    (ceilings,) = lines_of("ceilings", tmp_path, capsys)
    assert ceilings["fp32_tflops"] > 0
    assert {"fp16_tflops", "tf32_tflops", "h2d_pinned_gbps"}.isdisjoint(ceilings)


def test_the_kernel_of_a_cpu_equals_the_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = lines_of("kernels", tmp_path, capsys)
    assert [(line["bits"], line["sym"]) for line in lines] == [(4, True), (3, False), (8, True)]
    assert all(line["ok"] and line["equal_scales"] == 1 for line in lines)


def test_a_kernel_that_rounds_otherwise_is_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = part("gpu.solver_parts")
    solve, picked = parts._solve, parts.pick_kernel(CPU)

    def solve_wrongly(*arguments: Any) -> Any:
        solution = solve(*arguments)
        if arguments[2] is picked:
            solution.codes[:2] ^= 1
        return solution

    monkeypatch.setattr(parts, "_solve", solve_wrongly)
    session = part("gpu.session").Session("kernels", CPU, tmp_path)
    parts.kernels(session)
    assert len(session.differences) == 3


def test_fp32_sums_of_the_hessian_are_near_fp64(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fp32, tf32 = lines_of("numerics", tmp_path, capsys)
    assert fp32["hessian_error"] < 1e-6
    assert fp32["factor_error"] < 1e-4
    assert tf32["skipped"] == "needs a GPU"


def test_the_solver_leaves_less_error_than_the_published_loop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = lines_of("solver", tmp_path, capsys)
    assert line["error"] < line["published_error"] < 0.1
    assert line["launches_of_row_block"] is None


def test_the_published_loop_compensates_and_does_not_depend_on_its_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    published = part("gpu.published_gptq")
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 96, generator=generator) @ torch.randn(96, 96, generator=generator)
    weight = torch.randn(8, 96, generator=generator)
    hessian = inputs.T @ inputs

    def error(quantized: torch.Tensor) -> float:
        return float(((quantized - weight) @ inputs.T).square().sum())

    found = published.published_gptq(weight, hessian, bits=4, group_size=32)
    monkeypatch.setattr(published, "BLOCK_COLUMNS", 32)
    again = published.published_gptq(weight, hessian, bits=4, group_size=32)
    torch.testing.assert_close(found, again, rtol=1e-3, atol=1e-3)
    diagonal = torch.diag(hessian.diagonal())
    nearest = published.published_gptq(weight, diagonal, bits=4, group_size=32)
    assert error(found) < 0.5 * error(nearest)


@pytest.mark.parametrize(("name", "blocks"), [("block-65b", 1), ("block-7b", 2)])
def test_a_block_has_the_same_bytes_twice_and_after_a_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, blocks: int
) -> None:
    timed, plain, *resumed = lines_of(name, tmp_path, capsys)
    assert timed["missing_steps"] == []
    assert timed["step_calls"]["StreamedModel.read_block_weights"] == blocks
    assert 0 < timed["step_seconds"]["solve_gptq"] <= timed["step_seconds"]["round_layer"]
    assert (plain["run"], plain["same_bytes"]) == ("plain", True)
    assert [line["same_bytes"] for line in resumed] == [True] * (blocks - 1)
    assert {path.suffix or path.name.split("-")[0] for path in tmp_path.iterdir()} == {".txt", ".0"}


def test_a_step_that_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timer = part("gpu.step_timer")
    steps = (("core.progress", "track"), ("core.progress", "Nobody.there"))
    monkeypatch.setattr(timer, "STEPS", steps)
    session = part("gpu.session").Session("x", CPU, tmp_path)
    from camelpress.core import progress

    before = progress.track
    with timer.timed_steps(session) as times:
        progress.track([], "x")
    assert progress.track is before
    assert (times.calls, times.missing) == ({"track": 1}, ["Nobody.there"])


def test_decoding_counts_new_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of("decoding", tmp_path, capsys)
    assert [(line["rows"], line["new_tokens"]) for line in lines] == [(1, 8), (4, 32)]
    assert min(line["tokens_per_second"] for line in lines) > 0


def test_validation_counts_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def validate(reference: Any, candidate: Any, out: Path, settings: Any) -> Any:
        assert reference.folder != candidate.folder
        assert (settings.max_tokens, settings.device) == (512, "cpu")
        out.mkdir()
        return SimpleNamespace(cost={"seconds": 2.0})

    monkeypatch.setattr(part("gpu.stage_parts"), "validate", validate)
    (line,) = lines_of("validation", tmp_path, capsys)
    assert (line["tokens"], line["tokens_per_second"]) == (512, 256.0)


@pytest.mark.parametrize(("shift", "apart"), [(0.05, []), (0.2, ["kl_mean_interval"])])
def test_the_demo_compares_intervals_of_both_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    shift: float, apart: list[str],
) -> None:  # fmt: skip
    parts = part("gpu.stage_parts")
    shifts = iter((0.0, shift))

    def run(recipe: Any) -> None:
        assert recipe.quantize.device == recipe.validation.device == "cpu"
        low = next(shifts)
        report = {"facts": {"kl_mean": low, "kl_mean_interval": [low, low + 0.1]}}
        (recipe.out / "validation").mkdir(parents=True)
        (recipe.out / "validation" / "report.json").write_text(json.dumps(report))

    monkeypatch.setattr(parts.pipeline, "run", run)
    session = part("gpu.session").Session("demo", CPU, tmp_path)
    parts.demo(session)
    line = json.loads(capsys.readouterr().out)
    assert (line["apart"], line["ok"]) == (apart, not apart)
    assert len(session.differences) == bool(apart)


def test_a_peer_that_is_installed_takes_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = part("gpu.stage_parts")
    (line,) = lines_of("peers", tmp_path, capsys)
    assert line["skipped"] == "no other quantizer is installed"

    def quantize(model: Any, out: Path, settings: Any) -> Any:
        out.mkdir()
        return SimpleNamespace(cost={"engine": settings.engine})

    monkeypatch.setattr(parts, "find_spec", lambda name: name == "gptqmodel")
    monkeypatch.setattr(parts, "quantize", quantize)
    (line,) = lines_of("peers", tmp_path, capsys)
    assert line["cost"] == {"engine": "gptqmodel"}


def test_parts_run_one_by_one_and_what_no_longer_fits_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = part("gpu.__main__")
    options = ["--device", "cpu", "--folder", str(tmp_path)]
    assert main.run_parts(["facts", "tests", "block-65b"], options, 50.0)
    facts, took, tests, block = map(json.loads, capsys.readouterr().out.splitlines())
    assert (facts["part"], took["part"], facts["device"]) == ("facts", "facts", "cpu")
    assert took["seconds"] > 0
    assert tests["skipped"].endswith("s are left, and it may take 60 s")
    assert (block["part"], "skipped" in block) == ("block-65b", True)
    assert sum(entry.seconds for entry in main.PARTS.values()) > main.LIMIT_SECONDS


def test_a_part_that_fails_or_takes_too_long_stops_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = part("gpu.__main__")
    (line,) = main.run_part("facts", ["--folder", str(tmp_path / "nowhere"), "--device", "cpu"], 60)
    assert line["failed"].endswith(f"{tmp_path / 'nowhere'} is no folder")
    (line,) = main.run_part("facts", ["--device", "cpu"], 0.1)
    assert line["failed"] == "stopped after 0 s, at the limit"
    assert not main.run_parts(["facts"], ["--device", "nothing"], 60.0)
    assert "failed" in json.loads(capsys.readouterr().out.splitlines()[0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_dry_run_is_named() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert ended.stderr.endswith("there is no GPU here; --device cpu is a dry run at tiny sizes\n")
