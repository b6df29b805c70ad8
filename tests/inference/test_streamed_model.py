"""The block walker gives the logits of transformers' own models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pico
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import RecipeProblem
from camelpress.inference.model.streamed_model import StreamedModel
from camelpress.inference.model.token_batches import TokenBatches

LENGTHS = (5, 17, 17, 3, 64, 128)


@pytest.mark.parametrize(
    ("family", "tied"),
    [("llama", False), ("llama", True), ("mistral", False), ("qwen2", False), ("qwen2", True)],
)
def test_logits_are_those_of_transformers(tmp_path: Path, family: str, tied: bool) -> None:
    folder = pico.write_model(tmp_path / "model", family=family, tied=tied)
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, 272, (length,), generator=generator).tolist() for length in LENGTHS]
    model = StreamedModel(Checkpoint.open(folder), device=torch.device("cpu"), dtype=torch.float32)
    sequences = TokenBatches(ids, limit=model.max_positions)
    whole = pico.load_model(folder)
    with torch.inference_mode():
        logits = model.read_head()(model.last_hidden_states(sequences, "test"))
        expected = torch.cat([whole(torch.tensor([sequence])).logits[0] for sequence in ids])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_batches_hold_every_token_once() -> None:
    sequences = TokenBatches([[1] * length for length in LENGTHS], limit=128)
    places = torch.arange(sum(LENGTHS))
    assert torch.equal(torch.cat([places[each.tokens] for each in sequences.batches]), places)
    assert [length for each in sequences.batches for length in each.lengths] == [*LENGTHS]


def test_a_sequence_longer_than_the_positions_is_refused() -> None:
    with pytest.raises(RecipeProblem, match="200 tokens exceeds the model's 128 positions") as told:
        TokenBatches([[1] * 200], limit=128)
    assert told.value.next_step == "use a sequence length of at most 128"


def test_no_tokens_are_refused() -> None:
    with pytest.raises(RecipeProblem, match="no tokens to run"):
        TokenBatches([], limit=8)
    with pytest.raises(RecipeProblem, match="one sequence has no tokens"):
        TokenBatches([[1], []], limit=8)
