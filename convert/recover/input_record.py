"""Report facts of inputs and tensors, and the fingerprint shared by resumed runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from camelpress.convert.inputs.base_sample import TensorSample
from camelpress.convert.recover.diff_rules import TensorPlan
from camelpress.convert.recover.tensor_stream import TensorFacts
from camelpress.convert.settings import MakeDiffSettings, RecoverSettings
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.files.file_hashes import (
    checkpoint_file_hashes,
    file_identity,
    package_versions,
    sha256_file,
    sha256_json,
)

CONFIG_FILES = ("config.json", "params.json")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth")
INPUT_ROLES = {
    RecoverSettings: ("recover", "base", "diff"),
    MakeDiffSettings: ("make-diff", "base", "tuned"),
}


def tensor_facts(
    plan: TensorPlan,
    facts: TensorFacts,
    sample: TensorSample | None = None,
    *,
    dtype: torch.dtype,
) -> TensorFacts:
    """Returns the report entry of one tensor: tuned dtype, rule, hash and sample counts."""
    entry = {
        "name": plan.name,
        "dtype": dtype_name(dtype),
        "rule": plan.rule,
        "extra_rows": plan.extra_rows if plan.pair.is_larger else None,
        "reason": plan.reason or None,
        "counts": sample.counts.to_json() if sample and sample.digest else None,
        **facts,
    }
    return {key: value for key, value in entry.items() if value is not None}


def source_facts(inputs: Mapping[str, Checkpoint], files: Mapping[Path, str]) -> dict[str, Any]:
    """Returns origin, config changes and SHA-256 of the weight files of each input."""
    return {
        role: {
            "origin": checkpoint.source_name,
            "config_changes": list(checkpoint.config_changes),
            "files": {path.name: files[path] for path in checkpoint.weight_files()},
        }
        for role, checkpoint in inputs.items()
    }


def input_digests(inputs: Mapping[str, Checkpoint], files: Mapping[Path, str]) -> dict[str, str]:
    """Returns one hash of all bytes read from each input.

    Raises:
        CheckpointProblem: an input changed while it was read.
    """
    hashes = {
        role: checkpoint_file_hashes(checkpoint.folder, files)
        for role, checkpoint in inputs.items()
    }
    for role, checkpoint in inputs.items():
        checkpoint.require_unchanged(hashes[role])
    return {role: sha256_json(names) for role, names in hashes.items()}


def recover_fingerprint(
    settings: RecoverSettings | MakeDiffSettings, inputs: Sequence[Checkpoint]
) -> dict[str, Any]:
    """Returns name and value of everything that decides the bytes of the output.

    Weight files are identified by their metadata, because their content is read only once, during
    the recovery.
    """
    stage, *roles = INPUT_ROLES[type(settings)]
    return {
        "stage": stage,
        **settings.model_dump(mode="json", exclude={"verify", "device"}),
        **{f"version of {name}": number for name, number in package_versions().items()},
        **{
            f"{role}/{path.name}": _file_identity(path)
            for role, checkpoint in zip(roles, inputs, strict=True)
            for path in _input_files(checkpoint)
        },
    }


def made_from(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Selects the values of a fingerprint that decide the bytes of tensors.

    Sidecar files do not: every run copies them again.
    """
    return {
        name: value
        for name, value in fingerprint.items()
        if "/" not in name
        or Path(name).suffix in WEIGHT_SUFFIXES
        or Path(name).name in CONFIG_FILES
    }


def _file_identity(path: Path) -> str:
    return sha256_file(path) if path.name in CONFIG_FILES else sha256_json(file_identity(path))


def _input_files(checkpoint: Checkpoint) -> list[Path]:
    configs = [checkpoint.folder / name for name in CONFIG_FILES]
    config_paths = [path for path in configs if path.is_file()]
    return [*checkpoint.weight_files(), *config_paths, *checkpoint.sidecar_files().values()]
