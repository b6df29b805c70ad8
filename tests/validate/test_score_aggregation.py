"""Figures of made-up scores, counted by hand; hidden states and noise of the pico model."""

from __future__ import annotations

from math import exp, log10
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import pico
import stages
from camelpress.core.errors import RecipeProblem
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.validate.corpus.held_out_text import HeldOutText
from camelpress.validate.corpus.protocols import TokenWindow
from camelpress.validate.scoring.metric_formulas import estimate_metrics
from camelpress.validate.scoring.score_aggregation import (
    aggregate_scores,
    block_error_facts,
)
from camelpress.validate.scoring.streamed_run import squared_relative_error
from camelpress.validate.scoring.token_formulas import TOKEN_FORMULAS
from camelpress.validate.scoring.token_scores import TokenScores
from camelpress.validate.statistics.clustered import bootstrap_mean


def drawn(seed: int, count: int, windows: int) -> TokenScores:
    """Figures of nothing in particular; the last windows may be in one cluster."""
    generator = torch.Generator().manual_seed(seed)

    def some() -> Tensor:
        return torch.rand(count, generator=generator)

    window = torch.arange(count) * windows // count
    return TokenScores(
        reference_nll=3 * some(),
        candidate_nll=3 * some(),
        kl=some() ** 4,
        kl_reverse=some() ** 4,
        same_top1=some() < 0.9,
        top5_overlap=(5 * some()).floor() / 5,
        confidence=some(),
        formula_values=torch.zeros(count, len(TOKEN_FORMULAS)),
        position=torch.arange(count) % 200,
        sequence=window,
        cluster=window.minimum(torch.tensor(max(1, windows - 2))),
    )


def text(windows: int) -> HeldOutText:
    return HeldOutText(
        "a", "", [TokenWindow([0, 0], [False, True], number) for number in range(windows)]
    )


@given(st.integers(0, 999), st.integers(20, 300), st.integers(2, 9))
@settings(max_examples=15, deadline=None)
def test_figures_are_those_counted_by_hand(seed: int, count: int, windows: int) -> None:
    scores = drawn(seed, count, windows)
    told = aggregate_scores(scores, [text(windows)])
    kl, confidence = scores.kl.tolist(), scores.confidence.tolist()
    for number, (low, high) in enumerate(
        ((0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 0.95), (0.95, 2))
    ):
        some = [each for each, sure in zip(kl, confidence, strict=True) if low <= sure < high]
        assert told["kl_by_confidence"]["tokens"][number] == len(some)
        mean = told["kl_by_confidence"]["kl_mean"][number]
        assert mean == (pytest.approx(sum(some) / len(some)) if some else None)
    assert told["kl_by_confidence"]["edges"] == [0, 0.25, 0.5, 0.75, 0.95, 1]
    assert told["kl_percentiles"].keys() == {"50", "90", "99", "99.9", "max"}
    assert told["kl_percentiles"]["50"] == sorted(kl)[count // 2]
    assert told["kl_percentiles"]["max"] == max(kl)
    assert told["kl_reverse_mean"] == pytest.approx(sum(scores.kl_reverse.tolist()) / count)
    assert told["top5_agreement"] == pytest.approx(sum(scores.top5_overlap.tolist()) / count)
    nlls = zip(scores.candidate_nll.tolist(), scores.reference_nll.tolist(), strict=True)
    change = [exp(-after) - exp(-before) for after, before in nlls]
    rms = (sum(each**2 for each in change) / count) ** 0.5
    assert told["probability_change"]["mean"] == pytest.approx(sum(change) / count, abs=1e-7)
    assert told["probability_change"]["rms"] == pytest.approx(rms)


def test_intervals_go_by_clusters_and_not_by_windows() -> None:
    scores = drawn(1, 200, 8)
    found = estimate_metrics(scores)["kl_mean"]
    assert found is not None and found.clusters == 7
    assert found == bootstrap_mean(scores.kl, scores.cluster)
    assert found != bootstrap_mean(scores.kl, scores.sequence)


def test_the_worst_block_adds_most_to_the_squared_error() -> None:
    told = block_error_facts([0.01, 0.02, 0.2, 0.3, 0.31])
    assert told is not None  # and 0.09 - 0.04 is more than 0.04 - 0.0004
    assert [each["worst"] for each in told] == [False, False, False, True, False]
    assert told[0]["sqnr_db"] == pytest.approx(40)
    assert block_error_facts([0.0]) == [{"relative_error": 0.0, "sqnr_db": None, "worst": False}]
    assert block_error_facts([]) is None


def test_the_error_of_hidden_states_is_taken_token_by_token() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(9000, 5, generator=generator)
    reference[0] *= 1e4
    other = reference + 0.1 * torch.randn(9000, 5, generator=generator)
    shares = [
        sum((a - b) ** 2 for a, b in zip(left, right, strict=True)) / sum(a**2 for a in left)
        for left, right in zip(reference.tolist(), other.tolist(), strict=True)
    ]
    assert squared_relative_error(reference, other) == pytest.approx(sum(shares), rel=1e-4)


SIX = pico.PICO._replace(layers=6)


@pytest.mark.parametrize("guilty", [0, 3, 5])
def test_a_damaged_block_is_found(prose: Path, tmp_path: Path, guilty: int) -> None:
    base = pico.write_model(tmp_path / "base", SIX, dtype=torch.float32)
    tensors = load_file(base / "model.safetensors")
    for name, tensor in tensors.items():
        generator = torch.Generator().manual_seed(len(name))
        if "layers." in name and tensor.dim() == 2:
            noise = 5e-2 if f"layers.{guilty}." in name else 1e-3
            tensor += noise * torch.randn(tensor.shape, generator=generator)
    damaged = pico.write_model(tmp_path / "damaged", SIX, dtype=torch.float32)
    save_file(tensors, damaged / "model.safetensors", metadata={"format": "pt"})
    told = stages.validate(base, damaged, tmp_path / "out", prose).facts.record["blocks"]
    assert [each["worst"] for each in told] == [block == guilty for block in range(6)]
    hidden = [
        pico.load_model(folder)(_ids(base, prose), output_hidden_states=True).hidden_states
        for folder in (base, damaged)
    ]
    first = [
        (squared_relative_error(left[0].detach(), right[0].detach()) / left.shape[1]) ** 0.5
        for left, right in zip(hidden[0][1:-1], hidden[1][1:-1], strict=True)
    ]
    rise = [
        each["relative_error"] for each in told[:-1]
    ]  # of four windows; this is the first of them
    assert first == pytest.approx(rise, rel=0.2)
    assert told[0]["sqnr_db"] == pytest.approx(-20 * log10(told[0]["relative_error"]))


def _ids(base: Path, prose: Path) -> Tensor:
    ids = Tokenizer.load(base).encode_document(prose.read_text(encoding="utf-8"))
    return torch.tensor([ids[:63]])


def test_models_of_different_depths_have_no_blocks_to_compare(
    base: Path, prose: Path, tmp_path: Path
) -> None:
    deep = pico.write_model(tmp_path / "deep", SIX)
    assert stages.validate(base, deep, tmp_path / "out", prose).facts.record["blocks"] is None


@pytest.mark.parametrize(("kind", "most"), [("batch", 1e-9), ("bfloat16", 1e-3)])
def test_the_noise_floor_is_that_of_the_reference_against_itself(
    base: Path, prose: Path, chat: Path, tmp_path: Path, kind: str, most: float
) -> None:
    other = pico.write_model(tmp_path / "other", seed=5)
    told = stages.validate(
        base, other, tmp_path / "out", prose, chat, noise_floor=kind
    ).facts.record
    floor = told["noise_floor"]
    assert floor["kind"] == kind
    assert 0 < floor["kl_mean"] <= most < told["kl_mean"]
    assert (floor["kl_mean"] > 1e-7) == (kind == "bfloat16")
    assert floor["tokens"] == told["tokens"]
    assert floor.keys() >= {"perplexity_ratio_interval", "top5_agreement", "kl_percentiles"}
    assert floor["reference_perplexity"] == told["reference_perplexity"]


def test_half_precision_is_refused_on_a_cpu(base: Path, prose: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeProblem, match="float16 overflows on a CPU"):
        stages.validate(base, base, tmp_path / "out", prose, dtype="float16")


def test_a_dtype_may_be_chosen(base: Path, prose: Path, tmp_path: Path) -> None:
    told = stages.validate(base, base, tmp_path / "out", prose, dtype="bfloat16").facts.record
    assert told["protocol"].endswith("bfloat16 on cpu")
    assert told["kl_mean"] == 0
