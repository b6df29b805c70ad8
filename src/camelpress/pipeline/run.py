"""Runs all stages in order, and skips a stage with unchanged inputs, settings and version.

The lock file beside the outputs records, per stage, hashes of its inputs and of its output. A stage
is skipped while both still match. Otherwise it runs again, and so does every later stage with
changed inputs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict

from camelpress import __version__
from camelpress.convert.inputs.meta_checkpoint import open_base
from camelpress.convert.recover import run as convert
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import RecipeProblem, ReleaseRefusal
from camelpress.core.exit_codes import ExitCode
from camelpress.core.file_names import CARD_FILE
from camelpress.core.files.file_hashes import FileHashCache, sha256_json
from camelpress.core.files.regular_files import read_regular
from camelpress.core.hub.model_location import ModelLocation, locate_file, locate_model
from camelpress.core.hub.repo_id import HUB_PREFIX
from camelpress.core.input_limits import MAX_JSON_BYTES
from camelpress.core.output.durable_writes import disk_errors, write_synced
from camelpress.core.output.output_contents import is_camelpress_output
from camelpress.core.output.output_replacement import finish_replacement, remove_output
from camelpress.core.progress import note
from camelpress.core.settings import Settings
from camelpress.pipeline.recipe import Recipe
from camelpress.publish import run as publish
from camelpress.publish.destinations.destination import parse_destination
from camelpress.publish.publish_release import UPLOAD_REPORT, upload_release
from camelpress.quantize import run as quantize
from camelpress.reporting.report_classes import ValidationReport, read_report
from camelpress.reporting.stage_report import Report
from camelpress.reporting.verdict import Verdict
from camelpress.validate import run as validate
from camelpress.validate.settings import ValidateSettings

LOCK_FILE = "camelpress.lock"


@dataclass(frozen=True)
class PipelineStage:
    """One step of the pipeline."""

    name: str
    inputs: tuple[Path, ...]
    settings: Settings
    output: Path
    report: str
    run_stage: Callable[[], Report]


@dataclass(frozen=True)
class PipelineOutcome:
    """Reports of a run, and the names of the skipped stages."""

    reports: Mapping[str, Report]
    skipped: tuple[str, ...]

    @property
    def validation(self) -> ValidationReport:
        """Report of the validation; KeyError if the run ended before it."""
        return cast(ValidationReport, self.reports["validate"])

    @property
    def verdict(self) -> Verdict:
        """Verdict of the validation."""
        report = self.reports.get("validate")
        return report.verdict or Verdict.ERROR if report else Verdict.ERROR

    @property
    def exit_code(self) -> ExitCode:
        """0 for a finished release, otherwise the exit code of the verdict."""
        return ExitCode.DONE if "publish" in self.reports else self.verdict.exit_code


def run(recipe: Recipe, *, force: bool = False, restart: bool = False) -> PipelineOutcome:
    """Recovers, quantizes, validates and, after a passed gate, publishes.

    A gate that does not pass ends the run before publishing, unless the recipe allows it.

    Args:
        recipe: inputs, settings of every stage, and the output folder.
        force: run every stage, even with a matching lock entry.
        restart: begin an unfinished stage again if its settings or inputs changed.
    Returns:
        Reports of every stage, run or skipped.
    Raises:
        ReleaseRefusal: the gate passed without a check on text, and the recipe gives no reason.
    """
    with disk_errors(recipe.out):
        recipe.out.mkdir(parents=True, exist_ok=True)
    lock = PipelineLock(recipe.out / LOCK_FILE)
    stages = recipe_stages(recipe, force=force, restart=restart)
    publish_index = [stage.name for stage in stages].index("publish")
    outcome = run_stages(stages[:publish_index], lock, force=force)
    if outcome.verdict is not Verdict.PASS and not recipe.publish.allow_failed_gate:
        _remove_release(stages[publish_index], lock)
        return outcome
    try:
        publish_outcome = run_stages(stages[publish_index:], lock, force=force)
    except ReleaseRefusal:
        _remove_release(stages[publish_index], lock)
        raise
    return PipelineOutcome(
        {**outcome.reports, **publish_outcome.reports}, (*outcome.skipped, *publish_outcome.skipped)
    )


def run_stages(
    stages: Sequence[PipelineStage], lock: PipelineLock, *, force: bool = False
) -> PipelineOutcome:
    """Runs stages in order, and skips those with a matching lock entry."""
    reports: dict[str, Report] = {}
    skipped = []
    for stage in stages:
        entry = lock.entry(stage)
        if not force and lock.is_current(stage, entry):
            note(f"{stage.name}: unchanged, skipped")
            skipped.append(stage.name)
            reports[stage.name] = read_report(stage.output / stage.report)
        else:
            note(f"{stage.name}: {stage.output}")
            lock.remove(stage)
            reports[stage.name] = stage.run_stage()
            lock.record(stage, entry)
    return PipelineOutcome(reports, tuple(skipped))


def recipe_stages(
    recipe: Recipe, *, force: bool = False, restart: bool = False
) -> list[PipelineStage]:
    """Returns the stages of a recipe, with their output folders under `out`.

    Args:
        recipe: inputs, settings of every stage, and the output folder.
        force: let an upload replace an earlier release.
        restart: begin an unfinished stage again if its settings or inputs changed.
    Raises:
        RecipeProblem: as `parse_destination`; or `publish.to` is a folder.
    """
    recovered, release = recipe.out / "recovered", recipe.out / "release"
    base, diff = locate_model(recipe.base), locate_model(recipe.diff)
    stages = [
        _recover(recipe, base, diff, recovered, restart=restart),
        *quantize_and_validate(recipe, recovered, recipe.out, restart=restart),
        _publish(recipe, (diff, base), release),
    ]
    if parse_destination(recipe.publish, "", force=force) is not None:
        return [*stages, _upload(recipe, release, force=force)]
    if recipe.publish.to is not None:
        raise RecipeProblem(
            f"publish.to names {recipe.publish.to}, but a local release is always {release}",
            next_step="leave publish.to out, or name a remote place such as hf:org/name",
        )
    return stages


def _validation_inputs(settings: ValidateSettings) -> tuple[Path, ...]:
    """Returns the inputs of benchmarks besides the models: data, local judge, annotations."""
    judge = settings.judge
    annotations = None if judge.url or judge.local else judge.annotations
    paths = (settings.data_dir, judge.local, annotations)
    return tuple(filter(None, paths)) if settings.tasks else ()


def quantize_and_validate(
    recipe: Recipe, recovered: Path, out: Path, *, restart: bool = False
) -> list[PipelineStage]:
    """Returns the quantize and validate stages, with their output folders."""
    quantized, validation = out / "quantized", out / "validation"
    texts = [locate_file(entry.source) for entry in recipe.quantize.calibration]
    calibration = tuple(  # named by commit, since the main branch may move during the run
        entry.model_copy(update={"source": text.place})
        for entry, text in zip(recipe.quantize.calibration, texts, strict=True)
    )
    pinned = recipe.quantize.model_copy(update={"calibration": calibration})
    return [
        PipelineStage(
            "quantize",
            (recovered, *(text.path for text in texts)),
            recipe.quantize,
            quantized,
            quantize.REPORT,
            lambda: quantize.run(
                Checkpoint.open(recovered), quantized, pinned, force=True, restart=restart
            ),
        ),
        PipelineStage(
            "validate",
            (recovered, quantized, *recipe.validation.text, *_validation_inputs(recipe.validation)),
            recipe.validation,
            validation,
            validate.REPORT,
            lambda: validate.run(
                Checkpoint.open(recovered),
                Checkpoint.open(quantized),
                validation,
                recipe.validation,
                force=True,
                restart=restart,
            ),
        ),
    ]


def _recover(
    recipe: Recipe, base: ModelLocation, diff: ModelLocation, recovered: Path, *, restart: bool
) -> PipelineStage:
    return PipelineStage(
        "recover",
        (base.folder, diff.folder, *filter(None, [recipe.recover.verify])),
        recipe.recover,
        recovered,
        convert.REPORT,
        lambda: convert.recover(
            open_base(Path(base.origin)),  # named by commit, since the main branch may move
            Checkpoint.open(Path(diff.origin)),
            recovered,
            recipe.recover,
            force=True,
            restart=restart,
        ),
    )


def _publish(recipe: Recipe, sources: Sequence[ModelLocation], release: Path) -> PipelineStage:
    quantized, validation = recipe.out / "quantized", recipe.out / "validation"
    cards = recipe.publish.gated_like or tuple(_card_sources(sources))
    settings = recipe.publish.model_copy(update={"gated_like": cards})
    card_paths = [Path(card) / CARD_FILE if Path(card).is_dir() else Path(card) for card in cards]
    return PipelineStage(
        "publish",
        (quantized, validation, *card_paths, *filter(None, [settings.sign_with])),
        settings,
        release,
        publish.REPORT,
        lambda: publish.run(quantized, validation, release, settings, force=True),
    )


def _card_sources(models: Sequence[ModelLocation]) -> Iterator[str]:
    """Yields the models with a local card, as hub names or folders."""
    for model in models:
        if (model.folder / CARD_FILE).is_file():
            on_hub = model.origin != str(model.folder)
            yield f"{HUB_PREFIX}{model.origin}" if on_hub else model.origin


def _upload(recipe: Recipe, release: Path, *, force: bool) -> PipelineStage:
    uploaded = recipe.out / "uploaded"
    return PipelineStage(
        "upload",
        (release,),
        Settings(),
        uploaded,
        UPLOAD_REPORT,
        lambda: upload_release(release, uploaded, replace=force, force=True),
    )


class LockEntry(BaseModel):
    """Entry of one stage in a lock file."""

    model_config = ConfigDict(strict=True, extra="forbid")

    made_from: dict[str, Any]
    output: str


class LockFile(BaseModel):
    """Content of a lock file: one entry per stage, file identity and hash per file."""

    model_config = ConfigDict(strict=True, extra="forbid")

    stages: dict[str, LockEntry] = {}
    files: dict[str, list[int | str]] = {}


class PipelineLock:
    """Records input and output hashes of each stage in a JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content: dict[str, Any] = {"stages": {}, "files": {}}
        if path.exists():
            try:
                lock = LockFile.model_validate_json(read_regular(path, MAX_JSON_BYTES))
            except (OSError, ValueError):  # pydantic's errors are ValueErrors
                note(f"{path} is not a readable lock file: every stage runs again")
            else:
                self._content |= lock.model_dump(mode="json")
        self._hashes = FileHashCache(self._content["files"])

    def entry(self, stage: PipelineStage) -> dict[str, Any]:
        """Computes the version, settings hash and input hashes of a stage."""
        return {
            "version": __version__,
            "settings": sha256_json(stage.settings.model_dump(mode="json")),
            "inputs": {str(path): self._hashes.tree_digest(path) for path in stage.inputs},
        }

    def has_entry(self, stage: PipelineStage) -> bool:
        """Returns True if the stage has finished once, with current or older inputs."""
        return stage.name in self._content["stages"]

    def is_current(self, stage: PipelineStage, entry: Mapping[str, Any]) -> bool:
        """Returns True if the recorded inputs match the entry and the output is unchanged."""
        old_entry = self._content["stages"].get(stage.name)
        return (
            old_entry is not None
            and old_entry["made_from"] == entry
            and stage.output.is_dir()
            and old_entry["output"] == self._hashes.tree_digest(stage.output)
        )

    def remove(self, stage: PipelineStage) -> None:
        """Removes the outdated entry before a stage runs."""
        self._content["stages"].pop(stage.name, None)
        self._save()

    def record(self, stage: PipelineStage, entry: Mapping[str, Any]) -> None:
        """Records the inputs and the output hash of a finished stage."""
        self._content["stages"][stage.name] = {
            "made_from": entry,
            "output": self._hashes.tree_digest(stage.output),
        }
        self._save()

    def _save(self) -> None:
        with disk_errors(self._path):
            write_synced(self._path, json.dumps(self._content, indent=2, ensure_ascii=False) + "\n")


def _remove_release(stage: PipelineStage, lock: PipelineLock) -> None:
    """Removes the release of an earlier run from other inputs."""
    lock.remove(stage)
    with disk_errors(stage.output):
        finish_replacement(stage.output)
        if is_camelpress_output(stage.output):
            note(f"publish: {stage.output} of an earlier run is removed, the gate did not pass")
            remove_output(stage.output)
