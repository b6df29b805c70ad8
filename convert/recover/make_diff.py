"""Makes a weight diff from a base and a tuned model, the inverse of recover."""

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
from camelpress.core.runtime.resource_usage import Stopwatch
from camelpress.reporting.facts.recover_facts import MakeDiffFacts
from camelpress.reporting.report_classes import MakeDiffReport

REPORT = "make-diff-report.json"


def make_diff(
    base: Checkpoint,
    tuned: Checkpoint,
    out: Path,
    settings: MakeDiffSettings,
    *,
    force: bool = False,
    restart: bool = False,
) -> MakeDiffReport:
    """Writes tuned - base, after checking the value that `recover` would restore for each weight.

    A float32 diff restores every tuned weight exactly, or is refused. A 16-bit diff with unit
    roundoff u restores each weight t within u |t - base| plus half a step of t's dtype; float16
    adds 2**-25, because its small numbers have a fixed step. The report states the number of
    inexact weights and the largest error.

    Args:
        base: raw model.
        tuned: model to publish; its embedding may have more rows.
        out: folder to create.
        settings: dtype of the diff, and rule for added rows.
        force: replaces `out`.
        restart: discards an unfinished run.
    Raises:
        NumericsProblem: a weight would not come back (it is 2**16 times smaller than the base's,
            so the difference needs more than 24 bits), or a difference overflows the dtype.
        CheckpointProblem: names or shapes do not belong together.
    """
    watch = Stopwatch()
    inputs = {"base": base, "tuned": tuned}
    require_separate_output(out, base.folder, tuned.folder)
    pairs, dtype = pair_tensors(base, tuned), TORCH_DTYPES[settings.dtype]
    plans = plan_tensors(pairs, {}, (settings.rule,), "published", None)
    metadata = _metadata(base, tuned, pairs, settings)
    operands = DiffOperands.of(base, tuned, plans)
    sidecar_files = sidecar_plan.plan_diff_sidecars(tuned, plans, dtype)

    def chunks_of(plan: TensorPlan, stats: TensorStats) -> Iterator[Tensor]:
        return subtract_base(plan, operands, dtype, tuned.tensor_info(plan.name).dtype, stats=stats)

    slots = {plan.name: TensorSpec(dtype, plan.shape) for plan in plans}
    output = TensorOutput(settings, inputs, plans, slots, chunks_of, metadata.to_header())
    file_names = (*sidecar_files.names, REPORT)
    with output.write(out, file_names, force=force, restart=restart) as weights:
        folder, tensors, files = weights.folder, weights.facts, weights.files
        sidecar_files.write(folder)
        report = MakeDiffReport(
            stage="make-diff",
            inputs=input_record.input_digests(inputs, files),
            settings=settings.model_dump(mode="json"),
            facts=MakeDiffFacts.build(
                {
                    "dtype": settings.dtype,
                    "tuned_dtype": metadata.main_dtype and dtype_name(metadata.main_dtype),
                    "inexact": sum(facts.get("inexact", 0) for facts in tensors),
                    "zero_signs": sum(facts.get("zero_signs", 0) for facts in tensors),
                    "largest_error": max(facts.get("largest_error", 0.0) for facts in tensors),
                    "sources": input_record.source_facts(inputs, files),
                    "versions": package_versions(),
                    "left_out": derived_buffers(base, tuned),
                    "tensors": [
                        input_record.tensor_facts(
                            plan, facts, dtype=tuned.tensor_info(plan.name).dtype
                        )
                        for plan, facts in zip(plans, tensors, strict=True)
                    ],
                }
            ),
            cost=watch.cost(),
            files=output_files(folder, REPORT),
        )
        report.write(folder / REPORT)
    return report


def _metadata(
    base: Checkpoint, tuned: Checkpoint, pairs: Sequence[TensorPair], settings: MakeDiffSettings
) -> DiffMetadata:
    """Returns rule, tensor dtypes and base digest for the header of the diff."""
    dtypes = {pair.name: tuned.tensor_info(pair.name).dtype for pair in pairs}
    others = {name: dtype for name, dtype in dtypes.items() if dtype is not tuned.dtype}
    return DiffMetadata(settings.rule, tuned.dtype, others, base_sample_digest(base, pairs))
