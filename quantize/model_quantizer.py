"""Quantizes all blocks of a model and journals each one, so a second run resumes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from camelpress.core import llama
from camelpress.core.checkpoint.checkpoint_writer import CheckpointWriter, tensor_bytes
from camelpress.core.errors import NumericsProblem, OutOfMemory
from camelpress.core.output.journal import Journal
from camelpress.core.packing.gptq_format import GPTQ_TENSORS
from camelpress.core.runtime.out_of_memory import is_out_of_memory
from camelpress.inference.model.streamed_model import StreamedModel
from camelpress.inference.streaming.block_pipeline import BlockPipeline, BlockRecord
from camelpress.inference.streaming.process_group import ProcessGroup
from camelpress.inference.streaming.state_home import StateHome
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
        home: home of the hidden states.
    """

    model: StreamedModel
    shards: list[CalibrationShard]
    processes: ProcessGroup
    settings: QuantizeSettings
    home: StateHome

    def quantize_blocks(
        self, writer: CheckpointWriter | None, journal: Journal | None
    ) -> list[BlockRecord]:
        """Quantizes all unfinished blocks; returns the facts of every layer.

        Args:
            writer: writer of the tensors; on the main rank only.
            journal: journal of the output; on the main rank only.
        Raises:
            Interruption: The user asked for a stop, and the current block is finished.
        """
        pipeline = BlockPipeline(
            depth=self.model.block_count,
            label="quantize",
            team=self.processes,
            journal=journal,
            shards=[(shard,) for shard in self.shards],
            home=self.home,
            embed=self._write_embeddings,
            read_weights=self.model.read_block_weights,
            is_whole=lambda record: writer is not None and _is_intact(writer, record["tensors"]),
            needs_last_states=False,
        )
        records = pipeline.start()
        layer_facts = [facts for record in records for facts in record["layers"]]
        if writer:
            for record in records:
                for name in record["tensors"]:
                    writer.finish_tensor(name)
            require_failures_within(layer_facts, self.settings.max_fallbacks)
        run_block = partial(self._run_block, writer=writer)
        for record in pipeline.run(len(records), run_block):
            layer_facts += record["layers"]
            if writer:
                require_failures_within(layer_facts, self.settings.max_fallbacks)
        return layer_facts

    def _run_block(
        self, number: int, weights: dict[str, Tensor], writer: CheckpointWriter | None
    ) -> BlockRecord:
        layers = list(self._quantize_block(number, weights))
        tensors = {
            f"{layer.name}.{part}": getattr(layer.packed, part)
            for layer in layers
            for part in GPTQ_TENSORS
        }
        if writer:
            for name, tensor in tensors.items():
                writer.write_tensor(name, tensor)
        hashes = {name: _sha256(tensor) for name, tensor in tensors.items()}
        return {"tensors": hashes, "layers": [*map(_layer_facts, layers)]}

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
        except (RuntimeError, MemoryError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(
                f"{prefix}: {self.model.device} has too little memory",
                next_step="use a shorter --sequence-length, or a device with the memory forecast",
            ) from error

    def _write_embeddings(self) -> None:
        shards = self.processes.shards_of_rank(self.shards)
        table = self.model.read_embedding() if shards else torch.empty(0)
        for shard in shards:
            shard.select_block(0)
            hidden = self.model.embed_ids(shard.sequences.tokens, table).to(STATE_DTYPE)
            shard.write_states("hidden", hidden)
            if shard.has_reference:
                shard.write_states("reference", hidden)


def _is_intact(writer: CheckpointWriter, hashes: dict[str, str]) -> bool:
    return all(writer.tensor_digest(name) == expected for name, expected in hashes.items())


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
