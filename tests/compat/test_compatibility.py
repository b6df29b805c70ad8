"""Each requirement passes on what we write, and fails or is noted where a checkpoint is broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import damage
import pico
import stages
from camelpress.compat.compatibility import (
    INFERENCE_ENGINES,
    check_compatibility,
    parse_engine_names,
)
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem, RecipeProblem
from refusal import refusal

WIDE = pico.Sizes(hidden=256, ffn=512, layers=2, heads=4, kv_heads=2)
Q = "model.layers.0.self_attn.q_proj"
DOWN = "model.layers.1.mlp.down_proj"
Broken = Callable[..., Path]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model wide enough for every kernel."""
    return pico.write_model(tmp_path_factory.mktemp("engines") / "wide", WIDE)


@pytest.fixture(scope="module")
def good(wide: Path) -> Path:
    """The same in 4 bits, groups of 128, as it would be released."""
    stages.quantize(wide, wide.parent / "good", method="rtn", group_size=128)
    return wide.parent / "good"


@pytest.fixture
def asym(wide: Path, tmp_path: Path) -> Path:
    """The same, asymmetric."""
    stages.quantize(wide, tmp_path / "asym", method="rtn", group_size=128, sym=False)
    return tmp_path / "asym"


@pytest.fixture
def broken(good: Path, tmp_path: Path) -> Broken:
    """The good one with other entries in its quantization config, in both places, or tensors."""

    def change(tensors: dict[str, torch.Tensor | None] | None = None, **entries: Any) -> Path:
        folder = damage.with_tensors(good, tmp_path / "broken", tensors or {})
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        own = config["quantization_config"] | entries
        own = {key: value for key, value in own.items() if value is not None}
        config["quantization_config"] = own
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        (folder / "quantize_config.json").write_text(json.dumps(own), encoding="utf-8")
        return folder

    return change


def held(folder: Path, engine: str) -> dict[str, dict[str, str]]:
    told = check_compatibility(Checkpoint.open(folder), [engine])["engines"][0]
    return {row["name"]: row for row in told["requirements"]}


def status(folder: Path, row: str) -> dict[str, str]:
    """What each engine that has the row says of it."""
    found = {name: held(folder, name).get(row) for name in INFERENCE_ENGINES}
    return {name: each["status"] for name, each in found.items() if each}


def tensor(folder: Path, name: str) -> torch.Tensor:
    return load_file(folder / "model.safetensors")[name]


def words(letters: str) -> dict[str, str]:
    """P, N or F for each engine in the order of `ENGINES`; a dot where it has no such row."""
    told = {"P": "PASS", "N": "NOTE", "F": "FAIL"}
    return {
        name: told[letter]
        for name, letter in zip(INFERENCE_ENGINES, letters, strict=True)
        if letter != "."
    }


def test_what_we_write_passes_everywhere(good: Path) -> None:
    told = check_compatibility(Checkpoint.open(good), parse_engine_names(["all"]))
    assert told["verdict"] == "PASS"
    assert [each["name"] for each in told["engines"]] == [
        "vLLM", "SGLang", "TGI", "ExLlamaV2", "Marlin",
    ]  # fmt: skip
    for engine in told["engines"]:
        assert not engine["ran"]
        assert {row["status"] for row in engine["requirements"]} == {"PASS"}, engine
        assert all(not row["next_step"] for row in engine["requirements"])
    assert any("negative" in row["reason"] for row in told["engines"][0]["requirements"])


# fmt: off
# what is changed in the config, the row, what vLLM, SGLang, TGI, ExLlama and Marlin say
CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "no sym":        ({"sym": None},                     "config keys", "FNNPF"),
    "no desc_act":   ({"desc_act": None},                "config keys", "FFPPF"),
    "no bits":       ({"bits": None},                    "config keys", "FFFPF"),
    "no group_size": ({"group_size": None},              "config keys", "FFFPF"),
    "desc_act true": ({"desc_act": True},                "order",       "NNNPN"),
    "v2":            ({"checkpoint_format": "gptq_v2"},  "format",      "PPPPP"),
    "marlin's own":  ({"checkpoint_format": "marlin"},   "format",      "FFFFF"),
    "head not so":   ({"lm_head": True},                 "lm_head",     "FFFF."),
    "other bits":    ({"bits": 8},                       "tensors",     "FFFFF"),
}
# fmt: on


@pytest.mark.parametrize("name", CASES)
def test_the_config_is_held_against_each_engine(broken: Broken, name: str) -> None:
    entries, row, letters = CASES[name]
    folder, expected = broken(**entries), words(letters)
    assert status(folder, row) == expected
    for engine, word in expected.items():
        if word != "PASS":
            assert held(folder, engine)[row]["next_step"]


def test_a_head_beside_a_config_that_ties_it_fails(good: Path, tmp_path: Path) -> None:
    folder = damage.with_config(good, tmp_path / "tied", tie_word_embeddings=True)
    assert set(status(folder, "lm_head").values()) == {"FAIL"}
    reason = held(folder, "vllm")["lm_head"]["reason"]
    assert "tie_word_embeddings is true" in reason


def test_a_head_that_is_missing_fails(broken: Broken) -> None:
    folder = broken({"lm_head.weight": None})
    assert set(status(folder, "lm_head").values()) == {"FAIL"}


def test_nothing_more_is_asked_where_the_keys_are_missing(broken: Broken) -> None:
    assert list(held(broken(bits=None), "vllm")) == ["config keys"]


def test_zero_points_of_v2_are_what_they_say(broken: Broken, good: Path) -> None:
    stored = {f"{layer}.qzeros": tensor(good, f"{layer}.qzeros") for layer in _layers(good)}
    assert {int(word) for each in stored.values() for word in each.unique()} == {0x77777777}
    one_more = {name: torch.full_like(each, 0x88888888 - 2**32) for name, each in stored.items()}
    assert set(status(broken(one_more, checkpoint_format="gptq_v2"), "zero points").values()) == {
        "PASS"
    }


def test_zero_points_of_v1_that_say_v2(broken: Broken) -> None:
    assert status(broken(checkpoint_format="gptq_v2"), "zero points")["exllama"] == "FAIL"


def _layers(folder: Path) -> list[str]:
    names = load_file(folder / "model.safetensors")
    return [name.removesuffix(".qweight") for name in names if name.endswith(".qweight")]


def test_asymmetric_layers(asym: Path) -> None:
    assert status(asym, "bits") == words("FNNPF")
    config = json.loads((asym / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"]["checkpoint_format"] = "gptq_v2"
    (asym / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert status(asym, "format") == words("PFFPP")


def test_other_bits(wide: Path, tmp_path: Path) -> None:
    stages.quantize(wide, tmp_path / "three", method="rtn", group_size=128, bits=3)
    assert status(tmp_path / "three", "bits") == words("FNFFF")
    stages.quantize(wide, tmp_path / "eight", method="rtn", group_size=128, bits=8)
    assert status(tmp_path / "eight", "bits") == words("PPPFP")


def test_groups_that_marlin_lacks(wide: Path, tmp_path: Path) -> None:
    stages.quantize(wide, tmp_path / "q", method="rtn", group_size=16)
    assert status(tmp_path / "q", "group size") == words("FNNPF")


def test_columns_out_of_order(broken: Broken, good: Path) -> None:
    order = tensor(good, f"{Q}.g_idx").flip(0).contiguous()
    folder = broken({f"{Q}.g_idx": order})
    assert status(folder, "order") == words("FFFNF")
    assert Q in held(folder, "vllm")["order"]["reason"]


def test_columns_out_of_order_as_the_config_says(broken: Broken, good: Path) -> None:
    order = tensor(good, f"{Q}.g_idx").flip(0).contiguous()
    folder = broken({f"{Q}.g_idx": order}, desc_act=True)
    assert status(folder, "order") == words("FNNNN")


def test_symmetric_layers_with_other_zero_points(broken: Broken, good: Path) -> None:
    zeros = tensor(good, f"{DOWN}.qzeros")
    zeros[0, 0] = 0x77777776
    folder = broken({f"{DOWN}.qzeros": zeros})
    assert set(status(folder, "zero points").values()) == {"FAIL"}
    assert DOWN in held(folder, "vllm")["zero points"]["reason"]


@pytest.mark.parametrize(
    ("value", "word", "reason"),
    [
        (float("nan"), "FAIL", "1 scales are not finite"),
        (float("inf"), "FAIL", "1 scales are not finite"),
        (5e-6, "NOTE", "below 1e-05"),
        (-0.01, "PASS", "negative"),
    ],
)
def test_scales(broken: Broken, good: Path, value: float, word: str, reason: str) -> None:
    folder = broken({f"{Q}.scales": damage.spoiled(tensor(good, f"{Q}.scales"), value)})
    assert set(status(folder, "scales").values()) == {word}
    assert reason in held(folder, "tgi")["scales"]["reason"]


def test_scales_of_another_type(broken: Broken, good: Path) -> None:
    folder = broken({f"{Q}.scales": tensor(good, f"{Q}.scales").float()})
    assert set(status(folder, "scales").values()) == {"NOTE"}


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales", "g_idx"])
def test_a_missing_part(broken: Broken, part: str) -> None:
    folder = broken({f"{Q}.{part}": None})
    assert set(status(folder, "tensors").values()) == {"FAIL"}
    assert Q in held(folder, "vllm")["tensors"]["reason"]


@pytest.mark.parametrize("part", ["qzeros", "scales", "g_idx"])
def test_a_part_that_does_not_fit(broken: Broken, good: Path, part: str) -> None:
    folder = broken({f"{Q}.{part}": tensor(good, f"{Q}.{part}")[:-1]})
    row = held(folder, "vllm")["tensors"]
    assert (row["status"], f"'{Q}.{part}'" in row["reason"]) == ("FAIL", True)


def test_two_configs_that_differ(good: Path, tmp_path: Path) -> None:
    folder = damage.copied(good, tmp_path / "model")
    (folder / "quantize_config.json").write_text('{"bits": 8}')
    assert status(folder, "copies") == words("FFF..")
    (folder / "quantize_config.json").write_text("{")
    assert status(folder, "copies")["tgi"] == "FAIL"
    (folder / "quantize_config.json").unlink()
    assert status(folder, "copies")["tgi"] == "NOTE"


class TestLayersOfTheirOwn:
    """What `quantize.modules` writes."""

    def made(self, wide: Path, out: Path, modules: dict[str, Any]) -> Path:
        stages.quantize(wide, out, method="rtn", group_size=128, modules=modules)
        return out

    def test_other_bits_for_a_layer_that_stands_alone(self, wide: Path, tmp_path: Path) -> None:
        folder = self.made(wide, tmp_path / "q", {"*.down_proj": {"bits": 8}})
        assert status(folder, "dynamic") == words("PPFPP")
        assert status(folder, "bits")["exllama"] == "FAIL"

    def test_a_plain_layer(self, wide: Path, tmp_path: Path) -> None:
        folder = self.made(wide, tmp_path / "q", {"model.layers.1.mlp.down_proj": {"keep": True}})
        assert status(folder, "dynamic") == words("PPFPP")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        del config["quantization_config"]["dynamic"]
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        assert status(folder, "dynamic") == words("PFFPP")

    def test_a_whole_input_of_a_block(self, wide: Path, tmp_path: Path) -> None:
        modules = {f"*.{name}_proj": {"bits": 8} for name in "qkv"}
        folder = self.made(wide, tmp_path / "q", modules)
        assert status(folder, "dynamic")["vllm"] == "PASS"

    def test_a_part_of_a_layer_that_is_held_as_one(self, wide: Path, tmp_path: Path) -> None:
        folder = self.made(wide, tmp_path / "q", {"*.k_proj": {"bits": 8}})
        assert status(folder, "dynamic") == words("FFFPF")
        assert "qkv_proj" in held(folder, "vllm")["dynamic"]["reason"]


def test_a_dense_model_is_no_question_for_engines(wide: Path) -> None:
    with refusal(
        CheckpointProblem,
        f"{wide} is quantized as nothing; engines are checked for GPTQ only",
        next_step="give a GPTQ checkpoint, such as one from camelpress quantize",
        out=None,
    ):
        check_compatibility(Checkpoint.open(wide), ["vllm"])


@pytest.mark.parametrize("entries", [{"bits": 5}, {"bits": "4"}, {"group_size": 0}])
def test_a_config_that_cannot_be_is_refused(broken: Broken, entries: dict[str, Any]) -> None:
    with pytest.raises(CheckpointProblem, match="bits in groups of"):
        check_compatibility(Checkpoint.open(broken(**entries)), ["exllama"])


def test_a_config_without_sizes_is_refused(good: Path, tmp_path: Path) -> None:
    folder = damage.with_config(good, tmp_path / "model", num_attention_heads="many")
    with pytest.raises(CheckpointProblem, match="num_attention_heads is 'many'"):
        check_compatibility(Checkpoint.open(folder), ["vllm"])


@pytest.mark.parametrize(
    ("names", "engines"),
    [
        (["vllm"], ["vllm"]),
        (["tgi,vllm", "tgi"], ["tgi", "vllm"]),
        (["VLLM, sglang"], ["vllm", "sglang"]),
        (["tgi", "all"], list(INFERENCE_ENGINES)),
    ],
)
def test_engines_are_named_in_any_way(names: list[str], engines: list[str]) -> None:
    assert parse_engine_names(names) == engines


@pytest.mark.parametrize("names", [["vlm"], ["vllm,"], [""]])
def test_an_engine_that_is_not_there_is_refused(names: list[str]) -> None:
    with refusal(
        RecipeProblem,
        f"there is no engine {names[0].split(',')[-1]!r}",
        next_step="use vllm, sglang, tgi, exllama, marlin or all",
        out=None,
        exit_code=2,
    ):
        parse_engine_names(names)
