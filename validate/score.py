"""Two models on the same tokens: what each next token costs, and how far their guesses differ."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from camelpress.core.blocks import StreamedModel
from camelpress.core.predictions import Predictions
from camelpress.core.progress import track
from camelpress.core.sequences import Sequences


@dataclass(frozen=True)
class Scores:
    """Figures per predicted token: all tokens but the first of each sequence."""

    reference_nll: Float32[Tensor, " scored"]  # -ln p(next token), nats
    candidate_nll: Float32[Tensor, " scored"]
    kl: Float32[Tensor, " scored"]  # KL(reference || candidate), nats
    same_top: Bool[Tensor, " scored"]
    position: Int64[Tensor, " scored"]  # of the token that predicts, from 0
    sequence: Int64[Tensor, " scored"]

    def where(self, mask: Bool[Tensor, " scored"]) -> Scores:
        """The figures of some of the tokens."""
        return Scores(
            self.reference_nll[mask],
            self.candidate_nll[mask],
            self.kl[mask],
            self.same_top[mask],
            self.position[mask],
            self.sequence[mask],
        )


def score(reference: StreamedModel, candidate: StreamedModel, sequences: Sequences) -> Scores:
    """Run both models block by block, then compare their next-token distributions.

    Args:
        reference: the 16-bit model.
        candidate: with the same vocabulary.
        sequences: the tokens; each token after the first of its sequence is scored.
    Raises:
        NumericsProblem: logits that are not finite.
    """
    with torch.inference_mode():
        return _compare(
            Predictions("reference", reference, sequences),
            Predictions("candidate", candidate, sequences),
            sequences,
        )


def _compare(reference: Predictions, candidate: Predictions, sequences: Sequences) -> Scores:
    lengths = torch.tensor(sequences.lengths)
    sequence = torch.arange(len(lengths)).repeat_interleave(lengths)
    position = torch.arange(len(sequence)) - torch.tensor(sequences.starts)[sequence]
    predicting = (position < lengths[sequence] - 1).nonzero().flatten()
    parts = [
        _chunk(
            reference.log_probabilities(rows),
            candidate.log_probabilities(rows),
            sequences.tokens[rows + 1].to(reference.device),
        )
        for rows in track(reference.chunks(predicting), "compare")
    ]
    reference_nll, candidate_nll, kl, same_top = (
        torch.cat([part[column] for part in parts]).cpu() for column in range(4)
    )
    return Scores(
        reference_nll, candidate_nll, kl, same_top, position[predicting], sequence[predicting]
    )


def _chunk(
    reference: Float32[Tensor, "chunk vocabulary"],
    candidate: Float32[Tensor, "chunk vocabulary"],
    targets: Int64[Tensor, " chunk"],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    same_top = reference.argmax(dim=-1) == candidate.argmax(dim=-1)
    reference_nll = -reference.gather(1, targets[:, None]).squeeze(1)
    candidate_nll = -candidate.gather(1, targets[:, None]).squeeze(1)
    kl = (reference.exp() * (reference - candidate)).sum(dim=-1).clamp(min=0)
    return reference_nll, candidate_nll, kl, same_top
