"""The stage: base and diff in, the tuned model out, a few pieces of a few tensors in memory."""

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
from camelpress.reporting.stage_report import Report, Stopwatch

REPORT = "recover-report.json"


def recover(
    base: Checkpoint,
    diff: Checkpoint,
    out: Path,
    settings: RecoverSettings,
    *,
    force: bool = False,
    restart: bool = False,
) -> Report:
    """Write base + diff, summed in fp32, with the diff's config and tokenizer.

    What was written before the run was stopped or killed is kept, and taken over by the next.

    Args:
        base: the raw model, fp16 as LLaMA-1 was published.
        diff: tuned minus base; its embedding may have more rows.
        out: a folder that does not exist.
        settings: output dtype, row rules, and how to test the base.
        force: replace `out`.
        restart: begin again, whatever an unfinished run left.
    Raises:
        NumericsProblem: the base is not the diff's, or a sum is not finite.
        CheckpointProblem: names, shapes or tokenizer do not belong together.
    Source:
        allenai/open-instruct 0d2e152d7, scripts/weight_diff.py; ours streams, keeps 16 bits and
        tests the base.
    """
    watch = Stopwatch()
    inputs = {"base": base, "diff": diff}
    require_separate_output(out, base.folder, diff.folder)
    answers = _known_answers(settings)
    choice = _plan(base, diff, settings)
    chosen, dtype = choice.tensor_plans, _config_dtype(settings, choice)
    belongings = sidecar_plan.plan_recovery_sidecars(base, diff, chosen, settings, dtype)
    dtypes = {plan.name: _tensor_dtype(settings, choice, plan) for plan in chosen}
    slots = {plan.name: TensorSpec(dtypes[plan.name], plan.shape) for plan in chosen}
    _require_scorable(belongings, slots, out, settings, answers)
    operands = DiffOperands.of(choice.base, diff, chosen)
    full = settings.check == "full"

    def work(plan: TensorPlan, told: TensorStats) -> Iterator[Tensor]:
        return add_diff(plan, operands, dtypes[plan.name], check=full, told=told)

    output = TensorOutput(settings, inputs, chosen, slots, work)
    sidecars = (*belongings.names, REPORT)
    with output.write(out, sidecars, force=force, restart=restart) as tensors:
        folder, files = tensors.folder, tensors.files
        entries = dict(zip(slots, tensors.facts, strict=True))
        seen = _check_all_sums(base, diff, choice, entries) if full else choice.sampled_counts
        rounded = count_and_note_rounding(settings, diff, entries)
        belongings.write(folder)
        changes = repair_output_config(folder)
        golden = _known_completion_facts(folder, settings, answers)
        report = Report(
            stage="recover",
            inputs=input_record.input_digests(inputs, files),
            settings=settings.model_dump(mode="json", exclude={"verify", "device"}),
            facts={
                **_dtype_facts(choice, dtype, dtypes, seen),
                "rounded": rounded,
                "config_changes": list(changes),
                **belongings.facts,
                **golden,
                "sources": input_record.source_facts(inputs, files),
                "versions": package_versions(),
                "left_out": sorted(
                    {*derived_buffers(base, diff), *(diff.tensors.keys() - slots.keys())}
                ),
                "tensors": [
                    input_record.tensor_facts(
                        plan, facts, choice.samples.get(plan.name), dtype=dtypes[plan.name]
                    )
                    for plan, facts in zip(chosen, tensors.facts, strict=True)
                ],
            },
            cost=watch.cost(),
            files=output_files(folder, REPORT),
        )
        report.write(folder / REPORT)
    return report


def _plan(base: Checkpoint, diff: Checkpoint, settings: RecoverSettings) -> RecoveryPlan:
    """Decides rule and type of every tensor, and sees that they belong together."""
    choice = plan_recovery(base, diff, settings)
    if settings.check != "off":
        choice.require_differences(diff)
        choice.require_right_base(
            base, diff, {name: known.counts for name, known in choice.samples.items()}
        )
        require_same_base_digest(
            base, diff, choice.metadata.base_digest, proven=choice.dtypes.base_is_proven
        )
    note_plan(choice, diff, derived_buffers(base, diff))
    return choice


def _check_all_sums(
    base: Checkpoint,
    diff: Checkpoint,
    choice: RecoveryPlan,
    entries: Mapping[str, Mapping[str, Any]],
) -> FitCounts:
    """Returns the counts of all values, seen to belong together."""
    counts = {
        name: FitCounts.from_json(facts["counts"])
        for name, facts in entries.items()
        if "counts" in facts
    }
    choice.require_right_base(base, diff, counts)
    return sum_counts(counts.values())


def _dtype_facts(
    choice: RecoveryPlan, main: torch.dtype, dtypes: Mapping[str, torch.dtype], seen: FitCounts
) -> dict[str, Any]:
    """Returns the facts about the types of tensors, and the sums that show them."""
    others = {name: dtype_name(dtype) for name, dtype in dtypes.items() if dtype is not main}
    return {
        "dtype": dtype_name(main),
        "dtypes": others,
        "base_dtype": choice.base_dtype,
        "representable": {dtype_name(each): seen.fit_share(each) for each in HALF_DTYPES},
        "tested": seen.tested,
    }


def _config_dtype(settings: RecoverSettings, choice: RecoveryPlan) -> torch.dtype:
    """Returns the type that the config states."""
    if settings.dtype != "auto":
        return TORCH_DTYPES[settings.dtype]
    note_dtypes(choice)
    return choice.dtypes.main_dtype or torch.float32


def _tensor_dtype(settings: RecoverSettings, choice: RecoveryPlan, plan: TensorPlan) -> torch.dtype:
    if settings.dtype != "auto":
        return TORCH_DTYPES[settings.dtype]
    return choice.dtypes.tensors[plan.name]


def _known_answers(settings: RecoverSettings) -> Corpus | None:
    """Reads the known completions before any weights, so that a later change of them is no harm."""
    if settings.verify is None:
        return None
    from camelpress.convert.recover.known_completions import read_corpus_of_answers

    return read_corpus_of_answers(settings.verify)


def _require_scorable(
    belongings: sidecar_plan.SidecarPlan,
    slots: Mapping[str, TensorSpec],
    out: Path,
    settings: RecoverSettings,
    answers: Corpus | None,
) -> None:
    """See that known completions can be scored: what cannot is told now, not after hours."""
    if settings.verify is None or answers is None:
        return
    from camelpress.convert.recover.known_completions import (
        prepare_completions,  # loads transformers, which nothing else needs
    )

    infos = {name: TensorInfo(slot.dtype, slot.shape, "", None) for name, slot in slots.items()}
    with TemporaryDirectory() as place:
        belongings.write(Path(place))
        model = Checkpoint(Path(place), belongings.configs["config.json"], infos)
        try:
            prepare_completions(model, settings.verify, answers, device=settings.device)
        except (CheckpointProblem, RecipeProblem) as error:
            what = error.message.replace(place, str(out))
            raise type(error)(what, next_step=error.next_step) from error


def _known_completion_facts(
    folder: Path, settings: RecoverSettings, answers: Corpus | None
) -> dict[str, Any]:
    if settings.verify is None:
        return {}
    from camelpress.convert.recover.known_completions import score_completions

    model = Checkpoint.open(folder)
    return {"golden": score_completions(model, settings.verify, answers, device=settings.device)}
