"""All blocks of a model: quantized, written, and remembered, so that a second run goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from camelpress.core import llama
from camelpress.core.checkpoint.checkpoint_writer import CheckpointWriter, data
from camelpress.core.errors import NumericsProblem, OutOfMemory
from camelpress.core.output.journal import Journal
from camelpress.core.packing.gptq_format import PARTS
from camelpress.inference.model.streamed_model import StreamedModel
from camelpress.inference.streaming import block_pipeline
from camelpress.inference.streaming.block_pipeline import Facts
from camelpress.inference.streaming.process_group import Team
from camelpress.inference.streaming.token_shards import digests
from camelpress.quantize.block_quantizer import BlockQuantizer, Layer, nearest_block
from camelpress.quantize.calibration.reference_states import STATE
from camelpress.quantize.calibration_shards import Lane
from camelpress.quantize.settings import Quantize
from camelpress.quantize.solver.loss_limits import require_few_failures


@dataclass(frozen=True)
class Journey:
    """What all blocks have in common.

    Args:
        model: the 16-bit model.
        lanes: the calibration tokens; none to round to nearest.
        team: who takes part.
        settings: of the stage.
    """

    model: StreamedModel
    lanes: list[Lane]
    team: Team
    settings: Quantize

    def lead(self, writer: CheckpointWriter, journal: Journal) -> list[Facts]:
        """Quantize all blocks that are not there yet; the facts of every layer, old and new.

        Raises:
            Interrupted: somebody asked for the end, and the block under way is finished.
        """
        told: list[Facts] = []
        first = self.team.share(lambda: self._finished(writer, journal, told))
        require_few_failures(told, self.settings.max_fallbacks)
        for number, layers, states in self._blocks(first):
            tensors = {
                f"{layer.name}.{part}": getattr(layer.packed, part)
                for layer in layers
                for part in PARTS
            }
            for name, tensor in tensors.items():
                writer.put(name, tensor)
            facts = [_told(layer) for layer in layers]
            told += facts
            hashes = {name: _sha256(tensor) for name, tensor in tensors.items()}
            entry = {"tensors": hashes, "states": states, "layers": facts}
            block_pipeline.remember(journal, number, entry)
            require_few_failures(told, self.settings.max_fallbacks)
        return told

    def follow(self) -> None:
        """Take part as another rank than the first."""
        for _ in self._blocks(self.team.share(lambda: 0)):
            pass

    def _blocks(self, first: int) -> Iterator[tuple[int, list[Layer], list[str]]]:
        """Block after block: its number, its layers by their full names, hashes of its states."""
        if first == 0:
            self._embed()
        numbers = range(first, self.model.blocks)
        for number, weights in block_pipeline.blocks(numbers, self._read, self.team, "quantize"):
            yield number, list(self._layers(number, weights)), self._states(number + 1)

    def _layers(self, number: int, weights: dict[str, Tensor]) -> Iterator[Layer]:
        prefix = llama.BLOCK.format(number)
        if self.lanes:
            block = BlockQuantizer(
                self.model, number, weights, self.lanes, self.team, self.settings
            )
            layers = block.layers()
        else:
            layers = nearest_block(number, weights, self.settings)
        try:
            for layer in layers:
                yield replace(layer, name=f"{prefix}.{layer.name}")
        except NumericsProblem as error:
            raise type(error)(f"{prefix}: {error.what}", next_step=error.next_step) from error
        except (RuntimeError, MemoryError) as error:
            if not _lacks_memory(error):
                raise
            raise OutOfMemory(
                f"{prefix}: {self.model.device} has too little memory",
                next_step="use a shorter --sequence-length, or a device with the memory forecast",
            ) from error

    def _read(self, number: int) -> dict[str, Tensor]:
        with torch.inference_mode():
            return self.model.weights(number)

    def _embed(self) -> None:
        own = self.team.lanes(self.lanes)
        table = self.model.embedding() if own else torch.empty(0)
        for lane in own:
            lane.at(0)
            hidden = self.model.looked_up(lane.sequences.tokens, table).to(STATE)
            lane.write("hidden", hidden)
            if lane.paired:
                lane.write("reference", hidden)

    def _states(self, number: int) -> list[str]:
        """Hashes of the states that enter a block, lane by lane."""
        for lane in self.lanes:
            lane.at(number)
        own = digests(self.team.lanes(self.lanes))
        return self.team.exchange(own, len(self.lanes))

    def _finished(self, writer: CheckpointWriter, journal: Journal, told: list[Facts]) -> int:
        """How many blocks an earlier run finished; tells the writer and adds their facts."""

        def whole(entry: Facts) -> bool:
            hashes = entry["tensors"]
            return all(writer.digest(name) == expected for name, expected in hashes.items())

        def states(number: int) -> list[str]:
            for lane in self.lanes:
                lane.at(number)
            return digests(self.lanes)

        done = block_pipeline.finished(journal, self.model.blocks, states, whole)
        for entry in done:
            told += entry["layers"]
            for name in entry["tensors"]:
                writer.done(name)
        return len(done)


def _lacks_memory(error: Exception) -> bool:
    """Whether an error is about memory; torch's own of a CPU has no type that says so."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or "can't allocate memory" in str(error)


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(data(tensor)).hexdigest()


def _told(layer: Layer) -> Facts:
    scales = layer.packed.scales
    return {
        "name": layer.name,
        "relative_error": layer.relative_error,
        "loss": layer.loss,
        "lost": layer.lost,
        "damp_percent": layer.damp_percent,
        "rescue": layer.rescue,
        "scales": {
            "least": float(scales.abs().min()),
            "largest": float(scales.abs().max()),
            "negative": float((scales < 0).float().mean()),
        },
    }
