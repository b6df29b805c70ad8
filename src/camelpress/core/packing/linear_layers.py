"""The linear layers of a checkpoint, packed in any layout that is known here, or plain."""

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
    """Returns the name of the layer whose weight gives the logits: the head, or the embedding.

    Raises:
        UnknownTensor: there is no head, and the config does not tie it to the embedding, or more
            than the head is missing, or all tensors have a strange prefix.
    """
    if llama.has_head(checkpoint.tensors):
        return llama.HEAD_NAME
    if llama.is_tied(checkpoint.config):
        return llama.EMBEDDING_NAME
    for name in _beside_head(checkpoint):  # where one of these is missing, no config mends it
        checkpoint.tensor_info(name)
    raise UnknownTensor(
        f"{checkpoint.folder} lacks '{llama.HEAD_NAME}.weight', and its config.json does "
        "not say that "
        "the embedding takes its place",
        next_step=f'write "{llama.TIE_EMBEDDINGS_KEY}": true into config.json if the model is tied, else '
        "download it again: a loader would fill the head with noise",
    )


def _beside_head(checkpoint: Checkpoint) -> list[str]:
    """Returns tensors that a whole model has: embedding, a norm of each block, the last norm."""
    blocks = checkpoint.config.get("num_hidden_layers")
    count = blocks if isinstance(blocks, int) else 0
    norms = [f"{llama.BLOCK_NAME.format(number)}.input_layernorm.weight" for number in range(count)]
    return [f"{llama.EMBEDDING_NAME}.weight", *norms, f"{llama.FINAL_NORM_NAME}.weight"]


def read_linear(checkpoint: Checkpoint, linear: str) -> Tensor:
    """The weight of a linear layer, [rows cols], dequantized to fp32 where it is packed.

    Raises:
        CheckpointProblem: packed in a way that is not known here, or parts are missing or
            contradict one another.
    """
    scheme = packed_scheme(checkpoint, linear)
    if scheme is None:
        return checkpoint.read(f"{linear}.weight")
    return read_quantized_weight(checkpoint, linear, scheme).dequantize()


def read_quantized_weight(
    checkpoint: Checkpoint, linear: str, scheme: QuantizationScheme
) -> QuantizedWeight:
    """The codes of a packed layer.

    Raises:
        CheckpointProblem: parts are missing or contradict one another.
    """
    read = (
        compressed_tensors_format.read_compressed
        if scheme.checkpoint_format == PACK_QUANTIZED
        else gptq_format.read_gptq
    )
    return read(checkpoint, linear, scheme)


def read_quantization_params(
    checkpoint: Checkpoint, linear: str, scheme: QuantizationScheme
) -> QuantizationParams:
    """A packed layer without its codes.

    Raises:
        CheckpointProblem: parts are missing or contradict one another.
    """
    read = (
        compressed_tensors_format.read_compressed_params
        if scheme.checkpoint_format == PACK_QUANTIZED
        else gptq_format.read_gptq_params
    )
    return read(checkpoint, linear, scheme)


def packed_shape(checkpoint: Checkpoint, linear: str, scheme: QuantizationScheme) -> PackedShape:
    """The size of a packed layer that `packed_linears` has seen."""
    if scheme.checkpoint_format == PACK_QUANTIZED:
        return compressed_tensors_format.compressed_shape(checkpoint, linear)
    return gptq_format.gptq_shape(checkpoint, linear, scheme)


def packed_scheme(checkpoint: Checkpoint, linear: str) -> QuantizationScheme | None:
    """How a layer is packed; None if its weight is there as it is.

    Raises:
        CheckpointProblem: as `scheme_of`.
    """
    if checkpoint.quantization is None or f"{linear}.weight" in checkpoint.tensors:
        return None
    return layer_scheme(checkpoint, linear)


def check_packed_linears(checkpoint: Checkpoint) -> dict[str, QuantizationScheme]:
    """How each packed layer is packed, by its full name, once all are seen to be readable.

    Nothing is read but headers, zero points and the groups of columns.

    Raises:
        UnknownTensor: a part of a layer is missing, or all of it.
        CheckpointProblem: packed in a way that is not known here, or parts, config and zero
            points contradict one another.
    """
    if default_scheme(checkpoint) is None:
        return {}
    split = (name.rpartition(".") for name in checkpoint.tensors)
    there = {linear for linear, _, part in split if part in PACKED_TENSOR_NAMES}
    family = _expected_linears(checkpoint)
    found = {}
    for linear in [*(name for name in family if name in there), *sorted(there - {*family})]:
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
        found[linear] = scheme
    for linear in family:
        if linear not in found and f"{linear}.weight" not in checkpoint.tensors:
            raise UnknownTensor(
                f"{checkpoint.folder} lacks {linear!r}, packed and plain",
                next_step="download the checkpoint again: a loader would fill it with noise",
            )
    return found


def _expected_linears(checkpoint: Checkpoint) -> list[str]:
    """The linear layers that the config asks for, by their full names."""
    blocks = checkpoint.config.get("num_hidden_layers")
    if checkpoint.config.get("model_type") not in llama.MODEL_FAMILIES or not isinstance(
        blocks, int
    ):
        return []
    return llama.linear_names(blocks)


def count_parameters(checkpoint: Checkpoint) -> int:
    """Counts the weights, packed ones as what they stand for; derived buffers are none."""
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
