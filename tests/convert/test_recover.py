"""base + diff gives back the tuned model, bit for bit, with what belongs to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

import pico
import weights
from camelpress.convert.recover import tensor_output
from camelpress.convert.recover.make_diff import make_diff
from camelpress.convert.recover.run import REPORT, recover
from camelpress.convert.settings import MakeDiffSettings, RecoverSettings
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.checkpoint_writer import CheckpointWriter
from camelpress.core.errors import (
    CheckpointProblem,
    NumericsProblem,
    OutputExists,
    RecipeProblem,
    ShapeMismatch,
    UnknownTensor,
)
from camelpress.core.files.file_hashes import checkpoint_digest
from camelpress.reporting.report_classes import read_report

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SIXTEEN_BIT = [("bfloat16", torch.bfloat16), ("float16", torch.float16)]
FREQUENCIES = "model.layers.0.self_attn.rotary_emb.inv_freq"


def differ(base: Path, tuned: Path, out: Path) -> Path:
    make_diff(Checkpoint.open(base), Checkpoint.open(tuned), out, MakeDiffSettings())
    return out


def add(base: Path, diff: Path, out: Path, settings: RecoverSettings | None = None) -> Path:
    recover(Checkpoint.open(base), Checkpoint.open(diff), out, settings or RecoverSettings())
    return out


@pytest.fixture(scope="module")
def diff(base: Path, tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tuned - base, with one row more than base."""
    return differ(base, tuned, tmp_path_factory.mktemp("diff") / "diff")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("extra_rows", [0, 1, 5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_tuned_model_comes_back_bit_for_bit(
    tmp_path: Path, tied: bool, extra_rows: int, dtype: torch.dtype
) -> None:
    base = pico.write_model(tmp_path / "base", tied=tied)
    tuned = pico.write_tuned(tmp_path / "tuned", base, extra_rows=extra_rows, dtype=dtype)
    difference = differ(base, tuned, tmp_path / "diff")
    back = add(base, difference, tmp_path / "back")
    assert weights.same(weights.read(back), weights.read(tuned))


def test_sums_are_those_of_whole_models_in_fp32(base: Path, diff: Path, tmp_path: Path) -> None:
    back = add(base, diff, tmp_path / "back", RecoverSettings(dtype="float32"))
    assert weights.same(weights.read(back), weights.summed(weights.read(base), weights.read(diff)))


def test_a_diff_in_fp16_is_added_in_fp32(base: Path, diff: Path, tmp_path: Path) -> None:
    rounded = weights.changed(
        diff,
        tmp_path / "rounded",
        lambda tensors: {name: tensor.half() for name, tensor in tensors.items()},
    )
    back = add(base, rounded, tmp_path / "back", RecoverSettings(dtype="bfloat16", rule=("mean",)))
    expected = weights.summed(weights.read(base), weights.read(rounded))
    assert weights.same(
        weights.read(back), {name: tensor.bfloat16() for name, tensor in expected.items()}
    )


def test_only_the_added_row_of_a_published_diff_is_lost(
    base: Path, tuned: Path, tmp_path: Path
) -> None:
    raw, true = weights.read(base), weights.read(tuned)
    drawn = 0.02 * torch.randn(1, 64, generator=torch.Generator().manual_seed(9))

    def published(tensors: weights.Tensors) -> weights.Tensors:
        return {
            name: tensor.float()
            - (torch.cat([raw[name].float(), drawn]) if name in (EMBEDDING, HEAD) else raw[name])
            for name, tensor in tensors.items()
        }

    difference = weights.changed(tuned, tmp_path / "diff", published)
    back = weights.read(add(base, difference, tmp_path / "back"))
    for name, tensor in true.items():
        wrong = (back[name] != tensor).reshape(len(tensor), -1).any(dim=1).nonzero().flatten()
        assert wrong.tolist() == ([272] if name in (EMBEDDING, HEAD) else [])
        if len(wrong):
            expected = tensor[272].float() - drawn[0] + raw[name].float().mean(dim=0)
            torch.testing.assert_close(back[name][272].float(), expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("sides", ["base", "diff", "both"])
def test_stored_rotary_frequencies_are_ignored(
    base: Path, tuned: Path, diff: Path, tmp_path: Path, sides: str
) -> None:
    def with_frequencies(tensors: weights.Tensors) -> weights.Tensors:
        return tensors | {FREQUENCIES: torch.full((8,), float("nan"))}

    if sides != "diff":
        base = weights.changed(base, tmp_path / "base", with_frequencies)
    if sides != "base":
        diff = weights.changed(diff, tmp_path / "diff", with_frequencies)
    back = add(base, diff, tmp_path / "back")
    assert weights.same(weights.read(back), weights.read(tuned))


def test_an_untied_model_comes_back_from_a_tied_base(tmp_path: Path) -> None:
    base = pico.write_model(tmp_path / "base", tied=True)
    tuned = pico.write_tuned(tmp_path / "tuned", base)
    tuned = weights.changed(
        tuned, tmp_path / "untied", lambda tensors: tensors | {HEAD: 2 * tensors[EMBEDDING]}
    )
    back = add(base, differ(base, tuned, tmp_path / "diff"), tmp_path / "back")
    assert weights.same(weights.read(back), weights.read(tuned))


def test_shards_hold_what_one_file_would(
    base: Path, diff: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = partial(CheckpointWriter, shard_bytes=40_000)
    monkeypatch.setattr(tensor_output, "CheckpointWriter", small)
    back = add(base, diff, tmp_path / "back")
    assert len(list(back.glob("model-*-of-*.safetensors"))) > 2
    assert weights.same(weights.read(back), weights.read(tuned))
    assert Checkpoint.open(back).tensors.keys() == weights.read(tuned).keys()


def test_pickled_shards_are_read(base: Path, diff: Path, tuned: Path, tmp_path: Path) -> None:
    old = weights.changed(diff, tmp_path / "old", lambda tensors: tensors)
    torch.save(load_file(old / "model.safetensors"), old / "pytorch_model.bin")
    (old / "model.safetensors").unlink()
    back = add(base, old, tmp_path / "back")
    assert weights.same(weights.read(back), weights.read(tuned))


@pytest.mark.parametrize(("word", "dtype"), SIXTEEN_BIT)
def test_auto_takes_the_type_the_model_was_tuned_in(
    base: Path, tmp_path: Path, word: str, dtype: torch.dtype
) -> None:
    tuned = pico.write_tuned(tmp_path / "tuned", base, dtype=dtype)
    back = add(base, differ(base, tuned, tmp_path / "diff"), tmp_path / "back")
    assert {tensor.dtype for tensor in weights.read(back).values()} == {dtype}
    assert read_report(back / REPORT).facts.record["dtype"] == word


@pytest.mark.parametrize(("word", "dtype"), [*SIXTEEN_BIT, ("float32", torch.float32)])
def test_a_type_that_is_asked_for_is_taken(
    base: Path, diff: Path, tmp_path: Path, word: str, dtype: torch.dtype
) -> None:
    back = add(base, diff, tmp_path / "back", RecoverSettings.parse({"dtype": word}, source="test"))
    expected = weights.summed(weights.read(base), weights.read(diff))
    assert weights.same(
        weights.read(back), {name: tensor.to(dtype) for name, tensor in expected.items()}
    )
    config = json.loads((back / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == config["torch_dtype"] == word


def test_config_and_tokenizer_are_the_diffs(base: Path, diff: Path, tmp_path: Path) -> None:
    own = weights.changed(diff, tmp_path / "own", lambda tensors: tensors)
    config = json.loads((own / "config.json").read_text(encoding="utf-8"))
    config |= {"pad_token_id": 0, "of": "the diff"}
    (own / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (own / "added_tokens.json").write_text('{"<pad>": 259}', encoding="utf-8")
    told = json.loads((own / "tokenizer_config.json").read_text(encoding="utf-8"))
    told["pad_token"] = "<pad>"
    (own / "tokenizer_config.json").write_text(json.dumps(told), encoding="utf-8")
    back = add(base, own, tmp_path / "back")
    config = json.loads((back / "config.json").read_text(encoding="utf-8"))
    assert (config["of"], config["vocab_size"]) == ("the diff", 273)
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    generation = json.loads((back / "generation_config.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(back)
    ids = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert ids == [1, 2, 259]
    for told in (config, generation):
        assert [told[f"{role}_token_id"] for role in ("bos", "eos", "pad")] == ids


def test_a_vocabulary_size_left_behind_is_put_right(base: Path, diff: Path, tmp_path: Path) -> None:
    own = weights.changed(diff, tmp_path / "own", lambda tensors: tensors)
    config = json.loads((own / "config.json").read_text(encoding="utf-8"))
    (own / "config.json").write_text(json.dumps(config | {"vocab_size": 272}), encoding="utf-8")
    back = add(base, own, tmp_path / "back")
    assert json.loads((back / "config.json").read_text(encoding="utf-8"))["vocab_size"] == 273


def test_the_bases_tokenizer_is_taken_where_the_diff_has_none(
    base: Path, diff: Path, tmp_path: Path
) -> None:
    bare = weights.changed(diff, tmp_path / "bare", lambda tensors: tensors)
    for path in bare.glob("tokenizer*"):
        path.unlink()
    back = add(base, bare, tmp_path / "back")
    assert (back / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_chat_templates_travel_with_the_tokenizer(base: Path, diff: Path, tmp_path: Path) -> None:
    own = weights.changed(diff, tmp_path / "own", lambda tensors: tensors)
    config = json.loads((own / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["chat_template"] = "default"
    (own / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (own / "additional_chat_templates").mkdir()
    (own / "additional_chat_templates/rag.jinja").write_text("rag")
    back = add(base, own, tmp_path / "back")
    loaded = AutoTokenizer.from_pretrained(back)
    assert loaded.chat_template == {"default": "default", "rag": "rag"}
    bare = add(base, own, tmp_path / "bare", RecoverSettings(chat_template="none"))
    assert AutoTokenizer.from_pretrained(bare).chat_template is None


def test_a_token_without_a_row_is_dropped(tmp_path: Path) -> None:
    base = pico.write_model(tmp_path / "base")
    tuned = pico.write_tuned(tmp_path / "tuned", base, extra_rows=0)
    own = differ(base, tuned, tmp_path / "diff")
    rows = json.loads((own / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    size = len(AutoTokenizer.from_pretrained(own))
    names = [f"<{number}>" for number in range(size, rows)] + ["<pad>"]
    added = {name: size + number for number, name in enumerate(names)}
    (own / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    (own / "generation_config.json").write_text(json.dumps({"pad_token_id": rows}))
    with pytest.raises(CheckpointProblem, match=f"gives '<pad>' the id {rows}") as refused:
        add(base, own, tmp_path / "back")
    assert "--extra-rows drop" in str(refused.value)
    back = add(base, own, tmp_path / "back", RecoverSettings(extra_rows="drop"))
    assert weights.same(weights.read(back), weights.read(tuned))
    facts = read_report(back / REPORT).facts.record["tokenizer"]
    assert facts["dropped"] == ["<pad>"]
    generation = json.loads((back / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["pad_token_id"] < rows


def test_transformers_loads_what_was_recovered(
    base: Path, diff: Path, tuned: Path, tmp_path: Path
) -> None:
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        found = pico.load_model(add(base, diff, tmp_path / "back"))(ids).logits
        expected = pico.load_model(tuned)(ids).logits
    assert torch.equal(found, expected)


def test_the_report_tells_what_went_in_and_how_each_tensor_came_about(
    base: Path, diff: Path, tmp_path: Path
) -> None:
    report = read_report(add(base, diff, tmp_path / "back") / REPORT)
    assert report.stage == "recover"
    assert report.inputs == {"base": checkpoint_digest(base), "diff": checkpoint_digest(diff)}
    assert report.facts.record["representable"]["bfloat16"] == 1.0
    assert report.facts.record["representable"]["float16"] < 1.0
    assert report.facts.record["tested"] > 50_000
    told = {tensor["name"]: tensor for tensor in report.facts.record["tensors"]}
    assert told.keys() == weights.read(diff).keys()
    for name, tensor in weights.read(diff).items():
        assert told[name]["rule"] == ("mean" if name in (EMBEDDING, HEAD) else "sum")
        assert told[name]["largest_change"] == float(tensor.abs().max())


def test_two_runs_give_the_same_bytes(base: Path, diff: Path, tmp_path: Path) -> None:
    first, second = (add(base, diff, tmp_path / name) for name in ("first", "second"))
    assert checkpoint_digest(first) == checkpoint_digest(second)
    reports = [
        read_report(folder / REPORT).model_dump(exclude={"cost"}) for folder in (first, second)
    ]
    assert reports[0] == reports[1]


Change = Callable[[weights.Tensors], weights.Tensors]
NORM = "model.layers.1.input_layernorm.weight"


def without(name: str) -> Change:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def replaced(name: str, tensor: Tensor) -> Change:
    return lambda tensors: tensors | {name: tensor}


def test_a_tensor_that_the_base_lacks_is_refused(base: Path, diff: Path, tmp_path: Path) -> None:
    poor = weights.changed(base, tmp_path / "poor", without(NORM))
    with pytest.raises(UnknownTensor, match=f"holds '{NORM}', which the base .* lacks"):
        add(poor, diff, tmp_path / "back")


def test_a_tensor_that_the_diff_lacks_is_refused(base: Path, diff: Path, tmp_path: Path) -> None:
    poor = weights.changed(diff, tmp_path / "poor", without(NORM))
    with pytest.raises(UnknownTensor, match=f"lacks '{NORM}', which the base .* holds") as told:
        add(base, poor, tmp_path / "back")
    assert told.value.next_step == "give a base and a diff of the same architecture"


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (NORM, (65,)),
        (EMBEDDING, (271, 64)),
        (EMBEDDING, (273, 63)),
        ("model.layers.0.mlp.up_proj.weight", (97, 64)),
        ("model.layers.0.mlp.up_proj.weight", (64, 96)),
    ],
)
def test_shapes_that_differ_by_more_than_added_tokens_are_refused(
    base: Path, diff: Path, tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    other = weights.changed(diff, tmp_path / "other", replaced(name, torch.zeros(shape)))
    with pytest.raises(ShapeMismatch, match="give the base that the diff was made from") as told:
        add(base, other, tmp_path / "back")
    assert f"{name!r} is {list(shape)}" in told.value.message


def test_sums_that_are_not_finite_are_refused(base: Path, diff: Path, tmp_path: Path) -> None:
    bad = weights.changed(diff, tmp_path / "bad", replaced(NORM, torch.full((64,), torch.inf)))
    with pytest.raises(NumericsProblem, match="not finite") as told:
        add(base, bad, tmp_path / "back")
    assert NORM in told.value.message
    assert not (tmp_path / "back").exists()


def test_an_input_is_never_written_over(base: Path, diff: Path) -> None:
    for out in (base, diff, base.parent, base / "inside"):
        with pytest.raises(RecipeProblem, match="is, holds or lies in the input"):
            recover(
                Checkpoint.open(base), Checkpoint.open(diff), out, RecoverSettings(), force=True
            )


def test_an_existing_output_is_kept_unless_forced(base: Path, diff: Path, tmp_path: Path) -> None:
    out = add(base, diff, tmp_path / "back")
    before = checkpoint_digest(out)
    with pytest.raises(OutputExists):
        add(base, diff, out, RecoverSettings(dtype="float32"))
    assert checkpoint_digest(out) == before
    recover(
        Checkpoint.open(base),
        Checkpoint.open(diff),
        out,
        RecoverSettings(dtype="float32"),
        force=True,
    )
    assert checkpoint_digest(out) != before
