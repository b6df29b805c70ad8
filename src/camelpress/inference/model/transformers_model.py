"""Loads a checkpoint as a whole transformers model with dequantized weights.

`StreamedModel` reads the weights: it dequantizes them, compares shapes with the config and rejects
non-finite values. So no GPTQ package is needed, and 16-bit and 4-bit models share the same code.
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
    """Loads a model with all its blocks in memory.

    Args:
        checkpoint: a 16-bit or GPTQ checkpoint of the LLaMA family.
        device: device of the model.
        dtype: dtype of weights and activations; never fp16 on a CPU.
    Raises:
        CheckpointProblem: the architecture is unknown, or weights do not fit the config.
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
                key: tensor.to(device, dtype)
                for key, tensor in source.read_block_weights(number).items()
            },
        )
    norm, output = source.read_head().children()
    _load_weights(model.get_submodule(llama.FINAL_NORM_NAME), norm.state_dict())
    _load_weights(model.get_submodule(llama.HEAD_NAME), output.state_dict())
    is_tied = head_name(checkpoint) == llama.EMBEDDING_NAME
    table = output.get_parameter("weight") if is_tied else source.read_embedding().to(device, dtype)
    _load_weights(model.get_submodule(llama.EMBEDDING_NAME), {"weight": table})
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=config).to(
        device
    )  # computed from the config, never stored
    return model.eval().requires_grad_(False)


def _load_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    module.load_state_dict(weights, assign=True)
