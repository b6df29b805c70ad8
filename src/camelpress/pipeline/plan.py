"""Plans a run without starting it: commands, their input and output files, and sizes in bytes."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.file_names import CARD_FILE
from camelpress.core.hub.model_location import is_hub_name
from camelpress.core.hub.repo_id import REPO_ID_PATTERN
from camelpress.core.llama import LINEARS, is_derived_buffer
from camelpress.core.settings import Settings
from camelpress.pipeline import run as pipeline
from camelpress.pipeline.option_flags import settings_arguments
from camelpress.pipeline.recipe import Recipe
from camelpress.publish.destinations.destination import parse_destination

LINEAR_SUFFIXES = tuple(f".{linear.name}.weight" for linear in LINEARS)


@dataclass(frozen=True)
class PlannedFile:
    """A file with its size, or the folder of a future output with an estimate.

    Args:
        place: path of the file or folder.
        size: bytes; None if unknown.
        exact: True for the size of an existing file, False for an estimate.
    """

    place: str
    size: int | None
    exact: bool


@dataclass(frozen=True)
class PlanStep:
    """One stage of a planned run.

    Args:
        stage: name of the stage.
        command: equivalent command line.
        only_recipe: dotted names of settings without an option, such as a gate.
        unchanged: True if a run would skip the stage.
        reads, writes: existing files, or folders of future outputs.
    """

    stage: str
    command: str
    only_recipe: tuple[str, ...]
    unchanged: bool
    reads: tuple[PlannedFile, ...]
    writes: tuple[PlannedFile, ...]


def plan_run(recipe: Recipe) -> list[PlanStep]:
    """Plans all stages of a recipe in order, without downloads.

    Weight files are read only up to their headers. A file with an outdated hash in the lock is
    hashed again.

    Raises:
        RecipeProblem: as `parse_destination`.
        CheckpointProblem: the local diff is not a checkpoint.
    """
    out = recipe.out
    recovered, quantized = out / "recovered", out / "quantized"
    validation, release = out / "validation", out / "release"
    dense_bytes, packed_bytes = _weight_bytes(recipe)
    release_bytes = 0 if recipe.publish.recipe_only else packed_bytes
    unchanged = _unchanged_stages(recipe)

    def output_files(stage: str, folder: Path, estimate: int | None = None) -> list[PlannedFile]:
        if stage in unchanged:
            return _files(folder)
        return [PlannedFile(str(folder), estimate, exact=False)]

    model_files = output_files("recover", recovered, dense_bytes)
    candidate_files = output_files("quantize", quantized, packed_bytes)
    report_files = output_files("validate", validation)
    release_files = output_files("publish", release, release_bytes)
    texts = [path for entry in recipe.quantize.calibration for path in _files(entry.source)]
    held_out = [path for text in recipe.validation.text for path in _files(text)]
    publish_settings = recipe.publish.model_copy(update={"gated_like": _local_card_sources(recipe)})
    publish_arguments: list[Path | str] = [quantized, "--report", validation, "--to"]
    steps = [
        _step("recover", recipe.recover, [recipe.base, recipe.diff, recovered],
              [*_files(recipe.base), *_files(recipe.diff)], model_files),
        _step("quantize", recipe.quantize, [recovered, quantized],
              [*model_files, *texts], candidate_files),
        _step("validate", recipe.validation, [recovered, quantized, "--out", validation],
              [*model_files, *candidate_files, *held_out], report_files),
        _step("publish", publish_settings, [*publish_arguments, release],
              [*candidate_files, *report_files], release_files),
    ]  # fmt: skip
    if parse_destination(recipe.publish, "", force=False) is not None:
        destination = str(recipe.publish.to)
        target = PlannedFile(destination, _total_bytes(release_files), exact=False)
        arguments = [*publish_arguments, destination]
        steps.append(_step("upload", publish_settings, arguments, release_files, [target]))
    return [replace(step, unchanged=step.stage in unchanged) for step in steps]


def _step(
    stage: str,
    settings: Settings,
    arguments: Sequence[Path | str],
    reads: Sequence[PlannedFile],
    writes: Sequence[PlannedFile],
) -> PlanStep:
    options, only_recipe = settings_arguments(settings, without=("to",))
    words = ["camelpress", "publish" if stage == "upload" else stage, *map(str, arguments)]
    command = shlex.join([*words, *options])
    return PlanStep(stage, command, only_recipe, False, tuple(reads), tuple(writes))


def _local_card_sources(recipe: Recipe) -> tuple[str, ...]:
    """Returns the local model folders with a card, as sources of the hub gate."""
    models = (model for model in (recipe.diff, recipe.base) if (model / CARD_FILE).is_file())
    return recipe.publish.gated_like or tuple(map(str, models))


def _unchanged_stages(recipe: Recipe) -> set[str]:
    """Returns the stages that a run would skip; an empty set if an input is not local."""
    lock_path = recipe.out / pipeline.LOCK_FILE
    sources = [recipe.base, recipe.diff, *(entry.source for entry in recipe.quantize.calibration)]
    if not lock_path.is_file() or not all(source.exists() for source in sources):
        return set()
    lock = pipeline.PipelineLock(lock_path)
    return {
        stage.name
        for stage in pipeline.recipe_stages(recipe)
        if lock.has_entry(stage) and lock.is_current(stage, lock.entry(stage))
    }


def _files(root: Path) -> list[PlannedFile]:
    """Lists the files at a path with their sizes; a missing path is listed without a size."""
    if not root.exists():
        return [PlannedFile(str(root), None, exact=False)]
    paths = sorted(root.rglob("*")) if root.is_dir() else [root]
    return [
        PlannedFile(str(path), path.stat().st_size, exact=True) for path in paths if path.is_file()
    ]


def _total_bytes(files: Sequence[PlannedFile]) -> int | None:
    """Sums the sizes of files in bytes; None if a size is unknown."""
    sizes = [file.size for file in files if file.size is not None]
    return sum(sizes) if len(sizes) == len(files) else None


def _weight_bytes(recipe: Recipe) -> tuple[int | None, int | None]:
    """Computes bytes of the 16-bit and the quantized weights from the headers of the diff."""
    if (
        is_hub_name(recipe.diff)
        or REPO_ID_PATTERN.fullmatch(str(recipe.diff))
        or not recipe.diff.is_dir()
    ):
        return None, None
    shapes = {
        name: info.shape
        for name, info in Checkpoint.open(recipe.diff).tensors.items()
        if not is_derived_buffer(name)
    }
    dense_bytes = 2 * sum(prod(shape) for shape in shapes.values())
    return dense_bytes, round(sum(_packed_bytes(recipe, shapes)))


def _packed_bytes(recipe: Recipe, shapes: dict[str, tuple[int, ...]]) -> Iterator[float]:
    """Yields bytes per tensor: codes, scales, zero points and indices, or 2 bytes per value."""
    settings = recipe.quantize
    for name, shape in shapes.items():
        if not name.endswith(LINEAR_SUFFIXES):
            yield 2 * prod(shape)
            continue
        group = settings.group_size if settings.group_size > 0 else shape[-1]
        yield prod(shape) * (settings.bits + (16 + settings.bits) / group) / 8 + 4 * shape[-1]
