"""GPTQModel: its defaults, which are group-aware activation order and damping of 0.05.

It takes a type by name for none, and bfloat16 for that. It drops sequences of ten tokens and fewer
unless told not to, and rounds layers that see few tokens to nearest unless that is switched off.
Zero points are saved as they are (gptq_v2): its v1 borrows across those that are 0.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from camelpress.quantize.backends.drivers import backend_job

os.environ["GPTQMODEL_CPU_WORKERS"] = backend_job.CPU_WORKERS  # or it asks for more than there are

import torch
from gptqmodel import GPTQModel, QuantizeConfig


def main() -> None:
    """Quantize.

    Raises:
        SystemExit: a layer could not be solved.
    """
    given = backend_job.read_job()
    config = QuantizeConfig(
        **given.grid_options,
        format="gptq_v2",
        fallback=None,
        offload_to_disk_path=str(Path(given.out + ".offload").resolve()),
    )
    device = given.pick_device(torch.cuda.is_available())
    model = GPTQModel.load(given.model, config, device=device, dtype=getattr(torch, given.dtype))
    log = model.quantize(given.examples, calibration_data_min_length=0)
    unsolved = [name for name, loss in layer_losses(log) if not is_solved_loss(loss)]
    if unsolved:
        raise SystemExit(f"GPTQModel did not solve {', '.join(unsolved)}")
    model.save(given.out)
    given.write_facts(device=device, fallbacks=0)


def layer_losses(log: Any) -> list[tuple[str, str]]:
    """The loss of every layer, of what `quantize` returns."""
    rows = [row for rows in log.values() for row in rows] if isinstance(log, dict) else log
    return [(f"{row['layer']}.{row['module']}", str(row["loss"])) for row in rows]


def is_solved_loss(loss: str) -> bool:
    """Whether a loss is a number, and not the one that stands for none."""
    try:
        return float(loss) < 999999999
    except ValueError:
        return False


if __name__ == "__main__":
    main()
