"""One decoder block, quantized input by input in a single pass over the calibration tokens.

Each of the block's four inputs is looked at only after everything before it is quantized, so that
every layer is fitted to what it will really see. The hidden states leave the block exactly as the
stored weights make them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from camelpress.core import llama
from camelpress.core.blocks import Block, StreamedModel
from camelpress.core.packed import Packed, pack
from camelpress.core.sequences import Batch, Sequences, put, take
from camelpress.quantize.gptq import activation_order, factorize, solve
from camelpress.quantize.grid import fit, nearest, values
from camelpress.quantize.hessian import Hessian
from camelpress.quantize.settings import Quantize

Inputs = Callable[[Batch], Float[Tensor, "batch longest cols"]]


@dataclass(frozen=True)
class Layer:
    """One quantized linear layer."""

    name: str
    packed: Packed
    relative_error: float | None  # damped squared output error / squared output, on calibration
    damp_percent: float | None
    rescue: str


def round_block(block: Block, settings: Quantize) -> Iterator[Layer]:
    """Round every layer to nearest, without calibration."""
    for linear in llama.LINEARS:
        weight = block.weight(linear.name).to(torch.float32)
        grid = fit(weight, bits=settings.bits, group_size=settings.group_size, sym=settings.sym)
        codes = nearest(weight, grid)
        packed = pack(
            codes.cpu(), grid.scales.cpu(), grid.zeros.cpu(), grid.group_of.cpu(), bits=grid.bits
        )
        yield Layer(linear.name, packed, None, None, "")


def quantize_block(
    model: StreamedModel,
    block: Block,
    sequences: Sequences,
    hidden: Float[Tensor, "tokens hidden"],
    settings: Quantize,
) -> Iterator[Layer]:
    """Quantize a block and push the hidden states through it, in place.

    Args:
        model: gives device and positions.
        block: its weights are replaced by what is stored.
        sequences: the calibration tokens.
        hidden: what enters the block; afterwards, what leaves the quantized block.
        settings: of the stage.
    Yields:
        the layers, as soon as each is solved.
    """

    def attention_input(batch: Batch) -> Tensor:
        return block.attention_input(take(hidden, batch, model.device))

    def mlp_input(batch: Batch) -> Tensor:
        return block.mlp_input(take(hidden, batch, model.device))

    def mlp_middle(batch: Batch) -> Tensor:
        return block.mlp_middle(mlp_input(batch))

    yield from _solve(model, block, sequences, "attention_input", attention_input, settings)

    width = block.weight("self_attn.o_proj").shape[1]
    context = torch.empty(len(hidden), width, dtype=hidden.dtype)

    def attention_context(batch: Batch) -> Tensor:
        mixed = block.context(attention_input(batch), model.rope(batch))
        put(context, batch, mixed)
        return mixed

    yield from _solve(model, block, sequences, "attention_context", attention_context, settings)
    for batch in sequences.batches:
        added = block.attention_output(take(context, batch, model.device))
        put(hidden, batch, take(hidden, batch, model.device) + added)
    yield from _solve(model, block, sequences, "mlp_input", mlp_input, settings)
    yield from _solve(model, block, sequences, "mlp_middle", mlp_middle, settings)
    for batch in sequences.batches:
        added = block.mlp_output(mlp_middle(batch))
        put(hidden, batch, take(hidden, batch, model.device) + added)


def _solve(
    model: StreamedModel,
    block: Block,
    sequences: Sequences,
    stage: str,
    inputs: Inputs,
    settings: Quantize,
) -> Iterator[Layer]:
    """Collect one Hessian and solve all layers that share it as one matrix."""
    names = llama.linears_fed_by(stage)
    hessian = Hessian(block.weight(names[0]).shape[1], model.device)
    for batch in sequences.batches:
        hessian.add(inputs(batch)[batch.real.to(model.device)])
    order = (
        activation_order(hessian.sum)
        if settings.act_order
        else torch.arange(len(hessian.sum), device=model.device)
    )
    factor = factorize(hessian.sum, order, damp_percent=settings.damp_percent)
    weight = torch.cat([block.weight(name).to(torch.float32) for name in names])
    grid = fit(weight, bits=settings.bits, group_size=settings.group_size, sym=settings.sym)
    solved = solve(weight, factor, grid, order)
    stored = values(solved.codes, grid)
    start = 0
    for name in names:
        part = slice(start, start + len(block.weight(name)))
        start = part.stop
        error = float(solved.loss[part].sum()) / _energy(weight[part], hessian)
        block.weight(name).copy_(stored[part])
        packed = pack(
            solved.codes[part].cpu(),
            grid.scales[part].cpu(),
            grid.zeros[part].cpu(),
            grid.group_of.cpu(),
            bits=grid.bits,
        )
        yield Layer(name, packed, error, factor.damp_percent, factor.rescue)


def _energy(weight: Tensor, hessian: Hessian) -> float:
    """The layer's squared output, summed over tokens and rows."""
    return float(((weight @ hessian.sum) * weight).sum().clamp(min=1e-30))
