"""Runs several models side by side: one block of each in memory, one token shard per thread.

After every block the hidden states of the models are compared shard by shard, and the journal
records the block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from camelpress.inference.model.streamed_model import DecoderBlock, StreamedModel
from camelpress.inference.model.token_batches import TokenBatches
from camelpress.inference.streaming.block_pipeline import BlockPipeline, BlockRecord
from camelpress.inference.streaming.home_choice import choose_home
from camelpress.inference.streaming.process_group import ProcessGroup
from camelpress.inference.streaming.thread_team import ThreadTeam
from camelpress.inference.streaming.token_shards import SHARDS_FOLDER, TokenShard
from camelpress.validate.scoring.workspace import Workspace

HIDDEN_STATE = "hidden"
MAX_ACTIVATION_BYTES = 2**28  # bytes of activations in all threads together
BlockWeights = dict[StreamedModel, dict[str, Tensor]]


@dataclass(frozen=True)
class StreamedRun:
    """A model and the token shards of its run."""

    label: str
    model: StreamedModel
    shards: list[TokenShard]

    @classmethod
    def start(
        cls, label: str, model: StreamedModel, sequences: Sequence[TokenBatches], work: Workspace
    ) -> StreamedRun:
        """Creates the run of a model before its first block.

        Args:
            label: name of the model in errors and files.
            model: the model.
            sequences: token batches of each shard.
            work: workspace for the hidden states.
        """
        folder = work.folder / SHARDS_FOLDER / label.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        shards = [
            TokenShard(number, batches, folder, states=(HIDDEN_STATE,), depth=model.block_count)
            for number, batches in enumerate(sequences)
        ]
        return cls(label, model, shards)

    def seek(self, block: int) -> None:
        """Selects the hidden states before a block, or those after the last one."""
        for shard in self.shards:
            shard.select_block(block)

    def read_hidden(self, shard: int) -> Float[Tensor, "tokens hidden"]:
        """Reads the hidden states of one shard before the selected block."""
        width = int(self.model.config.hidden_size)
        return self.shards[shard].read_states(HIDDEN_STATE, width, self.model.dtype)

    @property
    def state_bytes(self) -> int:
        """Bytes of the hidden states of all shards, before and after a block."""
        tokens = sum(len(shard.sequences.tokens) for shard in self.shards)
        return 2 * tokens * int(self.model.config.hidden_size) * self.model.dtype.itemsize

    @property
    def activation_bytes(self) -> int:
        """Approximate bytes of the activations of the largest batch in a block."""
        config = self.model.config
        batches = (batch for shard in self.shards for batch in shard.sequences.batches)
        widths = 8 * config.hidden_size + 3 * config.intermediate_size
        return max(sum(batch.lengths) for batch in batches) * widths * self.model.dtype.itemsize

    def write_embeddings(self, team: ProcessGroup) -> None:
        """Writes the hidden states before the first block, for the shards of this rank.

        Raises:
            CheckpointProblem: the text has ids outside the embedding.
            NumericsProblem: an embedding is not finite.
        """
        self.seek(0)
        shards = team.shards_of_rank(self.shards)
        table = self.model.read_embedding() if shards else torch.empty(0)
        for shard in shards:
            hidden = self.model.embed_ids(shard.sequences.tokens, table)
            shard.write_states(HIDDEN_STATE, hidden.to(self.model.dtype))


def run_blocks(runners: Sequence[StreamedRun], work: Workspace) -> list[list[float]]:
    """Runs all tokens through all blocks of all models.

    Args:
        runners: the models, on the same shards.
        work: workspace and process group.
    Returns:
        for each model but the first, the relative error of its hidden states after each block,
        measured against the first model; empty if depths or widths differ.
    Raises:
        Interruption: the user asked to stop; the current block is finished.
        CheckpointProblem: the text has ids outside an embedding.
        NumericsProblem: a weight is not finite.
    """
    depth = max(runner.model.block_count for runner in runners)
    device = runners[0].model.device
    max_threads = MAX_ACTIVATION_BYTES // max(runner.activation_bytes for runner in runners)
    pipeline = BlockPipeline(
        depth=depth,
        label="score " + " and ".join(runner.label for runner in runners),
        team=work.team,
        journal=work.journal,
        shards=list(zip(*(runner.shards for runner in runners), strict=True)),
        home=choose_home(sum(runner.state_bytes for runner in runners), device, work.team),
        embed=lambda: _write_embeddings(runners, work.team),
        read_weights=lambda block: _read_weights(runners, block),
    )
    records = pipeline.start()
    with ThreadTeam.start(max_threads, device) as threads:
        run_block = partial(_run_block, runners, team=work.team, threads=threads)
        records += pipeline.run(len(records), run_block)
    for runner in runners:
        runner.seek(depth)
    columns = zip(*(record["errors"] for record in records), strict=True)
    return [list(column) for column in columns] or [[] for _ in runners[1:]]


def _write_embeddings(runners: Sequence[StreamedRun], team: ProcessGroup) -> None:
    for runner in runners:
        runner.write_embeddings(team)


def _read_weights(runners: Sequence[StreamedRun], number: int) -> BlockWeights:
    """Reads the weights of a block, once for each model with this many blocks."""
    models = {runner.model for runner in runners if number < runner.model.block_count}
    return {model: model.read_block_weights(number) for model in models}


def _run_block(
    runners: Sequence[StreamedRun],
    number: int,
    weights: BlockWeights,
    team: ProcessGroup,
    threads: ThreadTeam,
) -> BlockRecord:
    """Runs all tokens through one block, and returns the errors of the states after it."""
    for runner in runners:
        runner.seek(number)
    blocks = {model: model.build_block(number, weights.pop(model)) for model in list(weights)}
    shards = runners[0].shards
    rank_shards = team.items_of_rank(range(len(shards)))
    rank_sums = list(threads.map(partial(_run_shard, runners, number, blocks), rank_shards))
    sums = team.all_gather(rank_sums, len(shards))
    tokens = sum(len(shard.sequences.tokens) for shard in shards)
    errors = [sqrt(sum(error_sums) / tokens) for error_sums in zip(*sums, strict=True)]
    return {"errors": errors}


def _run_shard(
    runners: Sequence[StreamedRun],
    number: int,
    blocks: dict[StreamedModel, DecoderBlock],
    index: int,
) -> list[float]:
    """Runs one shard through one block, and returns the sums of squared relative errors."""
    states = []
    for runner in runners:
        if number < runner.model.block_count:
            shard, hidden = runner.shards[index], runner.read_hidden(index)
            output = shard.allocate_states(HIDDEN_STATE, hidden.shape[1], hidden.dtype, after=True)
            runner.model.run_block(shard.sequences, hidden, blocks[runner.model], output)
            shard.write_states(HIDDEN_STATE, output, after=True)
            states.append(output)
    sizes = {(runner.model.block_count, int(runner.model.config.hidden_size)) for runner in runners}
    if len(sizes) > 1:
        return []
    return [squared_relative_error(states[0], hidden_states) for hidden_states in states[1:]]


def squared_relative_error(
    reference: Float[Tensor, "tokens hidden"], candidate: Float[Tensor, "tokens hidden"]
) -> float:
    """Returns the sum over tokens of |candidate - reference|² / |reference|².

    The error is relative to each token, because the norm of the first token of a text can be a
    thousand times that of all others.
    """
    norm = torch.linalg.vector_norm(reference.float(), dim=-1)
    error = torch.linalg.vector_norm(candidate.float() - reference.float(), dim=-1)
    share = error / norm.clamp(min=torch.finfo(torch.float32).tiny)
    return float(share.double().square().sum())
