"""Driver of optimum on GPTQModel, through transformers' GPTQConfig, with its damping of 0.1.

It saves the gptq_v2 format. The calibration data in the config is not JSON, so the driver removes
it from every copy of the config before it saves the model.
"""

from __future__ import annotations

import os
from typing import Any

from camelpress.quantize.backends.drivers import backend_job

# The default number of workers may exceed the CPUs of this process.
os.environ["GPTQMODEL_CPU_WORKERS"] = backend_job.CPU_WORKERS

import torch
from optimum.gptq import GPTQQuantizer  # noqa: F401 - GPTQConfig imports it late
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTQConfig


def main() -> None:
    """Quantizes the model of the job."""
    job = backend_job.read_job()
    device = job.pick_device(torch.cuda.is_available())
    data: Any = [
        {name: torch.tensor([values]) for name, values in row.items()} for row in job.examples
    ]
    config = GPTQConfig(
        **job.grid_options,
        dataset=data,
        tokenizer=AutoTokenizer.from_pretrained(job.model),
        model_seqlen=job.max_length,
    )
    model: Any = AutoModelForCausalLM.from_pretrained(
        job.model, dtype=job.dtype, device_map=device, quantization_config=config
    )
    for holder in (
        config,
        model.config.quantization_config,
        model.hf_quantizer.quantization_config,
        model.hf_quantizer.optimum_quantizer,
    ):
        holder.dataset = holder.tokenizer = None
    model.save_pretrained(job.out)
    job.write_facts(device=device)


if __name__ == "__main__":
    main()
