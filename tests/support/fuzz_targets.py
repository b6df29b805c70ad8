"""Fuzz targets of checkpoints, tokenizers, recipes and gates."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save

import pico
import pieces
from camelpress.compat.compatibility import INFERENCE_ENGINES, check_compatibility
from camelpress.convert.inputs import meta_checkpoint
from camelpress.convert.tokenizer import tokenizer_plan
from camelpress.core.checkpoint import pickles, shards
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.files.json_files import read_json
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.model.streamed_model import StreamedModel
from camelpress.pipeline import plan, recipe
from camelpress.reporting.checkpoint_summary import describe_checkpoint
from camelpress.validate.gate import gate_judge
from fuzzing import target
from mutations import dump, either, mutate_bytes, mutate_header, mutate_json

CPU = torch.device("cpu")
TURNS = [{"role": "user", "content": "the whale"}]
GPTQ: dict[str, Any] = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 32,
    "desc_act": False,
    "sym": True,
    "lm_head": False,
    "checkpoint_format": "gptq",
    "dynamic": {
        r"+:^model\.layers\.0\.mlp\.down_proj$": {"bits": 8, "group_size": 32},
        r"-:^model\.layers\.1\.self_attn\.o_proj$": {},
    },
}
AUTO_ROUND: dict[str, Any] = {
    "quant_method": "auto-round",
    "packing_format": "auto_round:auto_gptq",
    "bits": 4,
    "group_size": 32,
    "sym": True,
    "extra_config": {"model.layers.0.mlp.down_proj": {"bits": 16}, ".*q_proj.*": {"bits": 4}},
}
COMPRESSED: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "ignore": ["lm_head", "re:.*o_proj"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear", r"re:model\.layers\..*"],
            "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32},
        }
    },
}
RECIPE: dict[str, Any] = {
    "base": "../models/llama",
    "diff": "../models/diff",
    "out": "../runs/one",
    "recover": {"verify": "a.jsonl"},
    "quantize": {
        "group_size": 128,
        "calibration": ["../data/a.jsonl", {"source": "hf:a/b:c.jsonl", "weight": 2}],
        "modules": {"*.down_proj": {"bits": 8}, "model.layers.79.mlp.*": {"keep": True}},
    },
    "validate": {
        "text": ["../data/text.txt"],
        "tasks": ["tulu"],
        "judge": {"url": "https://a.b/v1", "model": "m"},
        "gate": {"perplexity_ratio": {"max": 1.035}},
    },
    "publish": {"license": "tulu", "gated_like": ["x"], "benchmarks": {}},
}
GATE: dict[str, Any] = {
    "perplexity_ratio": {"max": 1.035},
    "kl_mean": {"max": 0.03},
    "top1_agreement": {"min": 0.94},
    "early": {"perplexity_ratio": {"max": 1.05}},
    "texts": {"*": {"perplexity_ratio": {"max": 1.06}}},
    "tasks": {"mmlu": {"margin": 0.01}, "*": {"significance": 0.05}},
}
TENSORS = {
    "model.a.weight": torch.arange(12.0).reshape(3, 4),
    "b": torch.ones(5, dtype=torch.bfloat16),
    "c": torch.zeros(0, 3),
    "d": torch.tensor(7),
}


def _configs(folder: Path) -> Sequence[bytes]:
    pico.write_model(folder / "model")
    plain = json.loads((folder / "model/config.json").read_text(encoding="utf-8"))
    quantizations: list[dict[str, Any]] = [GPTQ, AUTO_ROUND, COMPRESSED]
    return [dump(plain), *(dump(plain | {"quantization_config": each}) for each in quantizations)]


@target("config", seeds=_configs, mutate=either(mutate_json, mutate_json, mutate_bytes))
def read_config(content: bytes, folder: Path) -> None:
    """Opens, describes and prepares to run a model with a mutated config.json."""
    (folder / "model/config.json").write_bytes(content)
    checkpoint = Checkpoint.open(folder / "model")
    describe_checkpoint(checkpoint)
    StreamedModel(checkpoint, device=CPU, dtype=torch.float32).block_shapes(0)


def _quantized(folder: Path) -> Sequence[bytes]:
    seeds = _configs(folder)
    linears = ("self_attn.q_proj", "mlp.down_proj")
    tensors = {}
    for name in (f"model.layers.0.{linear}" for linear in linears):
        tensors[f"{name}.qweight"] = torch.zeros(8, 64, dtype=torch.int32)
        tensors[f"{name}.qzeros"] = torch.zeros(2, 8, dtype=torch.int32)
        tensors[f"{name}.scales"] = torch.ones(2, 64, dtype=torch.float16)
        tensors[f"{name}.g_idx"] = (torch.arange(64) // 32).to(torch.int32)
    (folder / "model/model.safetensors").write_bytes(save(tensors))
    return seeds


@target("engines", seeds=_quantized, mutate=mutate_json)
def read_engines(content: bytes, folder: Path) -> None:
    """Holds a quantized model with a mutated config.json against every engine."""
    (folder / "model/config.json").write_bytes(content)
    (folder / "model/quantize_config.json").write_bytes(content)
    check_compatibility(Checkpoint.open(folder / "model"), list(INFERENCE_ENGINES))


@target("params", seeds=lambda folder: [dump({"dim": 64, "n_layers": 2, "n_heads": 4})],
        mutate=either(mutate_json, mutate_bytes))  # fmt: skip
def read_params(content: bytes, folder: Path) -> None:
    """Reads the mutated params.json of Meta's layout."""
    (folder / "params.json").write_bytes(content)
    meta_checkpoint._read_params(folder / "params.json")


@target(
    "json", seeds=lambda _: [dump(RECIPE), dump(GATE), b'{"a": [1, 2.5, null], "b": "\\u00e9"}']
)
def read_any_json(content: bytes, folder: Path) -> None:
    """Reads mutated JSON."""
    (folder / "x.json").write_bytes(content)
    read_json(folder / "x.json")


@target("st_header", seeds=lambda _: [save(TENSORS, metadata={"format": "pt"}), save(TENSORS)],
        mutate=either(mutate_header, mutate_header, mutate_bytes))  # fmt: skip
def read_header(content: bytes, folder: Path) -> None:
    """Reads the header of a mutated safetensors file."""
    (folder / "x.safetensors").write_bytes(content)
    for info in shards.read_shard_header(folder / "x.safetensors").values():
        info.nbytes  # noqa: B018 - a shape whose product overflows would raise here
    shards.read_metadata(folder / "x.safetensors")


def _indexed(folder: Path) -> Sequence[bytes]:
    files = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    for name, file in files.items():
        (folder / file).write_bytes(save({name: torch.ones(2)}))
    (folder / "config.json").write_text("{}", encoding="utf-8")
    return [dump({"metadata": {"total_size": 16}, "weight_map": files})]


@target("st_index", seeds=_indexed, mutate=either(mutate_json, mutate_bytes))
def read_index(content: bytes, folder: Path) -> None:
    """Opens a sharded checkpoint with a mutated index."""
    (folder / shards.INDEX_NAMES[0]).write_bytes(content)
    Checkpoint.open(folder)


def _pickled(_: Path) -> Sequence[bytes]:
    plain, views = BytesIO(), BytesIO()
    torch.save(TENSORS, plain)
    matrix = torch.arange(6.0).reshape(2, 3)
    torch.save({"t": matrix.T, "row": matrix[1], "p": torch.nn.Parameter(torch.ones(2))}, views)
    return [plain.getvalue(), views.getvalue()]


@target("pickle_zip", seeds=_pickled)
def read_pickle(content: bytes, folder: Path) -> None:
    """Reads every tensor of a mutated `.bin` shard."""
    path = folder / "x.bin"
    path.write_bytes(content)
    pickles.read_pickled_tensor.cache_clear()
    for name in shards.read_shard_header(path):
        pickles.read_pickled_tensor(path, name)


def _recipes(_: Path) -> Sequence[bytes]:
    return [yaml.safe_dump(RECIPE).encode(), dump(RECIPE)]


@target("recipe_yaml", seeds=_recipes)
def read_recipe(content: bytes, folder: Path) -> None:
    """Reads and plans a mutated recipe."""
    (folder / "recipe.yaml").write_bytes(content)
    plan.plan_run(recipe.read_recipe(folder / "recipe.yaml"))


@target("recipe_values", seeds=lambda _: [dump(RECIPE)], mutate=mutate_json)
def read_recipe_values(content: bytes, folder: Path) -> None:
    """Reads and plans a recipe with other values."""
    read_recipe(content, folder)


@target("override", seeds=lambda _: [b"quantize.group_size=64", b"publish.benchmarks={a: [1, 2]}"])
def read_override(content: bytes, folder: Path) -> None:
    """Applies a mutated override to a recipe."""
    (folder / "recipe.yaml").write_bytes(dump(RECIPE))
    recipe.read_recipe(folder / "recipe.yaml", [content.decode("utf-8", "surrogateescape")])


@target("gate_values", seeds=lambda _: [dump(GATE)], mutate=mutate_json)
@target("gate_yaml", seeds=lambda _: [yaml.safe_dump(GATE).encode(), dump(GATE)])
def read_gate(content: bytes, folder: Path) -> None:
    """Reads a mutated gate."""
    (folder / "gate.yaml").write_bytes(content)
    gate_judge.read_gate(folder / "gate.yaml")


def _tokenizer_files(folder: Path) -> list[bytes]:
    """Prepares a tokenizer; a seed holds all of its files as one JSON object."""
    (folder / "base").mkdir()
    pico.write_tokenizer(folder / "base")
    files = {path.name: json.loads(path.read_text()) for path in (folder / "base").iterdir()}
    chat = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    files["tokenizer_config.json"] |= {"chat_template": chat, "model_max_length": 512}
    files["added_tokens.json"] = {"<pad>": 259}
    files["special_tokens_map.json"] = {"pad_token": "<pad>", "bos_token": {"content": "<s>"}}
    return [dump(files)]


def _write_tokenizer(content: bytes, folder: Path) -> Path:
    shutil.rmtree(folder / "mutated", ignore_errors=True)
    (folder / "mutated").mkdir()
    files = json.loads(content)
    for name, value in files.items() if isinstance(files, dict) else ():
        if name in FILES:
            (folder / "mutated" / name).write_bytes(dump(value))
    return folder / "mutated"


FILES = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")


@target("tokenizer_load", seeds=_tokenizer_files, mutate=mutate_json)
def load_tokenizer(content: bytes, folder: Path) -> None:
    """Loads a mutated tokenizer, encodes, decodes and renders."""
    loaded = Tokenizer.load(_write_tokenizer(content, folder))
    ids = loaded.encode("the whale </s> \u00e9")
    loaded.decode(ids)
    loaded.decode_text(loaded.encode_document("sea"))
    if loaded.chat_template is not None:
        loaded.encode_template_text(loaded.render_chat(TURNS))


@target("tokenizer_plan", seeds=_tokenizer_files, mutate=mutate_json)
def plan_tokenizer(content: bytes, folder: Path) -> None:
    """Plans the tokenizer of a recovered model from mutated files."""
    mutated = _write_tokenizer(content, folder)
    tokenizer_plan.plan_tokenizer(
        [mutated, folder / "base"], 272, 259, drop=False, config={"model_type": "llama"},
        template="auto",
    )  # fmt: skip


def _sentencepiece(folder: Path) -> Sequence[bytes]:
    (folder / "llama").mkdir()
    return [pieces.model()]


@target("sentencepiece", seeds=_sentencepiece)
def read_sentencepiece(content: bytes, folder: Path) -> None:
    """Plans the tokenizer of a recovered model from a mutated tokenizer.model."""
    (folder / "llama/tokenizer.model").write_bytes(content)
    tokenizer_plan.plan_tokenizer(
        [folder / "llama"], 2_000, 2_000, drop=False, config={"model_type": "llama"},
        template="auto",
    )  # fmt: skip
