"""A recipe from start to end, and what a second run leaves alone."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

import pico
from camelpress.core.errors import RecipeProblem, ReleaseRefusal
from camelpress.core.files.file_hashes import PROVENANCE_FILE, file_manifest
from camelpress.core.output.output_contents import list_files
from camelpress.pipeline import run as pipeline
from camelpress.pipeline.recipe import Recipe, read_recipe
from camelpress.reporting.verdict import Verdict
from disk_hooks import Disk
from processes import forked
from recipes import TEXT, write_recipe

STAGES = ("recover", "quantize", "validate", "publish")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe with everything it names beside it."""
    return write_recipe(tmp_path)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that was run to its end; `kept` beside its folder is a copy of that."""
    place = tmp_path_factory.mktemp("finished")
    pipeline.run(read_recipe(write_recipe(place)))
    shutil.copytree(place, place.with_name("kept"))
    return place


@pytest.fixture
def finished(once: Path) -> Path:
    """That recipe with everything as the run left it, times of files and all."""
    shutil.rmtree(once)
    shutil.copytree(once.with_name("kept"), once)
    return once / "recipe.yaml"


def ran(recipe: Recipe) -> set[str]:
    return set(STAGES) - set(pipeline.run(recipe).skipped)


def test_all_stages_run_and_end_in_a_release(recipe: Path) -> None:
    outcome = pipeline.run(read_recipe(recipe))
    assert tuple(outcome.reports) == STAGES
    assert (outcome.verdict, outcome.exit_code) == (Verdict.PASS, 0)
    assert (recipe.parent / "out" / "release" / "SHA256SUMS").is_file()


def test_a_second_run_does_nothing(finished: Path) -> None:
    out = finished.parent / "out"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert pipeline.run(read_recipe(finished)).skipped == STAGES
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def test_a_pass_without_a_check_of_text_withdraws_the_release(finished: Path) -> None:
    none = "{perplexity_ratio: null, kl_mean: null, top1_agreement: null}"
    with pytest.raises(ReleaseRefusal, match="without a check of how predictions on text differ"):
        pipeline.run(read_recipe(finished, [f"validate.gate={none}"]))
    assert not (finished.parent / "out" / "release").exists()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("quantize.damp_percent=0.02", {"quantize", "validate", "publish"}),
        ("validate.max_tokens=500", {"validate", "publish"}),
        ("publish.name=other", {"publish"}),
        ("recover.dtype=float32", set(STAGES)),
    ],
)
def test_a_changed_option_reruns_its_stage_and_those_after_it(
    finished: Path, override: str, expected: set[str]
) -> None:
    assert ran(read_recipe(finished, [override])) == expected


def test_a_changed_input_reruns_the_stages_that_read_it(finished: Path) -> None:
    pico.write_text(finished.parent / "prose.txt", seed=5)
    assert ran(read_recipe(finished)) == {"validate", "publish"}


def test_a_touched_output_is_made_again(finished: Path) -> None:
    (finished.parent / "out" / "quantized" / "config.json").write_text("{}")
    assert "quantize" in ran(read_recipe(finished))
    assert ran(read_recipe(finished)) == set()


def test_another_version_runs_everything_again(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "__version__", "9.9.9")
    assert ran(read_recipe(finished)) == set(STAGES)


def test_the_same_recipe_gives_the_same_release(finished: Path) -> None:
    pipeline.run(read_recipe(finished, [f"out={finished.parent / 'again'}"]))
    first, second = (finished.parent / out / "release" for out in ("out", "again"))
    made, again = (file_manifest(out.rglob("*.*"), relative_to=out) for out in (first, second))
    assert made.keys() == again.keys()
    assert {name for name in made if made[name] != again[name]} <= {PROVENANCE_FILE}
    assert without_times(first) == without_times(second)


def without_times(release: Path) -> dict[str, Any]:
    """What the provenance says, but for how long the stages took, which no two runs share."""
    told: dict[str, Any] = json.loads((release / PROVENANCE_FILE).read_text(encoding="utf-8"))
    for stage in told["facts"]["made"].values():
        assert stage.pop("seconds") >= 0
    return told


def test_a_failed_gate_ends_before_publishing(recipe: Path) -> None:
    outcome = pipeline.run(read_recipe(recipe, ["validate.gate.kl_mean={max: 1.0e-9}"]))
    assert outcome.verdict is Verdict.FAIL
    assert outcome.exit_code == 1
    assert not (recipe.parent / "out" / "release").exists()


def test_a_release_of_an_earlier_pass_does_not_outlive_a_failed_gate(finished: Path) -> None:
    pipeline.run(read_recipe(finished, ["validate.gate.kl_mean={max: 1.0e-9}"]))
    assert not (finished.parent / "out" / "release").exists()


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_withdrawal_that_was_killed_is_ended_by_the_same_run(finished: Path) -> None:
    failing = read_recipe(finished, ["validate.gate.kl_mean={max: 1.0e-9}"])
    release = finished.parent / "out" / "release"
    of_mark, of_files = 5, len(list_files(release))  # operations of a removal, in this order

    def killed_after_the_last_file() -> None:
        Disk(release, at=of_mark + of_files).install()
        pipeline.run(failing)

    assert forked(killed_after_the_last_file) == -signal.SIGKILL
    assert list_files(release) == ["fingerprint"]
    assert pipeline.run(failing).verdict is Verdict.FAIL
    assert not release.exists()


def test_a_folder_that_no_run_made_is_not_removed(finished: Path) -> None:
    strange = finished.parent / "out" / "release"
    shutil.rmtree(strange)
    strange.mkdir()
    (strange / "thesis.txt").write_text("years of work")
    outcome = pipeline.run(read_recipe(finished, ["validate.gate.kl_mean={max: 1.0e-9}"]))
    assert outcome.verdict is Verdict.FAIL
    assert (strange / "thesis.txt").read_text() == "years of work"


def test_a_gate_that_an_input_asks_for_now_goes_with_a_new_release(recipe: Path) -> None:
    card = recipe.parent / "diff" / "README.md"
    card.write_text("---\nlicense: mit\n---\n")
    made = pipeline.recipe_stages(read_recipe(recipe))[3]
    lock = pipeline.PipelineLock(recipe.parent / "lock")
    before = lock.entry(made)
    assert lock.entry(made) == before
    card.write_text("---\nlicense: mit\nextra_gated_prompt: You agree.\n---\n")
    assert lock.entry(made) != before


def test_a_stage_that_dies_is_not_taken_for_done(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("camelpress.quantize.solver.layer.pack_gptq", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipeline.run(read_recipe(recipe))
    lock = json.loads((recipe.parent / "out" / pipeline.LOCK_FILE).read_text())
    assert set(lock["stages"]) == {"recover"}
    assert not (recipe.parent / "out" / "quantized").exists()
    assert ran(read_recipe(recipe)) == {"quantize", "validate", "publish"}


def test_all_faults_of_a_recipe_come_at_once(recipe: Path) -> None:
    recipe.write_text(TEXT.replace("samples: 4", "samples: yes, colour: red"))
    with pytest.raises(RecipeProblem) as told:
        read_recipe(recipe)
    assert "quantize.samples" in str(told.value)
    assert "quantize.colour" in str(told.value)


def test_an_override_without_a_value_is_refused(recipe: Path) -> None:
    with pytest.raises(RecipeProblem, match="write it as quantize.group_size=64"):
        read_recipe(recipe, ["quantize.bits"])


def test_paths_of_a_recipe_start_at_its_folder(recipe: Path) -> None:
    told = read_recipe(recipe)
    assert told.base == recipe.parent / "base"
    assert [each.source for each in told.quantize.calibration] == [recipe.parent / "chat.jsonl"]


def test_calibration_and_text_that_overlap_end_before_scoring(recipe: Path) -> None:
    both = ["quantize.calibration=[prose.txt, chat.jsonl=0.5]", "validate.sequence_length=128"]
    with pytest.raises(RecipeProblem, match="prose.txt overlaps the calibration in"):
        pipeline.run(anchored(read_recipe(recipe, both), recipe.parent))
    assert not (recipe.parent / "out" / "validation").exists()
    allowed = read_recipe(recipe, [*both, "validate.allow_overlap=true"])
    outcome = pipeline.run(anchored(allowed, recipe.parent))
    assert outcome.skipped == ("recover", "quantize")
    (told,) = outcome.reports["validate"].facts.record["overlap"]["texts"]
    assert told["overlapping"] > 0


def anchored(recipe: Recipe, folder: Path) -> Recipe:
    """The same with the calibration in a folder: paths of an override start where the run does."""
    sources = tuple(
        each.model_copy(update={"source": folder / each.source})
        for each in recipe.quantize.calibration
    )
    return recipe.model_copy(
        update={"quantize": recipe.quantize.model_copy(update={"calibration": sources})}
    )


def test_weighted_sources_of_a_recipe_start_at_its_folder(recipe: Path) -> None:
    recipe.write_text(
        TEXT.replace(
            "[chat.jsonl]",
            "[chat.jsonl, chat.jsonl=2, {source: a=3, weight: 0.5}, 'hf:org/name@v1:a.jsonl=4']",
        )
    )
    assert [
        (str(each.source), each.weight) for each in read_recipe(recipe).quantize.calibration
    ] == [
        (str(recipe.parent / "chat.jsonl"), 1.0),
        (str(recipe.parent / "chat.jsonl"), 2.0),
        (str(recipe.parent / "a=3"), 0.5),
        ("hf:org/name@v1:a.jsonl", 4.0),
    ]
