"""Every tensor comes back in its own type, and only if base and diff belong together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import damage
import pico
import published
import stages
import weights
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import NumericsProblem
from camelpress.core.progress import use_listener
from camelpress.inference.model.streamed_model import StreamedModel
from camelpress.inference.model.token_batches import TokenBatches
from camelpress.reporting.report_classes import read_report
from notes import Notes
from refusal import refusal
from weights import Tensors

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
GATE = "model.layers.1.mlp.gate_proj.weight"
MIXED = {
    "float32 norms": ("norm", FP32),
    "float32 embedding": ("embed_tokens", FP32),
    "float32 head": ("lm_head", FP32),
    "float16 norms": ("norm", FP16),
    "float16 embedding": ("embed_tokens", FP16),
    "float32 down_proj": ("down_proj", FP32),
}


def near(base: Path, *, update: float = 2e-4, seed: int = 3) -> Tensors:
    """float32 weights near those of a base, each a sum of it and a float32 number."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, tensor in weights.read(base).items():
        change = update * torch.randn(tensor.shape, generator=generator)
        limit = tensor.float().abs() / 4  # as near as float32 differences are exact
        tensors[name] = tensor.float() + change.clamp(-limit, limit)
    return tensors


def tuned_as(base: Path, out: Path, dtypes: dict[str, torch.dtype], main: torch.dtype) -> Path:
    """A tuned model whose tensors have the type of the first pattern in their names."""
    tensors = {
        name: tensor.to(next((dtype for part, dtype in dtypes.items() if part in name), main))
        for name, tensor in near(base).items()
    }
    return published.upload(tensors, base, out, suffix="safetensors")


def plain_diff(base: Path, tuned: Path, out: Path, kept: torch.dtype = FP32) -> Path:
    """The diff of a script that subtracts in float32 and states nothing."""
    difference = published.alpaca(weights.read(base), weights.read(tuned))
    stored = {name: tensor.to(kept) for name, tensor in difference.items()}
    return published.upload(stored, tuned, out, suffix="safetensors")


def same_values(left: Path, right: Path) -> bool:
    """Whether two models have the same weights, whatever their types."""
    one, other = weights.read(left), weights.read(right)
    return one.keys() == other.keys() and all(
        torch.equal(tensor.double(), other[name].double()) for name, tensor in one.items()
    )


def config(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return content


# --- mixed models -------------------------------------------------------------------------------


@pytest.mark.parametrize("check", ["sample", "full"])
@pytest.mark.parametrize("maker", ["ours", "theirs"])
@pytest.mark.parametrize("kind", MIXED)
def test_a_mixed_model_comes_back_bit_for_bit(
    base: Path, tmp_path: Path, kind: str, maker: str, check: str
) -> None:
    part, dtype = MIXED[kind]
    tuned = tuned_as(base, tmp_path / "tuned", {part: dtype}, BF16)
    if maker == "ours":
        stages.make_diff(base, tuned, tmp_path / "diff")
    else:
        plain_diff(base, tuned, tmp_path / "diff")
    report = stages.recover(base, tmp_path / "diff", tmp_path / "back", check=check)
    assert weights.same(weights.read(tmp_path / "back"), weights.read(tuned))
    names = {name for name in weights.read(base) if part in name}
    word = str(dtype).removeprefix("torch.")
    assert report.facts.record["dtypes"] == dict.fromkeys(names, word)
    assert (report.facts.record["dtype"], report.facts.record["rounded"]) == ("bfloat16", 0)
    assert config(tmp_path / "back")["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize("check", ["sample", "full"])
def test_a_float32_model_comes_back_from_a_diff_of_ours(
    base: Path, tmp_path: Path, check: str
) -> None:
    tuned = tuned_as(base, tmp_path / "tuned", {}, FP32)
    stages.make_diff(base, tuned, tmp_path / "diff")
    stages.recover(base, tmp_path / "diff", tmp_path / "back", check=check)
    assert weights.same(weights.read(tmp_path / "back"), weights.read(tuned))
    assert config(tmp_path / "back")["torch_dtype"] == "float32"


@pytest.mark.parametrize("kept", ["float16", "bfloat16"])
def test_a_diff_of_ours_in_16_bits_keeps_the_types(base: Path, tmp_path: Path, kept: str) -> None:
    tuned = tuned_as(base, tmp_path / "tuned", {"norm": FP32, "embed": FP16}, BF16)
    stages.make_diff(base, tuned, tmp_path / "diff", dtype=kept)
    stages.recover(base, tmp_path / "diff", tmp_path / "back")
    types = {name: tensor.dtype for name, tensor in weights.read(tuned).items()}
    assert {name: each.dtype for name, each in weights.read(tmp_path / "back").items()} == types


def test_vectors_that_were_not_trained_keep_the_values_of_the_base(
    base: Path, tmp_path: Path
) -> None:
    """Adapters leave norms alone, and loaders for adapters hold them in float32."""
    untouched = {name: each for name, each in weights.read(base).items() if "norm" in name}
    tuned = damage.with_tensors(
        tuned_as(base, tmp_path / "all", {}, BF16),
        tmp_path / "tuned",
        {name: each.float() for name, each in untouched.items()},
    )
    diff = plain_diff(base, tuned, tmp_path / "diff")
    stages.recover(base, diff, tmp_path / "back")
    assert same_values(tmp_path / "back", tuned)


DTYPE = st.sampled_from([BF16, FP16, FP32])
KINDS = ("embed_tokens", "lm_head", "norm", "self_attn.q", "self_attn.o", "gate_proj", "down_proj")


@settings(max_examples=8, deadline=None)
@given(dtypes=st.lists(DTYPE, min_size=21, max_size=21))
def test_any_types_come_back_from_a_diff_of_ours(
    base: Path, tmp_path_factory: pytest.TempPathFactory, dtypes: list[torch.dtype]
) -> None:
    place = tmp_path_factory.mktemp("any")
    names = sorted(weights.read(base))
    tuned = tuned_as(base, place / "tuned", dict(zip(names, dtypes, strict=False)), BF16)
    stages.make_diff(base, tuned, place / "diff")
    stages.recover(base, place / "diff", place / "back")
    assert weights.same(weights.read(place / "back"), weights.read(tuned))


@settings(max_examples=8, deadline=None)
@given(dtypes=st.lists(DTYPE, min_size=len(KINDS), max_size=len(KINDS)), main=DTYPE)
def test_types_by_kind_come_back_from_any_float32_diff_or_are_refused(
    base: Path,
    tmp_path_factory: pytest.TempPathFactory,
    dtypes: list[torch.dtype],
    main: torch.dtype,
) -> None:
    place = tmp_path_factory.mktemp("any")
    tuned = tuned_as(base, place / "tuned", dict(zip(KINDS, dtypes, strict=True)), main)
    plain_diff(base, tuned, place / "diff")
    matrices = [each for each in weights.read(tuned).values() if each.ndim == 2]
    if sum(each.dtype is FP32 for each in matrices) >= len(matrices) / 2:
        with pytest.raises(NumericsProblem, match="is not the base of|is damaged"):
            stages.recover(base, place / "diff", place / "back")
    else:
        stages.recover(base, place / "diff", place / "back")
        assert same_values(place / "back", tuned)


# --- wrong bases --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def others(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bases that are not the right one."""
    place = tmp_path_factory.mktemp("others")
    tensors = weights.read(base)
    near_by = near(base, update=1e-3, seed=8)
    changes = {
        "rounded": {name: each.to(BF16) for name, each in tensors.items()},
        "tuned": {name: each.to(FP16) for name, each in near_by.items()},
        "tuned in float32": near_by,
    }
    folders = {
        name: published.upload(each, base, place / name, suffix="safetensors")
        for name, each in changes.items()
    }
    return folders | {"unrelated": pico.write_model(place / "unrelated", seed=99)}


@pytest.mark.parametrize("other", ["rounded", "tuned", "tuned in float32", "unrelated"])
@pytest.mark.parametrize("maker", ["ours", "theirs"])
@pytest.mark.parametrize("kind", ["float32", "float32 norms", "float32 embedding"])
def test_a_wrong_base_does_not_make_a_float32_model(
    base: Path, others: dict[str, Path], tmp_path: Path, kind: str, maker: str, other: str
) -> None:
    part, dtype = MIXED.get(kind, ("weight", FP32))
    tuned = tuned_as(base, tmp_path / "tuned", {part: dtype}, BF16)
    if maker == "ours":
        stages.make_diff(base, tuned, tmp_path / "diff")
    else:
        plain_diff(base, tuned, tmp_path / "diff")
    with pytest.raises(NumericsProblem, match="the base of|is damaged"):
        stages.recover(others[other], tmp_path / "diff", tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("name", [GATE, NORM])
@pytest.mark.parametrize("other", ["rounded", "tuned", "tuned in float32", "unrelated"])
def test_one_wrong_tensor_is_not_taken_for_a_float32_one(
    base: Path, others: dict[str, Path], tuned: Path, tmp_path: Path, name: str, other: str
) -> None:
    tensor = weights.read(others[other])[name]
    wrong = damage.with_tensors(base, tmp_path / "wrong", {name: tensor})
    diff = plain_diff(base, tuned, tmp_path / "diff")
    with pytest.raises(NumericsProblem, match="the base of|is damaged"):
        stages.recover(wrong, diff, tmp_path / "back")


def test_a_float32_model_of_another_maker_needs_a_word_of_the_user(
    base: Path, tmp_path: Path
) -> None:
    tuned = tuned_as(base, tmp_path / "tuned", {}, FP32)
    diff = plain_diff(base, tuned, tmp_path / "diff")
    with pytest.raises(NumericsProblem, match="is not the base of") as told:
        stages.recover(base, diff, tmp_path / "back")
    assert "--check off --dtype float32 if the tuned model is float32" in str(told.value.next_step)
    stages.recover(base, diff, tmp_path / "back", check="off", dtype="float32")
    assert weights.same(weights.read(tmp_path / "back"), weights.read(tuned))


def test_a_base_that_only_resembles_the_stated_one_is_refused(base: Path, tmp_path: Path) -> None:
    """In a float32 model a rounded base leaves no other trace than the digest of its values."""
    tuned = tuned_as(base, tmp_path / "tuned", {}, FP32)
    stages.make_diff(base, tuned, tmp_path / "diff")
    tensor: Tensor = weights.read(base)[NORM].clone()
    tensor[0] = tensor[0].nextafter(torch.tensor(2.0).to(tensor.dtype))
    other = damage.with_tensors(base, tmp_path / "other", {NORM: tensor})
    with refusal(
        NumericsProblem,
        f"{other} is not the base of {tmp_path / 'diff'}: its weights do not have the "
        "SHA-256 stated in the diff",
        next_step="give the exact base of this diff, unrounded",
        out=tmp_path / "back",
    ):
        stages.recover(other, tmp_path / "diff", tmp_path / "back")


# --- what the header states ---------------------------------------------------------------------


def with_header(diff: Path, out: Path, **changes: str | None) -> Path:
    """A copy of a diff of ours whose header has other entries; None takes one away."""
    shutil.copytree(diff, out)
    with safe_open(out / "model.safetensors", "pt") as file:
        header = {**file.metadata(), **{f"camelpress.{key}": each for key, each in changes.items()}}
    kept = {key: each for key, each in header.items() if each is not None}
    save_file(weights.read(diff), out / "model.safetensors", metadata=kept)
    return out


def test_a_header_with_one_type_for_all_is_read(base: Path, tuned: Path, tmp_path: Path) -> None:
    stages.make_diff(base, tuned, tmp_path / "diff")
    old = with_header(tmp_path / "diff", tmp_path / "old", tuned_dtypes=None, base_sample=None)
    stages.recover(base, old, tmp_path / "back")
    assert weights.same(weights.read(tmp_path / "back"), weights.read(tuned))


@pytest.mark.parametrize(
    "text", ["", "[", "[" * 100_000, "[]", "1", '{"a": 1}', '{"a": ["x"]}', '{"a": "float8"}']
)
def test_a_header_that_states_no_types_is_not_believed(
    base: Path, tmp_path: Path, text: str
) -> None:
    tuned = tuned_as(base, tmp_path / "tuned", {"norm": FP32}, BF16)
    stages.make_diff(base, tuned, tmp_path / "diff")
    odd = with_header(tmp_path / "diff", tmp_path / "odd", tuned_dtypes=text, base_sample=None)
    stages.recover(base, odd, tmp_path / "back")
    assert weights.same(weights.read(tmp_path / "back"), weights.read(tuned))


def test_a_header_that_states_a_wider_type_loses_nothing(base: Path, tmp_path: Path) -> None:
    tuned = tuned_as(base, tmp_path / "tuned", {}, BF16)
    stages.make_diff(base, tuned, tmp_path / "diff")
    odd = with_header(tmp_path / "diff", tmp_path / "odd", tuned_dtype="float32")
    report = stages.recover(base, odd, tmp_path / "back")
    assert report.facts.record["dtype"] == "float32"
    assert same_values(tmp_path / "back", tuned)


# --- a type for all -----------------------------------------------------------------------------


def test_a_type_for_all_tensors_tells_how_many_values_it_rounds(base: Path, tmp_path: Path) -> None:
    tuned = tuned_as(base, tmp_path / "tuned", {"norm": FP32}, BF16)
    stages.make_diff(base, tuned, tmp_path / "diff")
    notes = Notes()
    with use_listener(notes):
        report = stages.recover(base, tmp_path / "diff", tmp_path / "back", dtype="bfloat16")
    right = weights.read(tuned)
    lost = sum(int((each.to(BF16).float() != each.float()).sum()) for each in right.values())
    assert report.facts.record["rounded"] == lost > 0
    (told,) = [note for note in notes.heard if "rounds" in note]
    assert told.startswith(f"--dtype bfloat16 rounds {lost:,} values in 5 tensors, such as ")
    assert {each.dtype for each in weights.read(tmp_path / "back").values()} == {BF16}


# --- diffs made in 16 bits ----------------------------------------------------------------------


@pytest.mark.parametrize("check", ["sample", "full"])
@pytest.mark.parametrize("kept", [BF16, FP16])
def test_differences_rounded_before_they_were_stored_in_float32_are_seen_to_be(
    base: Path, tuned: Path, tmp_path: Path, kept: torch.dtype, check: str
) -> None:
    difference = published.alpaca(weights.read(base), weights.read(tuned))
    stored = {name: each.to(kept).float() for name, each in difference.items()}
    diff = published.upload(stored, tuned, tmp_path / "diff", suffix="safetensors")
    stages.recover(base, diff, tmp_path / "back", check=check, rule=["mean"])
    expected = weights.summed(weights.read(base), stored)
    assert weights.same(
        weights.read(tmp_path / "back"), {name: each.to(BF16) for name, each in expected.items()}
    )


@pytest.mark.parametrize("kept", [BF16, FP16])
@pytest.mark.parametrize("other", ["rounded", "tuned", "unrelated"])
def test_a_wrong_base_is_refused_where_differences_were_rounded(
    base: Path, others: dict[str, Path], tuned: Path, tmp_path: Path, kept: torch.dtype, other: str
) -> None:
    difference = published.alpaca(weights.read(base), weights.read(tuned))
    stored = {name: each.to(kept).float() for name, each in difference.items()}
    diff = published.upload(stored, tuned, tmp_path / "diff", suffix="safetensors")
    with pytest.raises(NumericsProblem, match="the base of|is damaged"):
        stages.recover(others[other], diff, tmp_path / "back")


@pytest.mark.parametrize("check", ["sample", "full"])
@pytest.mark.parametrize("kept", [FP32, BF16])
def test_a_base_is_taken_as_the_maker_of_the_diff_held_it(
    base: Path, tmp_path: Path, kept: torch.dtype, check: str
) -> None:
    tuned = tuned_as(base, tmp_path / "tuned", {}, BF16)
    raw = {name: each.to(BF16).float() for name, each in weights.read(base).items()}
    difference = {name: each.float() - raw[name] for name, each in weights.read(tuned).items()}
    stored = {name: each.to(kept) for name, each in difference.items()}
    diff = published.upload(stored, tuned, tmp_path / "diff", suffix="safetensors")
    report = stages.recover(base, diff, tmp_path / "back", check=check)
    expected = {name: (raw[name] + each.float()).to(BF16) for name, each in stored.items()}
    assert weights.same(weights.read(tmp_path / "back"), expected)
    assert report.facts.record["base_dtype"] == "bfloat16"
    if kept is FP32:
        assert weights.same(expected, weights.read(tuned))


def test_a_bfloat16_base_held_in_float16_is_taken_so(tmp_path: Path) -> None:
    """Weights below 2**-14 lose bits in float16."""
    native = pico.write_model(tmp_path / "native", dtype=BF16)
    small = {name: 2.0**-13 * each for name, each in weights.read(native).items()}
    base = published.upload(small, native, tmp_path / "base", suffix="safetensors")
    raw = {name: each.half() for name, each in small.items()}
    tuned = {name: (each.float() * 1.02).half() for name, each in raw.items()}
    difference = {name: each.float() - raw[name].float() for name, each in tuned.items()}
    diff = published.upload(difference, native, tmp_path / "diff", suffix="safetensors")
    report = stages.recover(base, diff, tmp_path / "back")
    assert report.facts.record["base_dtype"] == "float16"
    assert weights.same(weights.read(tmp_path / "back"), tuned)


def test_a_base_that_explains_the_diff_is_taken_as_it_is(
    base: Path, tuned: Path, tmp_path: Path
) -> None:
    stages.make_diff(base, tuned, tmp_path / "diff")
    assert (
        stages.recover(base, tmp_path / "diff", tmp_path / "back").facts.record["base_dtype"]
        is None
    )


# --- downstream ---------------------------------------------------------------------------------


def test_the_report_of_make_diff_names_the_type_of_each_tensor(base: Path, tmp_path: Path) -> None:
    tuned = tuned_as(base, tmp_path / "tuned", {"norm": FP32, "embed_tokens": FP32}, BF16)
    stages.make_diff(base, tuned, tmp_path / "diff")
    report = read_report(tmp_path / "diff" / "make-diff-report.json")
    assert report.facts.record["tuned_dtype"] == "bfloat16"
    types = {
        name: str(each.dtype).removeprefix("torch.") for name, each in weights.read(tuned).items()
    }
    assert {each["name"]: each["dtype"] for each in report.facts.record["tensors"]} == types


def test_zeros_that_lose_their_sign_are_counted(base: Path, tmp_path: Path) -> None:
    tuned = tuned_as(base, tmp_path / "all", {}, BF16)
    tensor = weights.read(tuned)[GATE].clone()
    tensor[0, :7] = -0.0
    signed = damage.with_tensors(tuned, tmp_path / "tuned", {GATE: tensor})
    report = stages.make_diff(base, signed, tmp_path / "diff")
    assert (report.facts.record["inexact"], report.facts.record["zero_signs"]) == (0, 7)


def test_a_mixed_model_is_computed_as_it_is(base: Path, tmp_path: Path) -> None:
    """Held against transformers in float32, where no norm of float32 is rounded."""
    tuned = tuned_as(base, tmp_path / "tuned", {"norm": FP32, "embed_tokens": FP32}, BF16)
    checkpoint = Checkpoint.open(tuned)
    assert checkpoint.dtype is BF16
    model = StreamedModel(checkpoint, device=torch.device("cpu"), dtype=FP32)
    ids = list(range(1, 40))
    with torch.inference_mode():
        hidden = model.last_hidden_states(TokenBatches([ids], limit=model.max_positions), "test")
        found = model.read_head()(hidden)
        expected = pico.load_model(tuned)(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_mixed_model_is_quantized(base: Path, chat: Path, tmp_path: Path) -> None:
    tuned = tuned_as(base, tmp_path / "tuned", {"norm": FP32, "lm_head": FP32}, BF16)
    stages.quantize(tuned, tmp_path / "out", chat, method="rtn")
    out = weights.read(tmp_path / "out")
    for name, tensor in weights.read(tuned).items():
        if "proj" not in name:
            assert torch.equal(out[name], tensor.half())
