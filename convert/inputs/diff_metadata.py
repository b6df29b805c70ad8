"""Facts that a diff of ours states in the header of each of its files, and that recovery reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from camelpress.core.checkpoint import shards
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import TORCH_DTYPES, dtype_name
from camelpress.core.files.json_files import parse_json

RULE_KEY = "camelpress.rule"  # for added rows
MAIN_DTYPE_KEY = "camelpress.tuned_dtype"  # dtype of most matrices of the tuned model
OTHER_DTYPES_KEY = (
    "camelpress.tuned_dtypes"  # JSON: name to type, of the tensors that have another one
)
BASE_SAMPLE_KEY = "camelpress.base_sample"  # SHA-256 of the base's sampled values


@dataclass(frozen=True)
class DiffMetadata:
    """Rule, types and base of a diff, as far as its header states them.

    Args:
        rule: for added rows.
        main: type of most matrices of the tuned model.
        others: tensors of another type; None where the header has one type for all.
        base: digest of the sampled values of the base.
    """

    rule: str | None = None
    main_dtype: torch.dtype | None = None
    other_dtypes: Mapping[str, torch.dtype] | None = field(default=None)
    base_digest: str | None = None

    @classmethod
    def read(cls, diff: Checkpoint) -> DiffMetadata:
        """Reads the header of the first file; another maker's has none of this."""
        header = shards.read_metadata(next(diff.weight_files()))
        main = TORCH_DTYPES.get(header.get(MAIN_DTYPE_KEY, ""))
        others = _parse_dtypes(header.get(OTHER_DTYPES_KEY, "")) if main else None
        return cls(header.get(RULE_KEY), main, others, header.get(BASE_SAMPLE_KEY))

    def to_header(self) -> dict[str, str]:
        """Returns the entries of the header."""
        others = {name: dtype_name(dtype) for name, dtype in (self.other_dtypes or {}).items()}
        entries = {
            RULE_KEY: self.rule,
            MAIN_DTYPE_KEY: None if self.main_dtype is None else dtype_name(self.main_dtype),
            OTHER_DTYPES_KEY: json.dumps(others, sort_keys=True),
            BASE_SAMPLE_KEY: self.base_digest,
        }
        return {key: value for key, value in entries.items() if value is not None}

    def tuned_dtype(self, name: str) -> torch.dtype | None:
        """Returns the type of a tensor, if the header states one for each."""
        return None if self.other_dtypes is None else self.other_dtypes.get(name, self.main_dtype)


def _parse_dtypes(text: str) -> dict[str, torch.dtype] | None:
    try:
        words = parse_json(text)
    except (ValueError, RecursionError):  # of another maker, or nested too deep
        return None
    if not isinstance(words, dict) or not all(
        word in TORCH_DTYPES for word in map(str, words.values())
    ):
        return None
    return {name: TORCH_DTYPES[word] for name, word in words.items()}
