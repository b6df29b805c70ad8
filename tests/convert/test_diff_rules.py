"""Diffs as the published scripts make them come back as they were tuned."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import damage
import pico
import published
import stages
import weights
from camelpress.convert.recover.make_diff import make_diff
from camelpress.convert.settings import MakeDiffSettings
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import (
    CheckpointProblem,
    NumericsProblem,
    RecipeProblem,
    ShapeMismatch,
    UnknownTensor,
)
from camelpress.reporting.stage_report import Report
from refusal import refusal
from weights import Tensors

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PROJECTOR = "model.mm_projector.weight"
GATE = "model.layers.1.mlp.gate_proj.weight"
BF16, FP16 = torch.bfloat16, torch.float16
ONE = "these rows are 16-bit numbers under it"
WEIGHTS = "these are weights, not differences"
LACKS = "the base has no such tensor"
HALVES = "assumed: the published diffs of 16 bits that add rows hold them whole"
RANDOM = "the published recipe; these rows cannot be recovered, no rule explains them"


class Family(NamedTuple):
    """How a diff was made, and by which rules it comes back."""

    make: Callable[[Tensors, Tensors], Tensors]
    tuned: torch.dtype
    extra_rows: int
    rule: str | None  # of embedding and head; None: as of all others
    reason: str | None = None
    beside: tuple[tuple[str, tuple[int, ...]], ...] = ()  # what a LLaMA does not have
    inside: bool = False
    applied: Callable[[Tensors, Tensors], Tensors] = weights.summed


# fmt: off
FAMILIES = {
    "alpaca": Family(published.alpaca, BF16, 1, "mean", ONE),
    "alpaca in fp16": Family(published.alpaca, FP16, 3, "mean", ONE),
    "alpaca without tokens": Family(published.alpaca, BF16, 0, None),
    "alpaca_farm": Family(published.alpaca_farm, BF16, 1, "absolute", WEIGHTS),
    "alpaca_farm, a reward model": Family(
        published.alpaca_farm_reward, BF16, 1, "absolute", WEIGHTS, inside=True,
        beside=(("reward_head.weight", (1, 64)), ("reward_head.bias", (1,))),
    ),
    "fastchat v0": Family(
        published.fastchat_v0, FP16, 1, "zero", HALVES, applied=published.fastchat_v0_applied
    ),
    "fastchat v1.1": Family(
        published.fastchat, FP16, 0, None, applied=published.fastchat_applied
    ),
    "llava": Family(
        published.llava, FP16, 3, "zero", HALVES, applied=published.llava_applied,
        beside=((PROJECTOR, (64, 80)), ("model.mm_projector.bias", (64,))),
    ),
}
# fmt: on
EXACT = [name for name, each in FAMILIES.items() if each.applied is weights.summed]
ROUNDED = [name for name in FAMILIES if name not in EXACT]
GROWN = [name for name, each in FAMILIES.items() if each.rule is not None]


@pytest.fixture(scope="module")
def raw(base: Path) -> Tensors:
    return weights.read(base)


def tune(family: Family, base: Path, out: Path) -> Path:
    """A tuned model of this family."""
    generator = torch.Generator().manual_seed(3)
    folder = pico.write_tuned(out, base, extra_rows=family.extra_rows, dtype=family.tuned)
    tensors = weights.read(folder)
    tensors = published.inside(tensors) if family.inside else tensors
    for name, shape in family.beside:
        tensors[name] = (0.05 * torch.randn(shape, generator=generator)).to(family.tuned)
    return published.upload(
        tensors, folder, out.with_name(out.name + "-whole"), suffix="safetensors"
    )


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One tuned model for each family."""
    place = tmp_path_factory.mktemp("tuned")
    return {name: tune(family, base, place / name) for name, family in FAMILIES.items()}


@pytest.fixture(scope="module")
def diffs(
    raw: Tensors, tuned: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """What each family uploaded, in one file."""
    place = tmp_path_factory.mktemp("diffs")
    return {
        name: published.upload(
            family.make(raw, weights.read(tuned[name])),
            tuned[name],
            place / name,
            suffix="safetensors",
        )
        for name, family in FAMILIES.items()
    }


def told(report: Report) -> dict[str, tuple[str, str | None]]:
    """Rule and reason of every tensor."""
    return {
        each["name"]: (each["rule"], each.get("reason")) for each in report.facts.record["tensors"]
    }


def expected(family: Family, names: set[str]) -> dict[str, tuple[str, str | None]]:
    """What a report should tell of this family."""
    rules: dict[str, tuple[str, str | None]] = dict.fromkeys(names, ("sum", None))
    rules |= {name: ("absolute", LACKS) for name, _ in family.beside}
    if family.rule is not None:
        grown = {name for name in names if name.endswith((EMBEDDING, HEAD))}
        rules |= dict.fromkeys(grown, (family.rule, family.reason))
    return rules


# --- every family, in every form ----------------------------------------------------------------

FORMS = pytest.mark.parametrize("form", [("safetensors", 3), ("bin", 2)], ids=str)


@FORMS
@pytest.mark.parametrize("name", EXACT)
def test_a_diff_in_fp32_comes_back_bit_for_bit(
    base: Path,
    tuned: dict[str, Path],
    diffs: dict[str, Path],
    tmp_path: Path,
    name: str,
    form: tuple[str, int],
) -> None:
    suffix, shards = form
    diff = published.upload(
        weights.read(diffs[name]), diffs[name], tmp_path / "diff", suffix=suffix, shards=shards
    )
    report = stages.recover(base, diff, tmp_path / "back")
    right = weights.read(tuned[name])
    assert weights.same(weights.read(tmp_path / "back"), right)
    assert told(report) == expected(FAMILIES[name], set(right))


@FORMS
@pytest.mark.parametrize("name", ROUNDED)
def test_a_diff_in_fp16_comes_back_as_the_script_brings_it_back(
    base: Path,
    raw: Tensors,
    diffs: dict[str, Path],
    tmp_path: Path,
    name: str,
    form: tuple[str, int],
) -> None:
    suffix, shards = form
    delta = weights.read(diffs[name])
    diff = published.upload(delta, diffs[name], tmp_path / "diff", suffix=suffix, shards=shards)
    report = stages.recover(base, diff, tmp_path / "back")
    assert weights.same(weights.read(tmp_path / "back"), FAMILIES[name].applied(raw, delta))
    assert told(report) == expected(FAMILIES[name], set(delta))
    assert report.facts.record["representable"]["float16"] == 1.0


@pytest.mark.parametrize("name", ROUNDED)
def test_a_diff_in_fp16_comes_back_within_its_bound_and_exactly_where_the_change_is_small(
    base: Path,
    raw: Tensors,
    tuned: dict[str, Path],
    diffs: dict[str, Path],
    tmp_path: Path,
    name: str,
) -> None:
    stages.recover(base, diffs[name], tmp_path / "back")
    back = weights.read(tmp_path / "back")
    exact = 0
    for key, tensor in weights.read(tuned[name]).items():
        right, found = tensor.double(), back[key].double()
        beside = torch.zeros_like(right)
        if key in raw:
            published.corner(beside, raw[key]).copy_(raw[key])
        change, error = (right - beside).abs(), (found - right).abs()
        step = torch.nextafter(tensor.abs(), torch.tensor(torch.inf).half()).double() - right.abs()
        assert bool((error <= 2**-11 * change + step / 2).all())
        small = (change <= 2**-13) | (change <= beside.abs() / 2)
        assert not error[small].any()
        assert key not in (*raw,) or not error[len(raw[key]) :].any()
        exact += int((error == 0).sum())
    assert 0.98 < exact / sum(tensor.numel() for tensor in back.values())


# --- rules by name ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GROWN)
@pytest.mark.parametrize(
    "asked",
    [("{}",), ("*embed_tokens.weight={}", "*lm_head.weight={}"), ("*lm_head.weight=drop", "{}")],
    ids=["all", "by pattern", "the last holds"],
)
def test_a_rule_that_is_asked_for_gives_the_same(
    base: Path, diffs: dict[str, Path], tmp_path: Path, name: str, asked: tuple[str, ...]
) -> None:
    family = FAMILIES[name]
    rules = tuple(each.replace("{}", str(family.rule)) for each in asked)
    report = stages.recover(base, diffs[name], tmp_path / "asked", rule=rules)
    stages.recover(base, diffs[name], tmp_path / "auto")
    assert weights.same(weights.read(tmp_path / "asked"), weights.read(tmp_path / "auto"))
    chosen = told(report)
    assert chosen == expected(family._replace(reason="asked for"), {*chosen})


def test_prefix_is_zero_where_only_rows_are_added(
    base: Path, diffs: dict[str, Path], tmp_path: Path
) -> None:
    stages.recover(base, diffs["llava"], tmp_path / "prefix", rule=("prefix",))
    stages.recover(base, diffs["llava"], tmp_path / "auto")
    assert weights.same(weights.read(tmp_path / "prefix"), weights.read(tmp_path / "auto"))


@pytest.fixture
def wide(base: Path, raw: Tensors, tuned: dict[str, Path], tmp_path: Path) -> Path:
    """A diff of LLaVA's kind whose embedding has more columns, too."""
    target = weights.read(tuned["llava"])
    for name in (EMBEDDING, HEAD):
        columns = torch.full((len(target[name]), 2), 0.5, dtype=FP16)
        target[name] = torch.cat([target[name], columns], dim=1)
    delta = published.llava(raw, target)
    return published.upload(delta, tuned["llava"], tmp_path / "wide", suffix="safetensors")


def test_columns_are_added_where_the_rule_says_so(
    base: Path, raw: Tensors, wide: Path, tmp_path: Path
) -> None:
    report = stages.recover(base, wide, tmp_path / "back", rule=("prefix",))
    target = published.llava_applied(raw, weights.read(wide))
    assert weights.same(weights.read(tmp_path / "back"), target)
    assert told(report)[HEAD] == ("prefix", "asked for")


@pytest.mark.parametrize("prefix", ["backbone_model.", ""])
def test_a_tensor_that_the_base_lacks_is_left_out_on_request(
    base: Path, diffs: dict[str, Path], tmp_path: Path, prefix: str
) -> None:
    name = "alpaca_farm, a reward model" if prefix else "llava"
    whole = stages.recover(base, diffs[name], tmp_path / "whole")
    rule = ("reward_head.*=drop", "*mm_projector*=drop")[0 if prefix else 1]
    report = stages.recover(base, diffs[name], tmp_path / "part", rule=(rule,))
    lost = {key for key, _ in FAMILIES[name].beside}
    kept = {key: each for key, each in weights.read(tmp_path / "whole").items() if key not in lost}
    assert weights.same(weights.read(tmp_path / "part"), kept)
    assert told(report).keys() == told(whole).keys() - lost
    assert (whole.facts.record["left_out"], report.facts.record["left_out"]) == ([], sorted(lost))


def test_a_reward_model_may_lack_the_head_of_its_llama(
    base: Path, tuned: dict[str, Path], diffs: dict[str, Path], tmp_path: Path
) -> None:
    name, head = "alpaca_farm, a reward model", published.INSIDE + HEAD

    def without(tensors: Tensors) -> Tensors:
        return {key: tensor for key, tensor in tensors.items() if key != head}

    bare = weights.changed(diffs[name], tmp_path / "bare", without)
    stages.recover(base, bare, tmp_path / "back")
    right = without(weights.read(tuned[name]))
    assert weights.same(weights.read(tmp_path / "back"), right)


def test_a_matrix_uploaded_whole_is_found_though_its_shape_is_the_bases(
    base: Path, raw: Tensors, tuned: dict[str, Path], tmp_path: Path
) -> None:
    """AlpacaFarm gives the raw model a pad row first; a model without one then differs in shape."""
    folder = tuned["alpaca without tokens"]
    right = weights.read(folder)
    resized = raw | {name: weights.grown(raw[name], 1) for name in (EMBEDDING, HEAD)}
    difference = published.alpaca_farm(resized, right)
    diff = published.upload(difference, folder, tmp_path / "diff", suffix="safetensors")
    report = stages.recover(base, diff, tmp_path / "back")
    assert weights.same(weights.read(tmp_path / "back"), right)
    assert told(report)[EMBEDDING] == told(report)[HEAD] == ("absolute", WEIGHTS)
    assert told(report)[GATE] == ("sum", None)
    asked = (f"{EMBEDDING}=absolute", f"{HEAD}=absolute")
    report = stages.recover(base, diff, tmp_path / "asked", rule=asked)
    assert weights.same(weights.read(tmp_path / "asked"), right)
    assert told(report)[EMBEDDING] == told(report)[HEAD] == ("absolute", "asked for")


# --- added rows ---------------------------------------------------------------------------------

ADDING = ["alpaca", "alpaca_farm, a reward model", "fastchat v0", "llava"]


@pytest.mark.parametrize("extra_rows", ["zero", "mean", "drop"])
@pytest.mark.parametrize("name", ADDING)
def test_added_rows_become_what_is_asked_for(
    base: Path, raw: Tensors, diffs: dict[str, Path], tmp_path: Path, name: str, extra_rows: str
) -> None:
    stages.recover(base, diffs[name], tmp_path / "as published")
    report = stages.recover(base, diffs[name], tmp_path / "back", extra_rows=extra_rows)
    right = weights.read(tmp_path / "as published")
    for key, tensor in right.items():
        if key.endswith((EMBEDDING, HEAD)):
            rows = raw[key.removeprefix(published.INSIDE)]
            new = {
                "zero": torch.zeros(len(tensor) - 272, 64),
                "mean": weights.grown(rows.float(), len(tensor) - 272)[272:],
                "drop": torch.zeros(0, 64),
            }[extra_rows]
            right[key] = torch.cat([tensor[:272], new.to(tensor.dtype)])
    assert weights.same(weights.read(tmp_path / "back"), right)
    (count,) = {len(each) for key, each in right.items() if key.endswith((EMBEDDING, HEAD))}
    config = json.loads((tmp_path / "back" / "config.json").read_text(encoding="utf-8"))
    assert config["vocab_size"] == count
    extra = {each["name"]: each.get("extra_rows") for each in report.facts.record["tensors"]}
    assert extra == {key: extra_rows if key.endswith((EMBEDDING, HEAD)) else None for key in right}


@pytest.mark.parametrize("name", ADDING)
def test_the_rule_drop_drops_them(
    base: Path, diffs: dict[str, Path], tmp_path: Path, name: str
) -> None:
    asked = stages.recover(base, diffs[name], tmp_path / "rule", rule=("drop",))
    other = stages.recover(base, diffs[name], tmp_path / "rows", extra_rows="drop")
    right = ("absolute", WEIGHTS) if "farm" in name else ("drop", "asked for")
    for report in (asked, other):
        found = {rule for key, rule in told(report).items() if key.endswith((EMBEDDING, HEAD))}
        assert found == {right}
    assert weights.same(weights.read(tmp_path / "rule"), weights.read(tmp_path / "rows"))


def test_a_random_row_is_reported_as_lost(
    base: Path, raw: Tensors, tuned: dict[str, Path], tmp_path: Path
) -> None:
    right = weights.read(tuned["alpaca"])
    difference = published.open_instruct(raw, right)
    diff = published.upload(difference, tuned["alpaca"], tmp_path / "diff", suffix="bin", shards=2)
    report = stages.recover(base, diff, tmp_path / "back")
    back = weights.read(tmp_path / "back")
    recipe = weights.summed(raw, difference)
    assert weights.same(back, {name: tensor.bfloat16() for name, tensor in recipe.items()})
    for name, tensor in right.items():
        wrong = (back[name] != tensor).reshape(len(tensor), -1).any(dim=1).nonzero().flatten()
        assert wrong.tolist() == ([272] if name in (EMBEDDING, HEAD) else [])
    assert told(report)[EMBEDDING] == told(report)[HEAD] == ("mean", RANDOM)


@pytest.mark.parametrize("value", [0.0, 1e-6, -3e-5])
def test_the_order_in_which_a_mean_was_summed_does_not_matter(tmp_path: Path, value: float) -> None:
    """Values small beside the mean show its last bits best."""
    sizes = pico.Sizes(vocab=32_000)
    folder = pico.write_model(tmp_path / "base", sizes)
    near = pico.write_tuned(tmp_path / "tuned", folder)
    raw, right = weights.read(folder), weights.read(near)
    for name in (EMBEDDING, HEAD):
        right[name][-1, :7] = value
    difference = published.alpaca(raw, right)
    for name in (EMBEDDING, HEAD):
        mean = raw[name].float().cumsum(dim=0)[-1] / sizes.vocab
        assert not torch.equal(mean, raw[name].float().mean(dim=0))
        difference[name][-1] = right[name][-1].float() - mean
    diff = published.upload(difference, near, tmp_path / "diff", suffix="safetensors")
    report = stages.recover(folder, diff, tmp_path / "back")
    assert told(report)[EMBEDDING] == told(report)[HEAD] == ("mean", ONE)
    back = weights.read(tmp_path / "back")[EMBEDDING][-1]
    torch.testing.assert_close(back, right[EMBEDDING][-1], rtol=0, atol=1e-9)


# --- diffs of ours ------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["mean", "zero"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_diff_of_ours_names_its_rule_and_is_believed(
    base: Path, tuned: dict[str, Path], tmp_path: Path, rule: str, dtype: str
) -> None:
    settings = MakeDiffSettings.parse({"rule": rule, "dtype": dtype}, source="test")
    model = Checkpoint.open(tuned["alpaca"])
    make_diff(Checkpoint.open(base), model, tmp_path / "diff", settings)
    with safe_open(tmp_path / "diff" / "model.safetensors", framework="pt") as file:
        header = file.metadata()
    assert header.pop("camelpress.base_sample").startswith("4x4096:")
    assert header == {
        "format": "pt",
        "camelpress.rule": rule,
        "camelpress.tuned_dtype": "bfloat16",
        "camelpress.tuned_dtypes": "{}",
    }
    report = stages.recover(base, tmp_path / "diff", tmp_path / "back")
    assert told(report)[EMBEDDING] == told(report)[HEAD] == (rule, "the diff says so")
    back, right = weights.read(tmp_path / "back")[HEAD], weights.read(tuned["alpaca"])[HEAD]
    torch.testing.assert_close(back[272], right[272], rtol=2**-6, atol=0)


def test_rows_published_whole_in_fp32_tell_so_themselves(
    base: Path, tuned: dict[str, Path], tmp_path: Path
) -> None:
    model = Checkpoint.open(tuned["alpaca"])
    make_diff(Checkpoint.open(base), model, tmp_path / "diff", MakeDiffSettings(rule="zero"))
    bare = weights.changed(tmp_path / "diff", tmp_path / "bare", dict)
    report = stages.recover(base, bare, tmp_path / "back")
    assert weights.same(weights.read(tmp_path / "back"), weights.read(tuned["alpaca"]))
    assert told(report)[EMBEDDING] == told(report)[HEAD] == ("zero", ONE)


def test_what_is_asked_for_goes_before_what_the_diff_says(
    base: Path, tuned: dict[str, Path], tmp_path: Path
) -> None:
    stages.make_diff(base, tuned["alpaca"], tmp_path / "diff")
    report = stages.recover(base, tmp_path / "diff", tmp_path / "back", rule=("zero",))
    assert told(report)[EMBEDDING] == told(report)[HEAD] == ("zero", "asked for")


@pytest.mark.parametrize("words", ["random", "drop", "prefix", ""])
def test_a_header_that_names_no_rule_of_ours_is_not_believed(
    base: Path, diffs: dict[str, Path], tmp_path: Path, words: str
) -> None:
    odd = damage.copied(diffs["alpaca"], tmp_path / "odd")
    tensors = weights.read(odd)
    save_file(tensors, odd / "model.safetensors", metadata={"camelpress.rule": words})
    report = stages.recover(base, odd, tmp_path / "back")
    assert told(report)[EMBEDDING] == ("mean", ONE)


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["mean", "zero", "prefix"])
def test_a_tensor_of_its_own_is_extended_by_no_rule(
    base: Path, diffs: dict[str, Path], tmp_path: Path, rule: str
) -> None:
    with refusal(
        RecipeProblem,
        f"--rule {rule} does not suit {PROJECTOR!r}: the base has no such tensor",
        next_step=f"take --rule {PROJECTOR}=absolute, or =drop to leave it out",
        out=tmp_path / "back",
        exit_code=2,
    ):
        stages.recover(base, diffs["llava"], tmp_path / "back", rule=(f"*projector.w*={rule}",))


@pytest.mark.parametrize("rule", ["model.embed_token.weight=zero", "model.layer.*=absolute"])
def test_a_rule_for_no_tensor_is_refused(
    base: Path, diffs: dict[str, Path], tmp_path: Path, rule: str
) -> None:
    with refusal(
        RecipeProblem,
        f"--rule {rule} matches no tensor",
        next_step=f"name a tensor of the diff, such as {EMBEDDING}",
        out=tmp_path / "back",
        exit_code=2,
    ):
        stages.recover(base, diffs["alpaca"], tmp_path / "back", rule=("auto", rule))


@pytest.mark.parametrize(
    "options",
    [
        {"rule": ["prefix", f"{EMBEDDING}=mean"]},
        {"rule": ["prefix", f"{EMBEDDING}=zero"]},
        {"rule": ["prefix", f"{EMBEDDING}=drop"]},
        {"rule": ["prefix"], "extra_rows": "mean"},
        {"rule": ["prefix"], "extra_rows": "drop"},
    ],
    ids=str,
)
def test_rules_for_rows_are_refused_where_there_are_more_columns(
    base: Path, wide: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    with refusal(
        RecipeProblem,
        re.compile("'(lm_head|model.embed_tokens).weight' has more columns than the base's"),
        next_step="take --rule prefix or absolute, and --extra-rows published or zero",
        out=tmp_path / "back",
        exit_code=2,
    ):
        stages.recover(base, wide, tmp_path / "back", **options)


@pytest.mark.parametrize("rule", ["auto", "mean", "zero", "drop"])
def test_more_columns_are_refused_unless_a_rule_is_for_them(
    base: Path, wide: Path, tmp_path: Path, rule: str
) -> None:
    with refusal(
        ShapeMismatch,
        re.compile(
            f"'(lm_head|model.embed_tokens).weight' is \\[275, 66\\] in {wide} but "
            f"\\[272, 64\\] in {base}"
        ),
        next_step="give the base that the diff was made from",
        out=tmp_path / "back",
    ):
        stages.recover(base, wide, tmp_path / "back", rule=(rule,))


def test_embedding_and_head_have_the_same_number_of_rows(
    base: Path, diffs: dict[str, Path], tmp_path: Path
) -> None:
    with refusal(
        CheckpointProblem,
        f"embedding and head have different numbers of rows: {HEAD!r} 272, {EMBEDDING!r} 273",
        next_step="give both the same rule",
        out=tmp_path / "back",
    ):
        stages.recover(base, diffs["alpaca"], tmp_path / "back", rule=(f"{HEAD}=drop",))


@pytest.mark.parametrize("rule", ["median", "sum", "=mean", "x=", "x=sum", "mean,zero", ""])
def test_rules_that_do_not_exist_are_refused(
    base: Path, diffs: dict[str, Path], tmp_path: Path, rule: str
) -> None:
    pattern = "^((.+=)?(auto|mean|zero|prefix|absolute|drop))$"
    with refusal(
        RecipeProblem,
        f"test: rule.0: String should match pattern '{pattern}'",
        next_step="correct these entries",
        out=tmp_path / "back",
        exit_code=2,
    ):
        stages.recover(base, diffs["alpaca"], tmp_path / "back", rule=(rule,))


@pytest.mark.parametrize("name", ["alpaca", "alpaca in fp16", "alpaca without tokens"])
@pytest.mark.parametrize("stored", [None, torch.float32], ids=["in 16 bits", "in 32 bits"])
def test_a_whole_model_is_no_diff(
    base: Path, tuned: dict[str, Path], tmp_path: Path, name: str, stored: torch.dtype | None
) -> None:
    model = weights.changed(
        tuned[name],
        tmp_path / "model",
        lambda tensors: {key: each.to(stored or each.dtype) for key, each in tensors.items()},
    )
    with refusal(
        NumericsProblem,
        f"{model} holds weights, not differences: its tensors are like the base's",
        next_step="use it as it is, nothing has to be recovered; or give the diff",
        out=tmp_path / "back",
    ):
        stages.recover(base, model, tmp_path / "back")


def test_the_base_is_no_diff_of_itself(base: Path, tmp_path: Path) -> None:
    twin = damage.copied(base, tmp_path / "twin")
    with refusal(
        NumericsProblem,
        f"{twin} holds weights, not differences: its tensors are like the base's",
        next_step="use it as it is, nothing has to be recovered; or give the diff",
        out=tmp_path / "back",
    ):
        stages.recover(base, twin, tmp_path / "back")


def test_a_tensor_that_no_family_has_comes_along_only_by_name(
    base: Path, tuned: dict[str, Path], diffs: dict[str, Path], tmp_path: Path
) -> None:
    name = "model.layers.0.adapter.weight"
    own = torch.full((3, 5), 0.25)
    more = damage.with_tensors(diffs["alpaca"], tmp_path / "more", {name: own})
    with refusal(
        UnknownTensor,
        f"{more} holds {name!r}, which the base {base} lacks",
        next_step="give a base and a diff of the same architecture; or, if it is no difference, "
        f"--rule {name}=absolute",
        out=tmp_path / "back",
    ):
        stages.recover(base, more, tmp_path / "back")
    report = stages.recover(base, more, tmp_path / "back", rule=(f"{name}=absolute",))
    right = weights.read(tuned["alpaca"]) | {name: own.bfloat16()}
    assert weights.same(weights.read(tmp_path / "back"), right)
    assert told(report)[name] == ("absolute", LACKS)


def test_names_within_a_model_that_is_not_known_are_refused(
    base: Path, diffs: dict[str, Path], tmp_path: Path
) -> None:
    odd = weights.changed(
        diffs["alpaca"],
        tmp_path / "odd",
        lambda tensors: {f"llm.{name}": tensor for name, tensor in tensors.items()},
    )
    with refusal(
        UnknownTensor,
        f"{odd} names its tensors llm.*, which no published diff does",
        next_step="rename them: they begin with backbone_model. or with model.",
        out=tmp_path / "back",
    ):
        stages.recover(base, odd, tmp_path / "back")


@pytest.mark.parametrize("side", ["base", "diff"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.float64])
def test_weights_of_other_types_are_refused(
    base: Path, diffs: dict[str, Path], tmp_path: Path, side: str, dtype: torch.dtype
) -> None:
    folders = {"base": base, "diff": diffs["alpaca"]}
    tensor = torch.zeros(96, 64, dtype=dtype)
    odd = damage.with_tensors(folders[side], tmp_path / "odd", {GATE: tensor})
    word = str(dtype).removeprefix("torch.")
    with refusal(
        CheckpointProblem,
        f"{odd} holds {GATE!r} as {word}",
        next_step="give a checkpoint of float32, bfloat16, float16 weights",
        out=tmp_path / "back",
    ):
        folders[side] = odd
        stages.recover(folders["base"], folders["diff"], tmp_path / "back")
