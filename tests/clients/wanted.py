"""What transformers' own model says with our dequantized weights: what a client has to say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import pico

NEW_TOKENS = 20


class Wanted(NamedTuple):
    """Of one checkpoint.

    Args:
        logits: in fp32, of all sequences, one below the other.
        tokens: likeliest next ones after the prompt.
        rounding: the largest difference that bf16 makes to a logit of the same model, over the
            largest logit.
    """

    logits: NDArray[np.float32]
    tokens: list[int]
    rounding: float

    def off(self, logits: NDArray[np.float32]) -> float:
        """The largest difference of other logits, over the largest logit."""
        return float(np.abs(logits - self.logits).max() / np.abs(self.logits).max())


def wanted(dense: Path, sequences: Sequence[Sequence[int]], prompt: Sequence[int]) -> Wanted:
    """What a dense model says."""
    model: Any = pico.load_model(dense)
    batch = torch.tensor([prompt])
    with torch.inference_mode():
        logits = _logits(model, sequences)
        said = model.generate(
            batch,
            attention_mask=torch.ones_like(batch),
            do_sample=False,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=0,
        )
        rounded = _logits(model.to(torch.bfloat16), sequences)
    exact = Wanted(logits, said[0, len(prompt) :].tolist(), rounding=0.0)
    return exact._replace(rounding=exact.off(rounded))


def _logits(model: Any, sequences: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    found = [model(torch.tensor([ids])).logits[0] for ids in sequences]
    logits: NDArray[np.float32] = torch.cat(found).float().numpy()
    return logits
