"""The inverse of the stage: base and tuned model in, their difference out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from camelpress.convert.inputs.base_sample import base_sample_digest
from camelpress.convert.inputs.diff_metadata import DiffMetadata
from camelpress.convert.inputs.tensor_pairs import TensorPair, derived_buffers, pair_tensors
from camelpress.convert.recover import input_record, sidecar_plan
from camelpress.convert.recover.arithmetic import DiffOperands, TensorStats, subtract_base
from camelpress.convert.recover.diff_rules import TensorPlan, plan_tensors
from camelpress.convert.recover.tensor_output import TensorOutput
from camelpress.convert.settings import MakeDiffSettings
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.checkpoint_writer import TensorSpec
from camelpress.core.checkpoint.portable_config import TORCH_DTYPES, dtype_name
from camelpress.core.files.file_hashes import package_versions
from camelpress.core.output.staged_output import output_files, require_separate_output
from camelpress.reporting.stage_report import Report, Stopwatch

REPORT = "make-diff-report.json"


def make_diff(
    base: Checkpoint,
    tuned: Checkpoint,
    out: Path,
    settings: MakeDiffSettings,
    *,
    force: bool = False,
    restart: bool = False,
) -> Report:
    """Write tuned - base, having seen what `recover` makes of every value.

    A float32 diff gives back every tuned weight in its own type, or is refused. A diff in 16 bits,
    whose unit roundoff is u, gives back each weight t within u |t - base| plus half a step of
    t's own type, and 2**-25 more in float16, whose small numbers have fixed steps. The report
    says how many are not exact, and by how much at most.

    Args:
        base: the raw model.
        tuned: the model to publish; its embedding may have more rows.
        out: a folder that does not exist.
        settings: type of the diff, rule for added rows.
        force: replace `out`.
        restart: begin again, whatever an unfinished run left.
    Raises:
        NumericsProblem: some weight would not come back (it is 2**16 times smaller than the
            base's, so that the difference needs more than 24 bits), or a difference does not
            fit the type.
        CheckpointProblem: names or shapes do not belong together.
    """
    watch = Stopwatch()
    inputs = {"base": base, "tuned": tuned}
    require_separate_output(out, base.folder, tuned.folder)
    matched, dtype = pair_tensors(base, tuned), TORCH_DTYPES[settings.dtype]
    chosen = plan_tensors(matched, {}, (settings.rule,), "published", None)
    record = _metadata(base, tuned, matched, settings)
    operands = DiffOperands.of(base, tuned, chosen)
    belongings = sidecar_plan.plan_diff_sidecars(tuned, chosen, dtype)

    def work(plan: TensorPlan, told: TensorStats) -> Iterator[Tensor]:
        return subtract_base(plan, operands, dtype, tuned.tensor_info(plan.name).dtype, told=told)

    slots = {plan.name: TensorSpec(dtype, plan.shape) for plan in chosen}
    output = TensorOutput(settings, inputs, chosen, slots, work, record.to_header())
    sidecars = (*belongings.names, REPORT)
    with output.write(out, sidecars, force=force, restart=restart) as weights:
        folder, tensors, files = weights.folder, weights.facts, weights.files
        belongings.write(folder)
        report = Report(
            stage="make-diff",
            inputs=input_record.input_digests(inputs, files),
            settings=settings.model_dump(mode="json"),
            facts={
                "dtype": settings.dtype,
                "tuned_dtype": record.main_dtype and dtype_name(record.main_dtype),
                "inexact": sum(each.get("inexact", 0) for each in tensors),
                "zero_signs": sum(each.get("zero_signs", 0) for each in tensors),
                "largest_error": max(each.get("largest_error", 0.0) for each in tensors),
                "sources": input_record.source_facts(inputs, files),
                "versions": package_versions(),
                "left_out": derived_buffers(base, tuned),
                "tensors": [
                    input_record.tensor_facts(plan, facts, dtype=tuned.tensor_info(plan.name).dtype)
                    for plan, facts in zip(chosen, tensors, strict=True)
                ],
            },
            cost=watch.cost(),
            files=output_files(folder, REPORT),
        )
        report.write(folder / REPORT)
    return report


def _metadata(
    base: Checkpoint, tuned: Checkpoint, matched: Sequence[TensorPair], settings: MakeDiffSettings
) -> DiffMetadata:
    """States what the diff is made from: the rule, the type of every tensor, the base."""
    types = {pair.name: tuned.tensor_info(pair.name).dtype for pair in matched}
    others = {name: dtype for name, dtype in types.items() if dtype is not tuned.dtype}
    return DiffMetadata(settings.rule, tuned.dtype, others, base_sample_digest(base, matched))
