"""Linear layers of a checkpoint, plain or packed in any supported format."""

from __future__ import annotations

import torch
from torch import Tensor

from camelpress.core import llama
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem, UnknownTensor
from camelpress.core.llama import is_derived_buffer
from camelpress.core.packing import compressed_tensors_format, gptq_format
from camelpress.core.packing.bitpacking import WORD_BITS
from camelpress.core.packing.quantization_schemes import (
    PACK_QUANTIZED,
    QuantizationScheme,
    default_scheme,
    layer_scheme,
)
from camelpress.core.packing.quantized_weight import (
    PackedShape,
    QuantizationParams,
    QuantizedWeight,
)

PACKED_TENSOR_NAMES = frozenset(
    gptq_format.GPTQ_TENSORS + compressed_tensors_format.COMPRESSED_TENSOR_NAMES
)
CODE_TENSOR_NAMES = ("qweight", "weight_packed")


def head_name(checkpoint: Checkpoint) -> str:
    """Returns the name of the output layer: the head, or the embedding of a tied model.

    Raises:
        UnknownTensor: There is no head without a tied embedding in the config; or further tensors
            are missing, or all tensors have an unknown prefix.
    """
    if llama.has_head(checkpoint.tensors):
        return llama.HEAD_NAME
    if llama.is_tied(checkpoint.config):
        return llama.EMBEDDING_NAME
    for name in _required_tensors(checkpoint):  # without one of these, the config is not the fault
        checkpoint.tensor_info(name)
    raise UnknownTensor(
        f"{checkpoint.folder} lacks '{llama.HEAD_NAME}.weight', and its config.json does not say "
        "that the embedding takes its place",
        next_step=f'write "{llama.TIE_EMBEDDINGS_KEY}": true into config.json if the model is '
        "tied, else download it again: a loader would fill the head with noise",
    )


def _required_tensors(checkpoint: Checkpoint) -> list[str]:
    """Lists tensors of every model: embedding, one norm of each block, final norm."""
    blocks = checkpoint.config.get("num_hidden_layers")
    count = blocks if isinstance(blocks, int) else 0
    norms = [f"{llama.BLOCK_NAME.format(number)}.input_layernorm.weight" for number in range(count)]
    return [f"{llama.EMBEDDING_NAME}.weight", *norms, f"{llama.FINAL_NORM_NAME}.weight"]


def read_linear(checkpoint: Checkpoint, linear: str) -> Tensor:
    """Reads the weight of a linear layer, [rows cols]; a packed one is dequantized to fp32.

    Raises:
        CheckpointProblem: The format is not supported, or tensors are missing or contradict one
            another.
    """
    scheme = packed_scheme(checkpoint, linear)
    if scheme is None:
        return checkpoint.read(f"{linear}.weight")
    return read_quantized_weight(checkpoint, linear, scheme).dequantize()


def read_quantized_weight(
    checkpoint: Checkpoint, linear: str, scheme: QuantizationScheme
) -> QuantizedWeight:
    """Reads the codes and parameters of a packed layer.

    Raises:
        CheckpointProblem: Tensors are missing or contradict one another.
    """
    read_layer = (
        compressed_tensors_format.read_compressed
        if scheme.checkpoint_format == PACK_QUANTIZED
        else gptq_format.read_gptq
    )
    return read_layer(checkpoint, linear, scheme)


def read_quantization_params(
    checkpoint: Checkpoint, linear: str, scheme: QuantizationScheme
) -> QuantizationParams:
    """Reads a packed layer without its codes.

    Raises:
        CheckpointProblem: Tensors are missing or contradict one another.
    """
    read_layer = (
        compressed_tensors_format.read_compressed_params
        if scheme.checkpoint_format == PACK_QUANTIZED
        else gptq_format.read_gptq_params
    )
    return read_layer(checkpoint, linear, scheme)


def packed_shape(checkpoint: Checkpoint, linear: str, scheme: QuantizationScheme) -> PackedShape:
    """Returns the size of a packed layer, checked before by `check_packed_linears`."""
    if scheme.checkpoint_format == PACK_QUANTIZED:
        return compressed_tensors_format.compressed_shape(checkpoint, linear)
    return gptq_format.gptq_shape(checkpoint, linear, scheme)


def packed_scheme(checkpoint: Checkpoint, linear: str) -> QuantizationScheme | None:
    """Returns the scheme of a packed layer; None for a plain weight.

    Raises:
        CheckpointProblem: See `layer_scheme`.
    """
    if checkpoint.quantization is None or f"{linear}.weight" in checkpoint.tensors:
        return None
    return layer_scheme(checkpoint, linear)


def check_packed_linears(checkpoint: Checkpoint) -> dict[str, QuantizationScheme]:
    """Checks all packed layers and returns their schemes by full name.

    Reads nothing but headers, zero points and group indices.

    Raises:
        UnknownTensor: A layer, or a tensor of it, is missing.
        CheckpointProblem: The format is not supported, or tensors, config and zero points
            contradict one another.
    """
    if default_scheme(checkpoint) is None:
        return {}
    split_names = (name.rpartition(".") for name in checkpoint.tensors)
    packed = {linear for linear, _, part in split_names if part in PACKED_TENSOR_NAMES}
    expected = _expected_linears(checkpoint)
    schemes = {}
    for linear in [*(name for name in expected if name in packed), *sorted(packed - {*expected})]:
        scheme = layer_scheme(checkpoint, linear)
        if scheme is None or f"{linear}.weight" in checkpoint.tensors:
            raise CheckpointProblem(
                f"{checkpoint.folder} holds {linear!r} packed, and its "
                f"{'weight' if scheme else 'quantization_config says that it'} is plain",
                next_step="use the config that belongs to these weights",
            )
        check = (
            compressed_tensors_format.check_compressed
            if scheme.checkpoint_format == PACK_QUANTIZED
            else gptq_format.check_gptq
        )
        check(checkpoint, linear, scheme)
        schemes[linear] = scheme
    for linear in expected:
        if linear not in schemes and f"{linear}.weight" not in checkpoint.tensors:
            raise UnknownTensor(
                f"{checkpoint.folder} lacks {linear!r}, packed and plain",
                next_step="download the checkpoint again: a loader would fill it with noise",
            )
    return schemes


def _expected_linears(checkpoint: Checkpoint) -> list[str]:
    """Lists the full names of the linear layers of a supported architecture; else empty."""
    blocks = checkpoint.config.get("num_hidden_layers")
    if checkpoint.config.get("model_type") not in llama.MODEL_FAMILIES or not isinstance(
        blocks, int
    ):
        return []
    return llama.linear_names(blocks)


def count_parameters(checkpoint: Checkpoint) -> int:
    """Counts the model's parameters, packed ones by code; derived buffers are excluded."""
    total = 0
    schemes = check_packed_linears(checkpoint)
    for name, info in checkpoint.tensors.items():
        linear, _, part = name.rpartition(".")
        count = torch.Size(info.shape).numel()
        if linear in schemes and part in CODE_TENSOR_NAMES:
            total += count * WORD_BITS // schemes[linear].bits
        elif not is_derived_buffer(name) and (
            linear not in schemes or part not in PACKED_TENSOR_NAMES
        ):
            total += count
    return total
