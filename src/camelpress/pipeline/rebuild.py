"""Rebuilds the weights of a release from base and diff, and compares them byte for byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from camelpress.core.hub.model_location import is_hub_name
from camelpress.core.hub.repo_id import HUB_PREFIX
from camelpress.core.output.durable_writes import disk_errors
from camelpress.core.runtime.resource_usage import Stopwatch
from camelpress.pipeline import run as pipeline
from camelpress.pipeline.recipe import Recipe, read_recipe
from camelpress.publish.release.rebuild_recipe import RECIPE_FILE
from camelpress.publish.verify_release import verify_release
from camelpress.reporting.facts.quantize_facts import QuantizeFacts
from camelpress.reporting.facts.release_facts import ProblemFacts
from camelpress.reporting.report_classes import (
    ProblemReport,
    PublishReport,
    QuantizeReport,
)
from camelpress.reporting.stage_report import Report
from camelpress.reporting.verdict import Verdict

WEIGHT_STAGES = ("recover", "quantize")
MAX_THREADS = 1024  # CPU threads accepted from the report of a release
ROUNDING_FACTS = ("device", "cpu", "threads")  # facts that decide the order of sums


def rebuild_release(
    release: Path,
    out: Path,
    *,
    base: Path | None,
    diff: Path | None,
    calibration: Sequence[Path],
    force: bool,
    restart: bool = False,
) -> ProblemReport:
    """Runs the recipe of a release, and compares the model with the hashes of the release.

    Args:
        release: release folder that passes `verify`; its weights are not needed.
        out: folder for the stages, with the model in `out/quantized`; a second run continues.
        base: folder of the raw model, if the recipe has no hub name for it.
        diff: folder of the weight diff, if the recipe has no hub name for it.
        calibration: calibration text files, matched by SHA-256.
        force: run finished stages again.
        restart: begin an unfinished stage again if its settings or inputs changed.
    Returns:
        PASS if every file is the same, else FAIL with the differences under `problems`.
    Raises:
        RecipeProblem: the release is damaged or has no recipe, or a text is missing.
        Problem: as the stages.
    """
    watch = Stopwatch()
    verification = verify_release(release)
    if verification.verdict is not Verdict.PASS:
        raise RecipeProblem(
            f"{release} is not as it was published: {verification.facts.problems[0]}",
            next_step="download it again",
        )
    if not (release / RECIPE_FILE).is_file():
        raise RecipeProblem(
            f"{release} has no {RECIPE_FILE}: its reports lack the facts for one",
            next_step="ask its author for a release with a recipe",
        )
    provenance = PublishReport.read(release / PROVENANCE_FILE)
    recipe = _local_recipe(release, provenance, out, base, diff, calibration)
    lock = pipeline.PipelineLock(recipe.out / pipeline.LOCK_FILE)
    with disk_errors(recipe.out):
        recipe.out.mkdir(parents=True, exist_ok=True)
    all_stages = pipeline.recipe_stages(recipe, restart=restart)
    stages = [stage for stage in all_stages if stage.name in WEIGHT_STAGES]
    release_facts = QuantizeReport.read(release / f"{WEIGHT_STAGES[-1]}{REPORT_SUFFIX}").facts
    with _thread_count(release_facts.threads):
        outcome = pipeline.run_stages(stages, lock, force=force)
    reports = [outcome.reports[name] for name in WEIGHT_STAGES]
    problems = _differences(provenance, release_facts, reports, stages[-1].output)
    return ProblemReport(
        stage="rebuild",
        inputs={name: digest for report in reports for name, digest in report.inputs.items()},
        settings={},
        facts=ProblemFacts.build({"files": len(provenance.facts.model), "problems": problems}),
        verdict=Verdict.FAIL if problems else Verdict.PASS,
        cost=watch.cost(),
    )


@contextmanager
def _thread_count(count: Any) -> Iterator[None]:
    """Sets the thread count of the original run, for the same order of sums."""
    old_count = torch.get_num_threads()
    is_count = type(count) is int and 1 <= count <= MAX_THREADS
    torch.set_num_threads(count if is_count else old_count)
    try:
        yield
    finally:
        torch.set_num_threads(old_count)


def _local_recipe(
    release: Path,
    provenance: PublishReport,
    out: Path,
    base: Path | None,
    diff: Path | None,
    calibration: Sequence[Path],
) -> Recipe:
    """Reads the recipe of a release, and puts local inputs in it."""
    recipe = read_recipe(release / RECIPE_FILE)
    paths = {sha256_file(path): path for path in calibration}
    texts = []
    for text in recipe.quantize.calibration:
        digest = provenance.inputs.get(f"calibration:{_text_name(text.source)}", "")
        if digest in paths:
            text = text.model_copy(update={"source": paths[digest]})
        elif not is_hub_name(text.source):
            raise RecipeProblem(
                f"{release} was calibrated with {text.source.name}, whose SHA-256 is {digest}",
                next_step="give that file with --calibration",
            )
        texts.append(text)
    return recipe.model_copy(
        update={
            "base": _local_model(release, "base", recipe.base, base),
            "diff": _local_model(release, "diff", recipe.diff, diff),
            "out": out,
            # a foreign recipe must not name further files or programs
            "recover": recipe.recover.model_copy(update={"verify": None}),
            "quantize": recipe.quantize.model_copy(
                update={"calibration": tuple(texts), "engine_python": None}
            ),
        }
    )


def _text_name(source: Path) -> str:
    return str(source).removeprefix(HUB_PREFIX) if is_hub_name(source) else source.name


def _local_model(release: Path, role: str, origin: Path, folder: Path | None) -> Path:
    if folder is None and not is_hub_name(origin):
        raise RecipeProblem(
            f"{release} was made from a {role} called {origin.name}, which is not named on the hub",
            next_step=f"give its folder with --{role}",
        )
    return folder or origin


def _differences(
    provenance: PublishReport, facts: QuantizeFacts, reports: Sequence[Report], model: Path
) -> list[str]:
    """Lists differences from the release: causes first, then files."""
    release_digests: dict[str, str] = provenance.facts.model
    digests = checkpoint_file_hashes(model)
    files = sorted(
        name
        for name in release_digests.keys() | digests
        if release_digests.get(name) != digests.get(name)
    )
    if not files:
        return []
    causes = [
        f"the {name} differs: sha256 {digest}, published {provenance.inputs.get(name)}"
        for report in reports
        for name, digest in report.inputs.items()
        if name in ("base", "diff") and provenance.inputs.get(name) != digest
    ]
    versions = package_versions()
    causes += [
        f"made with {name} {version}, rebuilt with {versions.get(name)}"
        for name, version in (provenance.facts.versions or {}).items()
        if versions.get(name) != version
    ]
    causes += [
        f"quantized with {key} {value}, rebuilt with {reports[-1].facts.record.get(key)}"
        for key in ROUNDING_FACTS
        if (value := getattr(facts, key)) is not None and value != reports[-1].facts.record.get(key)
    ]
    return [*causes, *(f"{name!r} has other bytes" for name in files)]
