"""Facts that a diff of ours states in the header of each of its files, and that recovery reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from camelpress.core.checkpoint import shards
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.portable_config import DTYPES, dtype_name
from camelpress.core.files.json_files import parse_json

RULE = "camelpress.rule"  # for added rows
MAIN = "camelpress.tuned_dtype"  # dtype of most matrices of the tuned model
OTHERS = "camelpress.tuned_dtypes"  # JSON: name to type, of the tensors that have another one
BASE = "camelpress.base_sample"  # SHA-256 of the base's sampled values


@dataclass(frozen=True)
class DiffRecord:
    """Rule, types and base of a diff, as far as its header states them.

    Args:
        rule: for added rows.
        main: type of most matrices of the tuned model.
        others: tensors of another type; None where the header has one type for all.
        base: digest of the sampled values of the base.
    """

    rule: str | None = None
    main: torch.dtype | None = None
    others: Mapping[str, torch.dtype] | None = field(default=None)
    base: str | None = None

    @classmethod
    def read(cls, diff: Checkpoint) -> DiffRecord:
        """Reads the header of the first file; another maker's has none of this."""
        header = shards.metadata(next(diff.files()))
        main = DTYPES.get(header.get(MAIN, ""))
        others = _types(header.get(OTHERS, "")) if main else None
        return cls(header.get(RULE), main, others, header.get(BASE))

    def header(self) -> dict[str, str]:
        """Returns the entries of the header."""
        others = {name: dtype_name(dtype) for name, dtype in (self.others or {}).items()}
        entries = {
            RULE: self.rule,
            MAIN: None if self.main is None else dtype_name(self.main),
            OTHERS: json.dumps(others, sort_keys=True),
            BASE: self.base,
        }
        return {key: value for key, value in entries.items() if value is not None}

    def tuned(self, name: str) -> torch.dtype | None:
        """Returns the type of a tensor, if the header states one for each."""
        return None if self.others is None else self.others.get(name, self.main)


def _types(text: str) -> dict[str, torch.dtype] | None:
    try:
        words = parse_json(text)
    except (ValueError, RecursionError):  # of another maker, or nested too deep
        return None
    if not isinstance(words, dict) or not all(word in DTYPES for word in map(str, words.values())):
        return None
    return {name: DTYPES[word] for name, word in words.items()}
