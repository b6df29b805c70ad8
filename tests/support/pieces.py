"""A SentencePiece model of LLaMA's kind, small enough for every test."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece

SIZE = 330
TEXT = ("the whale and the white ship go to sea", "old man of the sea, see!", "  ahoy  ")


@cache
def model(size: int = SIZE, kind: str = "bpe", bos: int = 1) -> bytes:
    """A model trained on a dozen words: bytes, then merges, then letters."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 9 + ("abcdefghijklmnopqrstuvwxyz",) * 9),
        model_writer=made,
        model_type=kind,
        bos_id=bos,
        vocab_size=size,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    return made.getvalue()


def reader(content: bytes) -> Any:
    """The same model in its own library."""
    return sentencepiece.SentencePieceProcessor(model_proto=content)


def write(folder: Path, content: bytes | None = None) -> Path:
    """A folder with a tokenizer.model and nothing else."""
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes(model() if content is None else content)
    return folder
