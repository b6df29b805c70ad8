"""Merges pieces of text that repeat others, because repetition adds no independent evidence.

A row that a file holds 300 times, or a text that repeats itself, has many sequences but one
independent piece. An exact copy joins its original. A near copy joins, too, on two conditions: a
share of `DUPLICATE_SHARE` of its predictions occurs in longer or earlier pieces, and half of its
predictions occur in one of these. Such pieces are beginnings of another, the same rows cut
differently, or copies with a changed word or a number in front. Two predictions are equal if their
target token and the `CONTEXT_TOKENS` tokens before it are equal; the predictions of these context
tokens then count as repeated, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt64
from numpy import ndarray
from numpy.lib.stride_tricks import sliding_window_view

from camelpress.validate.corpus.protocols import TokenWindow

CONTEXT_TOKENS = 16  # tokens before a target that make its context
DUPLICATE_SHARE = 0.75  # share of repeated predictions that makes a piece a copy
HASH_SEED = 1_965


def merge_duplicates(windows: Sequence[TokenWindow], pieces: Sequence[int]) -> list[int]:
    """Returns the piece of text that each window counts for, after repeated pieces are merged.

    Args:
        windows: the windows of all texts.
        pieces: for each window the number of its document or window, from 0.
    Returns:
        for each window a number among `pieces`.
    """
    keys = [_prediction_hashes(window) for window in windows]
    starts = np.cumsum([0, *(len(window.ids) + CONTEXT_TOKENS for window in windows)])
    positions = [
        start + np.flatnonzero(window.score_mask)
        for start, window in zip(starts, windows, strict=False)
    ]
    unique_keys, key = np.unique(np.concatenate(keys), return_inverse=True)
    piece = np.repeat(pieces, [len(hashes) for hashes in keys])
    owner = np.full(len(unique_keys), -1, dtype=np.int64)  # first piece of each prediction
    order = np.argsort(piece, kind="stable")
    sizes = np.bincount(piece)
    ends = sizes.cumsum()[:-1]
    members = np.split(key[order], ends)
    piece_positions = np.split(np.concatenate(positions)[order], ends)
    originals: dict[bytes, int] = {}  # hashes of all predictions of a piece to its original
    root = np.arange(len(sizes))
    for number in np.argsort(-sizes, kind="stable"):
        piece_keys = members[number]
        original = _find_original(
            _extend_to_context(owner[piece_keys], piece_positions[number]), int(number)
        )
        root[number] = originals.setdefault(piece_keys.tobytes(), original)
        owner[piece_keys[owner[piece_keys] < 0]] = root[number]
    return [int(root[piece_number]) for piece_number in pieces]


def _find_original(owners: Int64[ndarray, " predictions"], number: int) -> int:
    """Returns the piece that contains most of this one, or its own number if there is none.

    Args:
        owners: for each prediction the piece that has it first; -1 for this piece.
        number: the number of this piece.
    """
    known_owners = owners[owners >= 0]
    if len(known_owners) < DUPLICATE_SHARE * len(owners):
        return number
    names, counts = np.unique(known_owners, return_counts=True)
    return int(names[counts.argmax()]) if counts.max() >= len(owners) / 2 else number


def _extend_to_context(
    owners: Int64[ndarray, " predictions"], positions: Int64[ndarray, " predictions"]
) -> Int64[ndarray, " predictions"]:
    """Assigns the owner of each known prediction to the predictions of its context tokens, too.

    Args:
        owners: for each prediction the piece that has it first; -1 for none.
        positions: positions of the predictions; those of different windows lie farther apart than
            a context.
    """
    last = len(owners) - 1
    known_index = np.where(owners >= 0, np.arange(len(owners)), last)
    next_known = np.minimum.accumulate(known_index[::-1])[::-1]
    is_context = (owners < 0) & (positions[next_known] - positions <= CONTEXT_TOKENS)
    return np.where(is_context, owners[next_known], owners)


def _prediction_hashes(window: TokenWindow) -> UInt64[ndarray, " predictions"]:
    """Returns a hash of the context and target token of each scored prediction."""
    ids = np.array([0] * CONTEXT_TOKENS + [token + 1 for token in window.ids], dtype=np.uint64)
    weights = np.random.default_rng(HASH_SEED).integers(
        2**63, size=CONTEXT_TOKENS + 1, dtype=np.uint64
    )
    hashes = (sliding_window_view(ids, CONTEXT_TOKENS + 1) * (2 * weights + 1)).sum(axis=1)
    return hashes[np.array(window.score_mask)]
