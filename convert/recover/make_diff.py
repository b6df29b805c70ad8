"""The inverse of the stage: base and tuned model in, their difference out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from camelpress.convert.inputs.base_sample import base_digest
from camelpress.convert.inputs.diff_metadata import DiffRecord
from camelpress.convert.inputs.tensor_pairs import Pair, left_out, pairs
from camelpress.convert.recover import input_record, sidecar_plan
from camelpress.convert.recover.arithmetic import Operands, Told, subtracted
from camelpress.convert.recover.diff_rules import Plan, plans
from camelpress.convert.recover.tensor_output import TensorOutput
from camelpress.convert.settings import MakeDiff
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.checkpoint_writer import Slot
from camelpress.core.checkpoint.portable_config import DTYPES, dtype_name
from camelpress.core.files.file_hashes import versions
from camelpress.core.output.staged_output import keep_apart, output_files
from camelpress.reporting.stage_report import Report, Stopwatch

REPORT = "make-diff-report.json"


def make_diff(
    base: Checkpoint,
    tuned: Checkpoint,
    out: Path,
    settings: MakeDiff,
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
    keep_apart(out, base.folder, tuned.folder)
    matched, dtype = pairs(base, tuned), DTYPES[settings.dtype]
    chosen = plans(matched, {}, (settings.rule,), "published", None)
    record = _record(base, tuned, matched, settings)
    operands = Operands.of(base, tuned, chosen)
    belongings = sidecar_plan.copied(tuned, chosen, dtype)

    def work(plan: Plan, told: Told) -> Iterator[Tensor]:
        return subtracted(plan, operands, dtype, tuned.info(plan.name).dtype, told=told)

    slots = {plan.name: Slot(dtype, plan.shape) for plan in chosen}
    output = TensorOutput(settings, inputs, chosen, slots, work, record.header())
    sidecars = (*belongings.names, REPORT)
    with output.write(out, sidecars, force=force, restart=restart) as weights:
        folder, tensors, files = weights.folder, weights.facts, weights.files
        belongings.write(folder)
        report = Report(
            stage="make-diff",
            inputs=input_record.digests(inputs, files),
            settings=settings.model_dump(mode="json"),
            facts={
                "dtype": settings.dtype,
                "tuned_dtype": record.main and dtype_name(record.main),
                "inexact": sum(each.get("inexact", 0) for each in tensors),
                "zero_signs": sum(each.get("zero_signs", 0) for each in tensors),
                "largest_error": max(each.get("largest_error", 0.0) for each in tensors),
                "sources": input_record.sources(inputs, files),
                "versions": versions(),
                "left_out": left_out(base, tuned),
                "tensors": [
                    input_record.tensor(plan, facts, dtype=tuned.info(plan.name).dtype)
                    for plan, facts in zip(chosen, tensors, strict=True)
                ],
            },
            cost=watch.cost(),
            files=output_files(folder, REPORT),
        )
        report.write(folder / REPORT)
    return report


def _record(
    base: Checkpoint, tuned: Checkpoint, matched: Sequence[Pair], settings: MakeDiff
) -> DiffRecord:
    """States what the diff is made from: the rule, the type of every tensor, the base."""
    types = {pair.name: tuned.info(pair.name).dtype for pair in matched}
    others = {name: dtype for name, dtype in types.items() if dtype is not tuned.dtype}
    return DiffRecord(settings.rule, tuned.dtype, others, base_digest(base, matched))
