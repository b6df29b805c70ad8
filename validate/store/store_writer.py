"""The files of a store: predictions in parts of a moderate size, windows, tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float64
from safetensors.torch import save
from torch import Tensor

from camelpress.validate.corpus.held_out_text import HeldOutText
from camelpress.validate.scoring.divergence import TopKLogProbs

SHARD_NAME = "predictions-{:05}-{:03}.safetensors"  # number of the lane, and of the part in it
SHARD_PATTERN = "predictions-*.safetensors"  # all of them
SHARD_BYTES = 2**26  # that are gathered before a part is written
UINT16_VOCAB_SIZE = 2**16  # ids below need two bytes
TOKENIZER_FILE_NAMES = (
    "config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


class StoreWriter:
    """The predictions of one lane into parts, in order.

    Args:
        folder: of the store.
        lane: its number.
        vocabulary: ids that the predictions are over.
    """

    def __init__(self, folder: Path, lane: int, vocabulary: int) -> None:
        self._folder = folder
        self._lane = lane
        self._ids = torch.uint16 if vocabulary <= UINT16_VOCAB_SIZE else torch.int32
        self._gathered: list[TopKLogProbs] = []
        self._bytes = 0
        self._parts = 0
        self.remainder = 0.0  # sum of the masses outside the tokens kept

    def add(self, kept: TopKLogProbs) -> None:
        """Take the next predictions."""
        narrow = kept._replace(ids=kept.ids.to(self._ids), drawn=kept.drawn.to(self._ids))
        self._gathered.append(TopKLogProbs(*(column.cpu() for column in narrow)))
        self._bytes += sum(column.nbytes for column in self._gathered[-1])
        self.remainder += float(kept.rest.double().exp().sum())
        if self._bytes >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered, under its own name: a kill leaves no name that is not known."""
        if self._gathered:
            self._parts += 1
            columns = (torch.cat(column) for column in zip(*self._gathered, strict=True))
            named = dict(zip(TopKLogProbs._fields, columns, strict=True))
            path = self._folder / SHARD_NAME.format(self._lane + 1, self._parts)
            path.write_bytes(save(named))
            self._gathered, self._bytes = [], 0


def write_windows(texts: Sequence[HeldOutText], path: Path) -> None:
    """The tokens of all texts, with what counts."""
    windows = [window for text in texts for window in text.windows]
    columns = {
        "ids": [token for window in windows for token in window.ids],
        "counted": [int(flag) for window in windows for flag in window.score_mask],
        "lengths": [len(window.ids) for window in windows],
        "clusters": [window.cluster for window in windows],
    }
    tensors = {name: torch.tensor(each, dtype=torch.int32) for name, each in columns.items()}
    path.write_bytes(save(tensors))


def copy_tokenizer(source: Path, folder: Path) -> None:
    """What the text can be read with again."""
    for name in TOKENIZER_FILE_NAMES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def sampling_offsets(count: int) -> Float64[Tensor, " count"]:
    """Where drawing begins for each prediction, in [0, 1); the same in every run."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, generator=generator, dtype=torch.float64)
