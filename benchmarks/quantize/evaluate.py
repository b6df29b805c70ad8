"""A checkpoint against the 16-bit model.

    python -m benchmarks.quantize.evaluate REFERENCE CANDIDATE TEXTS OUT

Writes, for each text and document, how many tokens were scored, the sum of KL(reference ||
candidate) over them, and how much more of their logarithm the candidate gives away. What the
reference makes of a text is kept beside the texts and used again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.inference.model.streamed_model import StreamedModel
from camelpress.inference.model.token_batches import TokenBatches
from camelpress.inference.streaming.process_group import ProcessGroup
from camelpress.validate.scoring.divergence import TokenMetrics
from camelpress.validate.scoring.paired_heads import PairedHeads
from camelpress.validate.scoring.scored_positions import ScoredPositions
from camelpress.validate.scoring.streamed_run import StreamedRun
from camelpress.validate.scoring.token_scores import TokenScores, compare_shard


class Remembered(StreamedModel):
    """A model that walks through a text once; `folder` takes its last hidden states."""

    folder = Path()

    def last_hidden_states(
        self, sequences: TokenBatches, label: str
    ) -> Float[Tensor, "tokens hidden"]:
        """The last hidden states of all tokens."""
        text = json.dumps([str(self.checkpoint.folder), sequences.tokens.tolist()])
        kept = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"
        if not kept.exists():
            save_file({"hidden": super().last_hidden_states(sequences, label)}, kept)
        return load_file(kept)["hidden"]


def opened(folder: Path) -> Checkpoint:
    """The checkpoint in a folder, or in its only subfolder."""
    if not (folder / "config.json").exists():
        (inner,) = folder.glob("*/config.json")
        folder = inner.parent
    return Checkpoint.open(folder)


def by_document(scores: TokenScores) -> dict[str, list[float]]:
    """Counts and sums for each sequence."""
    worse = scores.candidate_nll - scores.reference_nll
    sums = {"tokens": torch.ones(len(worse)), "kl": scores.kl, "worse": worse}
    documents = int(scores.sequence.max()) + 1
    return {
        name: torch.zeros(documents, dtype=torch.float64)
        .index_add_(0, scores.sequence, values.double())
        .tolist()
        for name, values in sums.items()
    }


def evaluate(
    reference: Checkpoint,
    candidate: Checkpoint,
    texts: Mapping[str, Sequence[Sequence[int]]],
    kept: Path,
) -> dict[str, dict[str, list[float]]]:
    """The figures of every text, in fp32 on the CPU."""
    cpu = torch.device("cpu")
    wide = Remembered(reference, device=cpu, dtype=torch.float32)
    wide.folder = kept
    narrow = StreamedModel(candidate, device=cpu, dtype=torch.float32)
    return {
        name: by_document(_scored(wide, narrow, documents)) for name, documents in texts.items()
    }


def _scored(
    reference: StreamedModel, candidate: StreamedModel, documents: Sequence[Sequence[int]]
) -> TokenScores:
    places = ScoredPositions.from_sequences(documents)
    sequences = places.batches(limit=reference.max_positions)
    models = {"reference": reference, "candidate": candidate}
    with torch.inference_mode():
        hidden = [model.last_hidden_states(sequences, name) for name, model in models.items()]
        runners = [StreamedRun(name, model, []) for name, model in models.items()]
        heads = PairedHeads(runners, None, threads=1)
        room = TokenMetrics.allocate(len(places.input_index))
        compare_shard(heads, places, hidden, [room])
        heads.require_finite(ProcessGroup())
    return TokenScores.concat([room], places)


def main() -> None:
    """Parse the command line and evaluate."""
    parser = argparse.ArgumentParser(description="Hold a checkpoint against the 16-bit model.")
    parser.add_argument("reference", type=Path, help="the 16-bit model")
    parser.add_argument("candidate", type=Path, help="what a tool made of it")
    parser.add_argument("texts", type=Path, help="JSON: token sequences by text")
    parser.add_argument("out", type=Path, help="JSON file to write")
    given = parser.parse_args()
    texts = json.loads(given.texts.read_text(encoding="utf-8"))
    found = evaluate(
        opened(given.reference.resolve()), opened(given.candidate), texts, given.texts.parent
    )
    given.out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
