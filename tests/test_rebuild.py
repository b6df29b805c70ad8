"""A release without weights: who has base and diff makes the same bytes, or is told what is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from camelpress import pipeline
from camelpress.core.errors import CheckpointProblem, RecipeProblem
from camelpress.core.provenance import checkpoint_hashes
from camelpress.core.report import Report, Verdict
from camelpress.publish.run import run as publish
from camelpress.publish.settings import Publish
from camelpress.publish.verify import verify
from camelpress.rebuild import rebuild
from camelpress.recipe import read
from recipes import TEXT, write_recipe

RECIPE = TEXT.replace("[chat.jsonl]", "[chat.jsonl=2]").replace(
    "license: mit", "license: mit, recipe_only: true"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that was run, with all that it names; the release is `out/release`."""
    place = tmp_path_factory.mktemp("rebuild")
    pipeline.run(read(write_recipe(place, RECIPE)))
    return place


def rebuilt(place: Path, out: Path, **changed: object) -> Report:
    inputs: dict[str, object] = {
        "base": place / "base",
        "diff": place / "diff",
        "calibration": [place / "chat.jsonl"],
        "force": False,
    }
    release = changed.pop("release", place / "out" / "release")
    return rebuild(release, out, **(inputs | changed))  # type: ignore[arg-type]


def test_a_release_without_weights_has_all_but_them(place: Path) -> None:
    release = place / "out" / "release"
    names = {path.name for path in release.rglob("*") if path.is_file()}
    assert names == {
        "LICENSE", "NOTICE", "README.md", "SHA256SUMS", "bom.cdx.json", "config.json",
        "junit.xml", "make-diff-report.json", "plots.png", "provenance.json",
        "quantize-report.json", "quantize_config.json",
        "recipe.yaml", "recover-report.json", "report.html", "report.json", "report.md",
    }  # fmt: skip
    assert verify(release).verdict is Verdict.PASS
    card = (release / "README.md").read_text()
    assert "There are no weights here" in card
    assert "from_pretrained" not in card
    told = read(release / "recipe.yaml")
    assert (told.base.name, told.diff.name) == ("base", "diff")
    assert [(each.source.name, each.weight) for each in told.quantize.calibration] == [
        ("chat.jsonl", 2.0)
    ]
    assert str(place) not in (release / "recipe.yaml").read_text()


def test_the_weights_come_out_byte_for_byte(place: Path, tmp_path: Path) -> None:
    report = rebuilt(place, tmp_path / "again")
    assert (report.verdict, report.facts["problems"]) == (Verdict.PASS, [])
    quantized = checkpoint_hashes(tmp_path / "again" / "quantized")
    assert quantized == checkpoint_hashes(place / "out" / "quantized")
    assert report.facts["files"] == len(quantized)
    again = rebuilt(place, tmp_path / "again")
    assert again.verdict is Verdict.PASS
    weights = tmp_path / "again" / "quantized" / "model.safetensors"
    assert weights.stat().st_mtime < (tmp_path / "again" / pipeline.LOCK).stat().st_mtime


def test_as_many_threads_are_at_work_as_were_then(place: Path, tmp_path: Path) -> None:
    facts = Report.read(place / "out" / "release" / "quantize-report.json").facts
    assert facts["threads"] == torch.get_num_threads() == 1
    torch.set_num_threads(2)
    try:
        assert rebuilt(place, tmp_path / "again").verdict is Verdict.PASS
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    facts = Report.read(tmp_path / "again" / "quantized" / "quantize-report.json").facts
    assert facts["threads"] == 1


def test_another_diff_is_named_as_the_cause(place: Path, tmp_path: Path) -> None:
    other = shutil.copytree(place / "diff", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    report = rebuilt(place, tmp_path / "again", diff=other)
    assert report.verdict is Verdict.FAIL
    assert report.facts["problems"][0].startswith("the diff is another: sha256 ")
    assert "'config.json' has other bytes" in report.facts["problems"]


def test_another_version_is_named_as_the_cause(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = rebuilt(place, tmp_path / "again")
    assert first.verdict is Verdict.PASS
    (tmp_path / "again" / "quantized" / "config.json").write_text("{}")
    monkeypatch.setattr("camelpress.rebuild.versions", lambda: {"torch": "1.0"})
    monkeypatch.setattr(pipeline.Lock, "holds", lambda *_: True)
    problems = rebuilt(place, tmp_path / "again").facts["problems"]
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
    settings = Publish.parse({"license": "mit", "recipe_only": True}, source="test")
    with pytest.raises(CheckpointProblem, match="would have no recipe"):
        publish(candidate, place / "out" / "validation", tmp_path / "release", settings)
    assert not (tmp_path / "release").exists()
