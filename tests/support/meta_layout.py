"""Meta's layout, written from a Hugging Face state dict, and Meta's own forward pass on it.

Nothing is shared with the package. The forward pass leaves every matrix in parts and joins
activations, as the ranks did; in it neighbouring rows of a head are one complex number.

Source: meta-llama/llama 689c7f2 and meta-llama/llama3 a0940f9, llama/model.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu

Tensors = dict[str, Tensor]

# fmt: off
NAMES = {  # Hugging Face, Meta, the axis that is split
    "model.embed_tokens":       ("tok_embeddings",  1),  # 0 in Llama 3
    "model.norm":               ("norm",            None),
    "lm_head":                  ("output",          0),
    "input_layernorm":          ("attention_norm",  None),
    "self_attn.q_proj":         ("attention.wq",    0),
    "self_attn.k_proj":         ("attention.wk",    0),
    "self_attn.v_proj":         ("attention.wv",    0),
    "self_attn.o_proj":         ("attention.wo",    1),
    "post_attention_layernorm": ("ffn_norm",        None),
    "mlp.gate_proj":            ("feed_forward.w1", 0),
    "mlp.down_proj":            ("feed_forward.w2", 1),
    "mlp.up_proj":              ("feed_forward.w3", 0),
}
# fmt: on


class Sizes(NamedTuple):
    """The shape of a model; four ranks divide all of it, and no two sizes are alike."""

    hidden: int = 128
    ffn: int = 384
    layers: int = 2
    heads: int = 8
    kv_heads: int = 4
    vocab: int = 40

    @property
    def head(self) -> int:
        """Rows of a head."""
        return self.hidden // self.heads

    def params(self, **changed: Any) -> dict[str, Any]:
        """Its params.json; `multiple_of` gives its ffn by Meta's formula."""
        told: dict[str, Any] = {"dim": self.hidden, "n_layers": self.layers, "n_heads": self.heads}
        told |= {"multiple_of": 64, "norm_eps": 1e-2, "vocab_size": -1}
        if self.kv_heads != self.heads:
            told |= {"n_kv_heads": self.kv_heads}
        return told | changed


def shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Every tensor under its Hugging Face name."""
    kv = sizes.kv_heads * sizes.head
    layer = {
        "input_layernorm": (sizes.hidden,),
        "self_attn.q_proj": (sizes.hidden, sizes.hidden),
        "self_attn.k_proj": (kv, sizes.hidden),
        "self_attn.v_proj": (kv, sizes.hidden),
        "self_attn.o_proj": (sizes.hidden, sizes.hidden),
        "post_attention_layernorm": (sizes.hidden,),
        "mlp.gate_proj": (sizes.ffn, sizes.hidden),
        "mlp.up_proj": (sizes.ffn, sizes.hidden),
        "mlp.down_proj": (sizes.hidden, sizes.ffn),
    }
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (sizes.vocab, sizes.hidden),
        "model.norm.weight": (sizes.hidden,),
        "lm_head.weight": (sizes.vocab, sizes.hidden),
    }
    for number in range(sizes.layers):
        found |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return found


def random_bits(sizes: Sizes, dtype: torch.dtype = torch.float16, seed: int = 0) -> Tensors:
    """A state dict of every pattern of bits, NaN and infinity among them."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randint(0, 256, (*shape[:-1], shape[-1] * dtype.itemsize), generator=generator)
        .to(torch.uint8)
        .view(dtype)
        for name, shape in shapes(sizes).items()
    }


def random_weights(sizes: Sizes, dtype: torch.dtype = torch.float16, seed: int = 0) -> Tensors:
    """A state dict as a model might have it."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (0.2 * torch.randn(shape, generator=generator) + (len(shape) == 1)).to(dtype)
        for name, shape in shapes(sizes).items()
    }


def split(
    tensors: Tensors, sizes: Sizes, ranks: int = 1, *, embedding_axis: int = 1
) -> list[Tensors]:
    """What each rank holds, the rotary frequencies of LLaMA 1 and 2 included."""
    parts: list[Tensors] = [{} for _ in range(ranks)]
    for name, tensor in tensors.items():
        meta, axis = renamed(name)
        if meta.endswith((".wq.weight", ".wk.weight")):
            tensor = paired(tensor, sizes.head)
        if meta.startswith("tok_embeddings"):
            axis = embedding_axis
        pieces = [tensor] * ranks if axis is None else tensor.chunk(ranks, axis)
        for part, piece in zip(parts, pieces, strict=True):
            part[meta] = piece.clone(memory_format=torch.contiguous_format)
    for part in parts:
        part["rope.freqs"] = torch.ones(sizes.head // 2)
        part["layers.0.attention.inner_attention.rope.freqs"] = torch.ones(sizes.head // 2)
    return parts


def renamed(name: str) -> tuple[str, int | None]:
    """Meta's name of a tensor, and the axis along which ranks split it."""
    stem = name.removesuffix(".weight")
    if not stem.startswith("model.layers."):
        meta, axis = NAMES[stem]
        return f"{meta}.weight", axis
    _, _, layer, rest = stem.split(".", 3)
    meta, axis = NAMES[rest]
    return f"layers.{layer}.{meta}.weight", axis


def paired(tensor: Tensor, head: int) -> Tensor:
    """Row i and row i + half of every head side by side."""
    rows = []
    for first in range(0, len(tensor), head):
        for number in range(first, first + head // 2):
            rows += [tensor[number], tensor[number + head // 2]]
    return torch.stack(rows)


def save(folder: Path, parts: Sequence[Tensors], params: dict[str, Any]) -> Path:
    """A folder of Meta's."""
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(params), encoding="utf-8")
    for rank, part in enumerate(parts):
        torch.save(part, folder / f"consolidated.{rank:02}.pth")
    return folder


# The forward pass


def logits(parts: Sequence[Tensors], ids: Tensor, params: dict[str, Any]) -> Tensor:
    """Logits [tokens vocab] in fp32; every rank works on what it holds."""
    ranks = [{name: tensor.float() for name, tensor in part.items()} for part in parts]
    turns = rotations(len(ids), params["dim"] // params["n_heads"], params.get("rope_theta", 1e4))
    hidden = embedded(ranks, ids, params["dim"])
    for layer in layers(ranks, params["n_layers"]):
        inputs = [normed(hidden, rank["attention_norm"], params["norm_eps"]) for rank in layer]
        hidden = hidden + sum(map(attention, layer, inputs, [turns] * len(layer)))
        inputs = [normed(hidden, rank["ffn_norm"], params["norm_eps"]) for rank in layer]
        hidden = hidden + sum(map(feed_forward, layer, inputs))
    return torch.cat(
        [
            normed(hidden, rank["norm.weight"], params["norm_eps"]) @ rank["output.weight"].T
            for rank in ranks
        ],
        dim=-1,
    )


def layers(ranks: list[Tensors], count: int) -> Iterator[list[Tensors]]:
    """The tensors of one layer in each rank, by their last names."""
    for number in range(count):
        start = f"layers.{number}."
        yield [
            {
                name.removesuffix(".weight").split(".", 2)[2]: tensor
                for name, tensor in rank.items()
                if name.startswith(start)
            }
            for rank in ranks
        ]


def embedded(ranks: list[Tensors], ids: Tensor, hidden: int) -> Tensor:
    """Each rank knows some columns of every token, or every column of some tokens."""
    tables = [rank["tok_embeddings.weight"] for rank in ranks]
    if tables[0].shape[1] < hidden:
        return torch.cat([table[ids] for table in tables], dim=-1)
    rows = len(tables[0])
    return torch.stack([tables[number // rows][number % rows] for number in ids.tolist()])


def normed(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm."""
    return weight * hidden / (hidden.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def rotations(tokens: int, head: int, theta: float) -> Tensor:
    """A complex number of length one for each position and pair of rows."""
    angles = torch.arange(tokens)[:, None] * theta ** (-torch.arange(0, head, 2) / head)
    return torch.polar(torch.ones_like(angles), angles)


def attention(layer: Tensors, inputs: Tensor, turns: Tensor) -> Tensor:
    """What the heads of one rank add to all columns."""
    head = 2 * turns.shape[1]
    query, key, value = (
        (inputs @ layer[f"attention.{name}"].T).unflatten(-1, (-1, head)).transpose(0, 1)
        for name in ("wq", "wk", "wv")
    )
    query, key = turned(query, turns), turned(key, turns)
    key, value = (each.repeat_interleave(len(query) // len(each), dim=0) for each in (key, value))
    scores = query @ key.transpose(-1, -2) / head**0.5
    future = torch.ones(len(inputs), len(inputs)).triu(1).bool()
    weights = scores.masked_fill(future, -torch.inf).softmax(-1)
    return (weights @ value).transpose(0, 1).flatten(1) @ layer["attention.wo"].T


def turned(heads: Tensor, turns: Tensor) -> Tensor:
    """The rotary embedding: a multiplication of complex numbers."""
    pairs = torch.view_as_complex(heads.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns).flatten(-2)


def feed_forward(layer: Tensors, inputs: Tensor) -> Tensor:
    """What the middle columns of one rank add to all columns."""
    gate, up = (inputs @ layer[f"feed_forward.{name}"].T for name in ("w1", "w3"))
    return (silu(gate) * up) @ layer["feed_forward.w2"].T
