"""The stage: base and diff in, the tuned model out, a few pieces of a few tensors in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from camelpress.convert.inputs.base_sample import CANDIDATES, Counts
from camelpress.convert.inputs.tensor_pairs import left_out
from camelpress.convert.recover import input_record, sidecar_plan
from camelpress.convert.recover.arithmetic import Operands, Told, added
from camelpress.convert.recover.base_check import require_stated_base
from camelpress.convert.recover.diff_rules import Plan
from camelpress.convert.recover.recovery_notes import note_choice, note_rounding, note_types
from camelpress.convert.recover.recovery_plan import Choice, choose, total
from camelpress.convert.recover.tensor_output import TensorOutput
from camelpress.convert.settings import Recover
from camelpress.core.checkpoint.checkpoint import Checkpoint, mend_config
from camelpress.core.checkpoint.checkpoint_writer import Slot
from camelpress.core.checkpoint.portable_config import DTYPES, dtype_name
from camelpress.core.checkpoint.shards import TensorInfo
from camelpress.core.documents.document_reader import Corpus
from camelpress.core.errors import CheckpointProblem, RecipeProblem
from camelpress.core.files.file_hashes import versions
from camelpress.core.output.staged_output import keep_apart, output_files
from camelpress.reporting.stage_report import Report, Stopwatch

REPORT = "recover-report.json"


def recover(
    base: Checkpoint,
    diff: Checkpoint,
    out: Path,
    settings: Recover,
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
    keep_apart(out, base.folder, diff.folder)
    answers = _known_answers(settings)
    choice = _choice(base, diff, settings)
    chosen, dtype = choice.plans, _main_dtype(settings, choice)
    belongings = sidecar_plan.recovered(base, diff, chosen, settings, dtype)
    dtypes = {plan.name: _dtype(settings, choice, plan) for plan in chosen}
    slots = {plan.name: Slot(dtypes[plan.name], plan.shape) for plan in chosen}
    _require_scorable(belongings, slots, out, settings, answers)
    operands = Operands.of(choice.base, diff, chosen)
    full = settings.check == "full"

    def work(plan: Plan, told: Told) -> Iterator[Tensor]:
        return added(plan, operands, dtypes[plan.name], check=full, told=told)

    output = TensorOutput(settings, inputs, chosen, slots, work)
    sidecars = (*belongings.names, REPORT)
    with output.write(out, sidecars, force=force, restart=restart) as tensors:
        folder, files = tensors.folder, tensors.files
        entries = dict(zip(slots, tensors.facts, strict=True))
        seen = _checked(base, diff, choice, entries) if full else choice.counts
        rounded = note_rounding(settings, diff, entries)
        belongings.write(folder)
        changes = mend_config(folder)
        golden = _golden(folder, settings, answers)
        report = Report(
            stage="recover",
            inputs=input_record.digests(inputs, files),
            settings=settings.model_dump(mode="json", exclude={"verify", "device"}),
            facts={
                **_types(choice, dtype, dtypes, seen),
                "rounded": rounded,
                "config_changes": list(changes),
                **belongings.facts,
                **golden,
                "sources": input_record.sources(inputs, files),
                "versions": versions(),
                "left_out": sorted({*left_out(base, diff), *(diff.tensors.keys() - slots.keys())}),
                "tensors": [
                    input_record.tensor(
                        plan, facts, choice.evidence.get(plan.name), dtype=dtypes[plan.name]
                    )
                    for plan, facts in zip(chosen, tensors.facts, strict=True)
                ],
            },
            cost=watch.cost(),
            files=output_files(folder, REPORT),
        )
        report.write(folder / REPORT)
    return report


def _choice(base: Checkpoint, diff: Checkpoint, settings: Recover) -> Choice:
    """Decides rule and type of every tensor, and sees that they belong together."""
    choice = choose(base, diff, settings)
    if settings.check != "off":
        choice.require_differences(diff)
        choice.require_right_base(
            base, diff, {name: known.counts for name, known in choice.evidence.items()}
        )
        require_stated_base(base, diff, choice.record.base, proven=choice.types.proven)
    note_choice(choice, diff, left_out(base, diff))
    return choice


def _checked(
    base: Checkpoint, diff: Checkpoint, choice: Choice, entries: Mapping[str, Mapping[str, Any]]
) -> Counts:
    """Returns the counts of all values, seen to belong together."""
    counts = {
        name: Counts.read(facts["counts"]) for name, facts in entries.items() if "counts" in facts
    }
    choice.require_right_base(base, diff, counts)
    return total(counts.values())


def _types(
    choice: Choice, main: torch.dtype, dtypes: Mapping[str, torch.dtype], seen: Counts
) -> dict[str, Any]:
    """Returns the facts about the types of tensors, and the sums that show them."""
    others = {name: dtype_name(dtype) for name, dtype in dtypes.items() if dtype is not main}
    return {
        "dtype": dtype_name(main),
        "dtypes": others,
        "base_dtype": choice.base_dtype,
        "representable": {dtype_name(each): seen.share(each) for each in CANDIDATES},
        "tested": seen.tested,
    }


def _main_dtype(settings: Recover, choice: Choice) -> torch.dtype:
    """Returns the type that the config states."""
    if settings.dtype != "auto":
        return DTYPES[settings.dtype]
    note_types(choice)
    return choice.types.main or torch.float32


def _dtype(settings: Recover, choice: Choice, plan: Plan) -> torch.dtype:
    if settings.dtype != "auto":
        return DTYPES[settings.dtype]
    return choice.types.tensors[plan.name]


def _known_answers(settings: Recover) -> Corpus | None:
    """Reads the known completions before any weights, so that a later change of them is no harm."""
    if settings.verify is None:
        return None
    from camelpress.convert.recover.known_completions import read_corpus_of_answers

    return read_corpus_of_answers(settings.verify)


def _require_scorable(
    belongings: sidecar_plan.Belongings,
    slots: Mapping[str, Slot],
    out: Path,
    settings: Recover,
    answers: Corpus | None,
) -> None:
    """See that known completions can be scored: what cannot is told now, not after hours."""
    if settings.verify is None or answers is None:
        return
    from camelpress.convert.recover.known_completions import (
        prepare,  # loads transformers, which nothing else needs
    )

    infos = {name: TensorInfo(slot.dtype, slot.shape, "", None) for name, slot in slots.items()}
    with TemporaryDirectory() as place:
        belongings.write(Path(place))
        model = Checkpoint(Path(place), belongings.configs["config.json"], infos)
        try:
            prepare(model, settings.verify, answers, device=settings.device)
        except (CheckpointProblem, RecipeProblem) as error:
            what = error.what.replace(place, str(out))
            raise type(error)(what, next_step=error.next_step) from error


def _golden(folder: Path, settings: Recover, answers: Corpus | None) -> dict[str, Any]:
    if settings.verify is None:
        return {}
    from camelpress.convert.recover.known_completions import score

    model = Checkpoint.open(folder)
    return {"golden": score(model, settings.verify, answers, device=settings.device)}
