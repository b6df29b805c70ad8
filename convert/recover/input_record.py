"""Facts of inputs and tensors for a report, and the values that a resumed run must share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from camelpress.convert.inputs.base_sample import Evidence
from camelpress.convert.recover.diff_rules import Plan
from camelpress.convert.recover.tensor_stream import Facts
from camelpress.convert.settings import MakeDiff, Recover
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.files.file_hashes import (
    checkpoint_hashes,
    identity,
    sha256_file,
    sha256_json,
    versions,
)

CONFIGS = ("config.json", "params.json")
SHARDS = (".safetensors", ".bin", ".pth")
ROLES = {Recover: ("recover", "base", "diff"), MakeDiff: ("make-diff", "base", "tuned")}


def tensor(
    plan: Plan, facts: Facts, evidence: Evidence | None = None, *, dtype: torch.dtype
) -> Facts:
    """Returns the entry of one tensor: its type when tuned, rule, hash, and facts of its sample."""
    told = {
        "name": plan.name,
        "dtype": dtype_name(dtype),
        "rule": plan.rule,
        "extra_rows": plan.extra if plan.pair.grown else None,
        "reason": plan.reason or None,
        "counts": evidence.counts.plain() if evidence and evidence.digest else None,
        **facts,
    }
    return {key: value for key, value in told.items() if value is not None}


def sources(inputs: Mapping[str, Checkpoint], files: Mapping[Path, str]) -> dict[str, Any]:
    """Where each input is from, and the SHA-256 of its weight files."""
    return {
        role: {
            "origin": checkpoint.origin,
            "config_changes": list(checkpoint.changes),
            "files": {path.name: files[path] for path in checkpoint.files()},
        }
        for role, checkpoint in inputs.items()
    }


def digests(inputs: Mapping[str, Checkpoint], files: Mapping[Path, str]) -> dict[str, str]:
    """Returns one hash for each input, of the bytes that were read.

    Raises:
        CheckpointProblem: an input changed while it was read.
    """
    hashes = {
        role: checkpoint_hashes(checkpoint.folder, files) for role, checkpoint in inputs.items()
    }
    for role, checkpoint in inputs.items():
        checkpoint.require_unchanged(hashes[role])
    return {role: sha256_json(names) for role, names in hashes.items()}


def fingerprint(settings: Recover | MakeDiff, inputs: Sequence[Checkpoint]) -> dict[str, Any]:
    """Name to value of everything that decides the bytes of the output.

    Weights are read once, while the output is made, so that their files stand here by identity.
    """
    stage, *roles = ROLES[type(settings)]
    return {
        "stage": stage,
        **settings.model_dump(mode="json", exclude={"verify", "device"}),
        **{f"version of {name}": number for name, number in versions().items()},
        **{
            f"{role}/{path.name}": _told_file(path)
            for role, checkpoint in zip(roles, inputs, strict=True)
            for path in _all_files(checkpoint)
        },
    }


def made_from(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a fingerprint that decide the bytes of tensors.

    The files beside the weights do not: every run copies them anew.
    """
    return {
        name: value
        for name, value in fingerprint.items()
        if "/" not in name or Path(name).suffix in SHARDS or Path(name).name in CONFIGS
    }


def _told_file(path: Path) -> str:
    return sha256_file(path) if path.name in CONFIGS else sha256_json(identity(path))


def _all_files(checkpoint: Checkpoint) -> list[Path]:
    configs = [checkpoint.folder / name for name in CONFIGS]
    there = [path for path in configs if path.is_file()]
    return [*checkpoint.files(), *there, *checkpoint.companions().values()]
