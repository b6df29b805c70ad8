"""Writes the files of a store: predictions in shards, windows and tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float64
from safetensors.torch import save
from torch import Tensor

from camelpress.validate.corpus.held_out_text import HeldOutText
from camelpress.validate.store.top_k_log_probs import TopKLogProbs

SHARD_NAME = (
    "predictions-{:05}-{:03}.safetensors"  # number of the token shard, and of the file within it
)
SHARD_PATTERN = "predictions-*.safetensors"  # files of all token shards
SHARD_BYTES = 2**26  # bytes buffered before a file is written
UINT16_VOCAB_SIZE = 2**16  # smaller ids fit in two bytes
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
    """Writes the predictions of one token shard to files, in order.

    Args:
        folder: folder of the store.
        shard: number of the token shard.
        vocabulary: number of ids of the distributions.
    """

    def __init__(self, folder: Path, shard: int, vocabulary: int) -> None:
        self._folder = folder
        self._shard = shard
        self._ids = torch.uint16 if vocabulary <= UINT16_VOCAB_SIZE else torch.int32
        self._buffer: list[TopKLogProbs] = []
        self._bytes = 0
        self._file_count = 0
        self.remainder = 0.0  # sum of the probability masses outside the stored tokens

    def add(self, top_k: TopKLogProbs) -> None:
        """Adds the next predictions."""
        compact = top_k._replace(ids=top_k.ids.to(self._ids), drawn=top_k.drawn.to(self._ids))
        self._buffer.append(TopKLogProbs(*(column.cpu() for column in compact)))
        self._bytes += sum(column.nbytes for column in self._buffer[-1])
        self.remainder += float(top_k.rest.double().exp().sum())
        if self._bytes >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes the buffered predictions to the next file.

        A killed run leaves only files with known names.
        """
        if self._buffer:
            self._file_count += 1
            columns = (torch.cat(column) for column in zip(*self._buffer, strict=True))
            tensors = dict(zip(TopKLogProbs._fields, columns, strict=True))
            path = self._folder / SHARD_NAME.format(self._shard + 1, self._file_count)
            path.write_bytes(save(tensors))
            self._buffer, self._bytes = [], 0


def write_windows(texts: Sequence[HeldOutText], path: Path) -> None:
    """Writes the token ids and score masks of all texts."""
    windows = [window for text in texts for window in text.windows]
    columns = {
        "ids": [token for window in windows for token in window.ids],
        "counted": [int(flag) for window in windows for flag in window.score_mask],
        "lengths": [len(window.ids) for window in windows],
        "clusters": [window.cluster for window in windows],
    }
    tensors = {name: torch.tensor(values, dtype=torch.int32) for name, values in columns.items()}
    path.write_bytes(save(tensors))


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copies the tokenizer files of a model."""
    for name in TOKENIZER_FILE_NAMES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def sampling_offsets(count: int) -> Float64[Tensor, " count"]:
    """Returns the random sampling offset of each prediction in [0, 1), equal in every run."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, generator=generator, dtype=torch.float64)
