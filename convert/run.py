"""The stage: two checkpoint folders in, one out, one tensor in memory at a time."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from camelpress.convert.arithmetic import add, slots, subtract
from camelpress.convert.pairs import Pair, pairs
from camelpress.convert.settings import MakeDiff, Recover
from camelpress.convert.verify import NEEDED_16_BIT, Evidence, require_right_base, sample
from camelpress.core.checkpoint import Checkpoint, companions
from camelpress.core.config import dtype_name, portable
from camelpress.core.json import write_json
from camelpress.core.llama import EMBEDDING
from camelpress.core.output import keep_apart, staged
from camelpress.core.progress import note, track
from camelpress.core.provenance import checkpoint_digest
from camelpress.core.report import Report, Stopwatch
from camelpress.core.writer import CheckpointWriter

REPORT = "recover-report.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def recover(
    base: Checkpoint, diff: Checkpoint, out: Path, settings: Recover, *, force: bool = False
) -> Report:
    """Write base + diff, summed in fp32, with the diff's config and tokenizer.

    Args:
        base: the raw model, fp16 as LLaMA-1 was published.
        diff: tuned minus base; its embedding may have more rows.
        out: a folder that does not exist.
        settings: output dtype and how to test the base.
        force: replace `out`.
    Raises:
        NumericsProblem: the base is not the diff's, or a sum is not finite.
        CheckpointProblem: names or shapes do not belong together.
    Source:
        allenai/open-instruct 0d2e152d7, scripts/weight_diff.py; ours streams, keeps 16 bits and
        tests the base.
    """
    watch = Stopwatch()
    keep_apart(out, base.folder, diff.folder)
    matched = pairs(base, diff)
    evidence = None
    if settings.check == "sample" or settings.dtype == "auto":
        evidence = sample(base, diff, matched)
        if settings.check == "sample":
            require_right_base(base, diff, evidence)
    dtype = _dtype(settings, evidence)
    with staged(out, force=force) as folder:
        with CheckpointWriter(folder, slots(matched, dtype)) as writer:
            tensors = [add(pair, base, diff, writer, dtype) for pair in track(matched, "recover")]
        _companions(folder, diff.folder, base.folder)
        write_json(folder / "config.json", _config(diff, matched, dtype))
        report = Report(
            stage="recover",
            inputs={
                "base": checkpoint_digest(base.folder),
                "diff": checkpoint_digest(diff.folder),
            },
            settings=settings.model_dump(),
            facts={"dtype": dtype_name(dtype), **_told(evidence), "tensors": tensors},
            cost=watch.cost(),
        )
        report.write(folder / REPORT)
    return report


def make_diff(
    base: Checkpoint, tuned: Checkpoint, out: Path, settings: MakeDiff, *, force: bool = False
) -> Report:
    """Write tuned - base so that `recover` gives back the tuned weights bit for bit.

    Raises:
        NumericsProblem: some weight would not come back (it is 2**16 times smaller than the
            base's, so that the difference needs more than 24 bits).
    """
    watch = Stopwatch()
    keep_apart(out, base.folder, tuned.folder)
    matched = pairs(base, tuned)
    dtype = tuned.info(matched[0].name).dtype
    with staged(out, force=force) as folder:
        with CheckpointWriter(folder, slots(matched, torch.float32)) as writer:
            tensors = [
                subtract(pair, base, tuned, writer, dtype) for pair in track(matched, "make-diff")
            ]
        _companions(folder, tuned.folder)
        write_json(folder / "config.json", _config(tuned, matched, torch.float32))
        report = Report(
            stage="make-diff",
            inputs={
                "base": checkpoint_digest(base.folder),
                "tuned": checkpoint_digest(tuned.folder),
            },
            settings=settings.model_dump(),
            facts={"dtype": "float32", "tuned_dtype": dtype_name(dtype), "tensors": tensors},
            cost=watch.cost(),
        )
        report.write(folder / "make-diff-report.json")
    return report


def _dtype(settings: Recover, evidence: Evidence | None) -> torch.dtype:
    if settings.dtype != "auto" or evidence is None:
        return DTYPES[settings.dtype]
    if evidence.shares[evidence.best] < NEEDED_16_BIT:
        note("the sums fit no 16-bit type: the output is float32")
        return torch.float32
    note(
        f"{evidence.shares[evidence.best]:.2%} of {evidence.values} sampled sums are "
        f"{dtype_name(evidence.best)} numbers: that is the dtype of the output"
    )
    return evidence.best


def _told(evidence: Evidence | None) -> dict[str, Any]:
    if evidence is None:
        return {"representable": None}
    return {
        "representable": {dtype_name(dtype): share for dtype, share in evidence.shares.items()},
        "sampled": evidence.values,
    }


def _config(source: Checkpoint, matched: list[Pair], dtype: torch.dtype) -> dict[str, Any]:
    """The source's config with what is now true of dtype and vocabulary."""
    rows = {pair.name: pair.shape[0] for pair in matched}
    return portable(source.config, dtype) | {"vocab_size": rows[f"{EMBEDDING}.weight"]}


def _companions(folder: Path, *sources: Path) -> None:
    """Copy tokenizer and licences; what an earlier source has is not taken from a later one."""
    found: dict[str, Path] = {}
    for source in sources:
        has_tokenizer = any(name.startswith("tokenizer") for name in found)
        found = {
            name: path
            for name, path in companions(source).items()
            if not has_tokenizer or name.lower().startswith(("license", "notice", "llama"))
        } | found
    for name, path in found.items():
        shutil.copyfile(path, folder / name)
