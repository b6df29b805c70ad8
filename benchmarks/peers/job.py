"""What every peer is asked for: python -m benchmarks.peers.PEER MODEL TOKENS OUT --group-size 64

4 bits, symmetric, all linear layers but the head. Drivers run with the interpreter of their own
tool and know nothing of camelpress.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

BITS = 4
THREADS = 2


class Job(NamedTuple):
    """One model to quantize."""

    model: str  # folder
    tokens: list[list[int]]  # windows of one length
    out: str  # folder to make
    group_size: int
    dtype: str  # the one to load and to compute in

    @property
    def length(self) -> int:
        """Tokens of a window."""
        return len(self.tokens[0])

    @property
    def rows(self) -> list[dict[str, list[int]]]:
        """The windows as transformers' tokenizers return them."""
        return [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in self.tokens]


def read() -> Job:
    """The job on the command line."""
    parser = argparse.ArgumentParser(description="Quantize a model with another tool.")
    parser.add_argument("model", help="folder")
    parser.add_argument("tokens", type=Path, help="JSON: lists of token ids")
    parser.add_argument("out", help="folder to make")
    parser.add_argument("--group-size", type=int, required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    given = parser.parse_args()
    tokens = json.loads(given.tokens.read_text(encoding="utf-8"))
    return Job(given.model, tokens, given.out, given.group_size, given.dtype)
