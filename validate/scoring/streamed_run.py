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

from camelpress.inference.model.streamed_model import Block, StreamedModel
from camelpress.inference.model.token_batches import Sequences
from camelpress.inference.streaming import block_pipeline
from camelpress.inference.streaming.process_group import Team
from camelpress.inference.streaming.thread_team import Crew
from camelpress.inference.streaming.token_shards import LANES, Lane
from camelpress.validate.scoring.workspace import Workplace

STATE = "hidden"
UNDER_WAY = 2**28  # bytes of activations at once, in all threads
Weights = dict[StreamedModel, dict[str, Tensor]]


@dataclass(frozen=True)
class Runner:
    """A model, and the tokens as it sees them."""

    label: str
    model: StreamedModel
    lanes: list[Lane]

    @classmethod
    def of(
        cls, label: str, model: StreamedModel, sequences: Sequence[Sequences], work: Workplace
    ) -> Runner:
        """A model at its beginning.

        Args:
            label: what errors and files call it.
            model: which.
            sequences: of each lane.
            work: where its states stand.
        """
        folder = work.folder / LANES / label.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        lanes = [
            Lane(number, each, folder, states=(STATE,)) for number, each in enumerate(sequences)
        ]
        return cls(label, model, lanes)

    def at(self, block: int) -> None:
        """Turn to a block; behind the last one there are the states that left it."""
        for lane in self.lanes:
            lane.at(min(block, self.model.blocks))

    def states(self, lane: int) -> Float[Tensor, "tokens hidden"]:
        """What enters the block, of one lane."""
        width = int(self.model.config.hidden_size)
        return self.lanes[lane].read(STATE, width, self.model.dtype)

    def digest(self, lane: int, block: int) -> str:
        """A hash of the states of one lane that enter a block."""
        self.lanes[lane].at(min(block, self.model.blocks))
        return self.lanes[lane].digest()

    @property
    def activations(self) -> int:
        """Bytes that a block makes of the largest batch, about."""
        config = self.model.config
        batches = (batch for lane in self.lanes for batch in lane.sequences.batches)
        widths = 8 * config.hidden_size + 3 * config.intermediate_size
        return max(sum(batch.lengths) for batch in batches) * widths * self.model.dtype.itemsize

    def embed(self, team: Team) -> None:
        """Write the states that enter the first block, of this rank's lanes.

        Raises:
            CheckpointProblem: the text has ids that the model does not know.
            NumericsProblem: an embedding is not finite.
        """
        own = team.lanes(self.lanes)
        table = self.model.embedding() if own else torch.empty(0)
        for lane in own:
            hidden = self.model.looked_up(lane.sequences.tokens, table)
            lane.write(STATE, hidden.to(self.model.dtype))


def walk(runners: Sequence[Runner], work: Workplace) -> list[list[float]]:
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
    depth = max(runner.model.blocks for runner in runners)
    places = range(len(runners[0].lanes))

    def hashes(block: int) -> list[list[str]]:
        return [[runner.digest(place, block) for runner in runners] for place in places]

    def known() -> list[block_pipeline.Facts]:
        return block_pipeline.finished(journal, depth, hashes) if journal else []

    errors = [facts["errors"] for facts in team.share(known)]
    if not errors:
        with team.together():
            for runner in runners:
                runner.at(0)
                runner.embed(team)
    label = "score " + " and ".join(runner.label for runner in runners)
    numbers = range(len(errors), depth)
    most = UNDER_WAY // max(runner.activations for runner in runners)
    with Crew.gathered(most, runners[0].model.device) as crew:
        for number, weights in block_pipeline.blocks(
            numbers, lambda n: _read(runners, n), team, label
        ):
            facts = _through(runners, number, weights, team, crew)
            errors.append(facts["errors"])
            if journal:
                block_pipeline.remember(journal, number, facts)
    for runner in runners:
        runner.at(depth)
    columns = [list(column) for column in zip(*errors, strict=True)]
    return columns or [[] for _ in runners[1:]]


def _read(runners: Sequence[Runner], number: int) -> Weights:
    """The weights of a block, once of each model that is so deep."""
    models = {runner.model for runner in runners if number < runner.model.blocks}
    with torch.inference_mode():
        return {model: model.weights(number) for model in models}


def _through(
    runners: Sequence[Runner], number: int, weights: Weights, team: Team, crew: Crew
) -> block_pipeline.Facts:
    """Push all tokens through one block; the errors behind it, and hashes of the states.

    A lane is hashed, and brought to the disk, while the crew is at others.
    """
    for runner in runners:
        runner.at(number)
    blocks = {model: model.assemble(number, weights.pop(model)) for model in list(weights)}
    lanes = runners[0].lanes
    places = team.own(range(len(lanes)))
    done = zip(places, crew.map(partial(_lane, runners, number, blocks), places), strict=True)
    own = [(sums, [each.digest(place, number + 1) for each in runners]) for place, sums in done]
    sums, states = zip(*team.exchange(own, len(lanes)), strict=True)
    tokens = sum(len(lane.sequences.tokens) for lane in lanes)
    errors = [sqrt(sum(column) / tokens) for column in zip(*sums, strict=True)]
    return {"errors": errors, "states": list(states)}


def _lane(
    runners: Sequence[Runner], number: int, blocks: dict[StreamedModel, Block], place: int
) -> list[float]:
    """One lane through one block; sums of squared relative errors behind it."""
    states = []
    for runner in runners:
        if number < runner.model.blocks:
            lane, hidden = runner.lanes[place], runner.states(place)
            runner.model.run(lane.sequences, hidden, blocks[runner.model])
            lane.write(STATE, hidden, after=True)
            states.append(hidden)
    sizes = {(runner.model.blocks, int(runner.model.config.hidden_size)) for runner in runners}
    if len(sizes) > 1:
        return []
    return [squared_error(states[0], other) for other in states[1:]]


def squared_error(
    reference: Float[Tensor, "tokens hidden"], other: Float[Tensor, "tokens hidden"]
) -> float:
    """The sum, over tokens, of |other - reference|² / |reference|².

    Token by token, because the first of a text can be a thousand times as long as all others.
    """
    length = torch.linalg.vector_norm(reference.float(), dim=-1)
    off = torch.linalg.vector_norm(other.float() - reference.float(), dim=-1)
    share = off / length.clamp(min=torch.finfo(torch.float32).tiny)
    return float(share.double().square().sum())
