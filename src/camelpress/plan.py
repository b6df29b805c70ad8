"""What a run would do, without doing it: commands, what they read and write, and how many bytes."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from camelpress.core.checkpoint import Checkpoint
from camelpress.core.llama import LINEARS
from camelpress.core.origin import HUB_ID, on_hub
from camelpress.core.settings import Settings
from camelpress.options import written
from camelpress.publish.targets import target
from camelpress.recipe import Recipe

LINEAR = tuple(f".{linear.name}.weight" for linear in LINEARS)
Sized = tuple[str, int | None]


@dataclass(frozen=True)
class Step:
    """One stage.

    Args:
        stage: its name.
        command: that would do the same.
        only_recipe: settings that no option has, such as a gate.
        reads: places, and their bytes where they are here.
        writes: a place, and about how many bytes where that can be told.
    """

    stage: str
    command: str
    only_recipe: tuple[str, ...]
    reads: tuple[Sized, ...]
    writes: Sized


def plan(recipe: Recipe) -> list[Step]:
    """All stages of a recipe in order; nothing is fetched, and nothing but headers is read.

    Raises:
        RecipeProblem: as `targets.target`.
        CheckpointProblem: the diff is here, and is no checkpoint.
    """
    out = recipe.out
    recovered, quantized = out / "recovered", out / "quantized"
    validation, release = out / "validation", out / "release"
    dense, packed = _sizes(recipe)
    texts = tuple(each.source for each in recipe.quantize.calibration)
    steps = [
        _step("recover", [recipe.base, recipe.diff, recovered], recipe.recover,
              reads=[_here(recipe.base), _here(recipe.diff)], writes=(str(recovered), dense)),
        _step("quantize", [recovered, quantized], recipe.quantize,
              reads=[(str(recovered), dense), *map(_here, texts)], writes=(str(quantized), packed)),
        _step("validate", [recovered, quantized, "--out", validation], recipe.validation,
              reads=[(str(recovered), dense), (str(quantized), packed),
                     *map(_here, recipe.validation.text)],
              writes=(str(validation), None)),
        _step("publish", [quantized, "--report", validation, "--to", release], recipe.publish,
              reads=[(str(quantized), packed)],
              writes=(str(release), 0 if recipe.publish.recipe_only else packed)),
    ]  # fmt: skip
    place = target(recipe.publish, "", force=False)
    if place is not None:
        to = recipe.publish.to or ""
        command: list[Path | str] = [quantized, "--report", validation, "--to", to]
        size = steps[-1].writes[1]
        steps.append(
            _step("upload", command, recipe.publish, reads=[(str(release), size)],
                  writes=(to, size))
        )  # fmt: skip
    return steps


def _step(
    stage: str,
    arguments: list[Path | str],
    settings: Settings,
    *,
    reads: list[Sized],
    writes: Sized,
) -> Step:
    options, only_recipe = written(settings, without=("to",))
    words = ["camelpress", "publish" if stage == "upload" else stage, *map(str, arguments)]
    return Step(stage, shlex.join([*words, *options]), only_recipe, tuple(reads), writes)


def _here(place: Path) -> Sized:
    """A place and the bytes of its files; None where it is not on this machine."""
    if place.is_file():
        return str(place), place.stat().st_size
    if place.is_dir():
        return str(place), sum(path.stat().st_size for path in place.iterdir() if path.is_file())
    return str(place), None


def _sizes(recipe: Recipe) -> tuple[int | None, int | None]:
    """Bytes of the weights in 16 bits and quantized, from the headers of the diff."""
    if on_hub(recipe.diff) or HUB_ID.fullmatch(str(recipe.diff)) or not recipe.diff.is_dir():
        return None, None
    shapes = {name: info.shape for name, info in Checkpoint.open(recipe.diff).tensors.items()}
    dense = 2 * sum(prod(shape) for shape in shapes.values())
    return dense, round(sum(_packed(recipe, shapes)))


def _packed(recipe: Recipe, shapes: dict[str, tuple[int, ...]]) -> Iterator[float]:
    """Codes, a 16-bit scale and a zero point a group, four bytes a column; the rest in 16 bits."""
    settings = recipe.quantize
    for name, shape in shapes.items():
        if not name.endswith(LINEAR):
            yield 2 * prod(shape)
            continue
        group = settings.group_size if settings.group_size > 0 else shape[-1]
        yield prod(shape) * (settings.bits + (16 + settings.bits) / group) / 8 + 4 * shape[-1]
