"""The stage: base and diff in, the tuned model out, a few pieces of a few tensors in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from operator import add
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from camelpress.convert import account, companions
from camelpress.convert.arithmetic import Operands, Told, added
from camelpress.convert.evidence import CANDIDATES, Counts, Evidence, sample
from camelpress.convert.pairs import pairs
from camelpress.convert.rules import RULE, Plan, plans
from camelpress.convert.settings import Recover
from camelpress.convert.stream import Stream
from camelpress.convert.verify import require_differences, require_right_base, tuned_dtype
from camelpress.core import shards
from camelpress.core.checkpoint import Checkpoint
from camelpress.core.config import DTYPES, dtype_name
from camelpress.core.errors import CheckpointProblem, RecipeProblem
from camelpress.core.journal import Journal
from camelpress.core.output import keep_apart, output_files, staged
from camelpress.core.progress import note
from camelpress.core.provenance import versions
from camelpress.core.report import Report, Stopwatch
from camelpress.core.shards import TensorInfo
from camelpress.core.writer import WEIGHTS, CheckpointWriter, Slot

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
    chosen, evidence, seen = _decided(base, diff, settings)
    dtype = _dtype(settings, seen)
    belongings = companions.recovered(base, diff, chosen, settings, dtype)
    slots = {plan.name: Slot(dtype, plan.shape) for plan in chosen}
    _require_scorable(belongings, slots, out, settings)
    operands = Operands.of(base, diff, chosen)
    full = settings.check == "full"

    def work(plan: Plan, told: Told) -> Iterator[Tensor]:
        return added(plan, operands, dtype, check=full, told=told)

    resumable = account.fingerprint(settings, list(inputs.values()))
    writes, begun = (*WEIGHTS, *belongings.names, REPORT), account.made_from(resumable)
    with (
        staged(out, force=force, made_from=begun, restart=restart, writes=writes) as folder,
        Journal(folder) as journal,
    ):
        with CheckpointWriter(folder, slots) as w:
            tensors, files = Stream(work, w, journal).run(chosen, list(inputs.values()), "recover")
        if full:
            seen = _sum(Counts.read(each["counts"]) for each in tensors if "counts" in each)
            require_right_base(base, diff, seen)
        belongings.write(folder)
        account.require_unchanged(resumable, settings, list(inputs.values()))
        golden = _golden(folder, settings)
        report = Report(
            stage="recover",
            inputs=account.digests(inputs, files),
            settings=settings.model_dump(mode="json", exclude={"verify", "device"}),
            facts={
                "dtype": dtype_name(dtype),
                "representable": {dtype_name(each): seen.share(each) for each in CANDIDATES},
                "tested": seen.tested,
                **belongings.facts,
                **golden,
                "sources": account.sources(inputs, files),
                "versions": versions(),
                "left_out": sorted(diff.tensors.keys() - slots.keys()),
                "tensors": [
                    account.tensor(plan, facts, evidence.get(plan.name))
                    for plan, facts in zip(chosen, tensors, strict=True)
                ],
            },
            cost=watch.cost(),
            files=output_files(folder, REPORT),
        )
        report.write(folder / REPORT)
    return report


def _decided(
    base: Checkpoint, diff: Checkpoint, settings: Recover
) -> tuple[list[Plan], dict[str, Evidence], Counts]:
    """The rule of every tensor, and what a sample tells of each and of all that are summed."""
    matched = pairs(base, diff, settings.rule)
    tested = settings.check != "off" or settings.dtype == "auto"
    evidence = sample(base, diff, [pair for pair in matched if tested or pair.grown])
    recorded = shards.metadata(next(diff.files())).get(RULE)
    chosen = plans(matched, evidence, settings.rule, settings.extra_rows, recorded)
    summed = [plan.name for plan in chosen if plan.rule != "absolute"]
    seen = _sum(evidence[name].counts for name in summed if name in evidence)
    if settings.check != "off":
        require_differences(diff, evidence.values())
        require_right_base(base, diff, seen)
    for plan in chosen:
        if plan.reason:
            note(f"{plan.name}: {plan.rule}, {plan.reason}")
    return chosen, evidence, seen


def _sum(counts: Iterable[Counts]) -> Counts:
    return reduce(add, counts, Counts())


def _dtype(settings: Recover, counts: Counts) -> torch.dtype:
    if settings.dtype != "auto":
        return DTYPES[settings.dtype]
    dtype = tuned_dtype(counts)
    if dtype is None:
        note("the sums fit no 16-bit type: the output is float32")
        return torch.float32
    note(
        f"{counts.share(dtype):.2%} of {counts.tested} sampled sums are {dtype_name(dtype)} "
        "numbers: that is the dtype of the output"
    )
    return dtype


def _require_scorable(
    belongings: companions.Belongings, slots: Mapping[str, Slot], out: Path, settings: Recover
) -> None:
    """See that known completions can be scored: what cannot is told now, not after hours."""
    if settings.verify is None:
        return
    from camelpress.convert.golden import prepare  # loads transformers, which nothing else needs

    infos = {name: TensorInfo(slot.dtype, slot.shape, "", None) for name, slot in slots.items()}
    with TemporaryDirectory() as place:
        belongings.write(Path(place))
        model = Checkpoint(Path(place), belongings.configs["config.json"], infos)
        try:
            prepare(model, settings.verify, device=settings.device)
        except (CheckpointProblem, RecipeProblem) as error:
            what = error.what.replace(place, str(out))
            raise type(error)(what, next_step=error.next_step) from error


def _golden(folder: Path, settings: Recover) -> dict[str, Any]:
    if settings.verify is None:
        return {}
    from camelpress.convert.golden import score

    return {"golden": score(Checkpoint.open(folder), settings.verify, device=settings.device)}
