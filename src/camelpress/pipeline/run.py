"""All stages in order; a stage whose inputs, options and version are unchanged is skipped.

The lock file beside the outputs says, per stage, what it was made from and what came out. A stage
is left alone while both still hold; otherwise it runs again, and everything after it whose inputs
changed by that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from camelpress import __version__
from camelpress.convert.inputs.meta_checkpoint import open_base
from camelpress.convert.recover import run as convert
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import RecipeProblem, ReleaseRefusal
from camelpress.core.exit_codes import ExitCode
from camelpress.core.files.file_hashes import FileHashCache, sha256_json
from camelpress.core.files.regular_files import read_regular
from camelpress.core.hub.model_location import (
    CARD_FILE,
    HUB_PREFIX,
    ModelLocation,
    locate_file,
    locate_model,
)
from camelpress.core.input_limits import MAX_JSON_BYTES
from camelpress.core.output.durable_writes import disk_errors, write_synced
from camelpress.core.output.output_contents import is_camelpress_output
from camelpress.core.output.output_replacement import finish_replacement, remove_output
from camelpress.core.progress import note
from camelpress.core.settings import Settings
from camelpress.pipeline.recipe import Recipe
from camelpress.publish import run as publish
from camelpress.publish import upload
from camelpress.publish.destinations.destination import parse_destination
from camelpress.quantize import run as quantize
from camelpress.reporting.stage_report import Report, Verdict
from camelpress.validate import run as validate
from camelpress.validate.settings import Validate

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
    """What `run` ended with."""

    reports: Mapping[str, Report]
    skipped: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """The verdict of the validation."""
        judged = self.reports.get("validate")
        return judged.verdict or Verdict.ERROR if judged else Verdict.ERROR

    @property
    def exit_code(self) -> ExitCode:
        """DONE if there is a release, otherwise the code of the verdict."""
        return ExitCode.DONE if "publish" in self.reports else self.verdict.exit_code


def run(recipe: Recipe, *, force: bool = False, restart: bool = False) -> PipelineOutcome:
    """Recover, quantize, validate and, if the gate is passed, publish.

    Args:
        recipe: what to do.
        force: run every stage, whatever the lock says.
        restart: begin a stage again that is unfinished and was begun otherwise.
    Raises:
        ReleaseRefused: the gate was passed without a check of text, and no reason is given.
    Returns:
        the report of every stage that ran or still held. A gate that is not passed ends the run
        before publishing, unless the recipe allows it.
    """
    with disk_errors(recipe.out):
        recipe.out.mkdir(parents=True, exist_ok=True)
    lock = PipelineLock(recipe.out / LOCK_FILE)
    every = recipe_stages(recipe, force=force, restart=restart)
    judged = [stage.name for stage in every].index("publish")
    outcome = run_stages(every[:judged], lock, force=force)
    if outcome.verdict is not Verdict.PASS and not recipe.publish.allow_failed_gate:
        _remove_release(every[judged], lock)
        return outcome
    try:
        published = run_stages(every[judged:], lock, force=force)
    except ReleaseRefusal:
        _remove_release(every[judged], lock)
        raise
    return PipelineOutcome(
        {**outcome.reports, **published.reports}, (*outcome.skipped, *published.skipped)
    )


def run_stages(
    work: Sequence[PipelineStage], lock: PipelineLock, *, force: bool = False
) -> PipelineOutcome:
    """Run stages one after another, skipping those that the lock still vouches for."""
    reports: dict[str, Report] = {}
    skipped = []
    for stage in work:
        entry = lock.entry(stage)
        if not force and lock.is_current(stage, entry):
            note(f"{stage.name}: unchanged, skipped")
            skipped.append(stage.name)
            reports[stage.name] = Report.read_report(stage.output / stage.report)
        else:
            note(f"{stage.name}: {stage.output}")
            lock.remove(stage)
            reports[stage.name] = stage.run_stage()
            lock.record(stage, entry)
    return PipelineOutcome(reports, tuple(skipped))


def recipe_stages(
    recipe: Recipe, *, force: bool = False, restart: bool = False
) -> list[PipelineStage]:
    """The stages of a recipe, each with its place under `out`.

    Args:
        recipe: what to do.
        force: an upload may replace an earlier release.
        restart: of each stage that resumes.
    Raises:
        RecipeProblem: as `targets.target`; or `publish.to` is a folder.
    """
    recovered, release = recipe.out / "recovered", recipe.out / "release"
    base, diff = locate_model(recipe.base), locate_model(recipe.diff)
    found = [
        _recover(recipe, base, diff, recovered, restart=restart),
        *quantize_and_validate(recipe, recovered, recipe.out, restart=restart),
        _publish(recipe, (diff, base), release),
    ]
    if parse_destination(recipe.publish, "", force=force) is not None:
        return [*found, _upload(recipe, release, force=force)]
    if recipe.publish.to is not None:
        raise RecipeProblem(
            f"publish.to names {recipe.publish.to}, and a release here is always {release}",
            next_step="leave it out, or name a place such as hf:org/name",
        )
    return found


def _validation_inputs(settings: Validate) -> tuple[Path, ...]:
    """What tasks are made from besides the models: data, a judge here, verdicts without a judge."""
    judge = settings.judge
    stored = None if judge.url or judge.local else judge.annotations
    return tuple(filter(None, (settings.data_dir, judge.local, stored))) if settings.tasks else ()


def quantize_and_validate(
    recipe: Recipe, recovered: Path, out: Path, *, restart: bool = False
) -> list[PipelineStage]:
    """Returns the two stages between the recovered model and a verdict, with their places."""
    quantized, validation = out / "quantized", out / "validation"
    texts = [locate_file(each.source) for each in recipe.quantize.calibration]
    pinned = recipe.quantize.model_copy(  # a commit: what main is may change meanwhile
        update={
            "calibration": tuple(
                each.model_copy(update={"source": text.place})
                for each, text in zip(recipe.quantize.calibration, texts, strict=True)
            )
        }
    )
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
            open_base(Path(base.origin)),  # a commit: what main is may change meanwhile
            Checkpoint.open(Path(diff.origin)),
            recovered,
            recipe.recover,
            force=True,
            restart=restart,
        ),
    )


def _publish(recipe: Recipe, made_from: Sequence[ModelLocation], release: Path) -> PipelineStage:
    quantized, validation = recipe.out / "quantized", recipe.out / "validation"
    cards = recipe.publish.gated_like or tuple(_card_sources(made_from))
    settings = recipe.publish.model_copy(update={"gated_like": cards})
    read = [Path(card) / CARD_FILE if Path(card).is_dir() else Path(card) for card in cards]
    return PipelineStage(
        "publish",
        (quantized, validation, *read, *filter(None, [settings.sign_with])),
        settings,
        release,
        publish.REPORT,
        lambda: publish.run(quantized, validation, release, settings, force=True),
    )


def _card_sources(models: Sequence[ModelLocation]) -> Iterator[str]:
    """The models whose cards are at hand, in the words that lead to them."""
    for place in models:
        if (place.folder / CARD_FILE).is_file():
            on_hub = place.origin != str(place.folder)
            yield f"{HUB_PREFIX}{place.origin}" if on_hub else place.origin


def _upload(recipe: Recipe, release: Path, *, force: bool) -> PipelineStage:
    uploaded = recipe.out / "uploaded"
    return PipelineStage(
        "upload",
        (release,),
        Settings(),
        uploaded,
        upload.UPLOAD_REPORT,
        lambda: upload.upload_release(release, uploaded, replace=force, force=True),
    )


class LockEntry(BaseModel):
    """One stage in a lock file."""

    model_config = ConfigDict(strict=True, extra="forbid")

    made_from: dict[str, Any]
    output: str


class LockFile(BaseModel):
    """The content of a lock file: an entry per stage, identity and hash per file."""

    model_config = ConfigDict(strict=True, extra="forbid")

    stages: dict[str, LockEntry] = {}
    files: dict[str, list[int | str]] = {}


class PipelineLock:
    """What each stage was made from and gave, kept as JSON."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content: dict[str, Any] = {"stages": {}, "files": {}}
        if path.exists():
            try:
                lock = LockFile.model_validate_json(read_regular(path, MAX_JSON_BYTES))
            except (OSError, ValueError):  # pydantic's errors are ValueErrors
                note(f"{path} is no lock file that can be read: every stage runs again")
            else:
                self._content |= lock.model_dump(mode="json")
        self._hashes = FileHashCache(self._content["files"])

    def entry(self, stage: PipelineStage) -> dict[str, Any]:
        """What the stage would be made from now."""
        return {
            "version": __version__,
            "settings": sha256_json(stage.settings.model_dump(mode="json")),
            "inputs": {str(path): self._hashes.tree_digest(path) for path in stage.inputs},
        }

    def has_entry(self, stage: PipelineStage) -> bool:
        """Whether the stage ran to its end; what it was made from may have changed since."""
        return stage.name in self._content["stages"]

    def is_current(self, stage: PipelineStage, entry: Mapping[str, Any]) -> bool:
        """Whether the stage was made from this, and its output is as it was left."""
        kept = self._content["stages"].get(stage.name)
        return (
            kept is not None
            and kept["made_from"] == entry
            and stage.output.is_dir()
            and kept["output"] == self._hashes.tree_digest(stage.output)
        )

    def remove(self, stage: PipelineStage) -> None:
        """Before a stage runs: its old entry is no longer true."""
        self._content["stages"].pop(stage.name, None)
        self._save()

    def record(self, stage: PipelineStage, entry: Mapping[str, Any]) -> None:
        """After a stage ran."""
        self._content["stages"][stage.name] = {
            "made_from": entry,
            "output": self._hashes.tree_digest(stage.output),
        }
        self._save()

    def _save(self) -> None:
        with disk_errors(self._path):
            write_synced(self._path, json.dumps(self._content, indent=2, ensure_ascii=False) + "\n")


def _remove_release(stage: PipelineStage, lock: PipelineLock) -> None:
    """A release that an earlier run made of something else must not pass for this one."""
    lock.remove(stage)
    with disk_errors(stage.output):
        finish_replacement(stage.output)
        if is_camelpress_output(stage.output):
            note(f"publish: {stage.output} was made before and is removed, the gate is not passed")
            remove_output(stage.output)
