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
from camelpress.core.packing.linear_layers import head_name
from camelpress.core.progress import track
from camelpress.inference.model.streamed_model import StreamedModel


def load_transformers_model(
    checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
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
    for number in track(range(source.block_count), "load"):
        _load_weights(
            model.get_submodule(llama.BLOCK_NAME.format(number)),
            {
                key: each.to(device, dtype)
                for key, each in source.read_block_weights(number).items()
            },
        )
    norm, output = source.read_head().children()
    _load_weights(model.get_submodule(llama.FINAL_NORM_NAME), norm.state_dict())
    _load_weights(model.get_submodule(llama.HEAD_NAME), output.state_dict())
    tied = head_name(checkpoint) == llama.EMBEDDING_NAME
    table = output.get_parameter("weight") if tied else source.read_embedding().to(device, dtype)
    _load_weights(model.get_submodule(llama.EMBEDDING_NAME), {"weight": table})
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=config).to(device)  # computed, never stored
    return model.eval().requires_grad_(False)


def _load_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    module.load_state_dict(weights, assign=True)
