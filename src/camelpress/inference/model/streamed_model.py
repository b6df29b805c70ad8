"""Streamed model: runs one decoder block at a time, and reads its weights on demand.

Calibration and scoring both use it, so neither loads the whole model: memory holds one block, the
hidden states of all tokens, and one batch of activations.

A block is split at the four inputs of its linear layers (`llama.LINEAR_INPUTS`):

    hidden += o_proj(context(attention_input(hidden)))
    hidden += down_proj(mlp_middle(mlp_input(hidden)))

So a quantizer can observe each input after everything before it is quantized, in one pass. The
arithmetic is that of the modules of transformers; only the residual sums are written here.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import CONFIG_MAPPING

from camelpress.core import llama
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem, NumericsProblem, RecipeProblem
from camelpress.core.packing.linear_layers import check_packed_linears, head_name, read_linear
from camelpress.core.progress import track
from camelpress.core.runtime.out_of_memory import is_out_of_memory
from camelpress.inference.model import attention
from camelpress.inference.model.batch_sizes import batch_sizes
from camelpress.inference.model.token_batches import (
    TokenBatch,
    TokenBatches,
    device_batches,
    put_batch,
)

FINITE_CHECK_ROWS = 1024  # rows per check for finite values
CONFIG_ERRORS = (  # errors of transformers for an invalid config
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
_LINEAR_NAMES = tuple(linear.name for linear in llama.LINEARS)


class RotaryPositions(NamedTuple):
    """Rotary embeddings of the tokens of a batch, and the lengths of its sequences."""

    cosine: Float[Tensor, "1 batch width"]
    sine: Float[Tensor, "1 batch width"]
    lengths: list[int]  # tokens of each sequence


class DecoderBlock:
    """One decoder block with its weights, split at the inputs of its linear layers.

    Hidden states keep their own dtype, possibly wider than the dtype of weights and products: the
    output of one block is small beside the residual stream.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._linears = {name: layer.get_submodule(name) for name in _LINEAR_NAMES}
        self._dtype = self.weight(_LINEAR_NAMES[0]).dtype
        self._attention_norm = layer.get_submodule("input_layernorm")
        self._attention: Any = layer.get_submodule("self_attn")
        self._rotate = importlib.import_module(type(layer).__module__).apply_rotary_pos_emb
        self._mlp_norm = layer.get_submodule("post_attention_layernorm")
        self._activation = layer.get_submodule("mlp.act_fn")
        self._attention.o_proj = nn.Identity()

    def weight(self, linear: str) -> Float[Tensor, "rows cols"]:
        """Returns the weight of one linear layer."""
        return self._linears[linear].get_parameter("weight")

    def replace_weight(self, linear: str, weight: Float[Tensor, "rows cols"]) -> None:
        """Replaces the weight of one linear layer; other blocks of the same tensors keep theirs."""
        self._linears[linear].weight = nn.Parameter(weight.to(self._dtype), requires_grad=False)

    def attention_input(self, hidden: Float[Tensor, "b s h"]) -> Float[Tensor, "b s h"]:
        """Returns the input of q, k and v."""
        return self._attention_norm(hidden).to(self._dtype)

    @property
    def scaling(self) -> float:
        """Factor of the products of queries and keys."""
        return float(self._attention.scaling)

    def qkv(
        self, attention_input: Float[Tensor, "b s h"], rotary: tuple[Tensor, Tensor]
    ) -> tuple[Float[Tensor, "b q s d"], Float[Tensor, "b kv s d"], Float[Tensor, "b kv s d"]]:
        """Returns rotated queries, rotated keys and values by head."""
        shape = (*attention_input.shape[:2], -1, self._attention.head_dim)
        query, key, value = (
            self._apply_linear(f"self_attn.{name}_proj", attention_input)
            .view(shape)
            .transpose(1, 2)
            for name in "qkv"
        )
        return *self._rotate(query, key, *rotary), value

    def context(
        self, attention_input: Float[Tensor, "b s h"], rope: RotaryPositions
    ) -> Float[Tensor, "b s c"]:
        """Returns the input of o: causal attention within each sequence."""
        return self._attention(
            hidden_states=attention_input,
            position_embeddings=(rope.cosine, rope.sine),
            attention_mask=None,
            lengths=rope.lengths,
        )[0]

    def attention_output(self, context: Float[Tensor, "b s c"]) -> Float[Tensor, "b s h"]:
        """Returns the attention output added to the residual stream."""
        return self._apply_linear("self_attn.o_proj", context)

    def mlp_input(self, hidden: Float[Tensor, "b s h"]) -> Float[Tensor, "b s h"]:
        """Returns the input of gate and up."""
        return self._mlp_norm(hidden).to(self._dtype)

    def mlp_middle(self, mlp_input: Float[Tensor, "b s h"]) -> Float[Tensor, "b s f"]:
        """Returns the input of down: the gated activations, multiplied in place."""
        middle: Tensor = self._activation(self._apply_linear("mlp.gate_proj", mlp_input))
        return middle.mul_(self._apply_linear("mlp.up_proj", mlp_input))

    def mlp_output(self, middle: Float[Tensor, "b s f"]) -> Float[Tensor, "b s h"]:
        """Returns the MLP output added to the residual stream."""
        return self._apply_linear("mlp.down_proj", middle)

    def add_attention(
        self, hidden: Float[Tensor, "b s h"], rope: RotaryPositions
    ) -> Float[Tensor, "b s h"]:
        """Runs the attention half of the block."""
        return hidden + self.attention_output(self.context(self.attention_input(hidden), rope))

    def add_mlp(self, hidden: Float[Tensor, "b s h"]) -> Float[Tensor, "b s h"]:
        """Runs the MLP half of the block."""
        return hidden + self.mlp_output(self.mlp_middle(self.mlp_input(hidden)))

    def __call__(
        self, hidden: Float[Tensor, "b s h"], rope: RotaryPositions
    ) -> Float[Tensor, "b s h"]:
        """Runs the whole block."""
        return self.add_mlp(self.add_attention(hidden, rope))

    def _apply_linear(
        self, linear: str, inputs: Float[Tensor, "b s cols"]
    ) -> Float[Tensor, "b s rows"]:
        outputs: Tensor = self._linears[linear](inputs)
        return outputs


class StreamedModel:
    """A checkpoint that runs without being loaded as a whole.

    Args:
        checkpoint: a checkpoint of the LLaMA family, 16-bit or in a packed layout known to
            `core.packing`.
        device: device of blocks and batches; hidden states may be elsewhere.
        dtype: dtype of weights and activations; never fp16 on a CPU.
    Raises:
        CheckpointProblem: the architecture is unknown, transformers rejects the config, packed
            layers cannot be read, or a bias has no place in the architecture.
    """

    def __init__(self, checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> None:
        module, self._prefix = llama.model_classes(checkpoint.config, checkpoint.folder)
        self._modules = importlib.import_module(module)
        self.checkpoint = checkpoint
        self.device = device
        self.dtype = dtype
        self.sizes = batch_sizes(device)
        try:
            self.config = CONFIG_MAPPING[checkpoint.config["model_type"]].from_dict(
                dict(checkpoint.config)
            )
            self.config._attn_implementation = attention.register_attention()
            self._rotary = self._class("RotaryEmbedding")(config=self.config).to(device)
            self._empty_layer(0)
        except CONFIG_ERRORS as error:
            if is_out_of_memory(error):
                raise
            raise CheckpointProblem(
                f"{checkpoint.folder / 'config.json'} is not usable ({error})",
                next_step="compare it with the config of the original model",
            ) from error
        self.block_count = int(self.config.num_hidden_layers)
        self.max_positions = int(self.config.max_position_embeddings)
        window = getattr(self.config, "sliding_window", None)
        if window is not None and getattr(self.config, "use_sliding_window", True):
            self.max_positions = min(self.max_positions, int(window))
        check_packed_linears(checkpoint)
        self._require_head()
        self._require_known_biases()

    def embed_sequences(self, sequences: TokenBatches) -> Float[Tensor, "tokens hidden"]:
        """Returns the embeddings of all tokens, on the CPU.

        Raises:
            CheckpointProblem: the text has ids outside the embedding.
            NumericsProblem: an embedding is not finite.
        """
        return self.embed_ids(sequences.tokens, self.read_embedding()).to(self.dtype)

    def read_embedding(self) -> Float[Tensor, "vocabulary hidden"]:
        """Reads the embedding matrix in its stored dtype.

        Raises:
            NumericsProblem: an embedding is not finite.
        """
        table = self.checkpoint.read(f"{llama.EMBEDDING_NAME}.weight")
        self._require_finite(f"{llama.EMBEDDING_NAME}.weight", table)
        return table

    def embed_ids(
        self, ids: Int64[Tensor, "*shape"], table: Float[Tensor, "vocabulary hidden"]
    ) -> Float[Tensor, "*shape hidden"]:
        """Returns the rows of the embedding matrix for all ids.

        Raises:
            CheckpointProblem: the text has ids outside the embedding.
        """
        max_id = int(ids.max())
        if max_id >= len(table):
            raise CheckpointProblem(
                f"{self.checkpoint.folder} embeds {len(table)} tokens, the text has id {max_id}",
                next_step="use the tokenizer that belongs to this model",
            )
        return table[ids]

    def batch_rotary(self, batch: TokenBatch) -> RotaryPositions:
        """Returns the rotary embeddings of a batch."""
        indices = [torch.arange(length) for length in batch.lengths]
        positions = torch.cat(indices)[None] + batch.first_position
        return RotaryPositions(*self.rotary(positions.to(self.device)), batch.lengths)

    def rotary(
        self, positions: Int64[Tensor, "rows new"]
    ) -> tuple[Float[Tensor, "rows new width"], Float[Tensor, "rows new width"]]:
        """Returns cosines and sines of positions on the device."""
        sample = torch.empty(0, dtype=self.dtype, device=self.device)
        cosine, sine = self._rotary(sample, positions)
        return cosine, sine

    def read_block(self, number: int) -> DecoderBlock:
        """Reads one decoder block, and dequantizes packed weights.

        Raises:
            UnknownTensor: a weight is missing.
            NumericsProblem: a weight is not finite.
        """
        return self.build_block(number, self.read_block_weights(number))

    def read_block_weights(self, number: int) -> dict[str, Tensor]:
        """Reads the weights of one decoder block to the CPU, by name within the block.

        Raises:
            UnknownTensor: a weight is missing.
            NumericsProblem: a weight is not finite.
        """
        prefix = llama.BLOCK_NAME.format(number)
        return {
            key: self._read(f"{prefix}.{key}", torch.Size(shape))
            for key, shape in self.block_shapes(number).items()
        }

    def block_shapes(self, number: int) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the weights of one decoder block, by name within the block."""
        tensors = self._empty_layer(number).state_dict()
        return {key: tuple(tensor.shape) for key, tensor in tensors.items()}

    def to_device(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Moves weights to the device and the compute dtype."""
        return {key: self._tensor_to_device(tensor) for key, tensor in weights.items()}

    def build_block(self, number: int, weights: Mapping[str, Tensor]) -> DecoderBlock:
        """Builds a decoder block from weights, on the device."""
        layer = self._empty_layer(number)
        layer.load_state_dict(self.to_device(weights), assign=True)
        return DecoderBlock(layer.eval().requires_grad_(False))

    def last_hidden_states(
        self, sequences: TokenBatches, label: str
    ) -> Float[Tensor, "tokens hidden"]:
        """Runs all blocks, and returns the last hidden states of all tokens.

        Args:
            sequences: the tokens.
            label: label of the progress bar.
        """
        hidden = self.embed_sequences(sequences)
        for number in track(range(self.block_count), label):
            self.run_block(sequences, hidden, self.read_block(number), hidden)
        return hidden

    def run_block(
        self,
        sequences: TokenBatches,
        hidden: Float[Tensor, "tokens hidden"],
        block: DecoderBlock,
        output: Float[Tensor, "tokens hidden"],
    ) -> None:
        """Runs all hidden states through one block.

        Args:
            sequences: the tokens.
            hidden: states before the block.
            block: the block, on the device of this model.
            output: tensor for the states after the block; it may be `hidden`.
        """
        states = device_batches(hidden, sequences.batches, self.device)
        for batch, values in zip(sequences.batches, states, strict=True):
            put_batch(output, batch, block(values, self.batch_rotary(batch)))

    def read_head(self) -> nn.Module:
        """Reads final norm and output projection; they map hidden states to logits."""
        with torch.device("meta"):
            norm = self._class("RMSNorm")(self.config.hidden_size, eps=self.config.rms_norm_eps)
            output = nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False)
        name = f"{head_name(self.checkpoint)}.weight"
        norm.load_state_dict(
            {
                "weight": self._tensor_to_device(
                    self._read(f"{llama.FINAL_NORM_NAME}.weight", norm.state_dict()["weight"].shape)
                )
            },
            assign=True,
        )
        output.load_state_dict(
            {"weight": self._tensor_to_device(self._read(name, output.weight.shape))}, assign=True
        )
        return nn.Sequential(norm, output).eval().requires_grad_(False)

    def _empty_layer(self, number: int) -> nn.Module:
        with torch.device("meta"):
            return self._class("DecoderLayer")(self.config, number)

    def _class(self, name: str) -> type[nn.Module]:
        cls: type[nn.Module] = getattr(self._modules, self._prefix + name)
        return cls

    def _require_head(self) -> None:
        """Checks the shape of an unquantized head."""
        name = f"{head_name(self.checkpoint)}.weight"
        info = self.checkpoint.tensors.get(name)
        if info is not None:
            self._require_shape(name, info.shape, (self.config.vocab_size, self.config.hidden_size))

    def _require_known_biases(self) -> None:
        """Checks that biases without a place in the model, as AutoGPTQ writes them, are zero."""
        shapes = self.block_shapes(0)
        for name in self.checkpoint.tensors:
            key = name if name == f"{llama.HEAD_NAME}.bias" else name.split(".", 3)[-1]
            linears = (*_LINEAR_NAMES, llama.HEAD_NAME)
            if key.removesuffix(".bias") in linears and key not in shapes:
                if bool(self.checkpoint.read(name).any()):
                    raise CheckpointProblem(
                        f"{self.checkpoint.folder} holds {name!r}, which is not zero, and its "
                        "config.json describes a model without it",
                        next_step="use the config that belongs to these weights",
                    )

    def _read(self, name: str, shape: torch.Size) -> Tensor:
        linear = name.removesuffix(".weight")
        is_linear = linear.split(".", 3)[-1] in (*_LINEAR_NAMES, llama.HEAD_NAME)
        tensor = read_linear(self.checkpoint, linear) if is_linear else self.checkpoint.read(name)
        self._require_shape(name, tensor.shape, shape)
        self._require_finite(name, tensor)
        return tensor

    def _require_shape(self, name: str, shape: tuple[int, ...], size: tuple[int, ...]) -> None:
        if tuple(shape) != tuple(size):
            raise CheckpointProblem(
                f"{self.checkpoint.folder} holds {name!r} as {tuple(shape)}, "
                f"its config.json asks for {tuple(size)}",
                next_step="use the config that belongs to these weights",
            )

    def _tensor_to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(device=self.device, dtype=self.dtype)

    def _require_finite(self, name: str, tensor: Tensor) -> None:
        non_finite = 0
        for part in tensor.split(FINITE_CHECK_ROWS):
            non_finite += int((~part.isfinite()).sum())
        if non_finite:
            raise NumericsProblem(
                f"{self.checkpoint.folder}: {name!r} holds {non_finite} values that are not finite",
                next_step="download or recover the checkpoint again",
            )


def compute_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Returns the compute dtype: the model's dtype on a GPU, fp32 on a CPU."""
    return torch.float32 if device.type == "cpu" else dtype


def has_fast_bfloat16() -> bool:
    """Returns True if the CPU multiplies bfloat16 matrices faster than fp32 matrices.

    The answer depends on CPU features, not on a timing, so it is the same in every run. It is True
    with AMX and with AVX-512 of AMD; AVX-512 of Intel takes twice as long with bfloat16.
    """
    features = torch.cpu.get_capabilities()
    avx512 = features.get("avx512_bf16") and not str(features.get("cpu_name")).startswith("Intel")
    return bool(avx512 or features.get("amx_bf16") or features.get("bf16"))


def pick_device(name: str) -> torch.device:
    """Returns a device by name; `auto` is the first GPU, or the CPU without one.

    Raises:
        RecipeProblem: the device does not exist.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise RecipeProblem(f"there is no device {name!r} here", next_step="use --device cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise RecipeProblem(
            f"{name!r} is not a device", next_step="use auto, cpu or cuda:0"
        ) from error
