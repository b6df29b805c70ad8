"""What configs say of a layer, in the words of the tools that write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.checkpoint.format_detection import READABLE_FORMATS
from camelpress.core.errors import CheckpointProblem
from camelpress.core.packing.quantization_schemes import (
    QuantizationScheme,
    default_scheme,
    layer_scheme,
)

DOWN, OUT = "model.layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj"
GPTQMODEL = {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True, "desc_act": False}
CT = "pack-quantized"
AUTOROUND = {
    "quant_method": "auto-round",
    "packing_format": "auto_round:auto_gptq",
    "bits": 4,
    "group_size": 64,
    "sym": True,
    "data_type": "int",
}


def group(*targets: str, **weights: Any) -> dict[str, Any]:
    given = {"num_bits": 4, "symmetric": True, "strategy": "group", "group_size": 64}
    return {"targets": list(targets), "weights": given | weights}


def groups(*listed: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {f"group_{number}": each for number, each in enumerate(listed)},
        "ignore": ["lm_head"],
    } | changed


def checkpoint(folder: Path, quantization: Any) -> Checkpoint:
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    return Checkpoint.open(folder)


# fmt: off
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (GPTQMODEL, QuantizationScheme("gptq", 4, 64, True, False)),
        (GPTQMODEL | {"checkpoint_format": "gptq"}, QuantizationScheme("gptq", 4, 64, True, False)),
        (GPTQMODEL | {"checkpoint_format": "gptq_v2"},
         QuantizationScheme("gptq_v2", 4, 64, True, False)),
        (GPTQMODEL | {"format": "gptq_v2"}, QuantizationScheme("gptq_v2", 4, 64, True, False)),
        (GPTQMODEL | {"is_marlin_format": False}, QuantizationScheme("gptq", 4, 64, True, False)),
        (GPTQMODEL | {"desc_act": True, "sym": False},
         QuantizationScheme("gptq", 4, 64, False, True)),
        ({"quant_method": "gptq", "bits": 3}, QuantizationScheme("gptq", 3, None, None, False)),
        (AUTOROUND, QuantizationScheme("gptq", 4, 64, True, False)),
        (AUTOROUND | {"quant_method": "intel/auto-round"},
         QuantizationScheme("gptq", 4, 64, True, False)),
        (AUTOROUND | {"act_bits": 16}, QuantizationScheme("gptq", 4, 64, True, False)),
        (AUTOROUND | {"packing_format": "auto_round:gptqmodel"},
         QuantizationScheme("gptq_v2", 4, 64, True, False)),
        (AUTOROUND | {"packing_format": "auto_round"},
         QuantizationScheme("gptq_v2", 4, 64, True, False)),
        (groups(group("Linear")), QuantizationScheme(CT, 4, 64, True, False)),
        (groups(group("Linear", symmetric=False)), QuantizationScheme(CT, 4, 64, False, False)),
        (groups(group("Linear", strategy="channel", group_size=None)),
         QuantizationScheme(CT, 4, -1, True, False)),
        (groups(group("Linear", actorder="static")), QuantizationScheme(CT, 4, 64, True, False)),
        (groups(group("Linear", actorder="group")), QuantizationScheme(CT, 4, 64, True, True)),
    ],
)  # fmt: on
def test_settings_that_hold_for_all(
    tmp_path: Path, config: dict[str, Any], expected: QuantizationScheme
) -> None:
    found = checkpoint(tmp_path, config)
    assert layer_scheme(found, DOWN) == default_scheme(found) == expected


def test_a_plain_checkpoint_has_no_scheme(tmp_path: Path) -> None:
    found = checkpoint(tmp_path, None)
    assert layer_scheme(found, DOWN) is default_scheme(found) is None


@pytest.mark.parametrize(
    ("config", "bits", "group_size"),
    [
        (GPTQMODEL | {"dynamic": {r"+:.*\.down_proj": {"bits": 8, "group_size": 32}}}, 8, 32),
        (AUTOROUND | {"extra_config": {DOWN: {"bits": 8, "group_size": 32}}}, 8, 32),
        (AUTOROUND | {"extra_config": {r"layers\.0\..*down_proj$": {"bits": 8}}}, 8, 64),
        (AUTOROUND | {"extra_config": {"down": {"bits": 2}, DOWN: {"bits": 8}}}, 8, 64),
        (AUTOROUND | {"extra_config": {"up_proj": {"bits": 2}}}, 4, 64),
        (groups(group("Linear"), group("re:.*down_proj$", num_bits=8, group_size=32)), 8, 32),
        (groups(group("re:.*proj$"), group(DOWN, num_bits=8)), 8, 64),
        (groups(group("re:z"), group("re:model", num_bits=8)), 8, 64),
    ],
)
def test_a_layer_may_have_settings_of_its_own(
    tmp_path: Path, config: dict[str, Any], bits: int, group_size: int
) -> None:
    found = layer_scheme(checkpoint(tmp_path, config), DOWN)
    assert found and (found.bits, found.group_size) == (bits, group_size)


@pytest.mark.parametrize(
    "config",
    [
        GPTQMODEL | {"dynamic": {r"-:.*\.1\.self_attn\.o_proj": {}}},
        AUTOROUND | {"extra_config": {OUT: {"bits": 16, "data_type": "float"}}},
        groups(group("Linear"), ignore=["lm_head", OUT]),
        groups(group("Linear"), ignore=[r"re:.*layers\.1\.self_attn"]),
        groups(group("re:.*mlp.*")),
    ],
)
def test_a_layer_may_stay_plain(tmp_path: Path, config: dict[str, Any]) -> None:
    found = checkpoint(tmp_path, config)
    assert layer_scheme(found, OUT) is None
    assert layer_scheme(found, DOWN) is not None


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (GPTQMODEL | {"is_marlin_format": True}, "gptq/marlin"),
        (GPTQMODEL | {"quant_method": "awq", "checkpoint_format": "gemm"}, "awq/gemm"),
        (AUTOROUND | {"packing_format": "auto_round:auto_awq"}, "auto-round/auto_round:auto_awq"),
        (groups(group("Linear"), format="int-quantized"), "compressed-tensors/int-quantized"),
        ({"quant_method": "fp8"}, "fp8"),
    ],
)
def test_another_packing_is_refused(tmp_path: Path, config: dict[str, Any], named: str) -> None:
    found = checkpoint(tmp_path, config)
    for ask in (lambda: layer_scheme(found, DOWN), lambda: default_scheme(found)):
        with pytest.raises(CheckpointProblem) as told:
            ask()
        assert told.value.message == f"{tmp_path} is quantized as {named}"
        assert told.value.next_step == f"give a checkpoint of {READABLE_FORMATS}"


@pytest.mark.parametrize(
    ("config", "where"),
    [
        (groups({**group("Linear"), "input_activations": {"num_bits": 8}}), "input_activations"),
        (groups(group("Linear", type="float")), "weights.type"),
        (groups(group("Linear", strategy="block")), "weights.strategy"),
        (groups(group("Linear"), kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme"),
        (groups(group("Linear"), transform_config={"R1": {}}), "transform_config"),
        (groups(group("Linear"), sparsity_config={"format": "sparse"}), "sparsity_config"),
        (groups(group("Linear", num_bits="4")), "weights.num_bits"),
        ({"quant_method": "compressed-tensors", "config_groups": []}, "config_groups"),
    ],
)
def test_what_would_change_the_model_is_refused(
    tmp_path: Path, config: dict[str, Any], where: str
) -> None:
    with pytest.raises(CheckpointProblem) as told:
        layer_scheme(checkpoint(tmp_path, config), DOWN)
    assert str(tmp_path / "config.json") in told.value.message
    assert where in told.value.message
    assert len(str(told.value).splitlines()) == 1


def test_activations_of_auto_round_are_not_left_out_silently(tmp_path: Path) -> None:
    with pytest.raises(CheckpointProblem, match="quantizes activations, too"):
        layer_scheme(checkpoint(tmp_path, AUTOROUND | {"act_bits": 8}), DOWN)


@pytest.mark.parametrize("extra", [{"(": {"bits": 8}}, [1], {DOWN: 3}])
def test_an_extra_config_that_cannot_be_read_is_refused(tmp_path: Path, extra: Any) -> None:
    with pytest.raises(CheckpointProblem, match="extra_config that cannot be read"):
        layer_scheme(checkpoint(tmp_path, AUTOROUND | {"extra_config": extra}), DOWN)


def test_bad_patterns_of_groups_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointProblem, match="re:\\("):
        layer_scheme(checkpoint(tmp_path, groups(group("re:("))), DOWN)
