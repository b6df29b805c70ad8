"""Arguments of a backend driver, and the job it runs.

Usage: python -m camelpress.quantize.backends.drivers.ENGINE MODEL TOKENS OUT

A driver runs with the interpreter that has its engine, in an environment which need not have
camelpress: it sees this file and nothing else of it. All linear layers but the head are quantized.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

CPU_WORKERS = os.environ.get("GPTQMODEL_CPU_WORKERS", str(max(2, len(os.sched_getaffinity(0)))))


class BackendJob(NamedTuple):
    """One model to quantize."""

    model: str  # folder
    tokens: list[list[int]]  # sequences of any lengths
    out: str  # folder to make
    bits: int
    group_size: int
    sym: bool
    damp_percent: float | None  # None: the engine's own default
    dtype: str  # the one to load and to compute in
    device: str  # auto, cpu or cuda:N
    facts_path: Path | None  # file for what there is to tell

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence."""
        return max(map(len, self.tokens))

    @property
    def examples(self) -> list[dict[str, list[int]]]:
        """The sequences as transformers' tokenizers return them."""
        return [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in self.tokens]

    @property
    def grid_options(self) -> dict[str, Any]:
        """Settings that all engines call by the same names."""
        own = {} if self.damp_percent is None else {"damp_percent": self.damp_percent}
        return {"bits": self.bits, "group_size": self.group_size, "sym": self.sym, **own}

    def pick_device(self, has_cuda: bool) -> str:
        """The device, where it is `auto`."""
        if self.device != "auto":
            return self.device
        return "cuda:0" if has_cuda else "cpu"

    def write_facts(self, **facts: Any) -> None:
        """Leave facts for whoever asked."""
        if self.facts_path is not None:
            facts |= {"dtype": self.dtype, "peak_bytes": peak_resident_bytes()}
            self.facts_path.write_text(json.dumps(facts), encoding="utf-8")


def read_job() -> BackendJob:
    """The job on the command line."""
    parser = argparse.ArgumentParser(description="Quantize a model with another engine.")
    parser.add_argument("model", help="folder")
    parser.add_argument("tokens", type=Path, help="JSON: lists of token ids")
    parser.add_argument("out", help="folder to make")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, required=True)
    parser.add_argument("--asym", dest="sym", action="store_false")
    parser.add_argument("--damp-percent", type=float, help="default: the engine's own")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--told", type=Path, help="file for what there is to tell")
    given = vars(parser.parse_args())
    given["tokens"] = json.loads(given["tokens"].read_text(encoding="utf-8"))
    return BackendJob(**given)


def peak_resident_bytes() -> int:
    """The most resident memory this program ever had, as Linux tells it."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (peak,) = (int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return peak * 1024
