"""What a run would do, without doing it: commands, what they read and write, and how many bytes."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.hub.model_location import CARD_FILE, REPO_ID_PATTERN, is_hub_name
from camelpress.core.llama import LINEARS, is_derived_buffer
from camelpress.core.settings import Settings
from camelpress.pipeline import run as pipeline
from camelpress.pipeline.option_flags import settings_arguments
from camelpress.pipeline.recipe import Recipe
from camelpress.publish.destinations.destination import parse_destination

LINEAR_SUFFIXES = tuple(f".{linear.name}.weight" for linear in LINEARS)


@dataclass(frozen=True)
class PlannedFile:
    """A file and its bytes; of what is still to be made its folder, and about how many it takes.

    Args:
        place: of the file or folder.
        size: bytes; None where that cannot be told.
        exact: whether it is there and was looked at.
    """

    place: str
    size: int | None
    exact: bool


@dataclass(frozen=True)
class PlanStep:
    """One stage.

    Args:
        stage: its name.
        command: that would do the same.
        only_recipe: settings that no option has, such as a gate.
        unchanged: whether a run would leave it as it is.
        reads, writes: files, or folders that are not there yet.
    """

    stage: str
    command: str
    only_recipe: tuple[str, ...]
    unchanged: bool
    reads: tuple[PlannedFile, ...]
    writes: tuple[PlannedFile, ...]


def plan_run(recipe: Recipe) -> list[PlanStep]:
    """All stages of a recipe in order; nothing is fetched.

    Of weights only headers are read, unless files changed of which a run before knew the hash.

    Raises:
        RecipeProblem: as `targets.target`.
        CheckpointProblem: the diff is here, and is no checkpoint.
    """
    out = recipe.out
    recovered, quantized = out / "recovered", out / "quantized"
    validation, release = out / "validation", out / "release"
    dense, packed = _weight_bytes(recipe)
    shipped = 0 if recipe.publish.recipe_only else packed
    done = _unchanged_stages(recipe)

    def made(stage: str, place: Path, about: int | None = None) -> list[PlannedFile]:
        return _files(place) if stage in done else [PlannedFile(str(place), about, exact=False)]

    model, candidate = made("recover", recovered, dense), made("quantize", quantized, packed)
    report, finished = made("validate", validation), made("publish", release, shipped)
    texts = [path for each in recipe.quantize.calibration for path in _files(each.source)]
    held_out = [path for text in recipe.validation.text for path in _files(text)]
    publishing = recipe.publish.model_copy(update={"gated_like": _local_card_sources(recipe)})
    judged: list[Path | str] = [quantized, "--report", validation, "--to"]
    steps = [
        _step("recover", recipe.recover, [recipe.base, recipe.diff, recovered],
              [*_files(recipe.base), *_files(recipe.diff)], model),
        _step("quantize", recipe.quantize, [recovered, quantized], [*model, *texts], candidate),
        _step("validate", recipe.validation, [recovered, quantized, "--out", validation],
              [*model, *candidate, *held_out], report),
        _step("publish", publishing, [*judged, release], [*candidate, *report], finished),
    ]  # fmt: skip
    if parse_destination(recipe.publish, "", force=False) is not None:
        to = str(recipe.publish.to)
        there = PlannedFile(to, _total_bytes(finished), exact=False)
        steps.append(_step("upload", publishing, [*judged, to], finished, [there]))
    return [replace(step, unchanged=step.stage in done) for step in steps]


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
    """The cards that a run takes the gate from, as far as they lie here."""
    models = (model for model in (recipe.diff, recipe.base) if (model / CARD_FILE).is_file())
    return recipe.publish.gated_like or tuple(map(str, models))


def _unchanged_stages(recipe: Recipe) -> set[str]:
    """The stages that a run would skip; none where something would have to be fetched to know."""
    lock = recipe.out / pipeline.LOCK_FILE
    sources = [recipe.base, recipe.diff, *(each.source for each in recipe.quantize.calibration)]
    if not lock.is_file() or not all(source.exists() for source in sources):
        return set()
    kept = pipeline.PipelineLock(lock)
    return {
        stage.name
        for stage in pipeline.recipe_stages(recipe)
        if kept.has_entry(stage) and kept.is_current(stage, kept.entry(stage))
    }


def _files(place: Path) -> list[PlannedFile]:
    """What a place holds, each with its bytes; itself where it is not on this machine."""
    if not place.exists():
        return [PlannedFile(str(place), None, exact=False)]
    found = sorted(place.rglob("*")) if place.is_dir() else [place]
    return [
        PlannedFile(str(path), path.stat().st_size, exact=True) for path in found if path.is_file()
    ]


def _total_bytes(files: Sequence[PlannedFile]) -> int | None:
    """The bytes of all of them, if they can be told."""
    sizes = [each.size for each in files if each.size is not None]
    return sum(sizes) if len(sizes) == len(files) else None


def _weight_bytes(recipe: Recipe) -> tuple[int | None, int | None]:
    """Bytes of the weights in 16 bits and quantized, from the headers of the diff."""
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
    dense = 2 * sum(prod(shape) for shape in shapes.values())
    return dense, round(sum(_packed_bytes(recipe, shapes)))


def _packed_bytes(recipe: Recipe, shapes: dict[str, tuple[int, ...]]) -> Iterator[float]:
    """Codes, a 16-bit scale and a zero point a group, four bytes a column; the rest in 16 bits."""
    settings = recipe.quantize
    for name, shape in shapes.items():
        if not name.endswith(LINEAR_SUFFIXES):
            yield 2 * prod(shape)
            continue
        group = settings.group_size if settings.group_size > 0 else shape[-1]
        yield prod(shape) * (settings.bits + (16 + settings.bits) / group) / 8 + 4 * shape[-1]
