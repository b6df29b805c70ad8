"""The stage: two checkpoint folders in, one out, a few pieces of a few tensors in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from camelpress.convert import companions
from camelpress.convert.arithmetic import Operands, Told, added, subtracted
from camelpress.convert.evidence import CANDIDATES, Counts, Evidence, column_means, sample
from camelpress.convert.journal import Journal
from camelpress.convert.pairs import GROWING, pairs
from camelpress.convert.rules import Plan, plans
from camelpress.convert.settings import MakeDiff, Recover
from camelpress.convert.stream import Facts, Stream, Work
from camelpress.convert.verify import require_differences, require_right_base, tuned_dtype
from camelpress.core import shards
from camelpress.core.checkpoint import Checkpoint
from camelpress.core.config import dtype_name
from camelpress.core.output import keep_apart, staged
from camelpress.core.progress import note
from camelpress.core.provenance import checkpoint_hashes, sha256_json, versions
from camelpress.core.report import Report, Stopwatch
from camelpress.core.writer import CheckpointWriter, Slot

REPORT = "recover-report.json"
DIFF_REPORT = "make-diff-report.json"
RULE, TUNED_DTYPE = "camelpress.rule", "camelpress.tuned_dtype"  # in the header of our diffs
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def recover(
    base: Checkpoint, diff: Checkpoint, out: Path, settings: Recover, *, force: bool = False
) -> Report:
    """Write base + diff, summed in fp32, with the diff's config and tokenizer.

    What was written before the run was stopped or killed is kept, and taken over by the next.

    Args:
        base: the raw model, fp16 as LLaMA-1 was published.
        diff: tuned minus base; its embedding may have more rows.
        out: a folder that does not exist.
        settings: output dtype, row rules, and how to test the base.
        force: replace `out`.
    Raises:
        NumericsProblem: the base is not the diff's, or a sum is not finite.
        CheckpointProblem: names, shapes or tokenizer do not belong together.
    Source:
        allenai/open-instruct 0d2e152d7, scripts/weight_diff.py; ours streams, keeps 16 bits and
        tests the base.
    """
    watch = Stopwatch()
    keep_apart(out, base.folder, diff.folder)
    matched = pairs(base, diff, settings.rule)
    evidence = sample(base, diff, matched)
    recorded = shards.metadata(next(diff.files())).get(RULE)
    chosen = plans(matched, evidence, settings.rule, settings.extra_rows, recorded)
    told = _counts(evidence[plan.name] for plan in chosen if _tells(plan, evidence))
    if settings.check != "off":
        require_differences(diff, evidence.values())
        require_right_base(base, diff, told)
    dtype = _dtype(settings, told)
    belongings = companions.plan(base, diff, chosen, settings, dtype)
    for plan in chosen:
        if plan.reason:
            note(f"{plan.name}: {plan.rule}, {plan.reason}")
    operands = Operands(base, diff, _means(base, chosen))
    full = settings.check == "full"

    def work(plan: Plan, told: Told) -> Iterator[Tensor]:
        return added(plan, operands, dtype, check=full, told=told)

    with staged(out, force=force, resumable=_fingerprint(settings, base, diff)) as folder:
        tensors, files = _write(folder, chosen, work, dtype, (base, diff), "recover")
        if full:
            told = reduce(
                add, (Counts.read(each["counts"]) for each in tensors if "counts" in each)
            )
            require_right_base(base, diff, told)
        report = Report(
            stage="recover",
            inputs=_digests({"base": base, "diff": diff}, files),
            settings=settings.model_dump(mode="json"),
            facts={
                "dtype": dtype_name(dtype),
                "representable": {dtype_name(each): told.share(each) for each in CANDIDATES},
                "tested": told.tested,
                **belongings.facts,
                **_sources({"base": base, "diff": diff}, files),
                "versions": versions(),
                "tensors": [
                    _told(plan, facts, evidence.get(plan.name))
                    for plan, facts in zip(chosen, tensors, strict=True)
                ],
            },
            cost=watch.cost(),
        )
        belongings.write(folder)
        report.write(folder / REPORT)
    return report


def make_diff(
    base: Checkpoint, tuned: Checkpoint, out: Path, settings: MakeDiff, *, force: bool = False
) -> Report:
    """Write tuned - base, having seen what `recover` makes of every value.

    A float32 diff gives back the tuned weights bit for bit, or is refused. A diff in 16 bits,
    whose unit roundoff is u, gives back each weight t within u |t - base| plus half a step of
    t's own type.

    Raises:
        NumericsProblem: some weight would not come back (it is 2**16 times smaller than the
            base's, so that the difference needs more than 24 bits), or a difference does not
            fit the type.
    """
    watch = Stopwatch()
    keep_apart(out, base.folder, tuned.folder)
    matched = pairs(base, tuned)
    chosen = plans(matched, {}, (settings.rule,), "published", None)
    tuned_type, dtype = tuned.info(GROWING[0]).dtype, DTYPES[settings.dtype]
    operands = Operands(base, tuned, _means(base, chosen))

    def work(plan: Plan, told: Told) -> Iterator[Tensor]:
        return subtracted(plan, operands, dtype, tuned_type, told=told)

    metadata = {RULE: settings.rule, TUNED_DTYPE: dtype_name(tuned_type)}
    belongings = companions.copied(tuned, chosen, dtype)
    with staged(out, force=force, resumable=_fingerprint(settings, base, tuned)) as folder:
        tensors, files = _write(folder, chosen, work, dtype, (base, tuned), "make-diff", metadata)
        report = Report(
            stage="make-diff",
            inputs=_digests({"base": base, "tuned": tuned}, files),
            settings=settings.model_dump(mode="json"),
            facts={
                "dtype": settings.dtype,
                "tuned_dtype": dtype_name(tuned_type),
                "inexact": sum(each.get("inexact", 0) for each in tensors),
                "largest_error": max(each.get("largest_error", 0.0) for each in tensors),
                **_sources({"base": base, "tuned": tuned}, files),
                "versions": versions(),
                "tensors": [
                    _told(plan, facts, None) for plan, facts in zip(chosen, tensors, strict=True)
                ],
            },
            cost=watch.cost(),
        )
        belongings.write(folder)
        report.write(folder / DIFF_REPORT)
    return report


def _write(
    folder: Path,
    chosen: Sequence[Plan],
    work: Work,
    dtype: torch.dtype,
    inputs: Sequence[Checkpoint],
    label: str,
    metadata: Mapping[str, str] = {},
) -> tuple[list[Facts], dict[Path, str]]:
    slots = {plan.name: Slot(dtype, plan.shape) for plan in chosen}
    with Journal(folder) as journal, CheckpointWriter(folder, slots, metadata=metadata) as writer:
        return Stream(work, writer, journal).run(chosen, inputs, label)


def _tells(plan: Plan, evidence: Mapping[str, Evidence]) -> bool:
    return plan.name in evidence and plan.rule != "absolute"


def _counts(evidence: Iterable[Evidence]) -> Counts:
    return reduce(add, (each.counts for each in evidence), Counts())


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


def _means(base: Checkpoint, chosen: Sequence[Plan]) -> dict[str, torch.Tensor]:
    """The mean rows that are needed, one whole matrix in memory at a time."""
    return {
        plan.pair.base_name: column_means(base.read(plan.pair.base_name))
        for plan in chosen
        if plan.pair.base_name is not None
        and plan.rows > plan.pair.base_shape[0]
        and "mean" in (plan.rule, plan.extra)
    }


def _told(plan: Plan, facts: Facts, evidence: Evidence | None) -> Facts:
    tested = facts.get("counts") or (evidence and evidence.counts.plain())
    told = {
        "name": plan.name,
        "rule": plan.rule,
        "extra_rows": plan.extra if plan.pair.grown else None,
        "reason": plan.reason or None,
        **facts,
        "counts": tested,
    }
    return {key: value for key, value in told.items() if value is not None}


def _sources(inputs: Mapping[str, Checkpoint], files: Mapping[Path, str]) -> dict[str, Any]:
    return {
        "sources": {
            role: {
                "origin": str(checkpoint.folder),
                "files": {path.name: files[path] for path in checkpoint.files()},
            }
            for role, checkpoint in inputs.items()
        }
    }


def _digests(inputs: Mapping[str, Checkpoint], files: Mapping[Path, str]) -> dict[str, str]:
    return {
        role: sha256_json(checkpoint_hashes(checkpoint.folder, files))
        for role, checkpoint in inputs.items()
    }


def _fingerprint(settings: Recover | MakeDiff, *inputs: Checkpoint) -> str:
    """Of all that decides the bytes of the tensors."""
    files = [path for checkpoint in inputs for path in checkpoint.files()]
    return sha256_json(
        {
            "versions": versions(),
            "settings": settings.model_dump(mode="json"),
            "files": [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files],
        }
    )
