"""LLaMA family: its architectures, the linear layers of a block and the input of each layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from camelpress.core.errors import CheckpointProblem

EMBEDDING_NAME = "model.embed_tokens"
FINAL_NORM_NAME = "model.norm"
HEAD_NAME = "lm_head"
BLOCK_NAME = "model.layers.{}"
# Last parts of the names of buffers derived from the config, by library.
DERIVED_BUFFERS = frozenset(
    {
        *("inv_freq", "original_inv_freq"),  # transformers before 4.32; scaled rotary embeddings
        *("cos_cached", "sin_cached", "_cos_cached", "_sin_cached"),  # ColossalAI, DeepSpeed
        *("cos_sin_cache", "freqs_cis", "freqs"),  # vLLM; Meta's models and files
        *("masked_bias", "causal_mask", "position_ids"),  # masks and counters of any GPT
    }
)
# Causal masks of GPT-2, GPT-J and GPT-NeoX; the bias of a linear layer lies one level deeper.
CAUSAL_MASKS = ("attn.bias", "self_attn.bias", "attention.bias")
TIE_EMBEDDINGS_KEY = "tie_word_embeddings"  # config key; its absence means untied in every family
TEXT_CONFIG_KEY = "text_config"  # key of the text model in the config of a multimodal model


class LinearLayer(NamedTuple):
    """A linear layer of a block and the name of its input activation."""

    name: str
    input_name: str


# fmt: off
LINEARS = (
    LinearLayer("self_attn.q_proj", "attention_input"),
    LinearLayer("self_attn.k_proj", "attention_input"),
    LinearLayer("self_attn.v_proj", "attention_input"),
    LinearLayer("self_attn.o_proj", "attention_context"),
    LinearLayer("mlp.gate_proj",    "mlp_input"),
    LinearLayer("mlp.up_proj",      "mlp_input"),
    LinearLayer("mlp.down_proj",    "mlp_middle"),
)
# model_type: transformers module, prefix of its class names
MODEL_FAMILIES: Mapping[str, tuple[str, str]] = {
    "llama":   ("transformers.models.llama.modeling_llama",     "Llama"),
    "mistral": ("transformers.models.mistral.modeling_mistral", "Mistral"),
    "qwen2":   ("transformers.models.qwen2.modeling_qwen2",     "Qwen2"),
}
# fmt: on
FUSED_LINEARS = {  # fused layer of some loaders: its input
    "self_attn.qkv_proj": "attention_input",
    "mlp.gate_up_proj": "mlp_input",
}
# 4 inputs per block for 7 layers
LINEAR_INPUTS = tuple(dict.fromkeys(linear.input_name for linear in LINEARS))


def is_derived_buffer(name: str) -> bool:
    """Returns True if a stored tensor is a buffer derived from the config, not a weight."""
    parts = name.split(".")
    return parts[-1] in DERIVED_BUFFERS or ".".join(parts[-2:]) in CAUSAL_MASKS


def linears_with_input(input_name: str) -> tuple[str, ...]:
    """Lists the linear layers of a block with the given input, in the order of `LINEARS`."""
    return tuple(linear.name for linear in LINEARS if linear.input_name == input_name)


def linear_names(blocks: int) -> list[str]:
    """Lists the full names of the linear layers in the first `blocks` blocks."""
    return [
        f"{BLOCK_NAME.format(number)}.{linear.name}"
        for number in range(blocks)
        for linear in LINEARS
    ]


def has_head(tensors: Collection[str]) -> bool:
    """Returns True if a separate head exists beside the embedding, packed or plain."""
    parts = ("weight", "qweight", "weight_packed")
    return any(f"{HEAD_NAME}.{part}" in tensors for part in parts)


def is_tied(config: Mapping[str, Any]) -> bool:
    """Returns True if a config shares one matrix between embedding and head."""
    inner = config.get(TEXT_CONFIG_KEY)
    text = inner if TIE_EMBEDDINGS_KEY not in config and isinstance(inner, Mapping) else config
    return text.get(TIE_EMBEDDINGS_KEY) is True


def model_classes(config: Mapping[str, Any], source: object) -> tuple[str, str]:
    """Returns the transformers module and the class prefix for a model.

    Args:
        config: Content of config.json.
        source: Name of the model, for messages.
    Raises:
        CheckpointProblem: The architecture is not supported.
    """
    model_type = str(config.get("model_type"))
    if model_type not in MODEL_FAMILIES:
        raise CheckpointProblem(
            f"{source} is of the architecture {model_type!r}",
            next_step=f"use one that is supported: {', '.join(sorted(MODEL_FAMILIES))}",
        )
    return MODEL_FAMILIES[model_type]
