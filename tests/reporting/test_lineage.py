"""A report counts for the weights that its stage wrote, and for exports of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import stages
from camelpress.convert.export.export_checkpoint import export
from camelpress.convert.settings import ExportSettings
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.files.file_hashes import sha256_file
from camelpress.reporting.lineage import matches_weights
from camelpress.reporting.report_classes import read_report

REPORT, WEIGHTS = "quantize-report.json", "model.safetensors"


@pytest.fixture(scope="module")
def packed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base in 4 bits."""
    folder = tmp_path_factory.mktemp("packed") / "packed"
    stages.quantize(base, folder, method="rtn")
    return folder


@pytest.fixture(scope="module")
def coarse(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base in 3 bits: another model with the same names of files."""
    folder = tmp_path_factory.mktemp("coarse") / "coarse"
    stages.quantize(base, folder, method="rtn", bits=3)
    return folder


def exported(source: Path, out: Path, to: str) -> Path:
    export(Checkpoint.open(source), out, ExportSettings.parse({"to": to}, source="test"))
    return out


def with_report_of(source: Path, model: Path, out: Path) -> Path:
    shutil.copytree(model, out)
    shutil.copyfile(source / REPORT, out / REPORT)
    return out


def described(folder: Path, **changes: Any) -> bool:
    return matches_weights(read_report(folder / REPORT).model_copy(update=changes), folder)


def test_the_report_of_quantize_lists_its_weights(packed: Path) -> None:
    assert read_report(packed / REPORT).outputs == {WEIGHTS: sha256_file(packed / WEIGHTS)}
    assert described(packed)


def test_a_report_that_was_copied_does_not_count(
    packed: Path, coarse: Path, tmp_path: Path
) -> None:
    assert not described(with_report_of(coarse, packed, tmp_path / "mixed"))


def test_a_report_of_weights_with_other_names_does_not_count(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "model")
    (tmp_path / "model" / WEIGHTS).rename(tmp_path / "model" / "pytorch_model.bin")
    assert not described(tmp_path / "model")


def test_a_report_without_hashes_counts_as_before(
    packed: Path, coarse: Path, tmp_path: Path
) -> None:
    assert described(with_report_of(coarse, packed, tmp_path / "mixed"), outputs={})


def test_a_report_counts_where_there_are_no_weights(packed: Path, tmp_path: Path) -> None:
    shutil.copyfile(packed / REPORT, tmp_path / REPORT)
    assert described(tmp_path)
    assert matches_weights(read_report(packed / REPORT), tmp_path, {"config.json": "0"})


def test_known_hashes_are_not_read_again(packed: Path) -> None:
    report = read_report(packed / REPORT)
    assert not matches_weights(report, packed, {WEIGHTS: "0"})
    assert matches_weights(
        report, packed, {WEIGHTS: sha256_file(packed / WEIGHTS), "other.bin": "1"}
    )


@pytest.mark.parametrize("to", [["gptq-v2"], ["dense"], ["gptq-v2", "gptq", "compressed-tensors"]])
def test_an_export_keeps_the_report_of_its_source(
    packed: Path, coarse: Path, tmp_path: Path, to: list[str]
) -> None:
    folder = packed
    for number, layout in enumerate(to):
        folder = exported(folder, tmp_path / f"export-{number}", layout)
    assert described(folder)
    assert not described(with_report_of(coarse, folder, tmp_path / "mixed"))


def test_the_report_of_an_export_vouches_for_its_own_weights_alone(
    packed: Path, coarse: Path, tmp_path: Path
) -> None:
    first = exported(packed, tmp_path / "first", "gptq-v2")
    second = exported(coarse, tmp_path / "second", "gptq-v2")
    shutil.copyfile(first / "export-report.json", second / "export-report.json")
    shutil.copyfile(first / REPORT, second / REPORT)
    assert not described(second)


@pytest.mark.parametrize("content", ["{}", "no report", '{"stage": "export"}'])
def test_a_damaged_report_of_an_export_vouches_for_nothing(
    packed: Path, tmp_path: Path, content: str
) -> None:
    folder = exported(packed, tmp_path / "export", "gptq-v2")
    (folder / "export-report.json").write_text(content)
    assert not described(folder)
