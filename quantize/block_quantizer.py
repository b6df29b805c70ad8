"""Quantizes one decoder block, input by input, in a single pass over the calibration tokens.

Each of the block's four inputs is computed after everything before it is quantized, so every layer
is fitted to its real inputs. Two streams of hidden states pass through the block: those of the
quantized model, computed with the stored weights, and those of the 16-bit model, the target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from camelpress.core import llama
from camelpress.core.errors import NumericsProblem
from camelpress.core.packing.gptq_format import GptqTensors, pack_gptq
from camelpress.core.packing.row_loss import weight_loss
from camelpress.inference.model.streamed_model import StreamedModel
from camelpress.inference.model.token_batches import TokenBatch, device_batches, put_batch
from camelpress.inference.streaming.process_group import ProcessGroup
from camelpress.quantize.calibration.reference_states import (
    STATE_DTYPE,
    BatchValues,
    ReferenceStates,
)
from camelpress.quantize.calibration_shards import CalibrationShard
from camelpress.quantize.kernels.device_kernels import pick_kernel
from camelpress.quantize.settings import QuantizeSettings
from camelpress.quantize.solver.correction import correct_weight
from camelpress.quantize.solver.grid import dequantize_codes, round_to_nearest, search_grid
from camelpress.quantize.solver.hessian import HessianAccumulator
from camelpress.quantize.solver.layer import round_layer
from camelpress.quantize.solver.loss_limits import exceeds_loss_limit

INNER_LINEARS = ("self_attn.o_proj", "mlp.down_proj")  # linears whose inputs are kept for a block
# batch, inputs in the quantized model, deviations of the 16-bit model (none without a reference)
BatchInputs = Iterator[tuple[TokenBatch, BatchValues, BatchValues | None]]


@dataclass(frozen=True)
class QuantizedLayer:
    """One quantized linear layer."""

    name: str
    packed: GptqTensors
    relative_error: float | None  # squared output error / squared output, on calibration
    loss: float  # mean over rows of that ratio; of the weights for round-to-nearest
    exceeds_limit: bool  # true if the loss exceeds its limit
    damp_percent: float | None  # fraction of mean(diag H); none for round-to-nearest
    rescue: str  # rescue of the factorization, empty if none was needed


def round_block_to_nearest(
    number: int, weights: Mapping[str, Tensor], settings: QuantizeSettings
) -> Iterator[QuantizedLayer]:
    """Rounds every layer of a block to nearest, without calibration."""
    for linear in llama.LINEARS:
        layer_settings = settings.for_layer(f"{llama.BLOCK_NAME.format(number)}.{linear.name}")
        if layer_settings is None:
            continue
        weight = weights[f"{linear.name}.weight"].to(torch.float32)
        grid = search_grid(
            weight,
            pick_kernel(weight.device),
            importance=torch.ones_like(weight[0]),
            bits=layer_settings.bits,
            group_size=layer_settings.group_size,
            sym=layer_settings.sym,
        )
        codes = round_to_nearest(weight, grid)
        packed = pack_gptq(codes, grid.scales, grid.zeros, grid.column_groups(), bits=grid.bits)
        loss = weight_loss(weight, dequantize_codes(codes, grid))
        exceeds_limit = exceeds_loss_limit(loss, layer_settings.bits)
        yield QuantizedLayer(linear.name, packed, None, loss, exceeds_limit, None, "")


class BlockQuantizer:
    """Quantizes one block and pushes both streams of hidden states through it.

    Args:
        model: the 16-bit model.
        number: index of the block.
        weights: stored weights of the block.
        shards: calibration tokens.
        processes: process group.
        settings: settings of the stage.
    """

    def __init__(
        self,
        model: StreamedModel,
        number: int,
        weights: Mapping[str, Tensor],
        shards: list[CalibrationShard],
        processes: ProcessGroup,
        settings: QuantizeSettings,
    ) -> None:
        self._model = model
        self._weights = weights
        device_weights = model.to_device(weights)
        self._reference = model.build_block(number, device_weights)
        # Both blocks share their tensors until `replace_weight`.
        self._block = model.build_block(number, device_weights)
        self._shards = shards
        self._processes = processes
        self._settings = {
            linear.name: settings.for_layer(f"{llama.BLOCK_NAME.format(number)}.{linear.name}")
            for linear in llama.LINEARS
        }
        self._hidden = model.config.hidden_size
        self._inner = {name: weights[f"{name}.weight"].shape[1] for name in INNER_LINEARS}
        for shard in shards:
            shard.select_block(number)

    def quantize_layers(self) -> Iterator[QuantizedLayer]:
        """Yields each layer as soon as it is solved."""
        for stage, input_batches in (
            ("attention_input", self._attention_input),
            ("attention_context", self._attention_context),
            ("mlp_input", self._mlp_input),
            ("mlp_middle", self._mlp_middle),
        ):
            yield from self._quantize_stage(stage, input_batches)
        for shard in self._processes.shards_of_rank(self._shards):
            hidden = self._read(shard, "hidden", after=True)
            middle = self._read_inner(shard, "mlp.down_proj")
            batches = shard.sequences.batches
            for batch, states, inputs in zip(
                batches, self._batches(shard, hidden), self._batches(shard, middle), strict=True
            ):
                put_batch(hidden, batch, states + self._block.mlp_output(inputs))
            shard.write_states("hidden", hidden, after=True)

    def _attention_input(self, shard: CalibrationShard) -> BatchInputs:
        hidden, reference = self._read(shard, "hidden"), self._reference_states(shard)
        for batch, states in self._with_states(shard, hidden):
            inputs = self._block.attention_input(states)
            yield batch, inputs, reference.deviation(batch, inputs, self._reference.attention_input)

    def _attention_context(self, shard: CalibrationShard) -> BatchInputs:
        hidden, reference = self._read(shard, "hidden"), self._reference_states(shard)
        context = self._allocate_inner(shard, "self_attn.o_proj")
        for batch, states in self._with_states(shard, hidden):
            rope = self._model.batch_rotary(batch)
            attend = partial(self._reference.add_attention, rope=rope)
            inputs = self._block.context(self._block.attention_input(states), rope)
            put_batch(context, batch, inputs)
            yield batch, inputs, reference.deviation(batch, states, attend, keep=True)
        shard.write_states("self_attn.o_proj", context)
        reference.write()

    def _mlp_input(self, shard: CalibrationShard) -> BatchInputs:
        hidden, reference = self._read(shard, "hidden"), self._reference_states(shard, after=True)
        contexts = self._batches(shard, self._read_inner(shard, "self_attn.o_proj"))
        output = shard.allocate_states("hidden", self._hidden, STATE_DTYPE, after=True)
        for batch, states in self._with_states(shard, hidden):
            states = states + self._block.attention_output(next(contexts))
            put_batch(output, batch, states)
            inputs = self._block.mlp_input(states)
            yield batch, inputs, reference.deviation(batch, inputs, self._reference.mlp_input)
        shard.write_states("hidden", output, after=True)

    def _mlp_middle(self, shard: CalibrationShard) -> BatchInputs:
        hidden = self._read(shard, "hidden", after=True)
        reference = self._reference_states(shard, after=True)
        middle = self._allocate_inner(shard, "mlp.down_proj")
        for batch, states in self._with_states(shard, hidden):
            inputs = self._block.mlp_middle(self._block.mlp_input(states))
            put_batch(middle, batch, inputs)
            deviations = reference.deviation(batch, states, self._reference.add_mlp, keep=True)
            yield batch, inputs, deviations
        shard.write_states("mlp.down_proj", middle)
        reference.write()

    def _quantize_stage(
        self, stage: str, input_batches: Callable[[CalibrationShard], BatchInputs]
    ) -> Iterator[QuantizedLayer]:
        """Accumulates the moments of one input and solves the layers that share it.

        Shards with reference states go first: they suffice for the correction. The others add to
        the Hessian only.
        """
        names = llama.linears_with_input(stage)
        with_reference, without_reference = self._split_by_reference()
        cols = self._weights[f"{names[0]}.weight"].shape[1]
        moments = HessianAccumulator(
            cols, self._hidden if with_reference else 0, self._model.device
        )

        def collect(shard: CalibrationShard, sums: HessianAccumulator) -> None:
            for batch, inputs, deviations in input_batches(shard):
                sums.add_batch(
                    shard.select_tokens(batch, inputs),
                    None if deviations is None else shard.select_tokens(batch, deviations),
                )

        self._processes.reduce_in_order(with_reference, collect, moments)
        targets = [
            (settings, layers, self._corrected_weight(layers, moments, settings))
            for settings, layers in self._group_by_settings(names)
        ]
        moments.drop_cross_moment()
        self._processes.reduce_in_order(without_reference, collect, moments)
        hessian = moments.full_hessian()
        for settings, layers, weight in targets:
            yield from self._round_layers(layers, weight, hessian, settings)

    def _split_by_reference(self) -> tuple[list[CalibrationShard], list[CalibrationShard]]:
        count = sum(shard.has_reference for shard in self._shards)  # these go first
        return self._shards[:count], self._shards[count:]

    def _group_by_settings(self, names: Sequence[str]) -> list[tuple[QuantizeSettings, list[str]]]:
        """Groups layers by their settings, without those kept in 16 bits."""
        groups: list[tuple[QuantizeSettings, list[str]]] = []
        for name in names:
            layer_settings = self._settings[name]
            matches = [layers for settings, layers in groups if settings == layer_settings]
            if matches:
                matches[0].append(name)
            elif layer_settings is not None:
                groups.append((layer_settings, [name]))
        return groups

    def _corrected_weight(
        self, names: list[str], moments: HessianAccumulator, settings: QuantizeSettings
    ) -> Float32[Tensor, "rows cols"]:
        """Returns the corrected weights of layers, stacked by rows."""
        weight = torch.cat(
            [self._weights[f"{name}.weight"].to(torch.float32) for name in names]
        ).to(self._model.device)
        if len(moments.cross_moment):
            with _name_layers(names):
                correct_weight(
                    weight,
                    moments,
                    strength=settings.correction,
                    damp_percent=settings.damp_percent,
                    writes=names[0] in self._inner,
                )
        return weight

    def _round_layers(
        self,
        names: list[str],
        weight: Float32[Tensor, "rows cols"],
        hessian: Float32[Tensor, "cols cols"],
        settings: QuantizeSettings,
    ) -> Iterator[QuantizedLayer]:
        with _name_layers(names):
            rounded, factor = round_layer(weight, hessian, self._processes, settings)
        start = 0
        for name in names:
            rows = slice(start, start + len(self._weights[f"{name}.weight"]))
            start = rows.stop
            self._block.replace_weight(name, rounded.dequantize_rows(rows))
            loss = rounded.loss(rows)
            yield QuantizedLayer(
                name,
                rounded.pack_rows(rows),
                rounded.relative_error(rows),
                loss,
                exceeds_loss_limit(loss, settings.bits),
                factor.damp_percent,
                factor.rescue,
            )

    def _batches(
        self, shard: CalibrationShard, states: Float[Tensor, "tokens width"]
    ) -> Iterator[BatchValues]:
        return device_batches(states, shard.sequences.batches, self._model.device)

    def _with_states(
        self, shard: CalibrationShard, states: Float[Tensor, "tokens width"]
    ) -> Iterator[tuple[TokenBatch, BatchValues]]:
        """Yields each batch of a shard with its states on the device."""
        return zip(shard.sequences.batches, self._batches(shard, states), strict=True)

    def _reference_states(self, shard: CalibrationShard, *, after: bool = False) -> ReferenceStates:
        return ReferenceStates(shard, self._hidden, self._model.device, after=after)

    def _read(
        self, shard: CalibrationShard, name: str, *, after: bool = False
    ) -> Float32[Tensor, "t h"]:
        return shard.read_states(name, self._hidden, STATE_DTYPE, after=after)

    def _read_inner(self, shard: CalibrationShard, linear: str) -> Float[Tensor, "tokens cols"]:
        return shard.read_states(linear, self._inner[linear], self._model.dtype)

    def _allocate_inner(self, shard: CalibrationShard, linear: str) -> Float[Tensor, "tokens cols"]:
        return shard.allocate_states(linear, self._inner[linear], self._model.dtype)


@contextmanager
def _name_layers(names: list[str]) -> Iterator[None]:
    """Prefixes numerics problems with the names of their layers."""
    try:
        yield
    except NumericsProblem as error:
        raise type(error)(
            f"{', '.join(names)}: {error.message}", next_step=error.next_step
        ) from error
