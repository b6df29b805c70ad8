"""A checkpoint as a whole model of transformers, packed weights made plain.

The weights come through the block walker, which dequantizes, compares shapes with the config and
refuses what is not finite; so no GPTQ package is needed, and a 16-bit and a 4-bit model are read
by the same code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from camelpress.core import llama
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.packing.linear_layers import head_of
from camelpress.core.progress import track
from camelpress.inference.model.streamed_model import StreamedModel


def load(checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """A model that `generate` of transformers takes.

    Args:
        checkpoint: 16-bit or GPTQ, of the LLaMA family.
        device: where it will be.
        dtype: of weights and activations; never fp16 on a CPU.
    Raises:
        CheckpointProblem: another architecture, or weights that do not fit the config.
        NumericsProblem: a weight is not finite.
    """
    source = StreamedModel(checkpoint, device=device, dtype=dtype)
    config = source.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    for number in track(range(source.blocks), "load"):
        _fill(
            model.get_submodule(llama.BLOCK.format(number)),
            {key: each.to(device, dtype) for key, each in source.weights(number).items()},
        )
    norm, output = source.head().children()
    _fill(model.get_submodule(llama.FINAL_NORM), norm.state_dict())
    _fill(model.get_submodule(llama.HEAD), output.state_dict())
    tied = head_of(checkpoint) == llama.EMBEDDING
    table = output.get_parameter("weight") if tied else source.embedding().to(device, dtype)
    _fill(model.get_submodule(llama.EMBEDDING), {"weight": table})
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=config).to(device)  # computed, never stored
    return model.eval().requires_grad_(False)


def _fill(module: nn.Module, weights: dict[str, Tensor]) -> None:
    module.load_state_dict(weights, assign=True)
