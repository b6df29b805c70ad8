"""The Python interface: the same bytes and the same messages as the command line."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import camelpress
import pico
import recipes
from camelpress import (
    Problem,
    Report,
    Verdict,
    export,
    make_diff,
    publish,
    quantize,
    recover,
    run,
    store,
    validate,
)
from camelpress.cli.command import STAGE_PANEL
from camelpress.cli.commands import app
from camelpress.core.errors import OutOfMemory, RecipeProblem, ReleaseRefusal
from camelpress.core.files.file_hashes import CHECKSUM_FILE, PROVENANCE_FILE, file_manifest
from camelpress.quantize.settings import QuantizeSettings
from camelpress.reporting.report_classes import read_report
from command import Run

SMALL: dict[str, Any] = {"group_size": 32, "samples": 4, "sequence_length": 64}
GATE = {"perplexity_ratio": {"max": 2.0}, "kl_mean": {"max": 2.0}, "top1_agreement": None}
REPORTS = (
    *(f"{stage}-report.json" for stage in ("recover", "make-diff", "quantize", "store", "export")),
    "report.json",
    PROVENANCE_FILE,
)
TIMED = (*REPORTS, CHECKSUM_FILE)  # files that state how long the stages took


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base, diff, texts and a recipe."""
    place = tmp_path_factory.mktemp("inputs")
    recipes.write_recipe(place)
    return place


def content(folder: Path) -> dict[str, Any]:
    """Returns the hash of each file, and the content of each report without times."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    hashes = file_manifest((path for path in files if path.name not in TIMED), relative_to=folder)
    reports = [path for path in files if path.name in REPORTS]
    return hashes | {str(path.relative_to(folder)): untimed(path) for path in reports}


def untimed(path: Path) -> Report:
    """Returns a report without the times of its stages."""
    report = read_report(path).model_copy(update={"cost": None})
    for stage in report.facts.record.get("made", {}).values():
        assert stage.pop("seconds") >= 0
    return report


def test_a_pipeline_gives_the_bytes_of_the_command_line(
    run: Run, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    here, there = tmp_path / "python", tmp_path / "shell"
    recovered = recover("base", "diff", out=here / "tuned")
    quantized = quantize(here / "tuned", out=here / "4bit", calibration=["chat.jsonl"], **SMALL)
    report = validate(
        here / "tuned", here / "4bit", out=here / "validation",
        text=[Path("prose.txt")], sequence_length=32, gate=GATE,
    )  # fmt: skip
    release = publish(here / "4bit", here / "validation", to=str(here / "release"), license="mit")

    options = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    gate = tmp_path / "gate.yaml"
    gate.write_text(str(GATE).replace("None", "null"), encoding="utf-8")
    for words in (
        ("recover", "base", "diff", there / "tuned"),
        ("quantize", there / "tuned", there / "4bit", "--calibration", "chat.jsonl", *options),
        ("validate", there / "tuned", there / "4bit", "--out", there / "validation",
         "--text", "prose.txt", "--sequence-length", 32, "--gate", gate),
        ("publish", there / "4bit", "--report", there / "validation", "--to", there / "release",
         "--license", "mit"),
    ):  # fmt: skip
        assert run(*words).code == 0
    for folder in ("tuned", "4bit", "validation", "release"):
        assert content(here / folder) == content(there / folder)
    for made, path in (
        (recovered, "tuned/recover-report.json"),
        (quantized, "4bit/quantize-report.json"),
        (report, "validation/report.json"),
        (release, f"release/{PROVENANCE_FILE}"),
    ):
        assert made.stage == read_report(here / path).stage
    assert report.verdict is Verdict.PASS


def test_diff_store_and_export_have_the_bytes_of_the_command_line(
    run: Run, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    here, there = tmp_path / "python", tmp_path / "shell"
    packed = tmp_path / "packed"
    quantize("base", out=packed, method="rtn", group_size=32)
    made = (
        make_diff("base", "base", out=here / "diff", dtype="bfloat16"),
        store("base", out=here / "store", text=[Path("prose.txt")], sequence_length=32, top_k=9),
        export(packed, out=here / "ct", to="compressed-tensors"),
    )
    for words in (
        ("make-diff", "base", "base", there / "diff", "--dtype", "bfloat16"),
        ("store", "base", there / "store", "--text", "prose.txt", "--sequence-length", 32,
         "--top-k", 9),
        ("export", packed, there / "ct", "--to", "compressed-tensors"),
    ):  # fmt: skip
        assert run(*words).code == 0
    for folder in ("diff", "store", "ct"):
        assert content(here / folder) == content(there / folder)
    assert [report.stage for report in made] == ["make-diff", "store", "export"]
    with pytest.raises(Problem, match="exists") as raised:
        store("base", out=here / "store", text=[Path("prose.txt")])
    assert raised.value.next_step
    assert validate(here / "store", packed, out=here / "v").inputs["store"]


def test_every_command_of_a_stage_is_a_function() -> None:
    names = [
        str(entry.name) for entry in app.registered_commands if entry.rich_help_panel == STAGE_PANEL
    ]
    assert "make-diff" in names and len(names) == 7
    assert {name.replace("-", "_") for name in names} <= {*camelpress.__all__}


def test_a_recipe_takes_overrides_of_sections_and_of_single_values(
    place: Path, tmp_path: Path
) -> None:
    outcome = run(
        place / "recipe.yaml", out=tmp_path / "out", quantize={"group_size": 16},
        validate={"gate": {"kl_mean": {"max": 1e-9}}},
    )  # fmt: skip
    assert (outcome.verdict, outcome.exit_code) == (Verdict.FAIL, 1)
    assert outcome.reports["quantize"].settings["group_size"] == 16
    assert outcome.reports["quantize"].settings["sequence_length"] == 64  # of the recipe
    assert not (tmp_path / "out" / "release").exists()


def test_a_failed_gate_is_a_value_and_its_release_a_problem(place: Path, tmp_path: Path) -> None:
    wide = pico.write_widened(tmp_path / "wide", place / "base")
    quantize(wide, out=tmp_path / "q", method="rtn", bits=2, group_size=32)
    gate = tmp_path / "gate.yaml"
    gate.write_text("kl_mean: {max: 1.0e-9}\n", encoding="utf-8")
    report = validate(
        wide, tmp_path / "q", out=tmp_path / "v", text=[place / "prose.txt"],
        sequence_length=32, gate=gate,
    )  # fmt: skip
    assert report.verdict is Verdict.FAIL
    with pytest.raises(ReleaseRefusal):
        publish(tmp_path / "q", tmp_path / "v", to=str(tmp_path / "r"), license="mit")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: recover("b", "d", out="o", dtpe="float16"), r"recover: dtpe.*mean dtype\?"),
        (lambda: quantize("m", out="o", group_sise=64), r"quantize: group_sise.*mean group_size\?"),
        (lambda: quantize("m", out="o", bits=5), "quantize: bits: Input should be 2, 3, 4 or 8"),
        (lambda: validate("r", "c", texts=["t"]), r"validate: texts.*mean text\?"),
        (lambda: validate("r", "c", gate={"kl_meen": None}), r"gate.kl_meen.*mean kl_mean\?"),
        (lambda: make_diff("b", "t", out="o", rul="zero"), r"make-diff: rul.*mean rule\?"),
        (lambda: store("r", out="o", topk=3), r"store: topk.*mean top_k\?"),
        (lambda: export("c", out="o", to="gguf"), "export: to: Input should be 'compressed-"),
        (lambda: export("c", out="o"), "export: to: "),
        (lambda: publish("c", "r", licence="mit"), r"publish: licence.*mean license\?"),
    ],
)  # fmt: skip
def test_a_wrong_keyword_is_named_with_the_nearest_setting(call: Any, message: str) -> None:
    with pytest.raises(RecipeProblem, match=message):
        call()


def test_a_wrong_override_is_named_with_the_nearest_section(place: Path) -> None:
    with pytest.raises(RecipeProblem, match=r"quantise: .*did you mean quantize\?"):
        run(place / "recipe.yaml", quantise={"bits": 4})


def test_a_missing_checkpoint_is_a_problem_with_a_next_step(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="nowhere") as raised:
        quantize(tmp_path / "nowhere", out=tmp_path / "q", method="rtn")
    assert raised.value.next_step


@pytest.mark.parametrize(
    ("fault", "problem", "message"),
    [
        (OSError(28, "No space left on device", "q"), Problem, "q cannot be used .No space left"),
        (MemoryError(), OutOfMemory, "memory is not enough"),
        (OSError(12, "Cannot allocate memory", "q"), OutOfMemory, "memory is not enough"),
        (RuntimeError("CUDA error: out of memory"), OutOfMemory, "memory is not enough"),
        (Problem("https://me:hunter22@hub/x", next_step="go"), Problem, "^.a login in a URL.hub/x"),
    ],
)  # fmt: skip
def test_a_fault_of_the_machine_is_a_problem_without_secrets(
    monkeypatch: pytest.MonkeyPatch, fault: Exception, problem: type[Problem], message: str
) -> None:
    def failing_open(_: object) -> None:
        raise fault

    checkpoint = import_module("camelpress.core.checkpoint.checkpoint")
    monkeypatch.setattr(checkpoint.Checkpoint, "open", failing_open)
    with pytest.raises(problem, match=message):
        quantize("m", out="q")


def test_a_signature_has_every_setting_with_its_default() -> None:
    parameters = inspect.signature(quantize).parameters
    assert {name: parameters[name].default for name in QuantizeSettings.model_fields} == {
        name: field.default for name, field in QuantizeSettings.model_fields.items()
    }
    assert "group_size: neighbouring columns" in (inspect.getdoc(camelpress.api.quantize) or "")


def test_a_setting_without_a_default_has_none_in_the_signature() -> None:
    assert inspect.signature(export).parameters["to"].default is inspect.Parameter.empty


def test_every_public_name_is_there_and_no_other() -> None:
    assert all(hasattr(camelpress, name) for name in camelpress.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'dequantize'"):
        _ = camelpress.dequantize  # type: ignore[attr-defined]


LIGHT = """
import sys
import camelpress
assert not {"torch", "pydantic", "numpy"} & set(sys.modules)
from camelpress import recover, quantize, validate, publish, run, Problem, Report
from camelpress import make_diff, store, export
assert not {"torch", "transformers", "matplotlib"} & set(sys.modules)
import camelpress.quantize.run as stage
from camelpress import quantize as again
assert again is quantize is camelpress.quantize and stage is quantize.run
"""


def test_importing_it_loads_no_torch_and_a_stage_stays_a_function() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
