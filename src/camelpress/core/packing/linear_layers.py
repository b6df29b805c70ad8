"""The linear layers of a checkpoint, packed in any layout that is known here, or plain."""

from __future__ import annotations

import torch
from torch import Tensor

from camelpress.core import llama
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem, UnknownTensor
from camelpress.core.llama import is_derived_buffer
from camelpress.core.packing import compressed_tensors_format, gptq_format
from camelpress.core.packing.bitpacking import WORD
from camelpress.core.packing.quantization_schemes import COMPRESSED, Scheme, overall, scheme_of
from camelpress.core.packing.quantized_weight import Codes, Extent, Grid

PARTS = frozenset(gptq_format.PARTS + compressed_tensors_format.PARTS)
CODES = ("qweight", "weight_packed")


def head_of(checkpoint: Checkpoint) -> str:
    """Returns the name of the layer whose weight gives the logits: the head, or the embedding.

    Raises:
        UnknownTensor: there is no head, and the config does not tie it to the embedding, or more
            than the head is missing, or all tensors have a strange prefix.
    """
    if llama.owns_head(checkpoint.tensors):
        return llama.HEAD
    if llama.is_tied(checkpoint.config):
        return llama.EMBEDDING
    for name in _beside_head(checkpoint):  # where one of these is missing, no config mends it
        checkpoint.info(name)
    raise UnknownTensor(
        f"{checkpoint.folder} lacks '{llama.HEAD}.weight', and its config.json does not say that "
        "the embedding takes its place",
        next_step=f'write "{llama.TIED}": true into config.json if the model is tied, else '
        "download it again: a loader would fill the head with noise",
    )


def _beside_head(checkpoint: Checkpoint) -> list[str]:
    """Returns tensors that a whole model has: embedding, a norm of each block, the last norm."""
    blocks = checkpoint.config.get("num_hidden_layers")
    count = blocks if isinstance(blocks, int) else 0
    norms = [f"{llama.BLOCK.format(number)}.input_layernorm.weight" for number in range(count)]
    return [f"{llama.EMBEDDING}.weight", *norms, f"{llama.FINAL_NORM}.weight"]


def read_linear(checkpoint: Checkpoint, linear: str) -> Tensor:
    """The weight of a linear layer, [rows cols], dequantized to fp32 where it is packed.

    Raises:
        CheckpointProblem: packed in a way that is not known here, or parts are missing or
            contradict one another.
    """
    scheme = scheme_if_packed(checkpoint, linear)
    if scheme is None:
        return checkpoint.read(f"{linear}.weight")
    return read_codes(checkpoint, linear, scheme).weight()


def read_codes(checkpoint: Checkpoint, linear: str, scheme: Scheme) -> Codes:
    """The codes of a packed layer.

    Raises:
        CheckpointProblem: parts are missing or contradict one another.
    """
    read = compressed_tensors_format.read if scheme.layout == COMPRESSED else gptq_format.read
    return read(checkpoint, linear, scheme)


def read_grid(checkpoint: Checkpoint, linear: str, scheme: Scheme) -> Grid:
    """A packed layer without its codes.

    Raises:
        CheckpointProblem: parts are missing or contradict one another.
    """
    read = compressed_tensors_format.grid if scheme.layout == COMPRESSED else gptq_format.grid
    return read(checkpoint, linear, scheme)


def extent(checkpoint: Checkpoint, linear: str, scheme: Scheme) -> Extent:
    """The size of a packed layer that `packed_linears` has seen."""
    if scheme.layout == COMPRESSED:
        return compressed_tensors_format.extent(checkpoint, linear)
    return gptq_format.extent(checkpoint, linear, scheme)


def scheme_if_packed(checkpoint: Checkpoint, linear: str) -> Scheme | None:
    """How a layer is packed; None if its weight is there as it is.

    Raises:
        CheckpointProblem: as `scheme_of`.
    """
    if checkpoint.quantization is None or f"{linear}.weight" in checkpoint.tensors:
        return None
    return scheme_of(checkpoint, linear)


def packed_linears(checkpoint: Checkpoint) -> dict[str, Scheme]:
    """How each packed layer is packed, by its full name, once all are seen to be readable.

    Nothing is read but headers, zero points and the groups of columns.

    Raises:
        UnknownTensor: a part of a layer is missing, or all of it.
        CheckpointProblem: packed in a way that is not known here, or parts, config and zero
            points contradict one another.
    """
    if overall(checkpoint) is None:
        return {}
    split = (name.rpartition(".") for name in checkpoint.tensors)
    there = {linear for linear, _, part in split if part in PARTS}
    family = _of_family(checkpoint)
    found = {}
    for linear in [*(name for name in family if name in there), *sorted(there - {*family})]:
        scheme = scheme_of(checkpoint, linear)
        if scheme is None or f"{linear}.weight" in checkpoint.tensors:
            raise CheckpointProblem(
                f"{checkpoint.folder} holds {linear!r} packed, and its "
                f"{'weight' if scheme else 'quantization_config says that it'} is plain",
                next_step="use the config that belongs to these weights",
            )
        check = (
            compressed_tensors_format.check if scheme.layout == COMPRESSED else gptq_format.check
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


def _of_family(checkpoint: Checkpoint) -> list[str]:
    """The linear layers that the config asks for, by their full names."""
    blocks = checkpoint.config.get("num_hidden_layers")
    if checkpoint.config.get("model_type") not in llama.FAMILY or not isinstance(blocks, int):
        return []
    return llama.linears(blocks)


def parameters(checkpoint: Checkpoint) -> int:
    """Counts the weights, packed ones as what they stand for; derived buffers are none."""
    total = 0
    schemes = packed_linears(checkpoint)
    for name, info in checkpoint.tensors.items():
        linear, _, part = name.rpartition(".")
        count = torch.Size(info.shape).numel()
        if linear in schemes and part in CODES:
            total += count * WORD // schemes[linear].bits
        elif not is_derived_buffer(name) and (linear not in schemes or part not in PARTS):
            total += count
    return total
