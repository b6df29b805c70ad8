"""Parts that run whole stages: tests, demo, validation, decoding and other quantizers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.block_parts import GROUP_SIZE, WIDTH_7B
from benchmarks.gpu.random_pair import open_model, write_texts
from benchmarks.gpu.session import Session
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.generation.generator import (
    GenerationModel,
    GenerationRequest,
    LocalGenerator,
)
from camelpress.inference.generation.sampling import SamplingParams, TokenPrompt
from camelpress.inference.model.streamed_model import StreamedModel, compute_dtype
from camelpress.pipeline import run as pipeline
from camelpress.pipeline.demo import DEMO_RECIPE
from camelpress.pipeline.recipe import read_recipe
from camelpress.quantize.run import run as quantize
from camelpress.quantize.settings import QuantizeSettings
from camelpress.validate.run import run as validate
from camelpress.validate.settings import ValidateSettings

ROOT = Path(__file__).parents[2]
GPU_MARK = "pytest.mark.gpu"
PEERS = {"gptqmodel": "gptqmodel", "auto-gptq": "auto_gptq"}  # engine and its package
BLOCKS = 2
CLOCK_NOISE = 1e-9  # seconds


def gpu_tests(session: Session) -> None:
    """Runs the tests marked `gpu`."""
    if not session.is_gpu:
        session.report(skipped="needs a GPU")
        return
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu"]
    ended = subprocess.run([*command, *gpu_test_files()], cwd=ROOT, capture_output=True, text=True)
    lines = ended.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    session.report(summary=lines[-1:], failed=failed, ok=ended.returncode == 0)


def gpu_test_files() -> list[str]:
    """Returns the test modules with a test marked `gpu`."""
    paths = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path) for path in paths if GPU_MARK in path.read_text(encoding="utf-8")]


def demo(session: Session) -> None:
    """Runs the demo on the CPU and on the device; the intervals of all metrics must overlap."""
    cpu = _demo_intervals(session, "cpu", "cpu")
    device = _demo_intervals(session, "device", str(session.device))
    apart = disjoint_intervals(cpu, device)
    session.report(
        cpu_intervals=cpu, device_intervals=device, apart=apart, ok=not apart and bool(device)
    )


def validation(session: Session) -> None:
    """Measures the tokens that validate scores in a second, both models together."""
    hidden = session.width(WIDTH_7B)
    reference, candidate = (open_model(session, hidden, BLOCKS, noise=noise) for noise in (0, 0.05))
    _, text = write_texts(session)
    tokens, out = session.count(65_536, 512), session.folder / "validation"
    options = {
        "text": (str(text),),
        "sequence_length": session.count(2048, 64),
        "max_tokens": tokens,
        "device": str(session.device),
    }
    settings = ValidateSettings.parse(options, source="benchmark")
    session.reset_peak()
    report = validate(reference, candidate, out, settings)
    seconds = max(report.cost["seconds"], CLOCK_NOISE)
    session.report(
        hidden=hidden,
        blocks=BLOCKS,
        tokens=tokens,
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        **session.peaks(),
    )
    shutil.rmtree(out)


def decoding(session: Session) -> None:
    """Measures greedy completions: new tokens in a second."""
    hidden, new_tokens = session.width(WIDTH_7B), session.count(128, 8)
    checkpoint = open_model(session, hidden, BLOCKS)
    model = StreamedModel(
        checkpoint, device=session.device, dtype=compute_dtype(session.device, torch.float16)
    )
    sampling = SamplingParams(stop=(), max_tokens=new_tokens, temperature=0.0, top_p=1.0)
    for rows in (1, session.count(32, 4)):
        generator = LocalGenerator(
            GenerationModel("model", checkpoint, model, Tokenizer.load(checkpoint.folder), [])
        )
        requests = [
            GenerationRequest(TokenPrompt([*range(5, 69)], str(row)), sampling, 2048)
            for row in range(rows)
        ]
        _complete(generator, requests[:1])  # reads the model
        session.reset_peak()
        seconds = session.seconds(partial(_complete, generator, requests))
        session.report(
            hidden=hidden,
            blocks=BLOCKS,
            rows=rows,
            new_tokens=rows * new_tokens,
            seconds=seconds,
            tokens_per_second=rows * new_tokens / seconds,
            **session.peaks(),
        )


def peers(session: Session) -> None:
    """Quantizes one block with every other quantizer that this interpreter can import."""
    installed = [engine for engine, package in PEERS.items() if find_spec(package)]
    if not installed:
        session.report(skipped="no other quantizer is installed")
    hidden, out = session.width(WIDTH_7B), session.folder / "peer"
    for engine in installed:
        calibration, _ = write_texts(session)
        options = {
            "engine": engine,
            "group_size": GROUP_SIZE,
            "calibration": (str(calibration),),
            "samples": session.count(16, 4),
            "sequence_length": session.count(2048, 64),
            "device": str(session.device),
        }
        report = quantize(
            open_model(session, hidden, 1),
            out,
            QuantizeSettings.parse(options, source="benchmark"),
        )
        session.report(engine=engine, hidden=hidden, cost=report.cost)
        shutil.rmtree(out)


def is_interval(value: object) -> bool:
    """Returns true for a pair of bounds."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(bound, int | float) for bound in value)
    )


def disjoint_intervals(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Returns the names of intervals without a common value."""
    return [
        name
        for name in sorted(first.keys() & second.keys())
        if is_interval(first[name])
        and is_interval(second[name])
        and (first[name][1] < second[name][0] or second[name][1] < first[name][0])
    ]


def _complete(generator: LocalGenerator, requests: list[GenerationRequest]) -> None:
    for _ in generator.generate(requests):
        pass


def _demo_intervals(session: Session, name: str, device: str) -> dict[str, Any]:
    """Returns the intervals of a demo's validation, by name."""
    out = session.folder / f"demo-{name}"
    overrides = [f"out={out}", f"quantize.device={device}", f"validate.device={device}"]
    with as_file(files("camelpress") / DEMO_RECIPE) as path:
        pipeline.run(read_recipe(path, overrides))
    report = json.loads((out / "validation" / "report.json").read_text(encoding="utf-8"))
    facts: dict[str, Any] = report["facts"]
    shutil.rmtree(out)
    return {key: value for key, value in facts.items() if key.endswith("_interval")}
