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
from camelpress.core.packing.gptq_format import Packed, pack
from camelpress.core.packing.row_loss import weight_loss
from camelpress.inference.model.streamed_model import StreamedModel
from camelpress.inference.model.token_batches import Batch, put, take
from camelpress.inference.streaming.process_group import Team
from camelpress.quantize.calibration.reference_states import STATE, Reference, Values
from camelpress.quantize.calibration_shards import Lane
from camelpress.quantize.kernels.kernel import kernel
from camelpress.quantize.settings import Quantize
from camelpress.quantize.solver.correction import aim
from camelpress.quantize.solver.grid import nearest, search, values
from camelpress.quantize.solver.hessian import Moments
from camelpress.quantize.solver.layer import round_layer
from camelpress.quantize.solver.loss_limits import is_lost

Seen = Iterator[tuple[Batch, Values, Values | None]]  # inputs, and what the 16-bit model has more


@dataclass(frozen=True)
class Layer:
    """One quantized linear layer."""

    name: str
    packed: Packed
    relative_error: float | None  # squared output error / squared output, on calibration
    loss: float  # the same, as a mean over rows; without calibration of the weights
    lost: bool  # beyond the limit of loss
    damp_percent: float | None
    rescue: str


def nearest_block(
    number: int, weights: Mapping[str, Tensor], settings: Quantize
) -> Iterator[Layer]:
    """Round every layer of a block to nearest, without calibration."""
    for linear in llama.LINEARS:
        own = settings.of(f"{llama.BLOCK.format(number)}.{linear.name}")
        if own is None:
            continue
        weight = weights[f"{linear.name}.weight"].to(torch.float32)
        grid = search(
            weight,
            kernel(weight.device),
            importance=torch.ones_like(weight[0]),
            bits=own.bits,
            group_size=own.group_size,
            sym=own.sym,
        )
        codes = nearest(weight, grid)
        packed = pack(codes, grid.scales, grid.zeros, grid.group_of(), bits=grid.bits)
        loss = weight_loss(weight, values(codes, grid))
        yield Layer(linear.name, packed, None, loss, is_lost(loss, own.bits), None, "")


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
        lanes: list[Lane],
        team: Team,
        settings: Quantize,
    ) -> None:
        self._model = model
        self._weights = weights
        placed = model.placed(weights)
        self._reference = model.assemble(number, placed)
        self._block = model.assemble(number, placed)  # of the same tensors, until they are replaced
        self._lanes = lanes
        self._team = team
        self._settings = {
            linear.name: settings.of(f"{llama.BLOCK.format(number)}.{linear.name}")
            for linear in llama.LINEARS
        }
        self._hidden = model.config.hidden_size
        self._inner = {
            name: weights[f"{name}.weight"].shape[1]
            for name in ("self_attn.o_proj", "mlp.down_proj")
        }
        for lane in lanes:
            lane.at(number)

    def layers(self) -> Iterator[Layer]:
        """The layers, as soon as each is solved."""
        for stage, seen in (
            ("attention_input", self._attention_input),
            ("attention_context", self._attention_context),
            ("mlp_input", self._mlp_input),
            ("mlp_middle", self._mlp_middle),
        ):
            yield from self._solved(stage, seen)
        for lane in self._team.lanes(self._lanes):
            hidden = self._read(lane, "hidden", after=True)
            middle = self._read_inner(lane, "mlp.down_proj")
            for batch in lane.sequences.batches:
                added = self._block.mlp_output(self._take(middle, batch))
                put(hidden, batch, self._take(hidden, batch) + added)
            lane.write("hidden", hidden, after=True)

    def _attention_input(self, lane: Lane) -> Seen:
        hidden, reference = self._read(lane, "hidden"), self._side(lane)
        for batch in lane.sequences.batches:
            inputs = self._block.attention_input(self._take(hidden, batch))
            yield batch, inputs, reference.more(batch, inputs, self._reference.attention_input)

    def _attention_context(self, lane: Lane) -> Seen:
        hidden, reference = self._read(lane, "hidden"), self._side(lane)
        context = self._empty_inner(lane, "self_attn.o_proj")
        for batch in lane.sequences.batches:
            rope = self._model.rope(batch)
            attend = partial(self._reference.attend, rope=rope)
            before = self._take(hidden, batch)
            inputs = self._block.context(self._block.attention_input(before), rope)
            put(context, batch, inputs)
            yield batch, inputs, reference.more(batch, before, attend, keep=True)
        lane.write("self_attn.o_proj", context)
        reference.write()

    def _mlp_input(self, lane: Lane) -> Seen:
        hidden, reference = self._read(lane, "hidden"), self._side(lane, after=True)
        context = self._read_inner(lane, "self_attn.o_proj")
        for batch in lane.sequences.batches:
            added = self._block.attention_output(self._take(context, batch))
            after = self._take(hidden, batch) + added
            put(hidden, batch, after)
            inputs = self._block.mlp_input(after)
            yield batch, inputs, reference.more(batch, inputs, self._reference.mlp_input)
        lane.write("hidden", hidden, after=True)

    def _mlp_middle(self, lane: Lane) -> Seen:
        hidden, reference = self._read(lane, "hidden", after=True), self._side(lane, after=True)
        middle = self._empty_inner(lane, "mlp.down_proj")
        for batch in lane.sequences.batches:
            before = self._take(hidden, batch)
            inputs = self._block.mlp_middle(self._block.mlp_input(before))
            put(middle, batch, inputs)
            yield (
                batch,
                inputs,
                reference.more(batch, before, self._reference.feed_forward, keep=True),
            )
        lane.write("mlp.down_proj", middle)
        reference.write()

    def _solved(self, stage: str, seen: Callable[[Lane], Seen]) -> Iterator[Layer]:
        """Collect the moments of one input, and solve the layers that share it.

        The paired lanes go first: what they tell is enough to aim, and then only the Hessian grows.
        """
        names = llama.linears_fed_by(stage)
        paired, alone = self._paired()
        cols = self._weights[f"{names[0]}.weight"].shape[1]
        moments = Moments(cols, self._hidden if paired else 0, self._model.device)

        def collect(lane: Lane, part: Moments) -> None:
            for batch, inputs, more in seen(lane):
                part.add(
                    lane.counted(batch, inputs), None if more is None else lane.counted(batch, more)
                )

        self._team.fold(paired, collect, moments)
        targets = [
            (settings, together, self._target(together, moments, settings))
            for settings, together in self._alike(names)
        ]
        moments.forget_cross()
        self._team.fold(alone, collect, moments)
        hessian = moments.whole_hessian()
        for settings, together, weight in targets:
            yield from self._rounded(together, weight, hessian, settings)

    def _paired(self) -> tuple[list[Lane], list[Lane]]:
        count = sum(lane.paired for lane in self._lanes)  # they go first
        return self._lanes[:count], self._lanes[count:]

    def _alike(self, names: Sequence[str]) -> list[tuple[Quantize, list[str]]]:
        """Layers by their settings, without those that stay in 16 bits."""
        found: list[tuple[Quantize, list[str]]] = []
        for name in names:
            wanted = self._settings[name]
            fitting = [together for settings, together in found if settings == wanted]
            if fitting:
                fitting[0].append(name)
            elif wanted is not None:
                found.append((wanted, [name]))
        return found

    def _target(
        self, names: list[str], moments: Moments, settings: Quantize
    ) -> Float32[Tensor, "rows cols"]:
        """What the layers are rounded towards, one below the other."""
        weight = torch.cat(
            [self._weights[f"{name}.weight"].to(torch.float32) for name in names]
        ).to(self._model.device)
        if len(moments.cross):
            with _naming(names):
                aim(
                    weight,
                    moments,
                    strength=settings.correction,
                    damp_percent=settings.damp_percent,
                    writes=names[0] in self._inner,
                )
        return weight

    def _rounded(
        self,
        names: list[str],
        weight: Float32[Tensor, "rows cols"],
        hessian: Float32[Tensor, "cols cols"],
        settings: Quantize,
    ) -> Iterator[Layer]:
        with _naming(names):
            rounded, factor = round_layer(weight, hessian, self._team, settings)
        start = 0
        for name in names:
            part = slice(start, start + len(self._weights[f"{name}.weight"]))
            start = part.stop
            self._block.replace(name, rounded.values(part))
            loss = rounded.loss(part)
            yield Layer(
                name,
                rounded.packed(part),
                rounded.relative_error(part),
                loss,
                is_lost(loss, settings.bits),
                factor.damp_percent,
                factor.rescue,
            )

    def _take(self, states: Float[Tensor, "tokens width"], batch: Batch) -> Values:
        return take(states, batch, self._model.device)

    def _side(self, lane: Lane, *, after: bool = False) -> Reference:
        return Reference(lane, self._hidden, self._model.device, after=after)

    def _read(self, lane: Lane, name: str, *, after: bool = False) -> Float32[Tensor, "t h"]:
        return lane.read(name, self._hidden, STATE, after=after)

    def _read_inner(self, lane: Lane, linear: str) -> Float[Tensor, "tokens cols"]:
        return lane.read(linear, self._inner[linear], self._model.dtype)

    def _empty_inner(self, lane: Lane, linear: str) -> Float[Tensor, "tokens cols"]:
        return torch.empty(len(lane.sequences.tokens), self._inner[linear], dtype=self._model.dtype)


@contextmanager
def _naming(names: list[str]) -> Iterator[None]:
    """Say of a problem which layers have it."""
    try:
        yield
    except NumericsProblem as error:
        raise type(error)(f"{', '.join(names)}: {error.what}", next_step=error.next_step) from error
