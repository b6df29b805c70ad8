"""A release without weights: who has base and diff makes the same bytes, or is told what is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from camelpress.core.errors import CheckpointProblem, RecipeProblem, ToolProblem
from camelpress.core.files.file_hashes import (
    CHECKSUM_FILE,
    checkpoint_file_hashes,
    checksum_lines,
    file_manifest,
    sha256_file,
)
from camelpress.pipeline import run as pipeline
from camelpress.pipeline.rebuild import _thread_count, rebuild_release
from camelpress.pipeline.recipe import read_recipe
from camelpress.publish.run import run as publish
from camelpress.publish.settings import PublishSettings
from camelpress.publish.verify_release import verify_release
from camelpress.reporting.report_classes import read_report
from camelpress.reporting.stage_report import Report
from camelpress.reporting.verdict import Verdict
from recipes import TEXT, write_recipe

RECIPE = TEXT.replace("[chat.jsonl]", "[chat.jsonl=2]").replace(
    "license: mit", "license: mit, recipe_only: true"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that was run, with all that it names; the release is `out/release`."""
    place = tmp_path_factory.mktemp("rebuild")
    pipeline.run(read_recipe(write_recipe(place, RECIPE)))
    return place


def rebuilt(place: Path, out: Path, **changed: object) -> Report:
    inputs: dict[str, object] = {
        "base": place / "base",
        "diff": place / "diff",
        "calibration": [place / "chat.jsonl"],
        "force": False,
    }
    release = changed.pop("release", place / "out" / "release")
    return rebuild_release(release, out, **(inputs | changed))  # type: ignore[arg-type]


def test_a_release_without_weights_has_all_but_them(place: Path) -> None:
    release = place / "out" / "release"
    names = {path.name for path in release.rglob("*") if path.is_file()}
    assert names == {
        "LICENSE", "NOTICE", "README.md", "SHA256SUMS", "bom.cdx.json", "config.json",
        "junit.xml", "make-diff-report.json", "plots.png", "provenance.json",
        "quantize-report.json", "quantize_config.json",
        "recipe.yaml", "recover-report.json", "report.html", "report.json", "report.md",
    }  # fmt: skip
    assert verify_release(release).verdict is Verdict.PASS
    card = (release / "README.md").read_text()
    assert "This release has no weights" in card
    assert "from_pretrained" not in card
    told = read_recipe(release / "recipe.yaml")
    assert (told.base.name, told.diff.name) == ("base", "diff")
    assert [(each.source.name, each.weight) for each in told.quantize.calibration] == [
        ("chat.jsonl", 2.0)
    ]
    assert str(place) not in (release / "recipe.yaml").read_text()


def test_the_weights_come_out_byte_for_byte(place: Path, tmp_path: Path) -> None:
    report = rebuilt(place, tmp_path / "again")
    assert (report.verdict, report.facts.record["problems"]) == (Verdict.PASS, [])
    quantized = checkpoint_file_hashes(tmp_path / "again" / "quantized")
    assert quantized == checkpoint_file_hashes(place / "out" / "quantized")
    assert report.facts.record["files"] == len(quantized)
    again = rebuilt(place, tmp_path / "again")
    assert again.verdict is Verdict.PASS
    weights = tmp_path / "again" / "quantized" / "model.safetensors"
    assert weights.stat().st_mtime < (tmp_path / "again" / pipeline.LOCK_FILE).stat().st_mtime


def test_as_many_threads_are_at_work_as_were_then(place: Path, tmp_path: Path) -> None:
    facts = read_report(place / "out" / "release" / "quantize-report.json").facts.record
    assert facts["threads"] == torch.get_num_threads() == 1
    torch.set_num_threads(2)
    try:
        assert rebuilt(place, tmp_path / "again").verdict is Verdict.PASS
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    facts = read_report(tmp_path / "again" / "quantized" / "quantize-report.json").facts.record
    assert facts["threads"] == 1


def test_another_diff_is_named_as_the_cause(place: Path, tmp_path: Path) -> None:
    other = shutil.copytree(place / "diff", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    report = rebuilt(place, tmp_path / "again", diff=other)
    assert report.verdict is Verdict.FAIL
    assert report.facts.record["problems"][0].startswith("the diff differs: sha256 ")
    assert "'config.json' has other bytes" in report.facts.record["problems"]


def test_another_version_is_named_as_the_cause(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = rebuilt(place, tmp_path / "again")
    assert first.verdict is Verdict.PASS
    (tmp_path / "again" / "quantized" / "config.json").write_text("{}")
    monkeypatch.setattr("camelpress.pipeline.rebuild.package_versions", lambda: {"torch": "1.0"})
    monkeypatch.setattr(pipeline.PipelineLock, "is_current", lambda *_: True)
    problems = rebuilt(place, tmp_path / "again").facts.record["problems"]
    assert any(fault.startswith("made with torch 2") for fault in problems)
    assert problems[-1] == "'config.json' has other bytes"


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ({"base": None}, "made from a base called base, which is not named on the hub"),
        ({"diff": None}, "made from a diff called diff, which is not named on the hub"),
        ({"calibration": []}, "was calibrated with chat.jsonl, whose SHA-256 is "),
    ],
)
def test_what_is_missing_is_asked_for(
    place: Path, tmp_path: Path, missing: dict[str, object], said: str
) -> None:
    with pytest.raises(RecipeProblem, match=said):
        rebuilt(place, tmp_path / "again", **missing)
    assert not (tmp_path / "again").exists()


def test_a_recipe_of_somebody_else_starts_no_program_and_reads_no_other_file(
    place: Path, tmp_path: Path
) -> None:
    release = shutil.copytree(place / "out" / "release", tmp_path / "release")
    program, known = tmp_path / "program", tmp_path / "completions.jsonl"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
    program.chmod(0o755)
    content = yaml.safe_load((release / "recipe.yaml").read_text())
    content["quantize"] |= {"engine": "gptqmodel", "engine_python": str(program), "correction": 0.0}
    content["recover"] |= {"verify": str(known)}
    (release / "recipe.yaml").write_text(yaml.safe_dump(content))
    seal_again(release)
    with pytest.raises(ToolProblem, match="gptqmodel"):
        rebuilt(place, tmp_path / "again", release=release)
    assert not (tmp_path / "started").exists()


def seal_again(release: Path) -> None:
    """What somebody does who changes a file, and everything that tells of it."""
    path = release / "provenance.json"
    told = json.loads(path.read_text())
    told["outputs"]["recipe.yaml"] = sha256_file(release / "recipe.yaml")
    path.write_text(json.dumps(told))
    files = [each for each in release.rglob("*") if each.is_file() and each.name != CHECKSUM_FILE]
    (release / CHECKSUM_FILE).write_text(checksum_lines(file_manifest(files, relative_to=release)))


@pytest.mark.parametrize("threads", [0, -1, 10**9, "2", None, 2.5, 1.0, True])
def test_a_number_of_threads_that_is_none_changes_nothing(threads: object) -> None:
    with _thread_count(threads):
        assert torch.get_num_threads() == 1


def test_a_damaged_release_is_not_followed(place: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(place / "out" / "release", tmp_path / "damaged")
    (damaged / "recipe.yaml").write_text("base: /etc\n")
    with pytest.raises(RecipeProblem, match="is not as it was published: 'recipe.yaml' has change"):
        rebuilt(place, tmp_path / "again", release=damaged)


def test_a_model_whose_reports_do_not_tell_it_cannot_be_published_so(
    place: Path, tmp_path: Path
) -> None:
    candidate = shutil.copytree(place / "out" / "quantized", tmp_path / "candidate")
    (candidate / "recover-report.json").unlink()
    settings = PublishSettings.parse({"license": "mit", "recipe_only": True}, source="test")
    with pytest.raises(CheckpointProblem, match="would have no recipe"):
        publish(candidate, place / "out" / "validation", tmp_path / "release", settings)
    assert not (tmp_path / "release").exists()
