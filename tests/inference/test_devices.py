"""Tasks on a GPU that is not there: devices do not mix, and answers are those of the CPU."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

import elsewhere
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.generation import generator, prefixes
from camelpress.inference.generation.generator import (
    GenerationModel,
    GenerationRequest,
    LocalGenerator,
)
from camelpress.inference.generation.likelihood import (
    ContextContinuation,
    ContinuationScore,
    continuation_likelihoods,
)
from camelpress.inference.generation.sampling import SamplingParams, TokenPrompt
from camelpress.inference.model.streamed_model import StreamedModel

GREEDY = SamplingParams(stop=(), max_tokens=6, temperature=0.0, top_p=1.0)
DRAWN = SamplingParams(stop=(), max_tokens=6, temperature=1.0, top_p=0.9)
PROMPTS = [[5, 6, 7], [*range(20, 60)], [*range(20, 59), 5], [9]]


def model(folder: Path, device: torch.device) -> StreamedModel:
    return StreamedModel(Checkpoint.open(folder), device=device, dtype=torch.float32)


def completions(folder: Path, device: torch.device) -> dict[int, str]:
    asked = model(folder, device)
    tokenizer = Tokenizer.load(folder)
    wanted = [
        GenerationRequest(TokenPrompt(ids, str(number)), how, 128)
        for how in (GREEDY, DRAWN)
        for number, ids in enumerate(PROMPTS)
    ]
    whole = LocalGenerator(GenerationModel("reference", asked.checkpoint, asked, tokenizer, [2]))
    return dict(whole.generate(wanted))


@pytest.mark.parametrize("free", [None, 0], ids=["whole", "block by block"])
def test_completions(base: Path, monkeypatch: pytest.MonkeyPatch, free: int | None) -> None:
    monkeypatch.setattr(generator, "free_bytes", lambda _: free)
    monkeypatch.setattr(generator, "MAX_BATCH_ROWS", 3)
    monkeypatch.setattr(prefixes, "MIN_PREFIX_TOKENS", 16)
    expected = completions(base, elsewhere.CPU)
    with elsewhere.pretended() as device:
        assert completions(base, device) == expected


def test_likelihoods(base: Path) -> None:
    draw = random.Random(1)
    asked = [
        ContextContinuation(
            [draw.randrange(3, 200) for _ in range(draw.randint(1, 20))], [5, 6][: 1 + place % 2]
        )
        for place in range(8)
    ]

    def found(device: torch.device) -> dict[int, ContinuationScore]:
        return dict(continuation_likelihoods("reference", model(base, device), asked))

    expected = found(elsewhere.CPU)
    with elsewhere.pretended() as device:
        assert found(device) == expected


def test_a_tensor_left_on_the_cpu_is_found(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turned = StreamedModel.rotary

    def left(self: StreamedModel, positions: Any) -> Any:
        return tuple(each.cpu() for each in turned(self, positions))

    monkeypatch.setattr(StreamedModel, "rotary", left)
    monkeypatch.setattr(generator, "free_bytes", lambda _: None)
    with elsewhere.pretended() as device, pytest.raises(elsewhere.MixedDevices):
        completions(base, device)
