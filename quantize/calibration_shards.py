"""Calibration shards: parts of the tokens with a mask, some with states of the 16-bit model."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path

from jaxtyping import Bool, Float
from torch import Tensor

from camelpress.inference.model.batch_sizes import BatchSizes
from camelpress.inference.model.token_batches import TokenBatch, TokenBatches
from camelpress.inference.streaming import token_shards as core

# Reference states double the cost of a token, and more tokens hardly change the correction.
MIN_REFERENCE_TOKENS = 16_384  # minimum of counted tokens with reference states
REFERENCE_TOKENS_PER_COLUMN = 10  # counted tokens with reference states, by column
STATE_NAMES = ("hidden", "reference")  # states of the quantized and of the 16-bit model


class CalibrationShard(core.TokenShard):
    """A shard of whole calibration sequences.

    Args:
        number: index of the shard.
        sequences: tokens of the shard.
        token_mask: true for tokens that count in a Hessian.
        folder: folder for its files of hidden states.
        has_reference: true to keep the hidden states of the 16-bit model, too.
    """

    def __init__(
        self,
        number: int,
        sequences: TokenBatches,
        token_mask: Bool[Tensor, " tokens"],
        folder: Path,
        *,
        has_reference: bool,
    ) -> None:
        super().__init__(number, sequences, folder, states=STATE_NAMES[: 1 + has_reference])
        self.has_reference = has_reference
        self._token_mask = token_mask
        self._all_counted = bool(token_mask.all())

    def select_tokens(
        self, batch: TokenBatch, values: Float[Tensor, "1 batch width"]
    ) -> Float[Tensor, "counted width"]:
        """Selects the values of a batch's tokens that count in a Hessian."""
        if self._all_counted:
            return values[0]
        return values[0, self._token_mask[batch.tokens].to(values.device)]


def calibration_shards(
    sequences: Sequence[Sequence[int]],
    token_mask: Bool[Tensor, " tokens"],
    folder: Path,
    *,
    sizes: BatchSizes,
    limit: int,
    columns: int,
) -> list[CalibrationShard]:
    """Cuts the sequences into shards, those with reference states first.

    Shards with reference states are spread evenly, because the sequences are sorted by source.
    Together they hold about `REFERENCE_TOKENS_PER_COLUMN` counted tokens for each column of the
    widest layer, and at least `MIN_REFERENCE_TOKENS`.

    Args:
        sequences: token ids of each sequence.
        token_mask: true for tokens that count in a Hessian, over all sequences end to end.
        folder: folder for the files of hidden states.
        sizes: sizes of batches and shards.
        limit: number of positions of the model.
        columns: columns of the widest layer; 0 for no reference states.
    """
    batches = [
        TokenBatches(sequences[part], limit=limit, batch_tokens=sizes.batch)
        for part in core.cut_shards([*map(len, sequences)], tokens=sizes.shard)
    ]
    masks = token_mask.split([len(shard.tokens) for shard in batches])
    tokens = int(token_mask.sum())
    budget = max(MIN_REFERENCE_TOKENS, REFERENCE_TOKENS_PER_COLUMN * columns) if columns else 0
    count = min(len(batches), ceil(budget * len(batches) / tokens))
    references = {(2 * step + 1) * len(batches) // (2 * count) for step in range(count)}
    order = sorted(range(len(batches)), key=lambda index: index not in references)
    return [
        CalibrationShard(
            number, batches[index], masks[index], folder, has_reference=index in references
        )
        for number, index in enumerate(order)
    ]
