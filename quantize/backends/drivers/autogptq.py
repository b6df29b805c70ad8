"""AutoGPTQ, which is archived: activation order with groups that stay where they are, damping 0.01.

Its own default lets activation order move the groups, which today's kernels refuse. It was written
for CUDA and transformers 4.40: on a CPU its one device is taken for that, and the decoder layers
of transformers 4.54 and later, which return a tensor, return a tuple again.
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
    """Quantize."""
    given = backend_job.read_job()
    device = given.pick_device(torch.cuda.is_available())
    base.CUDA_0 = utils.CUDA_0 = torch.device(device)
    if not torch.cuda.is_available():
        torch.cuda.synchronize = lambda device=None: None
    plain: Any = AutoModelForCausalLM.from_pretrained(
        given.model, torch_dtype=getattr(torch, given.dtype)
    )
    for layer in plain.model.layers:
        layer.forward = return_tuple(layer.forward)
    config = BaseQuantizeConfig(
        **given.grid_options, desc_act=True, static_groups=True, model_file_base_name="model"
    )
    model = GPTQ_CAUSAL_LM_MODEL_MAP[plain.config.model_type](plain.eval(), False, config)
    model.quantize(given.examples, use_triton=False, cache_examples_on_gpu=False)
    model.save_quantized(given.out)
    given.write_facts(device=device, fallbacks=0)


def return_tuple(forward: Any) -> Any:
    """A decoder layer's forward pass as AutoGPTQ takes it apart."""

    def forwarded(*inputs: Any, **options: Any) -> Any:
        found = forward(*inputs, **options)
        return found if isinstance(found, tuple) else (found,)

    return forwarded


if __name__ == "__main__":
    main()
