"""Reads and writes the header entries of diffs by make-diff."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from camelpress.core.checkpoint import shards
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import TORCH_DTYPES, dtype_name
from camelpress.core.files.json_files import parse_json

RULE_KEY = "camelpress.rule"  # rule for added rows
MAIN_DTYPE_KEY = "camelpress.tuned_dtype"  # dtype of most matrices of the tuned model
OTHER_DTYPES_KEY = "camelpress.tuned_dtypes"  # JSON: tensor name to dtype, if not the main one
BASE_SAMPLE_KEY = "camelpress.base_sample"  # SHA-256 of the base's sampled values


@dataclass(frozen=True)
class DiffMetadata:
    """Rule, dtypes and base in the header of a diff; None for missing entries.

    Args:
        rule: rule for added rows.
        main_dtype: dtype of most matrices of the tuned model.
        other_dtypes: tensor name to dtype, if not the main one; None without such an entry.
        base_digest: digest of the sampled values of the base.
    """

    rule: str | None = None
    main_dtype: torch.dtype | None = None
    other_dtypes: Mapping[str, torch.dtype] | None = field(default=None)
    base_digest: str | None = None

    @classmethod
    def read(cls, diff: Checkpoint) -> DiffMetadata:
        """Reads the header of the first file; diffs of other tools have no such entries."""
        header = shards.read_metadata(next(diff.weight_files()))
        main_dtype = TORCH_DTYPES.get(header.get(MAIN_DTYPE_KEY, ""))
        other_dtypes = _parse_dtypes(header.get(OTHER_DTYPES_KEY, "")) if main_dtype else None
        return cls(header.get(RULE_KEY), main_dtype, other_dtypes, header.get(BASE_SAMPLE_KEY))

    def to_header(self) -> dict[str, str]:
        """Returns the entries for the header."""
        other_dtypes = {
            name: dtype_name(dtype) for name, dtype in (self.other_dtypes or {}).items()
        }
        entries = {
            RULE_KEY: self.rule,
            MAIN_DTYPE_KEY: None if self.main_dtype is None else dtype_name(self.main_dtype),
            OTHER_DTYPES_KEY: json.dumps(other_dtypes, sort_keys=True),
            BASE_SAMPLE_KEY: self.base_digest,
        }
        return {key: value for key, value in entries.items() if value is not None}

    def tuned_dtype(self, name: str) -> torch.dtype | None:
        """Returns the dtype of a tensor when tuned; None if the header has no dtype per tensor."""
        return None if self.other_dtypes is None else self.other_dtypes.get(name, self.main_dtype)


def _parse_dtypes(text: str) -> dict[str, torch.dtype] | None:
    try:
        dtype_names = parse_json(text)
    except (ValueError, RecursionError):  # written by another tool, or nested too deep
        return None
    if not isinstance(dtype_names, dict) or not all(
        value in TORCH_DTYPES for value in map(str, dtype_names.values())
    ):
        return None
    return {name: TORCH_DTYPES[value] for name, value in dtype_names.items()}
