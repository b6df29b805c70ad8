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
from camelpress.inference.generation.prefixes import PrefixedText, group_by_prefix
from camelpress.inference.generation.token_chunks import ChunkBuilder, chunk_texts, run_chunks
from camelpress.inference.model.memory_budget import free_bytes
from camelpress.inference.model.output_head import OutputHead
from camelpress.inference.model.streamed_model import StreamedModel

MEMORY_FRACTION = 4  # one part in so many of the free memory is for hidden states
MIN_PASS_TOKENS = 2**14  # tokens of a walk, however little memory there is


class ContextContinuation(NamedTuple):
    """A context, of one id at least, and what follows on it."""

    context: list[int]
    continuation: list[int]

    @property
    def input_ids(self) -> tuple[int, ...]:
        """What the model has to see: all but the last token."""
        return (*self.context, *self.continuation[:-1])


class ContinuationScore(NamedTuple):
    """Of a continuation."""

    log_prob: float  # natural logarithm of the probability of all its tokens
    is_greedy: bool  # each of them is the likeliest


def continuation_likelihoods(
    label: str,
    model: StreamedModel,
    pairs: Sequence[ContextContinuation],
    *,
    tokens: int | None = None,
) -> Iterator[tuple[int, ContinuationScore]]:
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
        sharing.setdefault(pair.input_ids, []).append(place)
    reads = [*sharing]
    contexts = [min(len(pairs[place].context) for place in sharing[read]) for read in reads]
    texts = group_by_prefix(reads, most=[context - 1 for context in contexts])
    for walked in _split_into_passes(texts, tokens or _max_pass_tokens(model)):
        wanted = [
            _ScoredText(text, contexts[number] - 1 - len(text.prefix)) for number, text in walked
        ]
        members = [place for number, _ in walked for place in sharing[reads[number]]]
        which = [at for at, (number, _) in enumerate(walked) for _ in sharing[reads[number]]]
        with torch.inference_mode():
            found = _score_pass(label, model, wanted, [pairs[place] for place in members], which)
        yield from zip(members, found, strict=True)


class _ScoredText(NamedTuple):
    """A text, and the token of its rest from which on predictions are wanted."""

    text: PrefixedText
    since: int


def _max_pass_tokens(model: StreamedModel) -> int:
    free = free_bytes(torch.device("cpu"))
    width = int(model.config.hidden_size) * model.dtype.itemsize
    return (
        MIN_PASS_TOKENS if free is None else max(MIN_PASS_TOKENS, free // MEMORY_FRACTION // width)
    )


def _split_into_passes(
    texts: Sequence[tuple[int, PrefixedText]], most: int
) -> Iterator[list[tuple[int, PrefixedText]]]:
    """The texts in runs of at most so many tokens, of one text at least."""
    held: list[tuple[int, PrefixedText]] = []
    tokens = 0
    for number, text in texts:
        new = not held or held[-1][1].prefix != text.prefix
        more = len(text.suffix) + (len(text.prefix) if new else 0)
        if held and tokens + more > most:
            yield held
            held, tokens, more = [], 0, len(text.suffix) + len(text.prefix)
        held.append((number, text))
        tokens += more
    if held:
        yield held


def _last_hidden_states(
    label: str, model: StreamedModel, wanted: Sequence[_ScoredText]
) -> list[Float[Tensor, "predictions hidden"]]:
    """The last hidden states of texts, as far as they are wanted, on the CPU."""
    pieces = ChunkBuilder(model, blocks=1)
    order = sorted(range(len(wanted)), key=lambda place: -len(wanted[place].text.suffix))
    texts = [wanted[place].text for place in order]
    read = [*pieces.prefix_chunks(texts)]
    where: list[tuple[slice, int]] = []  # pieces of each text, and its row in them
    for run in chunk_texts(texts):
        first = len(read)
        if len(run) == 1:
            read += pieces.split_text(run[0], pieces.allocate_row(len(run[0].suffix)), slice(1))
        else:
            read.append(pieces.pad_texts(run, None, slice(len(run))))
        where += [(slice(first, len(read)), row) for row in range(len(run))]
    blocks = map(model.read_block, track(range(model.block_count), f"read to the {label}"))
    table = model.read_embedding().to(model.device)
    hidden = run_chunks(model, read, blocks, table, torch.device("cpu"))
    found: dict[int, Tensor] = {}
    for place, (own, row) in zip(order, where, strict=True):
        text, since = wanted[place]
        found[place] = torch.cat([piece[row] for piece in hidden[own]])[since : len(text.suffix)]
    return [found[place] for place in range(len(wanted))]


def _score_pass(
    label: str,
    model: StreamedModel,
    wanted: Sequence[_ScoredText],
    pairs: Sequence[ContextContinuation],
    which: Sequence[int],
) -> list[ContinuationScore]:
    """One walk; `which` says which text each pair is read in."""
    states = _last_hidden_states(label, model, wanted)
    starts = [0, *accumulate(map(len, states))]
    hidden = torch.cat(states)
    first = torch.tensor(
        [
            starts[text]
            + len(pair.context)
            - 1
            - len(wanted[text].text.prefix)
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
    predictions, done = OutputHead(label, model), 0
    for some in predictions.split_rows(rows):
        told = predictions.log_probabilities(hidden[some])
        here = ((index >= done) & (index < done + len(some))).nonzero().flatten()
        at, token = (index[here] - done).to(told.device), target[here].to(told.device)
        log[here] = told[at, token].double().cpu()
        greedy[here] = (told.argmax(dim=-1)[at] == token).cpu()
        done += len(some)
    return _sum_by_pair(log, greedy, owner, len(pairs))


def _sum_by_pair(
    log: Float64[Tensor, " tokens"],
    greedy: Bool[Tensor, " tokens"],
    owner: Int64[Tensor, " tokens"],
    count: int,
) -> list[ContinuationScore]:
    total = torch.zeros(count, dtype=torch.float64).index_add_(0, owner, log)
    missed = torch.zeros(count, dtype=torch.float64).index_add_(0, owner, (~greedy).double())
    return [
        ContinuationScore(each, not wrong)
        for each, wrong in zip(total.tolist(), missed.tolist(), strict=True)
    ]
