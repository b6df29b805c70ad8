"""A LLaMA small enough for every test, built in code; no two of its sizes are alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

WORDS = ("the", "whale", "sea", "ship", "old", "man", "a", "of", "and", "white", "go", "see")
SPECIALS = ("<unk>", "<s>", "</s>")
FAMILIES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
}


class Sizes(NamedTuple):
    """The shape of a model."""

    hidden: int = 64
    ffn: int = 96
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    vocab: int = 272
    positions: int = 128


PICO = Sizes()


def write_model(
    folder: Path,
    sizes: Sizes = PICO,
    *,
    family: str = "llama",
    tied: bool = False,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> Path:
    """A random model with a tokenizer, as a checkpoint folder of one safetensors file."""
    make_config, make_model = FAMILIES[family]
    config = make_config(
        hidden_size=sizes.hidden,
        intermediate_size=sizes.ffn,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        vocab_size=sizes.vocab,
        max_position_embeddings=sizes.positions,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        rope_theta=5000.0,
    )
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in make_model(config).state_dict().items()}
    tensors = {
        name: _random(name, shape, generator).to(dtype)
        for name, shape in shapes.items()
        if not (tied and name == "lm_head.weight")
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    content = config.to_dict() | {
        "architectures": [make_model.__name__],
        "torch_dtype": str(dtype).removeprefix("torch."),
        "dtype": str(dtype).removeprefix("torch."),
        "rope_theta": 5000.0,
    }
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    write_tokenizer(folder)
    return folder


def write_tuned(
    folder: Path, base: Path, *, extra_rows: int = 1, dtype: torch.dtype = torch.bfloat16
) -> Path:
    """A model near `base`, in bf16 as training leaves it, with rows for added tokens."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        near = tensor.float() + 1e-3 * torch.randn(tensor.shape, generator=generator)
        if extra_rows and name in ("model.embed_tokens.weight", "lm_head.weight"):
            rows = 0.02 * torch.randn(extra_rows, tensor.shape[1], generator=generator)
            near = torch.cat([near, rows])
        tensors[name] = near.to(dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["vocab_size"] += extra_rows
    config["torch_dtype"] = config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_tokenizer(folder)
    return folder


def write_widened(folder: Path, source: Path) -> Path:
    """Writes the numbers of a plain model in fp32: another checkpoint that computes the same."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    wide = {name: tensor.float() for name, tensor in tensors.items()}
    save_file(wide, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_tokenizer(folder: Path) -> None:
    """Byte-level BPE over the byte alphabet and a few words, BOS added by itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIALS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def write_text(path: Path, words: int = 400, seed: int = 0) -> Path:
    """Plain text of a dozen words in random order."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(0, len(WORDS), (words,), generator=generator).tolist()
    path.write_text(" ".join(WORDS[number] for number in chosen), encoding="utf-8")
    return path


def write_chat(path: Path, conversations: int = 12, seed: int = 0) -> Path:
    """Conversations of one turn, in Tulu's layout, as JSON lines."""
    lines = []
    for number in range(conversations):
        generator = torch.Generator().manual_seed(seed * 1000 + number)
        chosen = torch.randint(0, len(WORDS), (4 + number,), generator=generator).tolist()
        text = " ".join(WORDS[word] for word in chosen)
        messages = [
            {"role": "user", "content": f"say: {text}"},
            {"role": "assistant", "content": text},
        ]
        lines.append(json.dumps({"messages": messages}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The same model in transformers, whole."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model: PreTrainedModel = FAMILIES[config["model_type"]][1].from_pretrained(folder, dtype=dtype)
    return model.eval()


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    if len(shape) == 1:
        offset = 0.0 if name.endswith("bias") else 1.0
        return offset + 0.1 * torch.randn(shape, generator=generator)
    return 0.08 * torch.randn(shape, generator=generator)
