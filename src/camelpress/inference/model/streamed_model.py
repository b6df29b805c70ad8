"""The block walker: a model run one decoder block at a time, its weights read when needed.

Calibration and scoring both push activations through here, so that neither ever holds the model:
memory is one block, the hidden states of all tokens, and one batch of activations.

A block is taken apart at its four inputs of linear layers (`llama.STAGES`):

    hidden += o_proj(context(attention_input(hidden)))
    hidden += down_proj(mlp_middle(mlp_input(hidden)))

so that a quantizer can look at each input after everything before it is quantized, in one pass.
The arithmetic is that of transformers' own modules; only the residual sums are written here.
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
from camelpress.inference.model import attention
from camelpress.inference.model.token_batches import TokenBatch, TokenBatches, put_batch, take_batch

FINITE_CHECK_ROWS = 1024  # of a tensor that are looked at in one go
CONFIG_ERRORS = (  # of transformers, for a config that makes no model
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
    """Where the tokens of a batch stand in their sequences: what rotates keys and queries."""

    cosine: Float[Tensor, "1 batch width"]
    sine: Float[Tensor, "1 batch width"]
    lengths: list[int]  # of the sequences


class DecoderBlock:
    """One decoder block with its weights, taken apart at the inputs of its linear layers.

    Hidden states keep their own dtype, which may be wider than that of weights and products: what
    a block adds is small beside what passes through it.
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
        """The weight of one linear layer."""
        return self._linears[linear].get_parameter("weight")

    def replace_weight(self, linear: str, weight: Float[Tensor, "rows cols"]) -> None:
        """Give one linear layer another weight; blocks made of the same tensors keep theirs."""
        self._linears[linear].weight = nn.Parameter(weight.to(self._dtype), requires_grad=False)

    def attention_input(self, hidden: Float[Tensor, "b s h"]) -> Float[Tensor, "b s h"]:
        """What q, k and v see."""
        return self._attention_norm(hidden).to(self._dtype)

    @property
    def scaling(self) -> float:
        """What attention multiplies the products of queries and keys by."""
        return float(self._attention.scaling)

    def qkv(
        self, attention_input: Float[Tensor, "b s h"], turned: tuple[Tensor, Tensor]
    ) -> tuple[Float[Tensor, "b q s d"], Float[Tensor, "b kv s d"], Float[Tensor, "b kv s d"]]:
        """Queries, keys and values by head, turned to their positions: what `context` mixes."""
        shape = (*attention_input.shape[:2], -1, self._attention.head_dim)
        query, key, value = (
            self._apply_linear(f"self_attn.{name}_proj", attention_input)
            .view(shape)
            .transpose(1, 2)
            for name in "qkv"
        )
        return *self._rotate(query, key, *turned), value

    def context(
        self, attention_input: Float[Tensor, "b s h"], rope: RotaryPositions
    ) -> Float[Tensor, "b s c"]:
        """What o sees: the values, mixed by causal attention within each sequence."""
        return self._attention(
            hidden_states=attention_input,
            position_embeddings=(rope.cosine, rope.sine),
            attention_mask=None,
            lengths=rope.lengths,
        )[0]

    def attention_output(self, context: Float[Tensor, "b s c"]) -> Float[Tensor, "b s h"]:
        """What attention adds to the residual stream."""
        return self._apply_linear("self_attn.o_proj", context)

    def mlp_input(self, hidden: Float[Tensor, "b s h"]) -> Float[Tensor, "b s h"]:
        """What gate and up see."""
        return self._mlp_norm(hidden).to(self._dtype)

    def mlp_middle(self, mlp_input: Float[Tensor, "b s h"]) -> Float[Tensor, "b s f"]:
        """What down sees: the gated activations, multiplied where they stand."""
        middle: Tensor = self._activation(self._apply_linear("mlp.gate_proj", mlp_input))
        return middle.mul_(self._apply_linear("mlp.up_proj", mlp_input))

    def mlp_output(self, middle: Float[Tensor, "b s f"]) -> Float[Tensor, "b s h"]:
        """What the MLP adds to the residual stream."""
        return self._apply_linear("mlp.down_proj", middle)

    def add_attention(
        self, hidden: Float[Tensor, "b s h"], rope: RotaryPositions
    ) -> Float[Tensor, "b s h"]:
        """The first half of the block."""
        return hidden + self.attention_output(self.context(self.attention_input(hidden), rope))

    def add_mlp(self, hidden: Float[Tensor, "b s h"]) -> Float[Tensor, "b s h"]:
        """The second half of the block."""
        return hidden + self.mlp_output(self.mlp_middle(self.mlp_input(hidden)))

    def __call__(
        self, hidden: Float[Tensor, "b s h"], rope: RotaryPositions
    ) -> Float[Tensor, "b s h"]:
        """The whole block."""
        return self.add_mlp(self.add_attention(hidden, rope))

    def _apply_linear(
        self, linear: str, entering: Float[Tensor, "b s cols"]
    ) -> Float[Tensor, "b s rows"]:
        found: Tensor = self._linears[linear](entering)
        return found


class StreamedModel:
    """A checkpoint that runs without being loaded.

    Args:
        checkpoint: 16-bit or packed in a layout that `linears` knows, of the LLaMA family.
        device: where blocks and batches are computed; hidden states stay on the CPU.
        dtype: of weights and activations; never fp16 on a CPU.
    Raises:
        CheckpointProblem: another architecture, a config that transformers refuses, packed layers
            that cannot be read, or biases that the architecture has no place for.
    """

    def __init__(self, checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> None:
        module, self._prefix = llama.model_classes(checkpoint.config, checkpoint.folder)
        self._modules = importlib.import_module(module)
        self.checkpoint = checkpoint
        self.device = device
        self.dtype = dtype
        try:
            self.config = CONFIG_MAPPING[checkpoint.config["model_type"]].from_dict(
                dict(checkpoint.config)
            )
            self.config._attn_implementation = attention.register_attention()
            self._rotary = self._class("RotaryEmbedding")(config=self.config).to(device)
            self._empty_layer(0)
        except CONFIG_ERRORS as error:
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
        """The first hidden states of all tokens, on the CPU.

        Raises:
            CheckpointProblem: the text has ids that the model does not know.
            NumericsProblem: an embedding is not finite.
        """
        return self.embed_ids(sequences.tokens, self.read_embedding()).to(self.dtype)

    def read_embedding(self) -> Float[Tensor, "vocabulary hidden"]:
        """The table of embeddings as it is stored.

        Raises:
            NumericsProblem: an embedding is not finite.
        """
        table = self.checkpoint.read(f"{llama.EMBEDDING_NAME}.weight")
        self._require_finite(f"{llama.EMBEDDING_NAME}.weight", table)
        return table

    def embed_ids(
        self, ids: Int64[Tensor, "*places"], table: Float[Tensor, "vocabulary hidden"]
    ) -> Float[Tensor, "*places hidden"]:
        """The rows of the table of embeddings for all tokens.

        Raises:
            CheckpointProblem: the text has ids that the model does not know.
        """
        largest = int(ids.max())
        if largest >= len(table):
            raise CheckpointProblem(
                f"{self.checkpoint.folder} embeds {len(table)} tokens, the text has id {largest}",
                next_step="use the tokenizer that belongs to this model",
            )
        return table[ids]

    def batch_rotary(self, batch: TokenBatch) -> RotaryPositions:
        """Cosines and sines of the positions of a batch."""
        own = [torch.arange(length) for length in batch.lengths]
        positions = torch.cat(own)[None] + batch.first_position
        return RotaryPositions(*self.rotary(positions.to(self.device)), batch.lengths)

    def rotary(
        self, positions: Int64[Tensor, "rows new"]
    ) -> tuple[Float[Tensor, "rows new width"], Float[Tensor, "rows new width"]]:
        """Cosines and sines of positions, which are on the device."""
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        cosine, sine = self._rotary(like, positions)
        return cosine, sine

    def read_block(self, number: int) -> DecoderBlock:
        """Read one decoder block, dequantizing packed weights.

        Raises:
            UnknownTensor: a weight is missing.
            NumericsProblem: a weight is not finite.
        """
        return self.build_block(number, self.read_block_weights(number))

    def read_block_weights(self, number: int) -> dict[str, Tensor]:
        """The weights of one decoder block as they are stored, on the CPU, by name in the block.

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
        """Shapes of the weights of one decoder block, by name in the block."""
        places = self._empty_layer(number).state_dict()
        return {key: tuple(place.shape) for key, place in places.items()}

    def to_device(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights on the device and in the dtype that they are computed in."""
        return {key: self._tensor_to_device(each) for key, each in weights.items()}

    def build_block(self, number: int, weights: Mapping[str, Tensor]) -> DecoderBlock:
        """A decoder block of these weights, on the device."""
        layer = self._empty_layer(number)
        layer.load_state_dict(self.to_device(weights), assign=True)
        return DecoderBlock(layer.eval().requires_grad_(False))

    def last_hidden_states(
        self, sequences: TokenBatches, label: str
    ) -> Float[Tensor, "tokens hidden"]:
        """The last hidden states of all tokens, after a walk through every block.

        Args:
            sequences: the tokens.
            label: of the progress shown.
        """
        hidden = self.embed_sequences(sequences)
        for number in track(range(self.block_count), label):
            self.run_block(sequences, hidden, self.read_block(number))
        return hidden

    def run_block(
        self, sequences: TokenBatches, hidden: Float[Tensor, "tokens hidden"], block: DecoderBlock
    ) -> None:
        """Push all hidden states through one block, in place."""
        for batch in sequences.batches:
            put_batch(
                hidden,
                batch,
                block(take_batch(hidden, batch, self.device), self.batch_rotary(batch)),
            )

    def read_head(self) -> nn.Module:
        """Final norm and output projection: hidden states to logits, in the model's dtype."""
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
        found: type[nn.Module] = getattr(self._modules, self._prefix + name)
        return found

    def _require_head(self) -> None:
        """Sees that there is a head, and that it has the size of the config if it is plain."""
        name = f"{head_name(self.checkpoint)}.weight"
        info = self.checkpoint.tensors.get(name)
        if info is not None:
            self._require_shape(name, info.shape, (self.config.vocab_size, self.config.hidden_size))

    def _require_known_biases(self) -> None:
        """See that biases which the model has no place for, as AutoGPTQ writes them, are zero."""
        own = self.block_shapes(0)
        for name in self.checkpoint.tensors:
            inside = name if name == f"{llama.HEAD_NAME}.bias" else name.split(".", 3)[-1]
            linears = (*_LINEAR_NAMES, llama.HEAD_NAME)
            if inside.removesuffix(".bias") in linears and inside not in own:
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
        wrong = 0
        for part in tensor.split(FINITE_CHECK_ROWS):
            wrong += int((~part.isfinite()).sum())
        if wrong:
            raise NumericsProblem(
                f"{self.checkpoint.folder}: {name!r} holds {wrong} values that are not finite",
                next_step="download or recover the checkpoint again",
            )


def compute_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in: the model's own on a GPU, fp32 on a CPU."""
    return torch.float32 if device.type == "cpu" else dtype


def has_fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 matrices faster than fp32 ones.

    Told from what it is, not by a clock, so that it is the same in every run. With AMX it does, and
    AMD's AVX-512 does; Intel's AVX-512 has the instructions and takes twice as long with them.
    """
    found = torch.cpu.get_capabilities()
    avx512 = found.get("avx512_bf16") and not str(found.get("cpu_name")).startswith("Intel")
    return bool(avx512 or found.get("amx_bf16") or found.get("bf16"))


def pick_device(name: str) -> torch.device:
    """A device by name; `auto` is the first GPU where there is one.

    Raises:
        RecipeProblem: there is no such device here.
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
