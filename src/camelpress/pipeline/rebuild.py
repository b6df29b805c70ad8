"""A release made again from base and diff, and held against it byte for byte."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from camelpress.core.errors import RecipeProblem
from camelpress.core.files.file_hashes import (
    PROVENANCE_FILE,
    REPORT_SUFFIX,
    checkpoint_file_hashes,
    package_versions,
    sha256_file,
)
from camelpress.core.hub.model_location import HUB_PREFIX, is_hub_name
from camelpress.core.output.durable_writes import disk_errors
from camelpress.pipeline import run as pipeline
from camelpress.pipeline.recipe import Recipe, read_recipe
from camelpress.publish.release.rebuild_recipe import RECIPE_FILE
from camelpress.publish.verify_release import verify_release
from camelpress.reporting.stage_report import Report, Stopwatch, Verdict

WEIGHT_STAGES = ("recover", "quantize")
MAX_THREADS = 1024  # that a release from anywhere may ask for
ROUNDING_FACTS = ("device", "cpu", "threads")  # what the order of sums, and so the bytes, depend on


def rebuild_release(
    release: Path,
    out: Path,
    *,
    base: Path | None,
    diff: Path | None,
    calibration: Sequence[Path],
    force: bool,
    restart: bool = False,
) -> Report:
    """Run a release's recipe, and compare the model with the hashes of the release.

    Args:
        release: a folder that `verify` passes; it needs no weights.
        out: where the stages write; the model is in `out/quantized`. A second run goes on.
        base: the raw model, where the recipe does not name it as on the hub.
        diff: the weight diff, likewise.
        calibration: the texts, told by their hash.
        force: run finished stages again.
        restart: begin a stage again that is unfinished and was begun otherwise.
    Returns:
        PASS where every file is the same, or FAIL with what is not under `problems`.
    Raises:
        RecipeProblem: the release is damaged or has no recipe, or a text is missing.
        Problem: as the stages.
    """
    watch = Stopwatch()
    checked = verify_release(release)
    if checked.verdict is not Verdict.PASS:
        raise RecipeProblem(
            f"{release} is not as it was published: {checked.facts['problems'][0]}",
            next_step="download it again",
        )
    if not (release / RECIPE_FILE).is_file():
        raise RecipeProblem(
            f"{release} has no {RECIPE_FILE}: its reports did not tell how it was made",
            next_step="ask its author for one that has",
        )
    provenance = Report.read_report(release / PROVENANCE_FILE)
    recipe = _local_recipe(release, provenance, out, base, diff, calibration)
    lock = pipeline.PipelineLock(recipe.out / pipeline.LOCK_FILE)
    with disk_errors(recipe.out):
        recipe.out.mkdir(parents=True, exist_ok=True)
    every = pipeline.recipe_stages(recipe, restart=restart)
    stages = [stage for stage in every if stage.name in WEIGHT_STAGES]
    then = Report.read_report(release / f"{WEIGHT_STAGES[-1]}{REPORT_SUFFIX}").facts
    with _thread_count(then.get("threads")):
        outcome = pipeline.run_stages(stages, lock, force=force)
    reports = [outcome.reports[name] for name in WEIGHT_STAGES]
    problems = _differences(provenance, then, reports, stages[-1].output)
    return Report(
        stage="rebuild",
        inputs={name: digest for each in reports for name, digest in each.inputs.items()},
        settings={},
        facts={"files": len(provenance.facts["model"]), "problems": problems},
        verdict=Verdict.FAIL if problems else Verdict.PASS,
        cost=watch.cost(),
    )


@contextmanager
def _thread_count(count: Any) -> Iterator[None]:
    """As many threads as were at work then: sums come out in the same order."""
    before = torch.get_num_threads()
    is_count = type(count) is int and 1 <= count <= MAX_THREADS
    torch.set_num_threads(count if is_count else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _local_recipe(
    release: Path,
    provenance: Report,
    out: Path,
    base: Path | None,
    diff: Path | None,
    calibration: Sequence[Path],
) -> Recipe:
    """The recipe of a release with the inputs that lie here."""
    told = read_recipe(release / RECIPE_FILE)
    here = {sha256_file(path): path for path in calibration}
    texts = []
    for each in told.quantize.calibration:
        wanted = provenance.inputs.get(f"calibration:{_text_name(each.source)}", "")
        if wanted in here:
            each = each.model_copy(update={"source": here[wanted]})
        elif not is_hub_name(each.source):
            raise RecipeProblem(
                f"{release} was calibrated with {each.source.name}, whose SHA-256 is {wanted}",
                next_step="give that very file with --calibration",
            )
        texts.append(each)
    return told.model_copy(
        update={
            "base": _local_model(release, "base", told.base, base),
            "diff": _local_model(release, "diff", told.diff, diff),
            "out": out,
            # no other file or program that somebody else's recipe may name
            "recover": told.recover.model_copy(update={"verify": None}),
            "quantize": told.quantize.model_copy(
                update={"calibration": tuple(texts), "engine_python": None}
            ),
        }
    )


def _text_name(source: Path) -> str:
    return str(source).removeprefix(HUB_PREFIX) if is_hub_name(source) else source.name


def _local_model(release: Path, which: str, told: Path, given: Path | None) -> Path:
    if given is None and not is_hub_name(told):
        raise RecipeProblem(
            f"{release} was made from a {which} called {told.name}, which is not named on the hub",
            next_step=f"give its folder with --{which}",
        )
    return given or told


def _differences(
    provenance: Report, quantized: Mapping[str, Any], reports: Sequence[Report], model: Path
) -> list[str]:
    """What is not as in the release; first the causes, then the files."""
    expected: dict[str, str] = provenance.facts["model"]
    found = checkpoint_file_hashes(model)
    files = sorted(
        name for name in expected.keys() | found if expected.get(name) != found.get(name)
    )
    if not files:
        return []
    causes = [
        f"the {name} is another: sha256 {digest}, published {provenance.inputs.get(name)}"
        for report in reports
        for name, digest in report.inputs.items()
        if name in ("base", "diff") and provenance.inputs.get(name) != digest
    ]
    now, told = package_versions(), provenance.facts.get("versions")
    causes += [
        f"made with {name} {then}, and this is {now.get(name)}"
        for name, then in (told.items() if isinstance(told, dict) else ())
        if now.get(name) != then
    ]
    causes += [
        f"quantized with {key} {quantized[key]}, and now with {reports[-1].facts.get(key)}"
        for key in ROUNDING_FACTS
        if key in quantized and quantized[key] != reports[-1].facts.get(key)
    ]
    return [*causes, *(f"{name!r} has other bytes" for name in files)]
