"""What is scored, and what that costs: python -m benchmarks.validate.prepare MODEL TEXT OUT

OUT becomes a folder with `documents.jsonl`, the first articles of the text, and `counts.json`: how
many tokens are scored, and the floating-point operations that one model cannot do without. These
are two for each weight of a linear layer and token that enters it, and in attention four for each
channel and pair of tokens of which one sees the other. The head sees tokens that predict.
"""

from __future__ import annotations

import argparse
import json
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.quantize.texts import articles
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.model.streamed_model import StreamedModel
from camelpress.validate.corpus.held_out_text import read_held_out_texts
from camelpress.validate.scoring.scored_positions import ScoredPositions
from camelpress.validate.settings import ScoringSettings


class Work(NamedTuple):
    """What one pass over a text is."""

    tokens: int  # scored
    flops: float  # of one model


def write_documents(text: Path, tokenizer: Tokenizer, path: Path, *, tokens: int) -> None:
    """The first articles that have so many tokens together."""
    found = articles(text.read_text(encoding="utf-8"))
    sums = accumulate(len(tokenizer.encode_document(article)) for article in found)
    wanted = 1 + next((place for place, total in enumerate(sums) if total >= tokens), len(found))
    lines = [json.dumps({"text": article}) for article in found[:wanted]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def count(model: StreamedModel, places: ScoredPositions) -> Work:
    """Tokens and operations of one model.

    Args:
        model: its shapes count, its weights are not read.
        places: what is scored.
    """
    config = model.config
    weights = sum(prod(shape) for shape in model.block_shapes(0).values() if len(shape) == 2)
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    lengths = [len(ids) for ids in places.inputs]
    pairs = sum(length * (length + 1) // 2 for length in lengths)
    blocks = model.block_count * (2.0 * weights * sum(lengths) + 4.0 * width * pairs)
    scored = len(places.input_index)
    return Work(scored, blocks + 2.0 * config.hidden_size * config.vocab_size * scored)


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description="Prepare a text for the benchmark.")
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path, help="articles between <doc> and </doc>")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--tokens", type=int, required=True, help="about")
    parser.add_argument("--window", type=int, required=True, help="tokens")
    given = parser.parse_args()
    given.out.mkdir()
    documents, tokenizer = given.out / "documents.jsonl", Tokenizer.load(given.model)
    write_documents(given.text, tokenizer, documents, tokens=given.tokens)
    settings = ScoringSettings(text=(documents,), protocol="lm-eval")
    places = ScoredPositions.from_windows(
        [t.windows for t in read_held_out_texts(settings, tokenizer, given.window)]
    )
    cpu = torch.device("cpu")
    model = StreamedModel(Checkpoint.open(given.model), device=cpu, dtype=torch.float32)
    told = json.dumps(count(model, places)._asdict())
    (given.out / "counts.json").write_text(told, encoding="utf-8")


if __name__ == "__main__":
    main()
