"""How likely a model finds given continuations: all of them in one walk through its blocks.

Contexts that several continuations share, as the choices of a question do, are read once. Hidden
states are what a walk holds in memory, so as many tokens go in one walk as there is room for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from camelpress.core.blocks import StreamedModel
from camelpress.core.errors import NumericsProblem
from camelpress.core.memory import available
from camelpress.core.sequences import Sequences

ROOM = 4  # one part in so many of the free memory is for hidden states
LEAST = 2**14  # tokens of a walk, however little memory there is
LOGITS = 2**22  # in memory at once


class Head:
    """What makes logits of the states that leave a model's last block.

    Args:
        label: names the model.
        model: whose head is read.
    """

    def __init__(self, label: str, model: StreamedModel) -> None:
        self._label = label
        self._head = model.head()
        self._device = model.device
        self.rows = max(1, LOGITS // int(model.config.vocab_size))  # at once

    def __call__(self, hidden: Float[Tensor, "rows hidden"]) -> Float32[Tensor, "rows vocabulary"]:
        """Unnormalized, for the token after each state, on the model's device.

        Raises:
            NumericsProblem: one is not finite.
        """
        logits: Tensor = self._head(hidden.to(self._device)).to(torch.float32)
        if not bool(logits.isfinite().all()):
            raise NumericsProblem(
                f"the {self._label} gives logits that are not finite",
                next_step="inspect its weights, or compute in a wider dtype",
            )
        return logits


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
    for walked in _walks([*sharing], tokens or _room(model)):
        members = [place for read in walked for place in sharing[read]]
        which = [number for number, read in enumerate(walked) for _ in sharing[read]]
        with torch.inference_mode():
            found = _walk(label, model, walked, [pairs[place] for place in members], which)
        yield from zip(members, found, strict=True)


def _room(model: StreamedModel) -> int:
    free = available(torch.device("cpu"))
    width = int(model.config.hidden_size) * model.dtype.itemsize
    return LEAST if free is None else max(LEAST, free // ROOM // width)


def _walks(reads: Sequence[tuple[int, ...]], most: int) -> Iterator[list[tuple[int, ...]]]:
    """The texts in runs of at most so many tokens, of one text at least."""
    held: list[tuple[int, ...]] = []
    tokens = 0
    for read in reads:
        if held and tokens + len(read) > most:
            yield held
            held, tokens = [], 0
        held.append(read)
        tokens += len(read)
    if held:
        yield held


def _walk(
    label: str,
    model: StreamedModel,
    reads: Sequence[Sequence[int]],
    pairs: Sequence[Pair],
    which: Sequence[int],
) -> list[Likelihood]:
    """One walk; `which` says which text each pair is read in."""
    sequences = Sequences(reads, limit=max(map(len, reads)))
    hidden = model.hidden(sequences, f"read to the {label}")
    first = torch.tensor(
        [
            sequences.starts[text] + len(pair.context) - 1
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
    head, done = Head(label, model), 0
    for some in rows.split(head.rows):
        logits = head(hidden[some])
        wanted = ((index >= done) & (index < done + len(some))).nonzero().flatten()
        at, token = (index[wanted] - done).to(logits.device), target[wanted].to(logits.device)
        log[wanted] = logits.log_softmax(dim=-1)[at, token].double().cpu()
        greedy[wanted] = (logits.argmax(dim=-1)[at] == token).cpu()
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
