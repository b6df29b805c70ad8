"""A SentencePiece model of LLaMA's kind, small enough for every test."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

SIZE = 330
TEXT = ("the whale and the white ship go to sea", "old man of the sea, see!", "  ahoy  ")


@cache
def model(size: int = SIZE, kind: str = "bpe", bos: int = 1, **options: Any) -> bytes:
    """A model trained on a dozen words: bytes, then merges, then letters.

    Args:
        options: of the trainer, instead of what makes a model one of LLaMA's kind.
    """
    made = io.BytesIO()
    settings: dict[str, Any] = {
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 9 + ("abcdefghijklmnopqrstuvwxyz",) * 9),
        model_writer=made,
        model_type=kind,
        bos_id=bos,
        vocab_size=size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=2,
        **(settings | options),
    )
    return made.getvalue()


def merged(scores: Mapping[str, float]) -> bytes:
    """A model to which somebody added pieces of another one, with scores of their own."""
    proto = ModelProto.FromString(model())
    for piece, score in scores.items():
        proto.pieces.add(piece=piece, score=score)
    content: bytes = proto.SerializeToString()
    return content


def reader(content: bytes) -> Any:
    """The same model in its own library."""
    return sentencepiece.SentencePieceProcessor(model_proto=content)


def write(folder: Path, content: bytes | None = None) -> Path:
    """A folder with a tokenizer.model and nothing else."""
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes(model() if content is None else content)
    return folder
