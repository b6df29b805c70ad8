"""Log-likelihoods of continuations, all in one pass through the blocks of a model.

A context with several continuations, such as the choices of a question, is read once, and so are
examples shared by several contexts. A pass holds the hidden states in memory and takes as many
tokens as fit.
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

MEMORY_DIVISOR = 4  # hidden states take at most 1/4 of the free memory
MIN_PASS_TOKENS = 2**14  # smallest limit of tokens per pass


class ContextContinuation(NamedTuple):
    """A context of at least one id, and its continuation."""

    context: list[int]
    continuation: list[int]

    @property
    def input_ids(self) -> tuple[int, ...]:
        """Ids of the input: all but the last token."""
        return (*self.context, *self.continuation[:-1])


class ContinuationScore(NamedTuple):
    """Score of a continuation."""

    log_prob: float  # natural logarithm of the probability of all its tokens
    is_greedy: bool  # True if every token is the likeliest one


def continuation_likelihoods(
    label: str,
    model: StreamedModel,
    pairs: Sequence[ContextContinuation],
    *,
    tokens: int | None = None,
) -> Iterator[tuple[int, ContinuationScore]]:
    """Yields the index and score of each pair, pass by pass.

    Args:
        label: name of the model.
        model: streamed model; each pass reads its blocks once.
        pairs: pairs of any length; the caller checks the positions of the model.
        tokens: tokens per pass; None for as many as fit in memory.
    Raises:
        NumericsProblem: logits are not finite.
    """
    pairs_of_input: dict[tuple[int, ...], list[int]] = {}
    for index, pair in enumerate(pairs):
        pairs_of_input.setdefault(pair.input_ids, []).append(index)
    inputs = [*pairs_of_input]
    contexts = [min(len(pairs[index].context) for index in pairs_of_input[ids]) for ids in inputs]
    texts = group_by_prefix(inputs, max_prefix_tokens=[context - 1 for context in contexts])
    for pass_texts in _split_into_passes(texts, tokens or _max_pass_tokens(model)):
        scored_texts = [
            _ScoredText(text, contexts[number] - 1 - len(text.prefix))
            for number, text in pass_texts
        ]
        members = [index for number, _ in pass_texts for index in pairs_of_input[inputs[number]]]
        text_of_pair = [
            text_index
            for text_index, (number, _) in enumerate(pass_texts)
            for _ in pairs_of_input[inputs[number]]
        ]
        with torch.inference_mode():
            scores = _score_pass(
                label, model, scored_texts, [pairs[index] for index in members], text_of_pair
            )
        yield from zip(members, scores, strict=True)


class _ScoredText(NamedTuple):
    """A text, and the first index of its suffix with a prediction."""

    text: PrefixedText
    first_index: int


def _max_pass_tokens(model: StreamedModel) -> int:
    free = free_bytes(torch.device("cpu"))
    width = int(model.config.hidden_size) * model.dtype.itemsize
    return (
        MIN_PASS_TOKENS if free is None else max(MIN_PASS_TOKENS, free // MEMORY_DIVISOR // width)
    )


def _split_into_passes(
    texts: Sequence[tuple[int, PrefixedText]], max_tokens: int
) -> Iterator[list[tuple[int, PrefixedText]]]:
    """Yields the texts in runs of at most `max_tokens` tokens, at least one text each."""
    run: list[tuple[int, PrefixedText]] = []
    tokens = 0
    for number, text in texts:
        is_new_prefix = not run or run[-1][1].prefix != text.prefix
        text_tokens = len(text.suffix) + (len(text.prefix) if is_new_prefix else 0)
        if run and tokens + text_tokens > max_tokens:
            yield run
            run, tokens, text_tokens = [], 0, len(text.suffix) + len(text.prefix)
        run.append((number, text))
        tokens += text_tokens
    if run:
        yield run


def _last_hidden_states(
    label: str, model: StreamedModel, scored_texts: Sequence[_ScoredText]
) -> list[Float[Tensor, "predictions hidden"]]:
    """Returns the last hidden states of the scored tokens of each text, on the CPU."""
    builder = ChunkBuilder(model, blocks=1)
    order = sorted(
        range(len(scored_texts)), key=lambda index: -len(scored_texts[index].text.suffix)
    )
    texts = [scored_texts[index].text for index in order]
    chunks = [*builder.prefix_chunks(texts)]
    locations: list[tuple[slice, int]] = []  # chunks of each text, and its row in them
    for run in chunk_texts(texts):
        first = len(chunks)
        if len(run) == 1:
            chunks += builder.split_text(run[0], builder.allocate_row(len(run[0].suffix)), slice(1))
        else:
            chunks.append(builder.pad_texts(run, None, slice(len(run))))
        locations += [(slice(first, len(chunks)), row) for row in range(len(run))]
    blocks = map(model.read_block, track(range(model.block_count), f"read to the {label}"))
    table = model.read_embedding().to(model.device)
    hidden = run_chunks(model, chunks, blocks, table, torch.device("cpu"))
    states: dict[int, Tensor] = {}
    for index, (span, row) in zip(order, locations, strict=True):
        text, first_index = scored_texts[index]
        states[index] = torch.cat([chunk[row] for chunk in hidden[span]])[
            first_index : len(text.suffix)
        ]
    return [states[index] for index in range(len(scored_texts))]


def _score_pass(
    label: str,
    model: StreamedModel,
    scored_texts: Sequence[_ScoredText],
    pairs: Sequence[ContextContinuation],
    text_of_pair: Sequence[int],
) -> list[ContinuationScore]:
    """Scores the pairs of one pass; `text_of_pair` gives the index of the text of each pair."""
    states = _last_hidden_states(label, model, scored_texts)
    starts = [0, *accumulate(map(len, states))]
    hidden = torch.cat(states)
    first = torch.tensor(
        [
            starts[text]
            + len(pair.context)
            - 1
            - len(scored_texts[text].text.prefix)
            - scored_texts[text].first_index
            for pair, text in zip(pairs, text_of_pair, strict=True)
        ]
    )
    lengths = torch.tensor([len(pair.continuation) for pair in pairs])
    owner = torch.repeat_interleave(torch.arange(len(pairs)), lengths)
    first_targets = lengths.cumsum(0) - lengths
    row = first[owner] + torch.arange(len(owner)) - first_targets[owner]
    target = torch.tensor([token for pair in pairs for token in pair.continuation])
    rows, index = row.unique(return_inverse=True)
    log = torch.zeros(len(owner), dtype=torch.float64)
    is_greedy = torch.zeros(len(owner), dtype=torch.bool)
    head, row_start = OutputHead(label, model), 0
    for chunk in head.split_rows(rows):
        log_p = head.log_probabilities(hidden[chunk])
        in_chunk = ((index >= row_start) & (index < row_start + len(chunk))).nonzero().flatten()
        chunk_row, token = (
            (index[in_chunk] - row_start).to(log_p.device),
            target[in_chunk].to(log_p.device),
        )
        log[in_chunk] = log_p[chunk_row, token].double().cpu()
        is_greedy[in_chunk] = (log_p.argmax(dim=-1)[chunk_row] == token).cpu()
        row_start += len(chunk)
    return _sum_by_pair(log, is_greedy, owner, len(pairs))


def _sum_by_pair(
    log: Float64[Tensor, " tokens"],
    is_greedy: Bool[Tensor, " tokens"],
    owner: Int64[Tensor, " tokens"],
    count: int,
) -> list[ContinuationScore]:
    total = torch.zeros(count, dtype=torch.float64).index_add_(0, owner, log)
    miss_counts = torch.zeros(count, dtype=torch.float64).index_add_(
        0, owner, (~is_greedy).double()
    )
    return [
        ContinuationScore(log_prob, not misses)
        for log_prob, misses in zip(total.tolist(), miss_counts.tolist(), strict=True)
    ]
