"""optimum on GPTQModel, by way of transformers' GPTQConfig: its defaults, damping of 0.1.

It saves the gptq_v2 layout. The calibration data in the config is no JSON, so it is taken out of
every copy of the config before the model is saved.
"""

from __future__ import annotations

import os
from typing import Any

from camelpress.quantize.backends.drivers import backend_job

os.environ["GPTQMODEL_CPU_WORKERS"] = backend_job.CPU_WORKERS  # or it asks for more than there are

import torch
from optimum.gptq import GPTQQuantizer  # noqa: F401 - GPTQConfig imports it late
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTQConfig


def main() -> None:
    """Quantize."""
    given = backend_job.read_job()
    device = given.pick_device(torch.cuda.is_available())
    data: Any = [
        {name: torch.tensor([values]) for name, values in row.items()} for row in given.examples
    ]
    config = GPTQConfig(
        **given.grid_options,
        dataset=data,
        tokenizer=AutoTokenizer.from_pretrained(given.model),
        model_seqlen=given.max_length,
    )
    model: Any = AutoModelForCausalLM.from_pretrained(
        given.model, dtype=given.dtype, device_map=device, quantization_config=config
    )
    for place in (
        config,
        model.config.quantization_config,
        model.hf_quantizer.quantization_config,
        model.hf_quantizer.optimum_quantizer,
    ):
        place.dataset = place.tokenizer = None
    model.save_pretrained(given.out)
    given.write_facts(device=device)


if __name__ == "__main__":
    main()
