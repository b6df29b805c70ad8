"""A raw model and its weight diff, as they are published: python -m benchmarks.pair BILLIONS FOLDER

The raw model is fp16 in safetensors, the diff fp32 in pickled shards, with a row for one added
token. One shard at a time is in memory.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import weights
from benchmarks.shapes import HEAD, TUNED_ROWS, VOCABULARY, Sizes, near

SHARD_BYTES = 2 * 10**9


class Form(NamedTuple):
    """How a checkpoint is stored."""

    stem: str
    suffix: str
    dtype: torch.dtype
    save: Callable[[dict[str, Tensor], Path], None]


RAW = Form("model", "safetensors", torch.float16, partial(save_file, metadata={"format": "pt"}))
DIFF = Form("pytorch_model", "bin", torch.float32, torch.save)


def write(folder: Path, sizes: Sizes) -> None:
    """Make `base` and `diff` in `folder`."""
    raw, grown = sizes.shapes(VOCABULARY), sizes.shapes(TUNED_ROWS)

    def base(name: str) -> Tensor:
        return weights.base(name, raw[name])

    def diff(name: str) -> Tensor:
        return weights.tuned(name, base(name), grown[name][0])[1]

    checkpoint(folder / "base", RAW, sizes, raw, base)
    checkpoint(folder / "diff", DIFF, sizes, grown, diff)


def checkpoint(
    folder: Path,
    form: Form,
    sizes: Sizes,
    shapes: dict[str, tuple[int, ...]],
    make: Callable[[str], Tensor],
) -> None:
    """Make one folder, tensor by tensor."""
    folder.mkdir()
    plan = _plan(shapes, form.dtype.itemsize)
    places: dict[str, str] = {}
    for number, names in enumerate(plan, start=1):
        shard = f"{form.stem}-{number:05}-of-{len(plan):05}.{form.suffix}"
        form.save({name: make(name) for name in names}, folder / shard)
        places |= dict.fromkeys(names, shard)
    total = form.dtype.itemsize * sum(map(math.prod, shapes.values()))
    index = {"metadata": {"total_size": total}, "weight_map": places}
    _json(folder / f"{form.stem}.{form.suffix}.index.json", index)
    _json(folder / "config.json", _config(sizes, shapes, form))


def _plan(shapes: dict[str, tuple[int, ...]], itemsize: int) -> list[list[str]]:
    """The names in each shard; one closes before it would grow beyond `SHARD_BYTES`."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        size = itemsize * math.prod(shape)
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _config(sizes: Sizes, shapes: dict[str, tuple[int, ...]], form: Form) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.ffn,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.hidden // HEAD,
        "vocab_size": shapes["lm_head.weight"][0],
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": str(form.dtype).removeprefix("torch."),
    }


def _json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description="Make a raw model and its weight diff.")
    parser.add_argument("billions", type=float, help="parameters, about")
    parser.add_argument("folder", type=Path, help="takes base and diff")
    given = parser.parse_args()
    write(given.folder, near(given.billions))


if __name__ == "__main__":
    main()
