"""One decoder block, quantized input by input in a single pass over the calibration tokens.

Each of the block's four inputs is looked at only after everything before it is quantized, so that
every layer is fitted to what it will really see. Two streams of hidden states go through side by
side: those of the quantized model, which leave the block exactly as the stored weights make them,
and those of the 16-bit model, which say what each layer should have given.
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
from camelpress.inference.model.token_batches import TokenBatch, put_batch, take_batch
from camelpress.inference.streaming.process_group import ProcessGroup
from camelpress.quantize.calibration.reference_states import (
    STATE_DTYPE,
    BatchValues,
    ReferenceStates,
)
from camelpress.quantize.calibration_shards import CalibrationShard
from camelpress.quantize.kernels.kernel import pick_kernel
from camelpress.quantize.settings import QuantizeSettings
from camelpress.quantize.solver.correction import correct_weight
from camelpress.quantize.solver.grid import dequantize_codes, round_to_nearest, search_grid
from camelpress.quantize.solver.hessian import HessianAccumulator
from camelpress.quantize.solver.layer import round_layer
from camelpress.quantize.solver.loss_limits import exceeds_loss_limit

BatchInputs = Iterator[
    tuple[TokenBatch, BatchValues, BatchValues | None]
]  # inputs, and what the 16-bit model has more


@dataclass(frozen=True)
class QuantizedLayer:
    """One quantized linear layer."""

    name: str
    packed: GptqTensors
    relative_error: float | None  # squared output error / squared output, on calibration
    loss: float  # the same, as a mean over rows; without calibration of the weights
    exceeds_limit: bool  # beyond the limit of loss
    damp_percent: float | None
    rescue: str


def round_block_to_nearest(
    number: int, weights: Mapping[str, Tensor], settings: QuantizeSettings
) -> Iterator[QuantizedLayer]:
    """Round every layer of a block to nearest, without calibration."""
    for linear in llama.LINEARS:
        own = settings.for_layer(f"{llama.BLOCK_NAME.format(number)}.{linear.name}")
        if own is None:
            continue
        weight = weights[f"{linear.name}.weight"].to(torch.float32)
        grid = search_grid(
            weight,
            pick_kernel(weight.device),
            importance=torch.ones_like(weight[0]),
            bits=own.bits,
            group_size=own.group_size,
            sym=own.sym,
        )
        codes = round_to_nearest(weight, grid)
        packed = pack_gptq(codes, grid.scales, grid.zeros, grid.column_groups(), bits=grid.bits)
        loss = weight_loss(weight, dequantize_codes(codes, grid))
        yield QuantizedLayer(
            linear.name, packed, None, loss, exceeds_loss_limit(loss, own.bits), None, ""
        )


class BlockQuantizer:
    """Quantizes one block and pushes both streams of hidden states through it.

    Args:
        model: the 16-bit model.
        number: of the block.
        weights: of the block, as stored.
        lanes: the calibration tokens.
        team: who takes part.
        settings: of the stage.
    """

    def __init__(
        self,
        model: StreamedModel,
        number: int,
        weights: Mapping[str, Tensor],
        lanes: list[CalibrationShard],
        team: ProcessGroup,
        settings: QuantizeSettings,
    ) -> None:
        self._model = model
        self._weights = weights
        placed = model.to_device(weights)
        self._reference = model.build_block(number, placed)
        self._block = model.build_block(
            number, placed
        )  # of the same tensors, until they are replaced
        self._lanes = lanes
        self._team = team
        self._settings = {
            linear.name: settings.for_layer(f"{llama.BLOCK_NAME.format(number)}.{linear.name}")
            for linear in llama.LINEARS
        }
        self._hidden = model.config.hidden_size
        self._inner = {
            name: weights[f"{name}.weight"].shape[1]
            for name in ("self_attn.o_proj", "mlp.down_proj")
        }
        for lane in lanes:
            lane.select_block(number)

    def quantize_layers(self) -> Iterator[QuantizedLayer]:
        """The layers, as soon as each is solved."""
        for stage, seen in (
            ("attention_input", self._attention_input),
            ("attention_context", self._attention_context),
            ("mlp_input", self._mlp_input),
            ("mlp_middle", self._mlp_middle),
        ):
            yield from self._quantize_stage(stage, seen)
        for lane in self._team.shards_of_rank(self._lanes):
            hidden = self._read(lane, "hidden", after=True)
            middle = self._read_inner(lane, "mlp.down_proj")
            for batch in lane.sequences.batches:
                added = self._block.mlp_output(self._take(middle, batch))
                put_batch(hidden, batch, self._take(hidden, batch) + added)
            lane.write_states("hidden", hidden, after=True)

    def _attention_input(self, lane: CalibrationShard) -> BatchInputs:
        hidden, reference = self._read(lane, "hidden"), self._reference_states(lane)
        for batch in lane.sequences.batches:
            inputs = self._block.attention_input(self._take(hidden, batch))
            yield batch, inputs, reference.deviation(batch, inputs, self._reference.attention_input)

    def _attention_context(self, lane: CalibrationShard) -> BatchInputs:
        hidden, reference = self._read(lane, "hidden"), self._reference_states(lane)
        context = self._empty_inner(lane, "self_attn.o_proj")
        for batch in lane.sequences.batches:
            rope = self._model.batch_rotary(batch)
            attend = partial(self._reference.add_attention, rope=rope)
            before = self._take(hidden, batch)
            inputs = self._block.context(self._block.attention_input(before), rope)
            put_batch(context, batch, inputs)
            yield batch, inputs, reference.deviation(batch, before, attend, keep=True)
        lane.write_states("self_attn.o_proj", context)
        reference.write()

    def _mlp_input(self, lane: CalibrationShard) -> BatchInputs:
        hidden, reference = self._read(lane, "hidden"), self._reference_states(lane, after=True)
        context = self._read_inner(lane, "self_attn.o_proj")
        for batch in lane.sequences.batches:
            added = self._block.attention_output(self._take(context, batch))
            after = self._take(hidden, batch) + added
            put_batch(hidden, batch, after)
            inputs = self._block.mlp_input(after)
            yield batch, inputs, reference.deviation(batch, inputs, self._reference.mlp_input)
        lane.write_states("hidden", hidden, after=True)

    def _mlp_middle(self, lane: CalibrationShard) -> BatchInputs:
        hidden, reference = (
            self._read(lane, "hidden", after=True),
            self._reference_states(lane, after=True),
        )
        middle = self._empty_inner(lane, "mlp.down_proj")
        for batch in lane.sequences.batches:
            before = self._take(hidden, batch)
            inputs = self._block.mlp_middle(self._block.mlp_input(before))
            put_batch(middle, batch, inputs)
            yield (
                batch,
                inputs,
                reference.deviation(batch, before, self._reference.add_mlp, keep=True),
            )
        lane.write_states("mlp.down_proj", middle)
        reference.write()

    def _quantize_stage(
        self, stage: str, seen: Callable[[CalibrationShard], BatchInputs]
    ) -> Iterator[QuantizedLayer]:
        """Collect the moments of one input, and solve the layers that share it.

        The paired lanes go first: what they tell is enough to aim, and then only the Hessian grows.
        """
        names = llama.linears_with_input(stage)
        paired, alone = self._split_by_reference()
        cols = self._weights[f"{names[0]}.weight"].shape[1]
        moments = HessianAccumulator(cols, self._hidden if paired else 0, self._model.device)

        def collect(lane: CalibrationShard, part: HessianAccumulator) -> None:
            for batch, inputs, more in seen(lane):
                part.add_batch(
                    lane.select_tokens(batch, inputs),
                    None if more is None else lane.select_tokens(batch, more),
                )

        self._team.reduce_in_order(paired, collect, moments)
        targets = [
            (settings, together, self._corrected_weight(together, moments, settings))
            for settings, together in self._group_by_settings(names)
        ]
        moments.drop_cross_moment()
        self._team.reduce_in_order(alone, collect, moments)
        hessian = moments.full_hessian()
        for settings, together, weight in targets:
            yield from self._round_layers(together, weight, hessian, settings)

    def _split_by_reference(self) -> tuple[list[CalibrationShard], list[CalibrationShard]]:
        count = sum(lane.has_reference for lane in self._lanes)  # they go first
        return self._lanes[:count], self._lanes[count:]

    def _group_by_settings(self, names: Sequence[str]) -> list[tuple[QuantizeSettings, list[str]]]:
        """Layers by their settings, without those that stay in 16 bits."""
        found: list[tuple[QuantizeSettings, list[str]]] = []
        for name in names:
            wanted = self._settings[name]
            fitting = [together for settings, together in found if settings == wanted]
            if fitting:
                fitting[0].append(name)
            elif wanted is not None:
                found.append((wanted, [name]))
        return found

    def _corrected_weight(
        self, names: list[str], moments: HessianAccumulator, settings: QuantizeSettings
    ) -> Float32[Tensor, "rows cols"]:
        """What the layers are rounded towards, one below the other."""
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
            rounded, factor = round_layer(weight, hessian, self._team, settings)
        start = 0
        for name in names:
            part = slice(start, start + len(self._weights[f"{name}.weight"]))
            start = part.stop
            self._block.replace_weight(name, rounded.dequantize_rows(part))
            loss = rounded.loss(part)
            yield QuantizedLayer(
                name,
                rounded.pack_rows(part),
                rounded.relative_error(part),
                loss,
                exceeds_loss_limit(loss, settings.bits),
                factor.damp_percent,
                factor.rescue,
            )

    def _take(self, states: Float[Tensor, "tokens width"], batch: TokenBatch) -> BatchValues:
        return take_batch(states, batch, self._model.device)

    def _reference_states(self, lane: CalibrationShard, *, after: bool = False) -> ReferenceStates:
        return ReferenceStates(lane, self._hidden, self._model.device, after=after)

    def _read(
        self, lane: CalibrationShard, name: str, *, after: bool = False
    ) -> Float32[Tensor, "t h"]:
        return lane.read_states(name, self._hidden, STATE_DTYPE, after=after)

    def _read_inner(self, lane: CalibrationShard, linear: str) -> Float[Tensor, "tokens cols"]:
        return lane.read_states(linear, self._inner[linear], self._model.dtype)

    def _empty_inner(self, lane: CalibrationShard, linear: str) -> Float[Tensor, "tokens cols"]:
        return torch.empty(len(lane.sequences.tokens), self._inner[linear], dtype=self._model.dtype)


@contextmanager
def _name_layers(names: list[str]) -> Iterator[None]:
    """Say of a problem which layers have it."""
    try:
        yield
    except NumericsProblem as error:
        raise type(error)(
            f"{', '.join(names)}: {error.message}", next_step=error.next_step
        ) from error
