"""Models of random weights at real widths, with the tokenizer of the demo, and texts for them."""

from __future__ import annotations

import json
import lzma
import shutil
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.gpu.session import Session
from benchmarks.shapes import HEAD, Sizes
from camelpress.core.checkpoint.checkpoint import Checkpoint

BOOK = Path(__file__).parents[2] / "demo" / "text" / "moby-dick.txt.xz"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
POSITIONS = 2048


def open_model(
    session: Session, hidden: int, layers: int, *, seed: int = 0, noise: float = 0.0
) -> Checkpoint:
    """Opens a random fp16 model; the first call writes it.

    Args:
        session: session of the part.
        hidden: hidden size.
        layers: decoder blocks.
        seed: seed of the weights.
        noise: size of the noise added to linear layers, as a share of their weights; two models
            of one seed differ by it alone.
    """
    folder = session.folder / f"model-{hidden}-{layers}-{seed}-{noise}"
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a part that was stopped
        _write(session, partial, Sizes(hidden, layers), seed, noise)
        partial.rename(folder)
    return Checkpoint.open(folder)


def write_texts(session: Session) -> tuple[Path, Path]:
    """Writes both halves of a book: one for calibration, one for validation."""
    book = lzma.decompress(BOOK.read_bytes()).decode("utf-8")
    middle = book.index("\n\n", len(book) // 2)
    halves = book[:middle], book[middle:]
    paths = session.folder / "calibration.txt", session.folder / "validation.txt"
    for path, half in zip(paths, halves, strict=True):
        path.write_text(half, encoding="utf-8")
    return paths


def _write(session: Session, folder: Path, sizes: Sizes, seed: int, noise: float) -> None:
    folder.mkdir(parents=True)
    generator = torch.Generator(session.device).manual_seed(seed)
    extra = torch.Generator(session.device).manual_seed(seed + 1)
    tensors = {}
    for name, shape in sizes.shapes(session.vocabulary).items():
        tensor = _draw(name, shape, generator)
        if noise and "layers" in name and len(shape) == 2:
            tensor += noise * _draw(name, shape, extra)
        tensors[name] = tensor.to("cpu", torch.float16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    heads = max(1, sizes.hidden // HEAD)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.ffn,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": session.vocabulary,
        "max_position_embeddings": POSITIONS,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in TOKENIZER_FILES:
        content = files("camelpress").joinpath("data", "demo", "base", name).read_bytes()
        (folder / name).write_bytes(content)


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draws one tensor; some columns of the embedding are far larger than others."""
    if len(shape) == 1:
        return torch.ones(shape, device=generator.device)
    tensor = torch.randn(shape, generator=generator, device=generator.device)
    tensor *= shape[-1] ** -0.5
    if "embed" in name:
        columns = torch.randn(shape[-1], generator=generator, device=generator.device)
        tensor *= columns.exp()
    return tensor
