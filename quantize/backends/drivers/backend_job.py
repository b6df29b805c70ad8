"""Command line and job of a backend driver.

Usage: python -m camelpress.quantize.backends.drivers.ENGINE MODEL TOKENS OUT

A driver runs in the environment of its backend, where only this folder of camelpress is visible. It
quantizes all linear layers except the head.
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

    model: str  # model folder
    tokens: list[list[int]]  # token ids of each sequence
    out: str  # output folder, which does not exist
    bits: int
    group_size: int  # columns that share a scale; -1 for the whole row
    sym: bool
    damp_percent: float | None  # none for the default of the backend
    dtype: str  # dtype of the weights and the computation
    device: str  # auto, cpu or cuda:N
    facts_path: Path | None  # JSON file for facts of the run

    @property
    def max_length(self) -> int:
        """Number of tokens of the longest sequence."""
        return max(map(len, self.tokens))

    @property
    def examples(self) -> list[dict[str, list[int]]]:
        """Sequences in the format of transformers' tokenizers."""
        return [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in self.tokens]

    @property
    def grid_options(self) -> dict[str, Any]:
        """Settings with the same names in all backends."""
        damping = {} if self.damp_percent is None else {"damp_percent": self.damp_percent}
        return {"bits": self.bits, "group_size": self.group_size, "sym": self.sym, **damping}

    def pick_device(self, has_cuda: bool) -> str:
        """Returns the device, with `auto` resolved."""
        if self.device != "auto":
            return self.device
        return "cuda:0" if has_cuda else "cpu"

    def write_facts(self, **facts: Any) -> None:
        """Writes facts of the run to `facts_path`, if it is set."""
        if self.facts_path is not None:
            facts |= {"dtype": self.dtype, "peak_bytes": peak_resident_bytes()}
            self.facts_path.write_text(json.dumps(facts), encoding="utf-8")


def read_job() -> BackendJob:
    """Reads the job from the command line."""
    parser = argparse.ArgumentParser(description="Quantize a model with another engine.")
    parser.add_argument("model", help="model folder")
    parser.add_argument(
        "tokens", type=Path, help="JSON file with a list of token ids for each sequence"
    )
    parser.add_argument("out", help="output folder")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, required=True)
    parser.add_argument("--asym", dest="sym", action="store_false")
    parser.add_argument("--damp-percent", type=float, help="default: that of the engine")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--facts-path", type=Path, help="JSON file for facts of the run")
    arguments = vars(parser.parse_args())
    arguments["tokens"] = json.loads(arguments["tokens"].read_text(encoding="utf-8"))
    return BackendJob(**arguments)


def peak_resident_bytes() -> int:
    """Returns the peak resident memory of this process on Linux."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (peak,) = (int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return peak * 1024
