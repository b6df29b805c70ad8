"""The stages as Python functions: the command line calls them, and so may notebooks and scripts.

Importing this module loads no torch. Every setting of a stage is a keyword argument with the name,
the default and the checks that it has in a recipe.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, get_origin

from camelpress.convert.settings import ExportSettings, MakeDiffSettings, RecoverSettings
from camelpress.core.runtime.cache_folders import provide_cache_folders
from camelpress.core.runtime.problem_translation import translate_faults
from camelpress.core.settings import Settings
from camelpress.publish.settings import PublishSettings
from camelpress.quantize.settings import QuantizeSettings
from camelpress.validate.settings import StoreSettings, ValidateSettings

if TYPE_CHECKING:
    from camelpress.pipeline.run import PipelineOutcome
    from camelpress.reporting.report_classes import (
        ExportReport,
        MakeDiffReport,
        PublishReport,
        QuantizeReport,
        RecoverReport,
        StoreReport,
        ValidationReport,
    )

StagePath: TypeAlias = str | PathLike[str]
StageFunction = TypeVar("StageFunction", bound=Callable[..., Any])


@contextmanager
def _stage_call() -> Iterator[None]:
    """Prepares the caches of libraries, and raises a Problem for any fault of the machine."""
    provide_cache_folders()
    with translate_faults():
        yield


def _with_settings(kind: type[Settings]) -> Callable[[StageFunction], StageFunction]:
    """Adds the settings of a stage to the signature and the docstring of its function."""

    def extend(function: StageFunction) -> StageFunction:
        signature = inspect.signature(function)
        parameters = [
            parameter
            for parameter in signature.parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        options = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.is_required() else field.default,
                annotation=Sequence if get_origin(field.annotation) is tuple else field.annotation,
            )
            for name, field in kind.model_fields.items()
            if name not in signature.parameters
        ]
        lines = [f"    {name}: {kind.model_fields[name].description}" for name in kind.model_fields]
        function.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*parameters, *options]
        )
        function.__doc__ = "\n".join([inspect.getdoc(function) or "", "", "Settings:", *lines])
        return function

    return extend


@_with_settings(RecoverSettings)
@_stage_call()
def recover(
    base: StagePath,
    diff: StagePath,
    *,
    out: StagePath,
    force: bool = False,
    restart: bool = False,
    **settings: Any,
) -> RecoverReport:
    """Recovers a tuned 16-bit model from its raw base and its weight diff.

    Args:
        base: folder of the raw model, in the layout of Hugging Face or of Meta, or
            `org/name[@revision]` on the hub.
        diff: folder of the diff, or `org/name[@revision]` on the hub.
        out: folder to write; it must not exist, unless `force` is set.
        force: replaces `out`.
        restart: discards what an unfinished run left.
        settings: as in section `recover` of a recipe, listed below.
    Returns:
        the report that is written to `recover-report.json`.
    Raises:
        RecipeProblem: a setting is unknown or has an impossible value.
        NumericsProblem: the diff was made from another base, or a sum is not finite.
        Problem: a checkpoint cannot be read, or the output cannot be written.
    """
    from camelpress.convert.inputs.meta_checkpoint import open_base
    from camelpress.convert.recover import run as stage
    from camelpress.core.checkpoint.checkpoint import Checkpoint

    chosen = RecoverSettings.parse(settings, source="recover")
    return stage.recover(
        open_base(Path(base)),
        Checkpoint.open(Path(diff)),
        Path(out),
        chosen,
        force=force,
        restart=restart,
    )


@_with_settings(MakeDiffSettings)
@_stage_call()
def make_diff(
    base: StagePath,
    tuned: StagePath,
    *,
    out: StagePath,
    force: bool = False,
    restart: bool = False,
    **settings: Any,
) -> MakeDiffReport:
    """Makes the weight diff of a tuned model, and proves that `recover` returns the exact bits.

    Args:
        base: folder of the raw model, in the layout of Hugging Face or of Meta, or
            `org/name[@revision]` on the hub.
        tuned: folder of the tuned model, or `org/name[@revision]` on the hub.
        out: folder to write; it must not exist, unless `force` is set.
        force: replaces `out`.
        restart: discards what an unfinished run left.
        settings: as the options of `camelpress make-diff`, listed below.
    Returns:
        the report that is written to `make-diff-report.json`.
    Raises:
        RecipeProblem: a setting is unknown or has an impossible value.
        NumericsProblem: a weight would not come back, or a difference overflows the dtype.
        Problem: a checkpoint cannot be read, or the output cannot be written.
    """
    from camelpress.convert.inputs.meta_checkpoint import open_base
    from camelpress.convert.recover import make_diff as stage
    from camelpress.core.checkpoint.checkpoint import Checkpoint

    chosen = MakeDiffSettings.parse(settings, source="make-diff")
    return stage.make_diff(
        open_base(Path(base)),
        Checkpoint.open(Path(tuned)),
        Path(out),
        chosen,
        force=force,
        restart=restart,
    )


@_with_settings(QuantizeSettings)
@_stage_call()
def quantize(
    model: StagePath,
    *,
    out: StagePath,
    force: bool = False,
    restart: bool = False,
    **settings: Any,
) -> QuantizeReport:
    """Quantizes a 16-bit checkpoint to a packed GPTQ checkpoint, one decoder block at a time.

    Args:
        model: folder of the 16-bit checkpoint, or `org/name[@revision]` on the hub.
        out: folder to write; it must not exist, unless `force` is set.
        force: replaces `out`.
        restart: discards what an unfinished run left.
        settings: as in section `quantize` of a recipe, listed below.
    Returns:
        the report that is written to `quantize-report.json`.
    Raises:
        RecipeProblem: a setting is unknown or has an impossible value.
        NumericsProblem: a weight is not finite, or a Hessian has no Cholesky factor.
        Problem: the model or a text cannot be read, or the output cannot be written.
    """
    from camelpress.core.checkpoint.checkpoint import Checkpoint
    from camelpress.quantize import run as stage

    chosen = QuantizeSettings.parse(settings, source="quantize")
    return stage.run(Checkpoint.open(Path(model)), Path(out), chosen, force=force, restart=restart)


@_with_settings(ValidateSettings)
@_stage_call()
def validate(
    reference: StagePath,
    candidate: StagePath,
    *,
    out: StagePath = "validation",
    gate: StagePath | Mapping[str, Any] | None = None,
    force: bool = False,
    restart: bool = False,
    **settings: Any,
) -> ValidationReport:
    """Compares a quantized model with its 16-bit reference, and judges the differences by a gate.

    Args:
        reference: folder of the 16-bit model, `org/name[@revision]` on the hub, or a store of its
            predictions.
        candidate: folder of the quantized model, or `org/name[@revision]` on the hub.
        out: folder to write: report.json, report.md, report.html and junit.xml; it must not exist,
            unless `force` is set.
        gate: a YAML file of thresholds, or the thresholds, such as `{"kl_mean": {"max": 0.03}}`;
            without one, those of a recipe without one.
        force: replaces `out`.
        restart: discards what an unfinished run left.
        settings: as in section `validate` of a recipe, listed below.
    Returns:
        the report that is written to `report.json`; `report.verdict` is PASS, FAIL, INCONCLUSIVE
        or ERROR. A gate that fails raises nothing.
    Raises:
        RecipeProblem: a setting is unknown or has an impossible value.
        Interruption: the process was asked to stop, or a judge cannot be reached; the same call
            resumes.
        Problem: a model, a text or the data of a task cannot be read, or the output cannot be
            written.
    """
    from camelpress.core.checkpoint.checkpoint import Checkpoint
    from camelpress.validate import run as stage
    from camelpress.validate.store.prediction_store import PredictionStore

    chosen = ValidateSettings.parse(settings | _gate_setting(gate), source="validate")
    place = Path(reference)
    source = (
        PredictionStore.open(place) if PredictionStore.exists_at(place) else Checkpoint.open(place)
    )
    return stage.run(
        source,
        Checkpoint.open(Path(candidate)),
        Path(out),
        chosen,
        force=force,
        restart=restart,
    )


def _gate_setting(gate: StagePath | Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the setting of a gate: nothing, a mapping, or the content of a YAML file."""
    from camelpress.validate.gate.gate_judge import read_gate

    if gate is None:
        return {}
    return {"gate": gate if isinstance(gate, Mapping) else read_gate(Path(gate)).model_dump()}


@_with_settings(StoreSettings)
@_stage_call()
def store(
    reference: StagePath,
    *,
    out: StagePath,
    force: bool = False,
    restart: bool = False,
    **settings: Any,
) -> StoreReport:
    """Stores the predictions of a reference, which `validate` takes in the place of the model.

    Args:
        reference: folder of the 16-bit model, or `org/name[@revision]` on the hub.
        out: folder to write; it must not exist, unless `force` is set.
        force: replaces `out`.
        restart: discards what an unfinished run left.
        settings: as the options of `camelpress store`, listed below.
    Returns:
        the report that is written to `store-report.json`.
    Raises:
        RecipeProblem: a setting is unknown or has an impossible value, or the reference is
            quantized.
        Interruption: the process was asked to stop; the same call resumes.
        NumericsProblem: logits are not finite.
        Problem: the model or a text cannot be read, or the output cannot be written.
    """
    from camelpress.core.checkpoint.checkpoint import Checkpoint
    from camelpress.validate.store.build_store import build_store

    chosen = StoreSettings.parse(settings, source="store")
    return build_store(
        Checkpoint.open(Path(reference)), Path(out), chosen, force=force, restart=restart
    )


@_with_settings(PublishSettings)
@_stage_call()
def publish(
    candidate: StagePath, report: StagePath, *, force: bool = False, **settings: Any
) -> PublishReport:
    """Publishes a candidate that passed its gate, with card, checksums and licences.

    Args:
        candidate: folder of the quantized model.
        report: folder that `validate` wrote.
        force: replaces an earlier release.
        settings: as in section `publish` of a recipe, listed below; `to` and `license` are needed.
    Returns:
        the report of the release.
    Raises:
        RecipeProblem: a setting is unknown, missing or has an impossible value.
        ReleaseRefusal: the report is not a PASS of this candidate.
        Problem: the release cannot be written or uploaded.
    """
    from camelpress.publish.publish_release import publish_release

    chosen = PublishSettings.parse(settings, source="publish")
    return publish_release(Path(candidate), Path(report), chosen, force=force)


@_with_settings(ExportSettings)
@_stage_call()
def export(
    checkpoint: StagePath, *, out: StagePath, force: bool = False, **settings: Any
) -> ExportReport:
    """Exports a packed checkpoint to another format, with equal codes and scales per layer.

    Args:
        checkpoint: folder of the packed checkpoint, or `org/name[@revision]` on the hub.
        out: folder to write; it must not exist, unless `force` is set.
        force: replaces `out`.
        settings: as the options of `camelpress export`, listed below; `to` is needed.
    Returns:
        the report that is written to `export-report.json`.
    Raises:
        RecipeProblem: a setting is unknown, missing or has an impossible value.
        NumericsProblem: the format cannot hold the scales or zero points.
        Problem: the checkpoint is not packed, the format cannot express it, or the output cannot
            be written.
    """
    from camelpress.convert.export import export_checkpoint as stage
    from camelpress.core.checkpoint.checkpoint import Checkpoint

    chosen = ExportSettings.parse(settings, source="export")
    return stage.export(Checkpoint.open(Path(checkpoint)), Path(out), chosen, force=force)


@_stage_call()
def run(
    recipe: StagePath,
    *,
    force: bool = False,
    restart: bool = False,
    **overrides: Any,
) -> PipelineOutcome:
    """Runs all stages of a recipe in order; a finished stage is skipped while nothing changed.

    Args:
        recipe: YAML file; relative paths in it start at its own folder.
        force: runs finished stages again.
        restart: discards what unfinished stages left.
        overrides: values over those of the recipe: `out="tulu"`, or some settings of a section,
            as in `quantize={"group_size": 64}`; relative paths in them start at the working folder.
    Returns:
        the report of every stage, the names of the skipped ones, the verdict of the validation and
        the exit code of the command line. A gate that fails raises nothing.
    Raises:
        RecipeProblem: the recipe or an override is unknown or has an impossible value.
        ReleaseRefusal: the gate passed without a check of text, and no reason is given.
        Problem: a stage could not run.
    """
    from camelpress.pipeline import run as pipeline
    from camelpress.pipeline.recipe import read_recipe

    return pipeline.run(
        read_recipe(Path(recipe), overrides=_dotted(overrides)), force=force, restart=restart
    )


def _dotted(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Returns overrides under dotted names: `{"quantize.group_size": 64}`."""
    values: dict[str, Any] = {}
    for section, value in overrides.items():
        if isinstance(value, Mapping):
            values |= {f"{section}.{key}": setting for key, setting in value.items()}
        else:
            values[section] = value
    return values
