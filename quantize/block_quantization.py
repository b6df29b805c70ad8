"""All blocks of a model: quantized, written, and remembered, so that a second run goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from camelpress.core import llama
from camelpress.core.checkpoint.checkpoint_writer import CheckpointWriter, tensor_bytes
from camelpress.core.errors import NumericsProblem, OutOfMemory
from camelpress.core.output.journal import Journal
from camelpress.core.packing.gptq_format import GPTQ_TENSORS
from camelpress.inference.model.streamed_model import StreamedModel
from camelpress.inference.streaming import block_pipeline
from camelpress.inference.streaming.block_pipeline import BlockRecord
from camelpress.inference.streaming.process_group import ProcessGroup
from camelpress.inference.streaming.token_shards import shard_digests
from camelpress.quantize.block_quantizer import (
    BlockQuantizer,
    QuantizedLayer,
    round_block_to_nearest,
)
from camelpress.quantize.calibration.reference_states import STATE_DTYPE
from camelpress.quantize.calibration_shards import CalibrationShard
from camelpress.quantize.settings import QuantizeSettings
from camelpress.quantize.solver.loss_limits import require_failures_within


@dataclass(frozen=True)
class QuantizationRun:
    """What all blocks have in common.

    Args:
        model: the 16-bit model.
        lanes: the calibration tokens; none to round to nearest.
        team: who takes part.
        settings: of the stage.
    """

    model: StreamedModel
    lanes: list[CalibrationShard]
    team: ProcessGroup
    settings: QuantizeSettings

    def run_leader(self, writer: CheckpointWriter, journal: Journal) -> list[BlockRecord]:
        """Quantize all blocks that are not there yet; the facts of every layer, old and new.

        Raises:
            Interrupted: somebody asked for the end, and the block under way is finished.
        """
        told: list[BlockRecord] = []
        first = self.team.broadcast(lambda: self._restore_blocks(writer, journal, told))
        require_failures_within(told, self.settings.max_fallbacks)
        for number, layers, states in self._blocks(first):
            tensors = {
                f"{layer.name}.{part}": getattr(layer.packed, part)
                for layer in layers
                for part in GPTQ_TENSORS
            }
            for name, tensor in tensors.items():
                writer.write_tensor(name, tensor)
            facts = [_layer_facts(layer) for layer in layers]
            told += facts
            hashes = {name: _sha256(tensor) for name, tensor in tensors.items()}
            entry = {"tensors": hashes, "states": states, "layers": facts}
            block_pipeline.record_block(journal, number, entry)
            require_failures_within(told, self.settings.max_fallbacks)
        return told

    def run_follower(self) -> None:
        """Take part as another rank than the first."""
        for _ in self._blocks(self.team.broadcast(lambda: 0)):
            pass

    def _blocks(self, first: int) -> Iterator[tuple[int, list[QuantizedLayer], list[str]]]:
        """Block after block: its number, its layers by their full names, hashes of its states."""
        if first == 0:
            self._write_embeddings()
        numbers = range(first, self.model.block_count)
        for number, weights in block_pipeline.stream_blocks(
            numbers, self._read_weights, self.team, "quantize"
        ):
            yield (
                number,
                list(self._quantize_block(number, weights)),
                self._state_digests(number + 1),
            )

    def _quantize_block(self, number: int, weights: dict[str, Tensor]) -> Iterator[QuantizedLayer]:
        prefix = llama.BLOCK_NAME.format(number)
        if self.lanes:
            block = BlockQuantizer(
                self.model, number, weights, self.lanes, self.team, self.settings
            )
            layers = block.quantize_layers()
        else:
            layers = round_block_to_nearest(number, weights, self.settings)
        try:
            for layer in layers:
                yield replace(layer, name=f"{prefix}.{layer.name}")
        except NumericsProblem as error:
            raise type(error)(f"{prefix}: {error.message}", next_step=error.next_step) from error
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            raise OutOfMemory(
                f"{prefix}: {self.model.device} has too little memory",
                next_step="use a shorter --sequence-length, or a device with the memory forecast",
            ) from error

    def _read_weights(self, number: int) -> dict[str, Tensor]:
        with torch.inference_mode():
            return self.model.read_block_weights(number)

    def _write_embeddings(self) -> None:
        own = self.team.shards_of_rank(self.lanes)
        table = self.model.read_embedding() if own else torch.empty(0)
        for lane in own:
            lane.select_block(0)
            hidden = self.model.embed_ids(lane.sequences.tokens, table).to(STATE_DTYPE)
            lane.write_states("hidden", hidden)
            if lane.has_reference:
                lane.write_states("reference", hidden)

    def _state_digests(self, number: int) -> list[str]:
        """Hashes of the states that enter a block, lane by lane."""
        for lane in self.lanes:
            lane.select_block(number)
        own = shard_digests(self.team.shards_of_rank(self.lanes))
        return self.team.all_gather(own, len(self.lanes))

    def _restore_blocks(
        self, writer: CheckpointWriter, journal: Journal, told: list[BlockRecord]
    ) -> int:
        """How many blocks an earlier run finished; tells the writer and adds their facts."""

        def whole(entry: BlockRecord) -> bool:
            hashes = entry["tensors"]
            return all(writer.tensor_digest(name) == expected for name, expected in hashes.items())

        def states(number: int) -> list[str]:
            for lane in self.lanes:
                lane.select_block(number)
            return shard_digests(self.lanes)

        done = block_pipeline.finished_blocks(journal, self.model.block_count, states, whole)
        for entry in done:
            told += entry["layers"]
            for name in entry["tensors"]:
                writer.finish_tensor(name)
        return len(done)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an error is about memory; torch's own of a CPU has no type that says so."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or "can't allocate memory" in str(error)


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()


def _layer_facts(layer: QuantizedLayer) -> BlockRecord:
    scales = layer.packed.scales
    return {
        "name": layer.name,
        "relative_error": layer.relative_error,
        "loss": layer.loss,
        "lost": layer.exceeds_limit,
        "damp_percent": layer.damp_percent,
        "rescue": layer.rescue,
        "scales": {
            "least": float(scales.abs().min()),
            "largest": float(scales.abs().max()),
            "negative": float((scales < 0).float().mean()),
        },
    }
