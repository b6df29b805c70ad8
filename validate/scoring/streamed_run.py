"""Models side by side through all tokens: one block of each in memory, and a lane a thread.

After every block their hidden states are compared, lane by lane, and what is done is remembered.
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
from camelpress.inference.streaming import block_pipeline
from camelpress.inference.streaming.process_group import ProcessGroup
from camelpress.inference.streaming.thread_team import ThreadTeam
from camelpress.inference.streaming.token_shards import SHARDS_FOLDER, TokenShard
from camelpress.validate.scoring.workspace import Workspace

HIDDEN_STATE = "hidden"
MAX_ACTIVATION_BYTES = 2**28  # bytes of activations at once, in all threads
BlockWeights = dict[StreamedModel, dict[str, Tensor]]


@dataclass(frozen=True)
class StreamedRun:
    """A model, and the tokens as it sees them."""

    label: str
    model: StreamedModel
    shards: list[TokenShard]

    @classmethod
    def start(
        cls, label: str, model: StreamedModel, sequences: Sequence[TokenBatches], work: Workspace
    ) -> StreamedRun:
        """A model at its beginning.

        Args:
            label: what errors and files call it.
            model: which.
            sequences: of each lane.
            work: where its states stand.
        """
        folder = work.folder / SHARDS_FOLDER / label.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        lanes = [
            TokenShard(number, each, folder, states=(HIDDEN_STATE,))
            for number, each in enumerate(sequences)
        ]
        return cls(label, model, lanes)

    def seek(self, block: int) -> None:
        """Turn to a block; behind the last one there are the states that left it."""
        for lane in self.shards:
            lane.select_block(min(block, self.model.block_count))

    def read_hidden(self, lane: int) -> Float[Tensor, "tokens hidden"]:
        """What enters the block, of one lane."""
        width = int(self.model.config.hidden_size)
        return self.shards[lane].read_states(HIDDEN_STATE, width, self.model.dtype)

    def digest(self, lane: int, block: int) -> str:
        """A hash of the states of one lane that enter a block."""
        self.shards[lane].select_block(min(block, self.model.block_count))
        return self.shards[lane].states_digest()

    @property
    def activation_bytes(self) -> int:
        """Bytes that a block makes of the largest batch, about."""
        config = self.model.config
        batches = (batch for lane in self.shards for batch in lane.sequences.batches)
        widths = 8 * config.hidden_size + 3 * config.intermediate_size
        return max(sum(batch.lengths) for batch in batches) * widths * self.model.dtype.itemsize

    def write_embeddings(self, team: ProcessGroup) -> None:
        """Write the states that enter the first block, of this rank's lanes.

        Raises:
            CheckpointProblem: the text has ids that the model does not know.
            NumericsProblem: an embedding is not finite.
        """
        own = team.shards_of_rank(self.shards)
        table = self.model.read_embedding() if own else torch.empty(0)
        for lane in own:
            hidden = self.model.embed_ids(lane.sequences.tokens, table)
            lane.write_states(HIDDEN_STATE, hidden.to(self.model.dtype))


def run_blocks(runners: Sequence[StreamedRun], work: Workspace) -> list[list[float]]:
    """Push all tokens through all models.

    Args:
        runners: the models, on the same lanes.
        work: where it is done, and with whom.
    Returns:
        of each model but the first, how far its hidden states are from those of the first after
        each block, relative to these; nothing where depths or widths differ.
    Raises:
        Interrupted: somebody asked for the end, and the block under way is finished.
        CheckpointProblem: the text has ids that a model does not know.
        NumericsProblem: a weight is not finite.
    """
    team, journal = work.team, work.journal
    depth = max(runner.model.block_count for runner in runners)
    places = range(len(runners[0].shards))

    def hashes(block: int) -> list[list[str]]:
        return [[runner.digest(place, block) for runner in runners] for place in places]

    def known() -> list[block_pipeline.BlockRecord]:
        return block_pipeline.finished_blocks(journal, depth, hashes) if journal else []

    errors = [facts["errors"] for facts in team.broadcast(known)]
    if not errors:
        with team.raise_together():
            for runner in runners:
                runner.seek(0)
                runner.write_embeddings(team)
    label = "score " + " and ".join(runner.label for runner in runners)
    numbers = range(len(errors), depth)
    most = MAX_ACTIVATION_BYTES // max(runner.activation_bytes for runner in runners)
    with ThreadTeam.start(most, runners[0].model.device) as crew:
        for number, weights in block_pipeline.stream_blocks(
            numbers, lambda n: _read_weights(runners, n), team, label
        ):
            facts = _run_block(runners, number, weights, team, crew)
            errors.append(facts["errors"])
            if journal:
                block_pipeline.record_block(journal, number, facts)
    for runner in runners:
        runner.seek(depth)
    columns = [list(column) for column in zip(*errors, strict=True)]
    return columns or [[] for _ in runners[1:]]


def _read_weights(runners: Sequence[StreamedRun], number: int) -> BlockWeights:
    """The weights of a block, once of each model that is so deep."""
    models = {runner.model for runner in runners if number < runner.model.block_count}
    with torch.inference_mode():
        return {model: model.read_block_weights(number) for model in models}


def _run_block(
    runners: Sequence[StreamedRun],
    number: int,
    weights: BlockWeights,
    team: ProcessGroup,
    crew: ThreadTeam,
) -> block_pipeline.BlockRecord:
    """Push all tokens through one block; the errors behind it, and hashes of the states.

    A lane is hashed, and brought to the disk, while the crew is at others.
    """
    for runner in runners:
        runner.seek(number)
    blocks = {model: model.build_block(number, weights.pop(model)) for model in list(weights)}
    lanes = runners[0].shards
    places = team.items_of_rank(range(len(lanes)))
    done = zip(places, crew.map(partial(_run_shard, runners, number, blocks), places), strict=True)
    own = [(sums, [each.digest(place, number + 1) for each in runners]) for place, sums in done]
    sums, states = zip(*team.all_gather(own, len(lanes)), strict=True)
    tokens = sum(len(lane.sequences.tokens) for lane in lanes)
    errors = [sqrt(sum(column) / tokens) for column in zip(*sums, strict=True)]
    return {"errors": errors, "states": list(states)}


def _run_shard(
    runners: Sequence[StreamedRun],
    number: int,
    blocks: dict[StreamedModel, DecoderBlock],
    place: int,
) -> list[float]:
    """One lane through one block; sums of squared relative errors behind it."""
    states = []
    for runner in runners:
        if number < runner.model.block_count:
            lane, hidden = runner.shards[place], runner.read_hidden(place)
            runner.model.run_block(lane.sequences, hidden, blocks[runner.model])
            lane.write_states(HIDDEN_STATE, hidden, after=True)
            states.append(hidden)
    sizes = {(runner.model.block_count, int(runner.model.config.hidden_size)) for runner in runners}
    if len(sizes) > 1:
        return []
    return [squared_relative_error(states[0], other) for other in states[1:]]


def squared_relative_error(
    reference: Float[Tensor, "tokens hidden"], other: Float[Tensor, "tokens hidden"]
) -> float:
    """The sum, over tokens, of |other - reference|² / |reference|².

    Token by token, because the first of a text can be a thousand times as long as all others.
    """
    length = torch.linalg.vector_norm(reference.float(), dim=-1)
    off = torch.linalg.vector_norm(other.float() - reference.float(), dim=-1)
    share = off / length.clamp(min=torch.finfo(torch.float32).tiny)
    return float(share.double().square().sum())
