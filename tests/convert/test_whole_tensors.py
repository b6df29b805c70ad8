"""Diffs of which some tensors are whole: each is judged by itself, and every advice works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import pico
import published
import stages
import weights
from camelpress.core.errors import NumericsProblem
from refusal import refusal
from weights import Tensors

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WEIGHTS = "these are weights, not differences"
FLOAT32 = torch.float32


@pytest.fixture(scope="module")
def raw(base: Path) -> Tensors:
    return weights.read(base)


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model tuned in float16, with rows for added tokens."""
    place = tmp_path_factory.mktemp("tuned") / "tuned"
    return pico.write_tuned(place, base, extra_rows=4, dtype=torch.float16)


def padded(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return published.padded(rows.float(), like)


def upload(tensors: Tensors, tuned: Path, out: Path) -> Path:
    return published.upload(tensors, tuned, out, suffix="safetensors")


def differences(raw: Tensors, target: Tensors) -> Tensors:
    return {name: each.float() - padded(raw[name], each) for name, each in target.items()}


@pytest.mark.parametrize("kept", [torch.float16, torch.float32])
def test_whole_embedding_and_head_beside_differences(
    base: Path, raw: Tensors, tuned: Path, tmp_path: Path, kept: torch.dtype
) -> None:
    target = weights.read(tuned)
    whole = {name: target[name].to(kept) for name in (EMBEDDING, HEAD)}
    diff = upload(differences(raw, target) | whole, tuned, tmp_path / "diff")
    report = stages.recover(base, diff, tmp_path / "back")
    assert weights.same(weights.read(tmp_path / "back"), target)
    reasons = {each["name"]: each.get("reason") for each in report.facts.record["tensors"]}
    assert {name for name, reason in reasons.items() if reason == WEIGHTS} == {EMBEDDING, HEAD}


@pytest.mark.parametrize("kept", [torch.float16, torch.float32])
@pytest.mark.parametrize("names", [(EMBEDDING,), (EMBEDDING, HEAD)], ids=["embedding", "both"])
@pytest.mark.parametrize("spread", [0.08, 0.02], ids=["as large as the base", "smaller"])
def test_whole_tensors_far_from_the_base_are_taken_by_the_rule_that_the_message_gives(
    base: Path,
    raw: Tensors,
    tuned: Path,
    tmp_path: Path,
    names: tuple[str, ...],
    kept: torch.dtype,
    spread: float,
) -> None:
    """A new vocabulary leaves nothing of the old embedding."""
    generator = torch.Generator().manual_seed(4)
    target = weights.read(tuned)
    for name in names:
        target[name] = (spread * torch.randn(target[name].shape, generator=generator)).half()
    whole = {name: target[name].to(kept) for name in names}
    diff = upload(differences(raw, target) | whole, tuned, tmp_path / "diff")
    with pytest.raises(NumericsProblem, match="is no difference from this base") as told:
        stages.recover(base, diff, tmp_path / "back")
    assert all(repr(name) in told.value.message for name in names)
    rules = re.findall(r"--rule (\S+)", str(told.value.next_step))
    assert sorted(rules) == sorted(f"{name}=absolute" for name in names)
    stages.recover(base, diff, tmp_path / "back", rule=rules)
    assert weights.same(weights.read(tmp_path / "back"), target)


def test_one_difference_beside_whole_tensors_is_added(
    base: Path, raw: Tensors, tuned: Path, tmp_path: Path
) -> None:
    target = weights.read(tuned)
    embedding = target[EMBEDDING].float() - padded(raw[EMBEDDING], target[EMBEDDING])
    diff = upload(target | {EMBEDDING: embedding}, tuned, tmp_path / "diff")
    report = stages.recover(base, diff, tmp_path / "back")
    assert weights.same(weights.read(tmp_path / "back"), target)
    rules = {each["name"]: each["rule"] for each in report.facts.record["tensors"]}
    assert {name for name, rule in rules.items() if rule != "absolute"} == {EMBEDDING}


@pytest.mark.parametrize("kept", [torch.float16, torch.float32])
@pytest.mark.parametrize("veil", ["sum", "double", "noise", "zeros"])
def test_an_embedding_that_is_neither_is_named(
    base: Path, raw: Tensors, tuned: Path, tmp_path: Path, veil: str, kept: torch.dtype
) -> None:
    target = weights.read(tuned)
    generator = torch.Generator().manual_seed(6)
    added = {
        "sum": padded(raw[EMBEDDING], target[EMBEDDING]),
        "double": target[EMBEDDING].float(),
        "noise": 0.1 * torch.randn(target[EMBEDDING].shape, generator=generator),
        "zeros": -target[EMBEDDING].float(),
    }[veil]
    veiled = (target[EMBEDDING].float() + added).to(kept)
    diff = upload(target | {EMBEDDING: veiled}, tuned, tmp_path / "diff")
    with refusal(
        NumericsProblem,
        f"{diff} holds weights, not differences, in 20 tensors, such as '{HEAD}'; but "
        f"'{EMBEDDING}' is neither like the base's nor a difference from it",
        next_step="undo the change with the script of its authors; the file is no working model, "
        "and no rule of recover fits it",
        out=tmp_path / "back",
    ):
        stages.recover(base, diff, tmp_path / "back")


def test_a_whole_float32_model_is_used_as_it_is(base: Path, tuned: Path, tmp_path: Path) -> None:
    model = weights.changed(
        tuned,
        tmp_path / "model",
        lambda tensors: {name: 1.001 * each.float() for name, each in tensors.items()},
    )
    with pytest.raises(NumericsProblem, match="its tensors are like the base's") as told:
        stages.recover(base, model, tmp_path / "back")
    assert str(told.value.next_step).startswith("use it as it is")
