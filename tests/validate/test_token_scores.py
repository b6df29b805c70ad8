"""Figures per token are those of transformers' own forward passes over both models."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import pico
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import NumericsProblem
from camelpress.inference.model import output_head
from camelpress.inference.model.streamed_model import StreamedModel
from camelpress.inference.streaming.process_group import ProcessGroup
from camelpress.validate.scoring.scored_positions import ScoredPositions
from camelpress.validate.scoring.streamed_run import StreamedRun
from camelpress.validate.scoring.token_scores import PairedScores, TokenScores, score_models
from camelpress.validate.scoring.workspace import Workspace

LENGTHS = (2, 5, 33, 33, 128, 17)


def streamed(folder: Path) -> StreamedModel:
    return StreamedModel(Checkpoint.open(folder), device=torch.device("cpu"), dtype=torch.float32)


def some_ids() -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, 272, (length,), generator=generator).tolist() for length in LENGTHS]


def scored(reference: Path, candidate: Path) -> TokenScores:
    return against(reference, candidate).scores[0]


def against(reference: Path, candidate: Path) -> PairedScores:
    places = ScoredPositions.from_sequences(some_ids())
    sequences = [lane.batches(limit=128) for lane in places.shards(tokens=512)]
    pair = (("reference", reference), ("candidate", candidate))
    with tempfile.TemporaryDirectory() as folder:
        work = Workspace(ProcessGroup(), Path(folder))
        runners = [
            StreamedRun.start(name, streamed(model), sequences, work) for name, model in pair
        ]
        found = score_models(runners, places, work)
    return found._replace(scores=[in_order(each) for each in found.scores])


def in_order(scores: TokenScores) -> TokenScores:
    """As the windows stand in the text, and not by length."""
    return scores.select(scores.sequence.sort(stable=True).indices)


def slow(folder: Path) -> list[Tensor]:
    """Log-probabilities of each sequence, in fp64, from the whole model."""
    model = pico.load_model(folder)
    with torch.inference_mode():
        return [
            model(torch.tensor([ids])).logits[0].double().log_softmax(dim=-1) for ids in some_ids()
        ]


@pytest.fixture(scope="module")
def noisy(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model near the base, with the same vocabulary."""
    folder = tmp_path_factory.mktemp("noisy") / "model"
    return pico.write_tuned(folder, base, extra_rows=0, dtype=torch.float16)


@pytest.fixture(scope="module")
def scores(base: Path, noisy: Path) -> TokenScores:
    return scored(base, noisy)


def test_every_token_but_the_first_of_its_sequence_is_scored(scores: TokenScores) -> None:
    expected = [
        (number, place) for number, length in enumerate(LENGTHS) for place in range(length - 1)
    ]
    found = zip(scores.sequence.tolist(), scores.position.tolist(), strict=True)
    assert list(found) == expected


def test_costs_are_those_of_transformers(base: Path, noisy: Path, scores: TokenScores) -> None:
    for folder, found in ((base, scores.reference_nll), (noisy, scores.candidate_nll)):
        expected = [
            -float(told[place, ids[place + 1]])
            for told, ids in zip(slow(folder), some_ids(), strict=True)
            for place in range(len(ids) - 1)
        ]
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=2e-6)


def test_divergence_is_that_of_transformers(base: Path, noisy: Path, scores: TokenScores) -> None:
    expected = divergence(base, noisy)
    assert float(expected.mean()) > 1e-5
    torch.testing.assert_close(scores.kl.double(), expected, rtol=1e-2, atol=1e-6)


def test_divergence_is_taken_from_the_reference_to_the_candidate(
    base: Path, tmp_path: Path
) -> None:
    other = pico.write_model(tmp_path / "other", seed=7)
    expected = divergence(base, other)
    assert float((expected - divergence(other, base)).abs().mean()) > 1e-3
    torch.testing.assert_close(scored(base, other).kl.double(), expected, rtol=1e-4, atol=1e-6)


def divergence(reference: Path, candidate: Path) -> Tensor:
    """KL(reference || candidate) of each predicted token, nats."""
    return torch.cat(
        [
            (left.exp() * (left - right)).sum(dim=-1)[:-1]
            for left, right in zip(slow(reference), slow(candidate), strict=True)
        ]
    )


def test_agreement_is_that_of_transformers(base: Path, noisy: Path, scores: TokenScores) -> None:
    expected = torch.cat(
        [
            (left.argmax(dim=-1) == right.argmax(dim=-1))[:-1]
            for left, right in zip(slow(base), slow(noisy), strict=True)
        ]
    )
    assert 0 < int(expected.sum()) < len(expected)
    assert torch.equal(scores.same_top1, expected)


def test_a_model_does_not_diverge_from_itself(base: Path) -> None:
    scores = scored(base, base)
    assert not bool(scores.kl.any())
    assert bool(scores.same_top1.all())
    assert torch.equal(scores.reference_nll, scores.candidate_nll)


def test_divergence_is_never_negative(scores: TokenScores) -> None:
    assert float(scores.kl.min()) >= 0


def test_the_size_of_chunks_changes_nothing(
    base: Path, noisy: Path, scores: TokenScores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_head, "MAX_LOGITS", 272 * 7)
    again = scored(base, noisy)
    torch.testing.assert_close(again.kl, scores.kl, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(again.candidate_nll, scores.candidate_nll)
    assert torch.equal(again.position, scores.position)


def test_a_tied_model_is_scored_by_its_embedding(tmp_path: Path) -> None:
    tied = pico.write_model(tmp_path / "tied", tied=True)
    tensors = load_file(tied / "model.safetensors")
    untied = pico.write_model(tmp_path / "untied")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, untied / "model.safetensors", metadata={"format": "pt"})
    assert not bool(scored(tied, untied).kl.any())


def test_some_of_the_tokens_keep_their_figures(scores: TokenScores) -> None:
    part = scores.select(scores.sequence == 2)
    assert len(part.kl) == 32
    assert part.position.tolist() == list(range(32))
    assert torch.equal(part.kl, scores.kl[5 : 5 + 32])


@pytest.mark.parametrize("label", ["reference", "candidate"])
def test_logits_that_are_not_finite_are_refused(base: Path, tmp_path: Path, label: str) -> None:
    broken = pico.write_model(tmp_path / "broken", dtype=torch.float32)
    tensors = load_file(broken / "model.safetensors")
    tensors["lm_head.weight"] *= 1e38
    tensors["lm_head.weight"] *= 8
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    pair = (broken, base) if label == "reference" else (base, broken)
    with pytest.raises(NumericsProblem, match=f"the {label} gives logits that are not finite"):
        scored(*pair)
