"""Recovers a tuned model from base and diff, with a few chunks of a few tensors in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from camelpress.convert.inputs.base_sample import HALF_DTYPES, FitCounts
from camelpress.convert.inputs.tensor_pairs import derived_buffers
from camelpress.convert.recover import input_record, sidecar_plan
from camelpress.convert.recover.arithmetic import DiffOperands, TensorStats, add_diff
from camelpress.convert.recover.base_check import require_same_base_digest
from camelpress.convert.recover.diff_rules import TensorPlan
from camelpress.convert.recover.recovery_notes import (
    count_and_note_rounding,
    note_dtypes,
    note_plan,
)
from camelpress.convert.recover.recovery_plan import RecoveryPlan, plan_recovery, sum_counts
from camelpress.convert.recover.tensor_output import TensorOutput
from camelpress.convert.settings import RecoverSettings
from camelpress.core.checkpoint.checkpoint import Checkpoint, repair_output_config
from camelpress.core.checkpoint.checkpoint_writer import TensorSpec
from camelpress.core.checkpoint.portable_config import TORCH_DTYPES, dtype_name
from camelpress.core.checkpoint.shards import TensorInfo
from camelpress.core.documents.document_reader import Corpus
from camelpress.core.errors import CheckpointProblem, RecipeProblem
from camelpress.core.files.file_hashes import package_versions
from camelpress.core.output.staged_output import output_files, require_separate_output
from camelpress.core.runtime.resource_usage import Stopwatch
from camelpress.reporting.facts.recover_facts import RecoverFacts
from camelpress.reporting.report_classes import RecoverReport

REPORT = "recover-report.json"


def recover(
    base: Checkpoint,
    diff: Checkpoint,
    out: Path,
    settings: RecoverSettings,
    *,
    force: bool = False,
    restart: bool = False,
) -> RecoverReport:
    """Writes base + diff, summed in fp32, with the diff's config and tokenizer.

    A stopped or killed run keeps its finished tensors, and the next run resumes from them.

    Args:
        base: raw model, in fp16 as LLaMA-1 was published.
        diff: tuned minus base; its embedding may have more rows.
        out: folder to create.
        settings: output dtype, rules for larger tensors, and test of the base.
        force: replaces `out`.
        restart: discards an unfinished run.
    Raises:
        NumericsProblem: the base is not the diff's, or a sum is not finite.
        CheckpointProblem: names, shapes or tokenizer do not belong together.
    Source:
        allenai/open-instruct 0d2e152d7, scripts/weight_diff.py; this version streams, keeps 16 bits
        and tests the base.
    """
    watch = Stopwatch()
    inputs = {"base": base, "diff": diff}
    require_separate_output(out, base.folder, diff.folder)
    completions = _read_completions(settings)
    recovery = _plan(base, diff, settings)
    plans, dtype = recovery.tensor_plans, _config_dtype(settings, recovery)
    sidecar_files = sidecar_plan.plan_recovery_sidecars(base, diff, plans, settings, dtype)
    dtypes = {plan.name: _tensor_dtype(settings, recovery, plan) for plan in plans}
    slots = {plan.name: TensorSpec(dtypes[plan.name], plan.shape) for plan in plans}
    _require_scorable(sidecar_files, slots, out, settings, completions)
    operands = DiffOperands.of(recovery.base, diff, plans)
    full = settings.check == "full"

    def chunks_of(plan: TensorPlan, stats: TensorStats) -> Iterator[Tensor]:
        return add_diff(plan, operands, dtypes[plan.name], check=full, stats=stats)

    output = TensorOutput(settings, inputs, plans, slots, chunks_of)
    file_names = (*sidecar_files.names, REPORT)
    with output.write(out, file_names, force=force, restart=restart) as tensors:
        folder, files = tensors.folder, tensors.files
        entries = dict(zip(slots, tensors.facts, strict=True))
        counts = _check_all_sums(base, diff, recovery, entries) if full else recovery.sampled_counts
        rounded = count_and_note_rounding(settings, diff, entries)
        sidecar_files.write(folder)
        changes = repair_output_config(folder)
        golden = _known_completion_facts(folder, settings, completions)
        report = RecoverReport(
            stage="recover",
            inputs=input_record.input_digests(inputs, files),
            settings=settings.model_dump(mode="json", exclude={"verify", "device"}),
            facts=RecoverFacts.build(
                {
                    **_dtype_facts(recovery, dtype, dtypes, counts),
                    "rounded": rounded,
                    "config_changes": list(changes),
                    **sidecar_files.facts,
                    **golden,
                    "sources": input_record.source_facts(inputs, files),
                    "versions": package_versions(),
                    "left_out": sorted(
                        {*derived_buffers(base, diff), *(diff.tensors.keys() - slots.keys())}
                    ),
                    "tensors": [
                        input_record.tensor_facts(
                            plan, facts, recovery.samples.get(plan.name), dtype=dtypes[plan.name]
                        )
                        for plan, facts in zip(plans, tensors.facts, strict=True)
                    ],
                }
            ),
            cost=watch.cost(),
            files=output_files(folder, REPORT),
        )
        report.write(folder / REPORT)
    return report


def _plan(base: Checkpoint, diff: Checkpoint, settings: RecoverSettings) -> RecoveryPlan:
    """Plans the recovery, and checks that base and diff belong together."""
    recovery = plan_recovery(base, diff, settings)
    if settings.check != "off":
        recovery.require_differences(diff)
        recovery.require_right_base(
            base, diff, {name: sample.counts for name, sample in recovery.samples.items()}
        )
        require_same_base_digest(
            base, diff, recovery.metadata.base_digest, proven=recovery.dtypes.base_is_proven
        )
    note_plan(recovery, diff, derived_buffers(base, diff))
    return recovery


def _check_all_sums(
    base: Checkpoint,
    diff: Checkpoint,
    recovery: RecoveryPlan,
    entries: Mapping[str, Mapping[str, Any]],
) -> FitCounts:
    """Adds up the counts of all values, and checks that base and diff belong together."""
    counts_by_tensor = {
        name: FitCounts.from_json(facts["counts"])
        for name, facts in entries.items()
        if "counts" in facts
    }
    recovery.require_right_base(base, diff, counts_by_tensor)
    return sum_counts(counts_by_tensor.values())


def _dtype_facts(
    recovery: RecoveryPlan,
    main_dtype: torch.dtype,
    dtypes: Mapping[str, torch.dtype],
    counts: FitCounts,
) -> dict[str, Any]:
    """Returns the report facts about dtypes, and the shares of fitting sums."""
    others = {name: dtype_name(dtype) for name, dtype in dtypes.items() if dtype is not main_dtype}
    return {
        "dtype": dtype_name(main_dtype),
        "dtypes": others,
        "base_dtype": recovery.base_dtype,
        "representable": {dtype_name(dtype): counts.fit_share(dtype) for dtype in HALF_DTYPES},
        "tested": counts.tested,
    }


def _config_dtype(settings: RecoverSettings, recovery: RecoveryPlan) -> torch.dtype:
    """Returns the dtype for the output's config."""
    if settings.dtype != "auto":
        return TORCH_DTYPES[settings.dtype]
    note_dtypes(recovery)
    return recovery.dtypes.main_dtype or torch.float32


def _tensor_dtype(
    settings: RecoverSettings, recovery: RecoveryPlan, plan: TensorPlan
) -> torch.dtype:
    if settings.dtype != "auto":
        return TORCH_DTYPES[settings.dtype]
    return recovery.dtypes.tensors[plan.name]


def _read_completions(settings: RecoverSettings) -> Corpus | None:
    """Reads the known completions before any weights, so later changes of the file do no harm."""
    if settings.verify is None:
        return None
    from camelpress.convert.recover.known_completions import read_completion_corpus

    return read_completion_corpus(settings.verify)


def _require_scorable(
    sidecar_files: sidecar_plan.SidecarPlan,
    slots: Mapping[str, TensorSpec],
    out: Path,
    settings: RecoverSettings,
    completions: Corpus | None,
) -> None:
    """Checks that known completions can be scored, before hours of work rather than after."""
    if settings.verify is None or completions is None:
        return
    # imported here because it loads transformers
    from camelpress.convert.recover.known_completions import prepare_completions

    infos = {key: TensorInfo(slot.dtype, slot.shape, "", None) for key, slot in slots.items()}
    with TemporaryDirectory() as name:
        sidecar_files.write(Path(name))
        model = Checkpoint(Path(name), sidecar_files.configs["config.json"], infos)
        try:
            prepare_completions(model, settings.verify, completions, device=settings.device)
        except (CheckpointProblem, RecipeProblem) as error:
            message = error.message.replace(name, str(out))
            raise type(error)(message, next_step=error.next_step) from error


def _known_completion_facts(
    folder: Path, settings: RecoverSettings, completions: Corpus | None
) -> dict[str, Any]:
    if settings.verify is None:
        return {}
    from camelpress.convert.recover.known_completions import score_completions

    model = Checkpoint.open(folder)
    return {
        "golden": score_completions(model, settings.verify, completions, device=settings.device)
    }
