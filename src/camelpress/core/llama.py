"""The LLaMA family as facts: which models it has, which layers a block holds, what feeds them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from camelpress.core.errors import CheckpointProblem

EMBEDDING_NAME = "model.embed_tokens"
FINAL_NORM_NAME = "model.norm"
HEAD_NAME = "lm_head"
BLOCK_NAME = "model.layers.{}"
# Last part of the names of buffers that follow from the config, by who stored them.
DERIVED_BUFFERS = frozenset(
    {
        *("inv_freq", "original_inv_freq"),  # transformers before 4.32; scaled rotary embeddings
        *("cos_cached", "sin_cached", "_cos_cached", "_sin_cached"),  # ColossalAI, DeepSpeed
        *("cos_sin_cache", "freqs_cis", "freqs"),  # vLLM; Meta's models and files
        *("masked_bias", "causal_mask", "position_ids"),  # masks and counters of any GPT
    }
)
# The causal mask of GPT-2, GPT-J and GPT-NeoX; a linear layer has its bias one level deeper.
CAUSAL_MASKS = ("attn.bias", "self_attn.bias", "attention.bias")
TIE_EMBEDDINGS_KEY = (
    "tie_word_embeddings"  # key of a config; no family ties where the key is absent
)
TEXT_CONFIG_KEY = "text_config"  # key of a config that describes several models


class LinearLayer(NamedTuple):
    """A linear layer of a block, and which of the block's activations is its input."""

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
# model_type: module of transformers, prefix of its classes
MODEL_FAMILIES: Mapping[str, tuple[str, str]] = {
    "llama":   ("transformers.models.llama.modeling_llama",     "Llama"),
    "mistral": ("transformers.models.mistral.modeling_mistral", "Mistral"),
    "qwen2":   ("transformers.models.qwen2.modeling_qwen2",     "Qwen2"),
}
# fmt: on
FUSED_LINEARS = {  # what some loaders make one layer of
    "self_attn.qkv_proj": "attention_input",
    "mlp.gate_up_proj": "mlp_input",
}
LINEAR_INPUTS = tuple(
    dict.fromkeys(linear.input_name for linear in LINEARS)
)  # 4 inputs a block, not 7


def is_derived_buffer(name: str) -> bool:
    """Tells whether a stored tensor is a buffer that follows from the config, and no weight."""
    parts = name.split(".")
    return parts[-1] in DERIVED_BUFFERS or ".".join(parts[-2:]) in CAUSAL_MASKS


def linears_with_input(stage: str) -> tuple[str, ...]:
    """The linear layers of a block that see one activation, in the order of the table."""
    return tuple(linear.name for linear in LINEARS if linear.input_name == stage)


def linear_names(blocks: int) -> list[str]:
    """The linear layers of so many blocks, by their full names."""
    return [
        f"{BLOCK_NAME.format(number)}.{linear.name}"
        for number in range(blocks)
        for linear in LINEARS
    ]


def has_head(tensors: Collection[str]) -> bool:
    """Returns whether there is a head of its own, packed or plain, beside the embedding."""
    parts = ("weight", "qweight", "weight_packed")
    return any(f"{HEAD_NAME}.{part}" in tensors for part in parts)


def is_tied(config: Mapping[str, Any]) -> bool:
    """Returns whether a config says that the embedding is the head, too."""
    inner = config.get(TEXT_CONFIG_KEY)
    text = inner if TIE_EMBEDDINGS_KEY not in config and isinstance(inner, Mapping) else config
    return text.get(TIE_EMBEDDINGS_KEY) is True


def model_classes(config: Mapping[str, Any], source: object) -> tuple[str, str]:
    """The transformers module and the class prefix for a model.

    Raises:
        CheckpointProblem: a model of another family.
    """
    kind = str(config.get("model_type"))
    if kind not in MODEL_FAMILIES:
        raise CheckpointProblem(
            f"{source} is of the architecture {kind!r}",
            next_step=f"use one that is supported: {', '.join(sorted(MODEL_FAMILIES))}",
        )
    return MODEL_FAMILIES[kind]
