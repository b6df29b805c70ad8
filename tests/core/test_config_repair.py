"""A config that contradicts the tensors beside it is read as the tensors are, and that is noted."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import damage
import drawn
import pico
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.format_detection import READABLE_FORMATS
from camelpress.core.errors import CheckpointProblem, UnknownTensor
from camelpress.core.packing.linear_layers import check_packed_linears, head_name
from camelpress.core.packing.quantization_schemes import default_scheme
from camelpress.core.progress import use_listener
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.model.streamed_model import StreamedModel
from camelpress.inference.model.token_batches import TokenBatches
from camelpress.inference.model.transformers_model import load_transformers_model
from camelpress.reporting.checkpoint_summary import describe_checkpoint
from notes import Notes

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
CPU = torch.device("cpu")
GPTQ = {"bits": 4, "group_size": 32, "sym": True, "desc_act": False}
IDS = [[1, 5, 9, 44, 7, 3, 200], [2, 3, 4]]


def opened(folder: Path) -> tuple[Checkpoint, list[str]]:
    """Returns a checkpoint, and what is noted of its config."""
    notes = Notes()
    with use_listener(notes):
        checkpoint = Checkpoint.open(folder)
    assert notes.heard == [
        f"{folder / 'config.json'}: {each}" for each in checkpoint.config_changes
    ]
    return checkpoint, notes.heard


def logits(checkpoint: Checkpoint) -> torch.Tensor:
    model = StreamedModel(checkpoint, device=CPU, dtype=torch.float32)
    with torch.inference_mode():
        return model.read_head()(model.last_hidden_states(TokenBatches(IDS, limit=64), "test"))


def by_transformers(folder: Path, head: torch.Tensor | None = None) -> torch.Tensor:
    """Returns the logits of the same model by transformers, with a head or with its own."""
    model = pico.load_model(folder)
    if head is not None:
        model.lm_head.weight = torch.nn.Parameter(head.float())
    with torch.inference_mode():
        return torch.cat([model(torch.tensor([ids])).logits[0] for ids in IDS])


def tie(source: Path, out: Path, value: Any) -> Path:
    """Returns a copy whose config says so of the head."""
    shutil.copytree(source, out)
    config = json.loads((out / "config.json").read_text()) | {"tie_word_embeddings": value}
    (out / "config.json").write_text(json.dumps(config))
    return out


# --- which tensor is the head ---------------------------------------------------------------------


def test_a_head_of_its_own_is_used_though_the_config_says_tied(base: Path, tmp_path: Path) -> None:
    checkpoint, notes = opened(tie(base, tmp_path / "model", True))
    assert "lm_head is another matrix than the embedding" in notes[-1]
    assert checkpoint.config["tie_word_embeddings"] is False
    assert checkpoint.file_config["tie_word_embeddings"] is True
    torch.testing.assert_close(logits(checkpoint), by_transformers(base), rtol=1e-4, atol=1e-5)
    whole = load_transformers_model(checkpoint, device=CPU, dtype=torch.float32)
    with torch.inference_mode():
        found = torch.cat([whole(torch.tensor([ids])).logits[0] for ids in IDS])
    torch.testing.assert_close(found, by_transformers(base), rtol=1e-4, atol=1e-5)


def test_a_packed_head_is_used_though_the_config_says_tied(base: Path, tmp_path: Path) -> None:
    layer = drawn.draw(272, 64, group_size=32)
    parts = {f"lm_head.{name}": part for name, part in drawn.gptq(layer).items()}
    damage.with_tensors(base, tmp_path / "in", {HEAD: None, **parts})
    config = GPTQ | {"quant_method": "gptq", "lm_head": True}
    folder = damage.with_config(
        tmp_path / "in", tmp_path / "model", tie_word_embeddings=True, quantization_config=config
    )
    checkpoint, notes = opened(folder)
    assert "lm_head is packed" in notes[0]
    assert head_name(checkpoint) == "lm_head"
    expected = by_transformers(base, layer.weight)
    torch.testing.assert_close(logits(checkpoint), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["safetensors", "one place in a pickle", "two places in a pickle"])
def test_a_head_that_is_the_embedding_stays_tied(tmp_path: Path, form: str) -> None:
    folder = pico.write_model(tmp_path / "model", tied=True)
    tensors = load_file(folder / "model.safetensors")
    copy = tensors[EMBEDDING] if form.startswith("one") else tensors[EMBEDDING].clone()
    if form == "safetensors":
        save_file({**tensors, HEAD: copy}, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        (folder / "model.safetensors").unlink()
        torch.save({**tensors, HEAD: copy}, folder / "pytorch_model.bin")
    checkpoint, notes = opened(folder)
    assert notes == []
    assert checkpoint.config["tie_word_embeddings"] is True


@pytest.mark.parametrize("row", [0, 271])
def test_one_value_makes_another_head(tmp_path: Path, row: int) -> None:
    folder = pico.write_model(tmp_path / "model", tied=True)
    tensors = load_file(folder / "model.safetensors")
    head = tensors[EMBEDDING].clone()
    head[row, 3] += 1
    save_file({**tensors, HEAD: head}, folder / "model.safetensors", metadata={"format": "pt"})
    assert opened(folder)[0].config["tie_word_embeddings"] is False


def test_a_head_in_a_wider_type_is_still_the_embedding(tmp_path: Path) -> None:
    folder = pico.write_model(tmp_path / "model", tied=True)
    tensors = load_file(folder / "model.safetensors")
    head = tensors[EMBEDDING].float()
    save_file({**tensors, HEAD: head}, folder / "model.safetensors", metadata={"format": "pt"})
    assert opened(folder)[1] == []


@pytest.mark.parametrize("value", [False, None])
def test_a_model_without_a_head_that_is_not_tied_is_refused(
    tmp_path: Path, value: bool | None
) -> None:
    tied = pico.write_model(tmp_path / "tied", tied=True)
    checkpoint, notes = opened(tie(tied, tmp_path / "model", value))
    assert notes == []
    with pytest.raises(UnknownTensor, match="lacks 'lm_head.weight'") as problem:
        StreamedModel(checkpoint, device=CPU, dtype=torch.float32)
    assert 'write "tie_word_embeddings": true' in problem.value.next_step


def test_null_is_as_if_nothing_were_said(base: Path, tmp_path: Path) -> None:
    checkpoint, notes = opened(tie(base, tmp_path / "model", None))
    assert notes == []
    assert "tie_word_embeddings" not in checkpoint.config
    torch.testing.assert_close(logits(checkpoint), by_transformers(base), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", ["yes", 2, [], 0.5, "false", "true", 0, 1])
def test_what_is_neither_true_nor_false_is_refused(base: Path, tmp_path: Path, value: Any) -> None:
    folder = tie(base, tmp_path / "model", value)
    notes = Notes()
    with pytest.raises(CheckpointProblem, match="where true or false belongs") as refused:
        with use_listener(notes):
            Checkpoint.open(folder)
    assert refused.value.next_step == "write true or false for tie_word_embeddings, without quotes"
    assert notes.heard == []


@pytest.mark.parametrize(
    ("kept", "missing"),
    [
        ("model.embed_tokens", "model.layers.0.input_layernorm.weight"),
        ("model.embed_tokens|model.layers.0", "model.layers.1.input_layernorm.weight"),
        ("model.embed_tokens|model.layers", "model.norm.weight"),
        ("model.norm", "model.embed_tokens.weight"),
    ],
)
def test_a_model_that_lacks_more_than_its_head_is_not_said_to_be_tied(
    base: Path, tmp_path: Path, kept: str, missing: str
) -> None:
    folder = shutil.copytree(base, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    rest = {name: each for name, each in tensors.items() if re.match(kept, name)}
    save_file(rest, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnknownTensor) as refused:
        head_name(Checkpoint.open(folder))
    assert refused.value.message == f"{folder} lacks the tensor {missing!r}"
    assert "tie_word_embeddings" not in refused.value.next_step


def test_the_config_of_the_text_inside_another_is_read_alike(base: Path, tmp_path: Path) -> None:
    folder = damage.with_config(
        base,
        tmp_path / "model",
        tie_word_embeddings=None,
        text_config={"tie_word_embeddings": True},
    )
    checkpoint, notes = opened(folder)
    assert len(notes) == 1
    assert checkpoint.config["text_config"] == {"tie_word_embeddings": False}


def test_an_index_of_a_tied_model_may_list_the_head(base: Path, tmp_path: Path) -> None:
    tied = pico.write_model(tmp_path / "tied", tied=True)
    folder = damage.sharded(tied, tmp_path / "model")
    damage.move(folder, **{HEAD: "model-1.safetensors"})
    assert head_name(Checkpoint.open(folder)) == "model.embed_tokens"
    with pytest.raises(UnknownTensor, match="lacks 'lm_head.weight', which the index lists"):
        Checkpoint.open(tie(folder, tmp_path / "untied", False))


# --- which layers are packed ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "label"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, " of bitsandbytes"),
        ({"quant_method": "gptq", "bits": "four"}, " of gptq"),
        ({"load_in_8bit": True}, ""),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_left_over_config_of_plain_weights_is_dropped(
    tmp_path: Path, stated: Any, label: str, dtype: torch.dtype
) -> None:
    folder = pico.write_model(tmp_path / "in", dtype=dtype)
    folder = damage.with_config(folder, tmp_path / "model", quantization_config=stated)
    checkpoint, notes = opened(folder)
    word = str(dtype).removeprefix("torch.")
    assert checkpoint.config_changes == (
        f"quantization_config{label} is left over, since the weights are plain {word}",
    )
    assert len(notes) == 1
    assert checkpoint.quantization is None
    assert "quantization_config" not in checkpoint.config
    assert describe_checkpoint(checkpoint)["config_changes"] == [*checkpoint.config_changes]


@pytest.mark.parametrize("nothing", [{}, None])
def test_an_empty_config_is_none(base: Path, tmp_path: Path, nothing: Any) -> None:
    folder = shutil.copytree(base, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": nothing}
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint, notes = opened(folder)
    assert notes == []
    assert checkpoint.quantization is None
    assert describe_checkpoint(checkpoint)["tokenizer"] is not None


@pytest.mark.parametrize("stated", [[], "gptq", False])
def test_a_quantization_config_that_is_no_object_can_be_deleted(
    base: Path, tmp_path: Path, stated: Any
) -> None:
    folder = damage.with_config(base, tmp_path / "model", quantization_config=stated)
    with pytest.raises(CheckpointProblem, match=", and its weights are plain") as told:
        _ = Checkpoint.open(folder).quantization
    assert told.value.next_step == "delete quantization_config from it"


def test_the_old_name_of_the_key_is_left_over_alike(base: Path, tmp_path: Path) -> None:
    stated = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    folder = damage.with_config(base, tmp_path / "model", compression_config=stated)
    checkpoint, notes = opened(folder)
    assert "compression_config of compressed-tensors is left over" in notes[0]
    assert checkpoint.quantization is None
    assert "compression_config" not in checkpoint.config


def test_packed_weights_are_read_with_the_old_name_of_the_key(base: Path, tmp_path: Path) -> None:
    folder = packed(tmp_path / "model", base, GPTQ | {"quant_method": "gptq"})
    usual = logits(Checkpoint.open(folder))
    config = json.loads((folder / "config.json").read_text())
    config["compression_config"] = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint, notes = opened(folder)
    assert "compression_config is read as quantization_config" in notes[0]
    assert "compression_config" not in checkpoint.config
    assert torch.equal(logits(checkpoint), usual)


@pytest.mark.parametrize("rows", [264, 280])
def test_a_head_of_another_size_is_refused_before_work_begins(
    base: Path, tmp_path: Path, rows: int
) -> None:
    head = torch.zeros(rows, 64, dtype=torch.float16)
    folder = damage.with_tensors(base, tmp_path / "model", {HEAD: head})
    with pytest.raises(
        CheckpointProblem, match=r"holds 'lm_head.weight' as .* asks for \(272, 64\)"
    ):
        StreamedModel(Checkpoint.open(folder), device=CPU, dtype=torch.float32)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_bias_of_the_head_is_refused_unless_it_is_zero(
    base: Path, tmp_path: Path, value: float
) -> None:
    bias = torch.full((272,), value)
    folder = damage.with_tensors(base, tmp_path / "model", {"lm_head.bias": bias})
    if value:
        with pytest.raises(CheckpointProblem, match="holds 'lm_head.bias', which is not zero"):
            logits(Checkpoint.open(folder))
    else:
        assert torch.equal(logits(Checkpoint.open(folder)), logits(Checkpoint.open(base)))


def test_a_config_that_transformers_refuses_is_not_blamed_on_the_tokenizer(
    base: Path, tmp_path: Path
) -> None:
    folder = damage.with_config(base, tmp_path / "model", tie_word_embeddings="false")
    with pytest.raises(
        CheckpointProblem, match="config.json is refused by .*tie_word_embedd"
    ) as told:
        Tokenizer.load(folder)
    assert told.value.next_step == "write a value of the right type there"


def packed(folder: Path, base: Path, config: Any) -> Path:
    drawn.write_model(folder, base, config, lambda name, layer: drawn.gptq(layer))
    return folder


@pytest.mark.parametrize("nothing", [{}, None])
def test_packed_weights_with_an_empty_config_are_not_plain(
    base: Path, tmp_path: Path, nothing: Any
) -> None:
    checkpoint = Checkpoint.open(packed(tmp_path / "model", base, nothing))
    with pytest.raises(CheckpointProblem, match="holds packed weights, but its config.json has no"):
        _ = checkpoint.quantization


def test_a_config_of_2023_without_a_method_is_gptq(base: Path, tmp_path: Path) -> None:
    old = GPTQ | {"damp_percent": 0.01, "true_sequential": True, "model_name_or_path": None}
    checkpoint, notes = opened(packed(tmp_path / "model", base, old))
    assert len(notes) == 1
    assert (checkpoint.quantization or {})["quant_method"] == "gptq"
    assert len(check_packed_linears(checkpoint)) == 14


def test_a_config_without_method_and_bits_is_refused(base: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(packed(tmp_path / "model", base, {"version": "GEMM"}))
    with pytest.raises(CheckpointProblem, match="has a quantization_config without quant_method"):
        default_scheme(checkpoint)


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("bits", "4", 4),
        ("bits", 4.0, 4),
        ("bits", "4.0", 4),
        ("group_size", "32", 32),
        ("group_size", 32.0, 32),
        ("sym", "True", True),
        ("sym", 1, True),
        ("desc_act", "false", False),
        ("desc_act", 0, False),
    ],
)
def test_numbers_and_flags_in_other_clothes_are_read_and_noted(
    base: Path, tmp_path: Path, key: str, value: Any, read: Any
) -> None:
    config = GPTQ | {"quant_method": "gptq", key: value}
    checkpoint, _ = opened(packed(tmp_path / "model", base, config))
    found = (checkpoint.quantization or {})[key]
    assert (found, type(found)) == (read, type(read))
    stated = json.dumps(value)
    assert checkpoint.config_changes == (f"{key} is {stated}, and is read as {json.dumps(read)}",)
    assert len(check_packed_linears(checkpoint)) == 14


@pytest.mark.parametrize("key", ["dynamic", "extra_config"])
def test_numbers_of_single_layers_are_read_alike(base: Path, tmp_path: Path, key: str) -> None:
    config = GPTQ | {"quant_method": "gptq", key: {r"model\.layers\.0\..*": {"bits": "4"}}}
    checkpoint, _ = opened(packed(tmp_path / "model", base, config))
    assert checkpoint.config_changes == ('bits is "4", and is read as 4',)
    assert {scheme.bits for scheme in check_packed_linears(checkpoint).values()} == {4}


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("bits", True, "has bits true, where a whole number belongs"),
        ("bits", "four", 'has bits "four", where a whole number belongs'),
        ("bits", 4.5, "has bits 4.5, where a whole number belongs"),
        ("bits", [4], r"has bits \[4\], where a whole number belongs"),
        ("group_size", "inf", 'has group_size "inf", where a whole number belongs'),
        ("group_size", "nan", 'has group_size "nan", where a whole number belongs'),
        ("sym", "maybe", 'has sym "maybe", where true or false belongs'),
        ("desc_act", {}, "has desc_act {}, where true or false belongs"),
    ],
)
def test_what_is_no_number_or_flag_is_refused(
    base: Path, tmp_path: Path, key: str, value: Any, fault: str
) -> None:
    folder = packed(tmp_path / "model", base, GPTQ | {"quant_method": "gptq", key: value})
    with pytest.raises(CheckpointProblem, match=fault):
        Checkpoint.open(folder)


# fmt: off
Q = "model.layers.0.self_attn.q_proj"
FOREIGN: dict[str, dict[str, torch.Tensor | None]] = {
    "bitsandbytes in 4 bits": {
        f"{Q}.weight": torch.zeros(2048, 1, dtype=torch.uint8),
        f"{Q}.weight.absmax": torch.zeros(64),
        f"{Q}.weight.quant_state.bitsandbytes__nf4": torch.zeros(80, dtype=torch.uint8),
    },
    "bitsandbytes in 8 bits": {
        f"{Q}.weight": torch.zeros(64, 64, dtype=torch.int8), f"{Q}.SCB": torch.zeros(64),
    },
    "8-bit numbers": {
        f"{Q}.weight": torch.zeros(64, 64, dtype=torch.int8),
        f"{Q}.weight_scale": torch.zeros(64, 1),
    },
    "HQQ": {f"{Q}.weight": None, f"{Q}.W_q": torch.zeros(32, 64, dtype=torch.uint8)},
    "AWQ": {
        f"{Q}.weight": None, f"{Q}.qweight": torch.zeros(64, 8, dtype=torch.int32),
        f"{Q}.qzeros": torch.zeros(2, 8, dtype=torch.int32),
        f"{Q}.scales": torch.zeros(2, 64, dtype=torch.float16),
    },
}
# fmt: on


@pytest.mark.parametrize("config", [None, {"quant_method": "gptq", "bits": 4}])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_format_that_is_not_read_is_named_by_its_tensors(
    base: Path, tmp_path: Path, name: str, config: Any
) -> None:
    damage.with_tensors(base, tmp_path / "in", FOREIGN[name])
    folder = damage.with_config(tmp_path / "in", tmp_path / "model", quantization_config=config)
    with pytest.raises(CheckpointProblem) as problem:
        describe_checkpoint(Checkpoint.open(folder))
    assert f"{folder} holds weights packed as {name} ({Q}." in problem.value.message
    assert problem.value.next_step == f"give the 16-bit model, or one packed as {READABLE_FORMATS}"
