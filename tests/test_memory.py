"""Peak memory grows neither with the number of layers nor, when scoring, with the text."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import pico
from fresh import Fresh, fresh

FEW, MANY = 4, 16
WIDE = pico.Sizes(hidden=512, ffn=1408, heads=8, kv_heads=8)
ALLOWED = 38_000_000  # bytes; twelve more layers are 77 MB in fp16 and 154 MB in fp32


@pytest.fixture(scope="module")
def program() -> Iterator[Fresh]:
    """The program in processes of their own."""
    path = {"PATH": "", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    with fresh(path | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}) as found:
        yield found


def peak_of(program: Fresh, *arguments: object) -> int:
    """Peak resident bytes of one command in a process of its own."""
    ended = program.run(*arguments, "--json")
    assert ended.returncode in (0, 1, 4), ended.stderr
    return int(json.loads(ended.stdout)["cost"]["peak_bytes"])


@pytest.fixture(scope="module")
def peaks(program: Fresh, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """Per stage, the peak with few layers and with many."""
    peak = partial(peak_of, program)
    folder = tmp_path_factory.mktemp("memory")
    text = pico.write_text(folder / "text.txt", words=60)
    held_out = pico.write_text(folder / "held-out.txt", words=60, seed=1)
    found: dict[str, list[int]] = {
        "recover": [],
        "quantize": [],
        "validate": [],
        "store": [],
        "export": [],
    }
    for layers in (FEW, MANY):
        here = folder / str(layers)
        base = pico.write_model(here / "base", WIDE._replace(layers=layers))
        tuned = pico.write_tuned(here / "tuned", base)
        peak("make-diff", base, tuned, here / "diff")
        found["recover"].append(peak("recover", base, here / "diff", here / "out"))
        settings = ("--samples", "2", "--sequence-length", "64", "--calibration", text)
        found["quantize"].append(peak("quantize", here / "out", here / "q", *settings))
        found["validate"].append(
            peak(
                "validate", here / "out", here / "q", "--text", held_out,
                "--sequence-length", "64", "--out", here / "report",
            )
        )  # fmt: skip
        options = ("--text", held_out, "--sequence-length", "64")
        found["store"].append(peak("store", here / "out", here / "store", *options))
        found["export"].append(peak("export", here / "q", here / "dense", "--to", "dense"))
    return found


@pytest.mark.parametrize("stage", ["recover", "quantize", "validate", "store", "export"])
def test_more_layers_need_no_more_memory(peaks: dict[str, list[int]], stage: str) -> None:
    few, many = peaks[stage]
    assert many - few < ALLOWED, f"{few / 1e6:.0f} MB with {FEW}, {many / 1e6:.0f} MB with {MANY}"


def test_a_longer_text_needs_little_more_memory(program: Fresh, tmp_path: Path) -> None:
    """The hidden states of the longer one are 49 MB, for two models."""
    model = pico.write_model(tmp_path / "model", WIDE._replace(layers=1))
    near = pico.write_tuned(tmp_path / "near", model, extra_rows=0)
    told = []
    for words in (300, 2900):
        text = pico.write_text(tmp_path / f"{words}.txt", words=words)
        out = tmp_path / str(words)
        told.append(peak_of(program, "validate", model, near, "--text", text, "--out", out))
    short, long = told
    assert long - short < ALLOWED, f"{short / 1e6:.0f} MB, {long / 1e6:.0f} MB with a long text"
