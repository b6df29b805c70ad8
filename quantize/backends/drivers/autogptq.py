"""Driver of AutoGPTQ (archived): activation order with static groups, damping 0.01.

With its default, activation order moves the groups, which current kernels refuse. AutoGPTQ was
written for CUDA and transformers 4.40, so the driver replaces its CUDA device on a CPU, and wraps
the decoder layers of transformers 4.54 and later to return a tuple instead of a tensor.
"""

from __future__ import annotations

from typing import Any

import auto_gptq.modeling._base as base
import auto_gptq.modeling._utils as utils
import torch
from auto_gptq import BaseQuantizeConfig
from auto_gptq.modeling.auto import GPTQ_CAUSAL_LM_MODEL_MAP
from transformers import AutoModelForCausalLM

from camelpress.quantize.backends.drivers import backend_job


def main() -> None:
    """Quantizes the model of the job."""
    job = backend_job.read_job()
    device = job.pick_device(torch.cuda.is_available())
    base.CUDA_0 = utils.CUDA_0 = torch.device(device)
    if not torch.cuda.is_available():
        torch.cuda.synchronize = lambda device=None: None
    source: Any = AutoModelForCausalLM.from_pretrained(
        job.model, torch_dtype=getattr(torch, job.dtype)
    )
    for layer in source.model.layers:
        layer.forward = return_tuple(layer.forward)
    config = BaseQuantizeConfig(
        **job.grid_options, desc_act=True, static_groups=True, model_file_base_name="model"
    )
    model = GPTQ_CAUSAL_LM_MODEL_MAP[source.config.model_type](source.eval(), False, config)
    model.quantize(job.examples, use_triton=False, cache_examples_on_gpu=False)
    model.save_quantized(job.out)
    job.write_facts(device=device, fallbacks=0)


def return_tuple(forward: Any) -> Any:
    """Wraps the forward pass of a decoder layer to return a tuple."""

    def forward_tuple(*inputs: Any, **options: Any) -> Any:
        output = forward(*inputs, **options)
        return output if isinstance(output, tuple) else (output,)

    return forward_tuple


if __name__ == "__main__":
    main()
