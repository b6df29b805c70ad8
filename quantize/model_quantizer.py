"""Quantizes all blocks of a model and journals each one, so a second run resumes."""

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
    """One quantization run: the inputs shared by all blocks.

    Args:
        model: the 16-bit model.
        shards: calibration tokens; none to round to nearest.
        processes: process group.
        settings: settings of the stage.
    """

    model: StreamedModel
    shards: list[CalibrationShard]
    processes: ProcessGroup
    settings: QuantizeSettings

    def run_leader(self, writer: CheckpointWriter, journal: Journal) -> list[BlockRecord]:
        """Quantizes all unfinished blocks as the first rank; returns the facts of every layer.

        Raises:
            Interruption: The user asked for a stop, and the current block is finished.
        """
        layer_facts: list[BlockRecord] = []
        first = self.processes.broadcast(lambda: self._restore_blocks(writer, journal, layer_facts))
        require_failures_within(layer_facts, self.settings.max_fallbacks)
        for number, layers, states in self._blocks(first):
            tensors = {
                f"{layer.name}.{part}": getattr(layer.packed, part)
                for layer in layers
                for part in GPTQ_TENSORS
            }
            for name, tensor in tensors.items():
                writer.write_tensor(name, tensor)
            facts = [_layer_facts(layer) for layer in layers]
            layer_facts += facts
            hashes = {name: _sha256(tensor) for name, tensor in tensors.items()}
            entry = {"tensors": hashes, "states": states, "layers": facts}
            block_pipeline.record_block(journal, number, entry)
            require_failures_within(layer_facts, self.settings.max_fallbacks)
        return layer_facts

    def run_follower(self) -> None:
        """Quantizes the blocks as any other rank."""
        for _ in self._blocks(self.processes.broadcast(lambda: 0)):
            pass

    def _blocks(self, first: int) -> Iterator[tuple[int, list[QuantizedLayer], list[str]]]:
        """Yields for each block its number, layers with full names, and digests of its states."""
        if first == 0:
            self._write_embeddings()
        numbers = range(first, self.model.block_count)
        for number, weights in block_pipeline.stream_blocks(
            numbers, self._read_weights, self.processes, "quantize"
        ):
            layers = list(self._quantize_block(number, weights))
            yield number, layers, self._state_digests(number + 1)

    def _quantize_block(self, number: int, weights: dict[str, Tensor]) -> Iterator[QuantizedLayer]:
        prefix = llama.BLOCK_NAME.format(number)
        if self.shards:
            block = BlockQuantizer(
                self.model, number, weights, self.shards, self.processes, self.settings
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
        shards = self.processes.shards_of_rank(self.shards)
        table = self.model.read_embedding() if shards else torch.empty(0)
        for shard in shards:
            shard.select_block(0)
            hidden = self.model.embed_ids(shard.sequences.tokens, table).to(STATE_DTYPE)
            shard.write_states("hidden", hidden)
            if shard.has_reference:
                shard.write_states("reference", hidden)

    def _state_digests(self, number: int) -> list[str]:
        """Returns the digests of the states at the input of a block, shard by shard."""
        for shard in self.shards:
            shard.select_block(number)
        digests = shard_digests(self.processes.shards_of_rank(self.shards))
        return self.processes.all_gather(digests, len(self.shards))

    def _restore_blocks(
        self, writer: CheckpointWriter, journal: Journal, layer_facts: list[BlockRecord]
    ) -> int:
        """Restores the blocks of an earlier run; returns their number and adds their facts."""

        def is_intact(entry: BlockRecord) -> bool:
            hashes = entry["tensors"]
            return all(writer.tensor_digest(name) == expected for name, expected in hashes.items())

        def states(number: int) -> list[str]:
            for shard in self.shards:
                shard.select_block(number)
            return shard_digests(self.shards)

        entries = block_pipeline.finished_blocks(journal, self.model.block_count, states, is_intact)
        for entry in entries:
            layer_facts += entry["layers"]
            for name in entry["tensors"]:
                writer.finish_tensor(name)
        return len(entries)


def _is_out_of_memory(error: Exception) -> bool:
    """Returns true for a lack of memory; torch has no error type for it on a CPU."""
    has_type = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return has_type or "can't allocate memory" in str(error)


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
