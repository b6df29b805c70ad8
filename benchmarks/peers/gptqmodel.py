"""GPTQModel: its defaults, which are group-aware activation order and damping of 0.05.

It takes a type by name for none, and bfloat16 for that.
"""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.peers import job

os.environ["GPTQMODEL_CPU_WORKERS"] = str(job.THREADS)  # or it asks for more than there are

import torch
from gptqmodel import GPTQModel, QuantizeConfig


def main() -> None:
    """Quantize."""
    given = job.read()
    config = QuantizeConfig(
        bits=job.BITS,
        group_size=given.group_size,
        sym=True,
        offload_to_disk_path=str(Path(given.out + ".offload").resolve()),
    )
    model = GPTQModel.load(given.model, config, device="cpu", dtype=getattr(torch, given.dtype))
    model.quantize(given.rows)
    model.save(given.out)


if __name__ == "__main__":
    main()
