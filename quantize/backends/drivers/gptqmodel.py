"""Driver of GPTQModel with its defaults: group-aware activation order, damping 0.05.

GPTQModel ignores a dtype given by name and uses bfloat16, so the driver passes a torch dtype. It
also disables two defaults: to drop sequences of ten tokens or fewer, and to round layers with few
tokens to nearest. Zero points are saved unchanged (gptq_v2): its v1 corrupts neighbours of a 0.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from camelpress.quantize.backends.drivers import backend_job

# The default number of workers may exceed the CPUs of this process.
os.environ["GPTQMODEL_CPU_WORKERS"] = backend_job.CPU_WORKERS

import torch
from gptqmodel import GPTQModel, QuantizeConfig


def main() -> None:
    """Quantizes the model of the job.

    Raises:
        SystemExit: a layer could not be solved.
    """
    job = backend_job.read_job()
    config = QuantizeConfig(
        **job.grid_options,
        format="gptq_v2",
        fallback=None,
        offload_to_disk_path=str(Path(job.out + ".offload").resolve()),
    )
    device = job.pick_device(torch.cuda.is_available())
    model = GPTQModel.load(job.model, config, device=device, dtype=getattr(torch, job.dtype))
    log = model.quantize(job.examples, calibration_data_min_length=0)
    failures = [name for name, loss in layer_losses(log) if not is_solved_loss(loss)]
    if failures:
        raise SystemExit(f"GPTQModel did not solve {', '.join(failures)}")
    model.save(job.out)
    job.write_facts(device=device, fallbacks=0)


def layer_losses(log: Any) -> list[tuple[str, str]]:
    """Returns name and loss of every layer in the log of `quantize`."""
    rows = [row for rows in log.values() for row in rows] if isinstance(log, dict) else log
    return [(f"{row['layer']}.{row['module']}", str(row["loss"])) for row in rows]


def is_solved_loss(loss: str) -> bool:
    """Returns true for a number other than the marker of a missing loss."""
    try:
        return float(loss) < 999999999
    except ValueError:
        return False


if __name__ == "__main__":
    main()
