"""Every layout is written from every other, to the bit that a slow twin of the packer writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import damage
import drawn
import pico
from camelpress.convert.export.export_checkpoint import REPORT, export
from camelpress.convert.export.export_formats import DenseFormat, PackedLayer
from camelpress.convert.export.packed_formats import CompressedTensorsFormat, GptqFormat
from camelpress.convert.settings import ExportSettings
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import (
    CheckpointProblem,
    NumericsProblem,
    OutputExists,
    RecipeProblem,
    UnknownTensor,
)
from camelpress.core.packing import compressed_tensors_format
from camelpress.core.packing.linear_layers import read_linear
from camelpress.core.packing.quantization_schemes import QuantizationScheme, layer_scheme
from camelpress.core.packing.quantized_weight import PackedShape, QuantizedWeight
from camelpress.reporting.report_classes import read_report
from camelpress.reporting.stage_report import Report
from refusal import refusal

Q, KEPT = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.o_proj"
DOWN = ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj")
LAYOUTS = {"gptq": "gptq", "gptq-v2": "gptq_v2"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
ASYM = GPTQ | {"sym": False}
V2 = {"checkpoint_format": "gptq_v2"}
AUTOROUND = {
    "quant_method": "auto-round",
    "packing_format": "auto_round:auto_gptq",
    "bits": 4,
    "group_size": 32,
    "sym": True,
}
MIXED = dict.fromkeys(DOWN, {"bits": 8, "group_size": 16, "sym": False})
RULES = {r"+:.*down_proj": {"bits": 8, "group_size": 16, "sym": False}, f"-:{KEPT}": {}}


def ct(
    *listed: tuple[list[str], dict[str, Any]], ignore: tuple[str, ...] = ("lm_head",)
) -> dict[str, Any]:
    """A config of compressed-tensors."""
    given = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {
            f"group_{number}": {"targets": targets, "weights": given | weights}
            for number, (targets, weights) in enumerate(listed)
        },
        "ignore": list(ignore),
    }


def as_gptq(version: str, *, without: str = "") -> Callable[[str, drawn.Drawn], dict[str, Tensor]]:
    """Layers in a version of the format, without one of the parts."""
    return lambda _, layer: {
        part: tensor for part, tensor in drawn.gptq(layer, version).items() if part != without
    }


def but(
    name: str, lay: Callable[[str, drawn.Drawn], dict[str, Tensor]]
) -> Callable[[str, drawn.Drawn], dict[str, Tensor] | None]:
    """Layers as they are laid, but one that stays plain."""
    return lambda each, layer: None if each == name else lay(each, layer)


def as_ct(_: str, layer: drawn.Drawn) -> dict[str, Tensor]:
    """Layers of compressed-tensors, without zero points where they are in the middle."""
    return drawn.compressed(layer, sym=bool((layer.zeros == 2 ** (layer.bits - 1)).all()))


V1_LAYERS, V2_LAYERS = as_gptq("gptq"), as_gptq("gptq_v2")
HALVES = {"scales": torch.bfloat16}
EIGHT = {"num_bits": 8, "group_size": 16, "symmetric": False}
# fmt: off
SOURCES: dict[str, tuple[dict[str, Any], Any, dict[str, Any], dict[str, Any]]] = {
    # its config, how it lays layers down, what layers are, and what some are instead
    "v1":           (GPTQ,                         V1_LAYERS,         {},             {}),
    "v1 asym":      (ASYM,                         V1_LAYERS,         {"sym": False}, {}),
    "v1 by row":    (GPTQ | {"group_size": -1},    V1_LAYERS,         {"group_size": -1}, {}),
    "v1 3 bits":    (GPTQ | {"bits": 3},           V1_LAYERS,         {"bits": 3},    {}),
    "v1 mixed":     (GPTQ | {"dynamic": RULES},    but(KEPT, V1_LAYERS), {},             MIXED),
    "v2":           (GPTQ | V2,                    V2_LAYERS,         {},             {}),
    "v2 asym":      (ASYM | V2,                    V2_LAYERS,         {"sym": False}, {}),
    "v2 2 bits":    (GPTQ | V2 | {"bits": 2},      V2_LAYERS,         {"bits": 2},    {}),
    "auto-round":   (AUTOROUND,                    as_gptq("gptq", without="g_idx"), {}, {}),
    "ct":           (ct((["Linear"], {})),         as_ct,             {},             {}),
    "ct bf16":      (ct((["Linear"], {})),         as_ct,             HALVES,         {}),
    "ct asym":      (ct((["Linear"], {"symmetric": False})), as_ct,   {"sym": False}, {}),
    "ct by row":    (ct((["Linear"], {"strategy": "channel", "group_size": None})),
                     as_ct, {"group_size": -1}, {}),
    "ct mixed":     (ct((["Linear"], {}),
                        (["re:.*down_proj$"], EIGHT),
                        ignore=("lm_head", KEPT)),
                     but(KEPT, as_ct), {}, MIXED),
}
# fmt: on
TARGETS = ("gptq", "gptq-v2", "compressed-tensors", "dense")
ALREADY = {
    *((name, "gptq") for name in SOURCES if name.startswith("v1")),
    *((name, "gptq-v2") for name in SOURCES if name.startswith("v2")),
    *((name, "compressed-tensors") for name in SOURCES if name.startswith("ct")),
}


def make(folder: Path, base: Path, source: str) -> dict[str, drawn.Drawn]:
    config, lay, common, own = SOURCES[source]
    return drawn.write_model(folder, base, config, lay, own, **common)


def run(source: Path, out: Path, *, force: bool = False, **options: Any) -> Report:
    chosen = ExportSettings.parse(options, source="test")
    return export(Checkpoint.open(source), out, chosen, force=force)


def quantization(folder: Path) -> dict[str, Any] | None:
    found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kept: dict[str, Any] | None = found.get("quantization_config")
    return kept


def expected(layer: drawn.Drawn, name: str, to: str) -> dict[str, Tensor]:
    """The tensors of a layer, as the twin lays them down."""
    if to == "dense":
        return {"weight": layer.weight.float()}
    if to == "compressed-tensors":
        return as_ct(name, layer)
    parts = drawn.gptq(layer, LAYOUTS[to])
    return parts | {"scales": parts["scales"].to(torch.float16)}


# --- the bytes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("source", SOURCES)
def test_every_tensor_is_that_of_the_twin(base: Path, tmp_path: Path, source: str, to: str) -> None:
    layers = make(tmp_path / "in", base, source)
    if (source, to) in ALREADY:
        with refusal(
            CheckpointProblem,
            f"{tmp_path / 'in'} is in the layout {to} already",
            next_step="use it as it is",
            out=tmp_path / "out",
        ):
            run(tmp_path / "in", tmp_path / "out", to=to)
        return
    report = run(tmp_path / "in", tmp_path / "out", to=to)
    assert (report.facts.record["inexact"], report.facts.record["largest_error"]) == (0, 0.0)
    assert report.facts.record["layers"] == len(layers)
    plain = load_file(tmp_path / "in" / "model.safetensors")
    wanted = {
        name: tensor.float() if to == "dense" else tensor
        for name, tensor in plain.items()
        if name.rpartition(".")[0] not in layers
    }
    for name, layer in layers.items():
        wanted |= {f"{name}.{part}": each for part, each in expected(layer, name, to).items()}
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("source", "to"),
    [
        (source, to)
        for source in ("v1 mixed", "ct mixed", "auto-round", "v2 asym")
        for to in TARGETS
        if (source, to) not in ALREADY
    ],
)
def test_the_config_says_of_every_layer_what_it_is(
    base: Path, tmp_path: Path, source: str, to: str
) -> None:
    layers = make(tmp_path / "in", base, source)
    run(tmp_path / "in", tmp_path / "out", to=to)
    before, after = Checkpoint.open(tmp_path / "in"), Checkpoint.open(tmp_path / "out")
    for name in drawn.names():
        old, new = layer_scheme(before, name), layer_scheme(after, name)
        if to == "dense":
            assert new is None
        else:
            assert (old and old[1:4]) == (new and new[1:4]), name
        if name in layers:
            assert torch.equal(read_linear(after, name).double(), layers[name].weight)
    if to == "compressed-tensors":
        assert layer_scheme(after, "lm_head") is None


def test_there_and_back_gives_the_same_bytes(base: Path, tmp_path: Path) -> None:
    make(tmp_path / "0", base, "v1 mixed")
    for number, to in enumerate(("compressed-tensors", "gptq-v2", "gptq"), start=1):
        run(tmp_path / str(number - 1), tmp_path / str(number), to=to)
    first, last = (tmp_path / number / "model.safetensors" for number in "03")
    found, wanted = load_file(last), load_file(first)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    rows=st.integers(1, 2),
    groups=st.integers(1, 3),
    sym=st.booleans(),
    any_order=st.booleans(),
    to=st.sampled_from(["gptq", "gptq-v2", "compressed-tensors", "dense"]),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=60)
def test_any_layer_is_laid_down_as_by_the_twin(
    bits: int, rows: int, groups: int, sym: bool, any_order: bool, to: str, seed: int
) -> None:
    layer = drawn.draw(
        32 * rows,
        32 * groups,
        bits=bits,
        sym=sym,
        any_order=any_order and to != "compressed-tensors",
        seed=seed,
    )
    target = {
        "gptq": GptqFormat("gptq"),
        "gptq-v2": GptqFormat("gptq_v2"),
        "compressed-tensors": CompressedTensorsFormat(),
        "dense": DenseFormat(torch.float32),
    }[to]
    codes = QuantizedWeight(
        layer.codes.to(torch.uint8),
        layer.scales,
        layer.zeros.to(torch.uint8),
        layer.group_of,
        bits,
    )
    extent = PackedShape(32 * rows, 32 * groups, groups, torch.float16)
    scheme = QuantizationScheme("gptq", bits, 32, sym, any_order)
    found = target.layer_tensors(codes, PackedLayer(Q, scheme, extent))
    wanted = (
        drawn.compressed(layer, sym=sym) if to == "compressed-tensors" else expected(layer, Q, to)
    )
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[part], wanted[part]) for part in wanted)
    assert {
        f"{Q}.{part}": (tensor.dtype, tuple(tensor.shape)) for part, tensor in found.items()
    } == {
        name: (slot.dtype, slot.shape)
        for name, slot in target.slots(PackedLayer(Q, scheme, extent)).items()
    }


# --- the config -----------------------------------------------------------------------------------


def test_what_a_gptq_config_says_else_is_kept(base: Path, tmp_path: Path) -> None:
    own = GPTQ | {"damp_percent": 0.05, "meta": {"quantizer": ["gptqmodel:7.7.0"]}}
    drawn.write_model(tmp_path / "in", base, own, V1_LAYERS)
    run(tmp_path / "in", tmp_path / "out", to="gptq-v2")
    assert quantization(tmp_path / "out") == own | V2
    beside = json.loads((tmp_path / "out" / "quantize_config.json").read_text(encoding="utf-8"))
    assert beside == own | V2


def test_every_name_that_the_format_has_is_changed(base: Path, tmp_path: Path) -> None:
    own = GPTQ | {"checkpoint_format": "gptq", "format": "gptq"}
    drawn.write_model(tmp_path / "in", base, own, V1_LAYERS)
    run(tmp_path / "in", tmp_path / "out", to="gptq-v2")
    assert quantization(tmp_path / "out") == own | V2 | {"format": "gptq_v2"}


def test_what_a_loader_must_know_is_said_where_the_source_did_not(
    base: Path, tmp_path: Path
) -> None:
    bare = {"quant_method": "gptq", "bits": 4}
    drawn.write_model(tmp_path / "in", base, bare, V1_LAYERS)
    run(tmp_path / "in", tmp_path / "out", to="gptq-v2")
    assert quantization(tmp_path / "out") == bare | V2 | {
        "group_size": 32,
        "sym": False,  # as a loader takes it that is told nothing
        "desc_act": False,
    }


def test_a_config_for_compressed_tensors(base: Path, tmp_path: Path) -> None:
    make(tmp_path / "in", base, "v1")
    run(tmp_path / "in", tmp_path / "out", to="compressed-tensors")
    assert quantization(tmp_path / "out") == {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group",
                    "group_size": 32,
                    "actorder": None,
                    "dynamic": False,
                },
                "input_activations": None,
                "output_activations": None,
                "format": "pack-quantized",
            }
        },
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
    assert not (tmp_path / "out" / "quantize_config.json").exists()


def test_several_kinds_of_layers_are_named_one_by_one(base: Path, tmp_path: Path) -> None:
    make(tmp_path / "in", base, "v1 mixed")
    run(tmp_path / "in", tmp_path / "out", to="compressed-tensors")
    told = quantization(tmp_path / "out")
    assert told is not None
    assert told["ignore"] == ["lm_head", r"re:^model\.layers\.(?:1)\.self_attn\.o_proj$"]
    targets = [group["targets"] for group in told["config_groups"].values()]
    assert targets[1] == [r"re:^model\.layers\.\d+\.mlp\.down_proj$"]
    assert "Linear" not in targets[0]


@pytest.mark.parametrize(
    ("scales", "word"), [(torch.float16, "float16"), (torch.float32, "float32")]
)
def test_the_model_has_the_type_of_the_scales_for_compressed_tensors(
    base: Path, tmp_path: Path, scales: torch.dtype, word: str
) -> None:
    wide = damage.with_config(base, tmp_path / "base", torch_dtype="bfloat16", dtype="bfloat16")
    drawn.write_model(tmp_path / "in", wide, GPTQ, V1_LAYERS, scales=scales)
    run(tmp_path / "in", tmp_path / "out", to="compressed-tensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["torch_dtype"] == config["dtype"] == word


def test_what_lies_beside_goes_along(base: Path, tmp_path: Path) -> None:
    make(tmp_path / "in", base, "v1")
    np.save(tmp_path / "in" / "calibration-ngrams.npy", np.arange(3, dtype=np.uint64))
    (tmp_path / "in" / "quantize-report.json").write_text("{}")
    (tmp_path / "in" / "quantize_config.json").write_text("{}")
    templates = tmp_path / "in" / "additional_chat_templates"
    templates.mkdir()
    (templates / "rag.jinja").write_text("own")
    run(tmp_path / "in", tmp_path / "out", to="dense")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "additional_chat_templates",
        "calibration-ngrams.npy",
        "quantize-report.json",
        REPORT,
    }
    assert (tmp_path / "out" / templates.name / "rag.jinja").read_text() == "own"
    assert quantization(tmp_path / "out") is None
    assert read_report(tmp_path / "out" / REPORT).facts.record["from"] == ["gptq"]


def test_a_dense_output_runs_in_transformers(base: Path, tmp_path: Path) -> None:
    layers = make(tmp_path / "in", base, "v1 mixed")
    run(tmp_path / "in", tmp_path / "out", to="dense")
    weights = pico.load_model(tmp_path / "out").state_dict()
    for name, layer in layers.items():
        assert torch.equal(weights[f"{name}.weight"].double(), layer.weight)


# --- what is lost ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_report_says_what_16_bits_lose(base: Path, tmp_path: Path, dtype: str) -> None:
    layers = make(tmp_path / "in", base, "v1")
    report = run(tmp_path / "in", tmp_path / "out", to="dense", dtype=dtype)
    found = load_file(tmp_path / "out" / "model.safetensors")
    exact = {
        name: tensor.double() for name, tensor in load_file(base / "model.safetensors").items()
    }
    exact |= {f"{name}.weight": layer.weight for name, layer in layers.items()}
    assert {tensor.dtype for tensor in found.values()} == {getattr(torch, dtype)}
    errors = [(found[name].double() - tensor).abs() for name, tensor in exact.items()]
    assert report.facts.record["inexact"] == sum(int((error > 0).sum()) for error in errors) > 0
    assert report.facts.record["largest_error"] == max(float(error.max()) for error in errors)


def test_scales_in_fp32_are_rounded_as_every_loader_rounds_them(base: Path, tmp_path: Path) -> None:
    layers = drawn.write_model(tmp_path / "in", base, GPTQ, V1_LAYERS, scales=torch.float32)
    report = run(tmp_path / "in", tmp_path / "out", to="dense")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert report.facts.record["inexact"] > 0
    assert report.facts.record["largest_error"] < 2**-24
    for name, layer in layers.items():
        assert torch.equal(found[f"{name}.weight"], layer.weight.float())


def test_weights_that_do_not_fit_are_refused(base: Path, tmp_path: Path) -> None:
    make(tmp_path / "whole", base, "v1")
    huge = torch.full((2, 64), 60000.0, dtype=torch.float16)
    damage.with_tensors(tmp_path / "whole", tmp_path / "in", {f"{Q}.scales": huge})
    with refusal(
        NumericsProblem,
        f"'{Q}.weight' has values that are not finite in float16",
        next_step="use --dtype float32, or check the checkpoint for overflow",
        out=tmp_path / "out",
    ):
        run(tmp_path / "in", tmp_path / "out", to="dense", dtype="float16")


def test_a_packed_head_is_exported_as_one_though_the_config_says_tied(
    base: Path, tmp_path: Path
) -> None:
    make(tmp_path / "plain", base, "v1")
    layer = drawn.draw(272, 64)
    parts = {f"lm_head.{part}": tensor for part, tensor in drawn.gptq(layer).items()}
    damage.with_tensors(tmp_path / "plain", tmp_path / "head", {"lm_head.weight": None, **parts})
    config = GPTQ | {"lm_head": False}
    damage.with_config(
        tmp_path / "head", tmp_path / "in", quantization_config=config, tie_word_embeddings=True
    )
    run(tmp_path / "in", tmp_path / "v2", to="gptq-v2")
    assert (quantization(tmp_path / "v2") or {})["lm_head"] is True
    report = run(tmp_path / "v2", tmp_path / "out", to="dense")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(found["lm_head.weight"], layer.weight.float())
    for folder in (tmp_path / "v2", tmp_path / "out"):
        told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        assert told["tie_word_embeddings"] is False
    assert report.facts.record["config_changes"] == []


def test_a_model_without_a_head_is_not_exported(base: Path, tmp_path: Path) -> None:
    make(tmp_path / "whole", base, "v1")
    damage.with_tensors(tmp_path / "whole", tmp_path / "in", {"lm_head.weight": None})
    with pytest.raises(UnknownTensor, match="lacks 'lm_head.weight', and its config.json does not"):
        run(tmp_path / "in", tmp_path / "out", to="gptq-v2")


def test_a_layer_that_vanishes_in_16_bits_is_refused(base: Path, tmp_path: Path) -> None:
    make(tmp_path / "whole", base, "ct bf16")
    tiny = torch.full((64, 2), 1e-12, dtype=torch.bfloat16)
    damage.with_tensors(tmp_path / "whole", tmp_path / "in", {f"{Q}.weight_scale": tiny})
    run(tmp_path / "in", tmp_path / "wide", to="dense", dtype="bfloat16")
    with pytest.raises(NumericsProblem, match=f"'{Q}.weight' loses 100% in float16"):
        run(tmp_path / "in", tmp_path / "out", to="dense", dtype="float16")
    assert not (tmp_path / "out").exists()


def test_a_norm_that_vanishes_in_16_bits_is_refused(base: Path, tmp_path: Path) -> None:
    make(tmp_path / "whole", base, "v1")
    norm = torch.full((64,), 1e-9)
    damage.with_tensors(tmp_path / "whole", tmp_path / "in", {"model.norm.weight": norm})
    with pytest.raises(NumericsProblem, match="'model.norm.weight' loses 100% in float16"):
        run(tmp_path / "in", tmp_path / "out", to="dense", dtype="float16")


# --- what is refused ------------------------------------------------------------------------------


def test_a_plain_model_is_not_exported(base: Path, tmp_path: Path) -> None:
    with refusal(
        CheckpointProblem,
        f"{base} is not quantized",
        next_step="give the folder that quantize wrote",
        out=tmp_path / "out",
    ):
        run(base, tmp_path / "out", to="dense")


def test_an_activation_order_has_no_place_in_compressed_tensors(base: Path, tmp_path: Path) -> None:
    own = GPTQ | {"desc_act": True}
    drawn.write_model(tmp_path / "in", base, own, V1_LAYERS, any_order=True)
    with refusal(
        CheckpointProblem,
        f"{tmp_path / 'in'} has the columns of '{Q}' in an activation order (desc_act), which "
        "compressed-tensors no longer reads",
        next_step="export it --to gptq-v2 or dense, or quantize again without desc_act",
        out=tmp_path / "out",
    ):
        run(tmp_path / "in", tmp_path / "out", to="compressed-tensors")


def test_an_activation_order_is_kept_in_gptq(base: Path, tmp_path: Path) -> None:
    told = ct((["Linear"], {"actorder": "group"}))
    layers = drawn.write_model(
        tmp_path / "in",
        base,
        told,
        lambda name, layer: as_ct(name, layer) | {"weight_g_idx": layer.group_of.int()},
        any_order=True,
    )
    run(tmp_path / "in", tmp_path / "out", to="gptq-v2")
    found = quantization(tmp_path / "out")
    assert found is not None and found["desc_act"] is True
    for name, layer in layers.items():
        after = read_linear(Checkpoint.open(tmp_path / "out"), name)
        assert torch.equal(after.double(), layer.weight)


def test_desc_act_without_another_order_is_no_obstacle(base: Path, tmp_path: Path) -> None:
    drawn.write_model(tmp_path / "in", base, GPTQ | {"desc_act": True}, V1_LAYERS)
    run(tmp_path / "in", tmp_path / "out", to="compressed-tensors")


def test_a_last_group_that_is_shorter_has_no_place_in_compressed_tensors(
    base: Path, tmp_path: Path
) -> None:
    drawn.write_model(tmp_path / "in", base, GPTQ | {"group_size": 48}, V1_LAYERS, group_size=48)
    with refusal(
        CheckpointProblem,
        f"{tmp_path / 'in'}: the last group of '{Q}' has fewer columns than 48, which "
        "compressed-tensors does not read",
        next_step="export it --to gptq-v2 or dense",
        out=tmp_path / "out",
    ):
        run(tmp_path / "in", tmp_path / "out", to="compressed-tensors")


def test_scales_that_gptq_cannot_store_are_refused(base: Path, tmp_path: Path) -> None:
    told = ct((["Linear"], {}))
    drawn.write_model(tmp_path / "in", base, told, as_ct, scales=torch.float32)
    with pytest.raises(NumericsProblem) as problem:
        run(tmp_path / "in", tmp_path / "out", to="gptq-v2")
    assert f"of the 128 scales of '{Q}', which are float32, 128 are no float16" in str(
        problem.value
    )
    assert problem.value.next_step == "export it --to dense, or quantize again in float16"
    assert not list(tmp_path.glob("out*"))


def test_a_zero_point_of_0_is_for_version_2(base: Path, tmp_path: Path) -> None:
    layer = drawn.draw(64, 64, sym=False)
    layer.zeros[3, 1] = 0
    told = ct((["Linear"], {"symmetric": False}))
    drawn.write_model(
        tmp_path / "in",
        base,
        told,
        lambda name, other: drawn.compressed(layer if name == Q else other, sym=False),
        sym=False,
    )
    with refusal(
        NumericsProblem,
        f"{tmp_path / 'in'}: '{Q}' has zero points of 0, which GPTQ v1 stores as 15 and not every "
        "loader undoes",
        next_step="export it --to gptq-v2",
        out=tmp_path / "out",
    ):
        run(tmp_path / "in", tmp_path / "out", to="gptq")
    run(tmp_path / "in", tmp_path / "out", to="gptq-v2")
    after = read_linear(Checkpoint.open(tmp_path / "out"), Q)
    assert torch.equal(after.double(), layer.weight)


def test_settings_that_a_layout_has_no_words_for_are_refused(base: Path, tmp_path: Path) -> None:
    told = ct((["Linear"], {}), (["lm_head"], {"num_bits": 8}), ignore=())
    drawn.write_model(tmp_path / "in", base, told, as_ct)
    tensors = load_file(tmp_path / "in" / "model.safetensors")
    rows, cols = tensors.pop("lm_head.weight").shape
    head = as_ct("lm_head", drawn.draw(rows, cols, bits=8))
    tensors |= {f"lm_head.{part}": tensor.contiguous() for part, tensor in head.items()}
    save_file(tensors, tmp_path / "in" / "model.safetensors")
    with refusal(
        CheckpointProblem,
        f"{tmp_path / 'in'}: gptq cannot express how 'lm_head' is packed",
        next_step="export it --to dense",
        out=tmp_path / "out",
    ):
        run(tmp_path / "in", tmp_path / "out", to="gptq")
    run(tmp_path / "in", tmp_path / "out", to="dense")


@pytest.mark.parametrize("part", ["weight_packed", "weight_scale", "weight_zero_point"])
def test_a_packing_that_does_not_come_back_is_not_written(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    make(tmp_path / "in", base, "v1 asym")
    right = compressed_tensors_format.pack_compressed

    def wrong(codes: QuantizedWeight, *, sym: bool) -> Mapping[str, Tensor]:
        parts = right(codes, sym=sym)
        changed = parts[part].clone()
        changed[-1, -1] += 1
        return {**parts, part: changed}

    monkeypatch.setattr(compressed_tensors_format, "pack_compressed", wrong)
    with refusal(
        NumericsProblem,
        f"'{Q}' has other weights after packing and unpacking",
        next_step="keep the checkpoint as it is, and report this as a bug",
        out=tmp_path / "out",
    ):
        run(tmp_path / "in", tmp_path / "out", to="compressed-tensors")


def test_the_input_is_not_written_over(base: Path, tmp_path: Path) -> None:
    make(tmp_path / "in", base, "v1")
    with pytest.raises(RecipeProblem):
        run(tmp_path / "in", tmp_path / "in", to="dense", force=True)


def test_an_output_is_replaced_only_if_told(base: Path, tmp_path: Path) -> None:
    make(tmp_path / "in", base, "v1")
    run(tmp_path / "in", tmp_path / "out", to="dense")
    with pytest.raises(OutputExists):
        run(tmp_path / "in", tmp_path / "out", to="gptq-v2")
    run(tmp_path / "in", tmp_path / "out", to="gptq-v2", force=True)


def test_a_layout_has_to_be_named() -> None:
    with pytest.raises(RecipeProblem, match="to: Field required"):
        ExportSettings.parse({}, source="export")
