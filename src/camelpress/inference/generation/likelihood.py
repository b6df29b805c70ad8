"""How likely a model finds given continuations: all of them in one walk through its blocks.

Contexts that several continuations share, as the choices of a question do, are read once, and so
are the examples that several contexts begin with. Hidden states are what a walk holds in memory, so
as many tokens go in one walk as there is room for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from camelpress.core.progress import track
from camelpress.inference.generation.prefixes import Text, begun_alike
from camelpress.inference.generation.token_chunks import Pieces, runs, walk
from camelpress.inference.model.memory_budget import available
from camelpress.inference.model.output_head import Predictions
from camelpress.inference.model.streamed_model import StreamedModel

ROOM = 4  # one part in so many of the free memory is for hidden states
LEAST = 2**14  # tokens of a walk, however little memory there is


class Pair(NamedTuple):
    """A context, of one id at least, and what follows on it."""

    context: list[int]
    continuation: list[int]

    @property
    def read(self) -> tuple[int, ...]:
        """What the model has to see: all but the last token."""
        return (*self.context, *self.continuation[:-1])


class Likelihood(NamedTuple):
    """Of a continuation."""

    log: float  # natural logarithm of the probability of all its tokens
    greedy: bool  # each of them is the likeliest


def likelihoods(
    label: str, model: StreamedModel, pairs: Sequence[Pair], *, tokens: int | None = None
) -> Iterator[tuple[int, Likelihood]]:
    """Place and likelihood of each pair, walk by walk.

    Args:
        label: names the model.
        model: reads its blocks once a walk.
        pairs: of any length; whether the model has so many positions is the caller's business.
        tokens: of a walk; None for as many as there is room for.
    Raises:
        NumericsProblem: logits that are not finite.
    """
    sharing: dict[tuple[int, ...], list[int]] = {}
    for place, pair in enumerate(pairs):
        sharing.setdefault(pair.read, []).append(place)
    reads = [*sharing]
    contexts = [min(len(pairs[place].context) for place in sharing[read]) for read in reads]
    texts = begun_alike(reads, most=[context - 1 for context in contexts])
    for walked in _walks(texts, tokens or _room(model)):
        wanted = [
            _Wanted(text, contexts[number] - 1 - len(text.beginning)) for number, text in walked
        ]
        members = [place for number, _ in walked for place in sharing[reads[number]]]
        which = [at for at, (number, _) in enumerate(walked) for _ in sharing[reads[number]]]
        with torch.inference_mode():
            found = _walk(label, model, wanted, [pairs[place] for place in members], which)
        yield from zip(members, found, strict=True)


class _Wanted(NamedTuple):
    """A text, and the token of its rest from which on predictions are wanted."""

    text: Text
    since: int


def _room(model: StreamedModel) -> int:
    free = available(torch.device("cpu"))
    width = int(model.config.hidden_size) * model.dtype.itemsize
    return LEAST if free is None else max(LEAST, free // ROOM // width)


def _walks(texts: Sequence[tuple[int, Text]], most: int) -> Iterator[list[tuple[int, Text]]]:
    """The texts in runs of at most so many tokens, of one text at least."""
    held: list[tuple[int, Text]] = []
    tokens = 0
    for number, text in texts:
        new = not held or held[-1][1].beginning != text.beginning
        more = len(text.rest) + (len(text.beginning) if new else 0)
        if held and tokens + more > most:
            yield held
            held, tokens, more = [], 0, len(text.rest) + len(text.beginning)
        held.append((number, text))
        tokens += more
    if held:
        yield held


def _states(
    label: str, model: StreamedModel, wanted: Sequence[_Wanted]
) -> list[Float[Tensor, "predictions hidden"]]:
    """The last hidden states of texts, as far as they are wanted, on the CPU."""
    pieces = Pieces(model, blocks=1)
    order = sorted(range(len(wanted)), key=lambda place: -len(wanted[place].text.rest))
    texts = [wanted[place].text for place in order]
    read = [*pieces.beginnings(texts)]
    where: list[tuple[slice, int]] = []  # pieces of each text, and its row in them
    for run in runs(texts):
        first = len(read)
        if len(run) == 1:
            read += pieces.alone(run[0], pieces.room(len(run[0].rest)), slice(1))
        else:
            read.append(pieces.together(run, None, slice(len(run))))
        where += [(slice(first, len(read)), row) for row in range(len(run))]
    blocks = map(model.block, track(range(model.blocks), f"read to the {label}"))
    table = model.embedding().to(model.device)
    hidden = walk(model, read, blocks, table, torch.device("cpu"))
    found: dict[int, Tensor] = {}
    for place, (own, row) in zip(order, where, strict=True):
        text, since = wanted[place]
        found[place] = torch.cat([piece[row] for piece in hidden[own]])[since : len(text.rest)]
    return [found[place] for place in range(len(wanted))]


def _walk(
    label: str,
    model: StreamedModel,
    wanted: Sequence[_Wanted],
    pairs: Sequence[Pair],
    which: Sequence[int],
) -> list[Likelihood]:
    """One walk; `which` says which text each pair is read in."""
    states = _states(label, model, wanted)
    starts = [0, *accumulate(map(len, states))]
    hidden = torch.cat(states)
    first = torch.tensor(
        [
            starts[text]
            + len(pair.context)
            - 1
            - len(wanted[text].text.beginning)
            - wanted[text].since
            for pair, text in zip(pairs, which, strict=True)
        ]
    )
    lengths = torch.tensor([len(pair.continuation) for pair in pairs])
    owner = torch.repeat_interleave(torch.arange(len(pairs)), lengths)
    begun = lengths.cumsum(0) - lengths
    row = first[owner] + torch.arange(len(owner)) - begun[owner]
    target = torch.tensor([token for pair in pairs for token in pair.continuation])
    rows, index = row.unique(return_inverse=True)
    log = torch.zeros(len(owner), dtype=torch.float64)
    greedy = torch.zeros(len(owner), dtype=torch.bool)
    predictions, done = Predictions(label, model), 0
    for some in predictions.chunks(rows):
        told = predictions.log_probabilities(hidden[some])
        here = ((index >= done) & (index < done + len(some))).nonzero().flatten()
        at, token = (index[here] - done).to(told.device), target[here].to(told.device)
        log[here] = told[at, token].double().cpu()
        greedy[here] = (told.argmax(dim=-1)[at] == token).cpu()
        done += len(some)
    return _summed(log, greedy, owner, len(pairs))


def _summed(
    log: Float64[Tensor, " tokens"],
    greedy: Bool[Tensor, " tokens"],
    owner: Int64[Tensor, " tokens"],
    count: int,
) -> list[Likelihood]:
    total = torch.zeros(count, dtype=torch.float64).index_add_(0, owner, log)
    missed = torch.zeros(count, dtype=torch.float64).index_add_(0, owner, (~greedy).double())
    return [
        Likelihood(each, not wrong)
        for each, wrong in zip(total.tolist(), missed.tolist(), strict=True)
    ]
