"""The built wheel holds every stage and runs without the source tree."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import pico
from fresh import Fresh, fresh

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist and unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), "."],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_the_wheel_holds_what_the_stages_read(unpacked: Path) -> None:
    names = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*")}
    assert {
        "camelpress/py.typed",
        "camelpress/data/demo/recipe.yaml",
        "camelpress/data/demo/base/model.safetensors",
        "camelpress/data/demo/diff/model.safetensors",
        "camelpress/publish/card/card.md.jinja",
        "camelpress/publish/license/texts/Apache-2.0.txt",
        "camelpress/reporting/rendering/page.html.jinja",
        "camelpress/reporting/rendering/page.css",
        "camelpress/reporting/rendering/flips.html.jinja",
        "camelpress/validate/tasks/gsm_examples.json",
        "camelpress/validate/tasks/tydiqa_words.json",
        "camelpress/validate/tasks/tulu/mmlu_0shot.yaml",
        "camelpress/validate/tasks/tulu_fixed/tulu_fixed.yaml",
    } <= names


def test_every_stage_runs_from_the_wheel(unpacked: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(unpacked), "OMP_NUM_THREADS": "1"}
    with fresh(environment, cwd=unpacked) as program:
        ours = [Path(file) for name, file in program.files.items() if name.startswith("camelpress")]
        assert ours and all(file.is_relative_to(unpacked) for file in ours)
        _run_every_stage(program, tmp_path)


def _run_every_stage(program: Fresh, tmp_path: Path) -> None:
    base = pico.write_model(tmp_path / "base")
    tuned = pico.write_tuned(tmp_path / "tuned", base)
    chat = pico.write_chat(tmp_path / "chat.jsonl")
    held_out = pico.write_chat(tmp_path / "held-out.jsonl", seed=1)
    diff, quantized = tmp_path / "diff", tmp_path / "quantized"
    gate = tmp_path / "gate.yaml"
    gate.write_text("perplexity_ratio: {max: 2.0}\nkl_mean: null\ntop1_agreement: null\n")
    for arguments in (
        ("make-diff", base, tuned, diff),
        ("recover", base, diff, tmp_path / "recovered"),
        ("quantize", tmp_path / "recovered", quantized, "--calibration", chat,
         "--group-size", "32", "--samples", "2", "--sequence-length", "64"),
        ("validate", tmp_path / "recovered", quantized, "--text", held_out, "--gate", gate,
         "--sequence-length", "64", "--out", tmp_path / "report"),
        ("publish", quantized, "--report", tmp_path / "report", "--license", "mit",
         "--to", tmp_path / "release"),
        ("verify", tmp_path / "release"),
    ):  # fmt: skip
        ended = program.run(*arguments)
        assert ended.returncode == 0, ended.stderr + ended.stdout
