"""What a LLaMA of a given size consists of, in the proportions of the real ones."""

from __future__ import annotations

import math
from typing import NamedTuple

VOCABULARY = 32_000
TUNED_ROWS = VOCABULARY + 1  # of embedding and head, as in Tulu: <pad> was added
HEAD = 128  # values per attention head
ASPECT = 128  # width over depth, as of LLaMA 7B and 13B; 30B has 111, 65B has 102
WIDEST = 8192


class Sizes(NamedTuple):
    """Width, depth and what follows from them."""

    hidden: int
    layers: int

    @property
    def ffn(self) -> int:
        """Two thirds of 4 x hidden, rounded up to a multiple of 256."""
        return math.ceil(8 * self.hidden / 3 / 256) * 256

    @property
    def parameters(self) -> int:
        """Of the model without added tokens."""
        return sum(math.prod(shape) for shape in self.shapes(VOCABULARY).values())

    def block(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of one layer."""
        square, wide = (self.hidden, self.hidden), (self.ffn, self.hidden)
        return {
            **{f"self_attn.{part}_proj.weight": square for part in "qkvo"},
            "mlp.gate_proj.weight": wide,
            "mlp.up_proj.weight": wide,
            "mlp.down_proj.weight": wide[::-1],
            "input_layernorm.weight": (self.hidden,),
            "post_attention_layernorm.weight": (self.hidden,),
        }

    def shapes(self, rows: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all tensors in the order of a checkpoint; `rows` is one per token."""
        return {
            "model.embed_tokens.weight": (rows, self.hidden),
            **{
                f"model.layers.{layer}.{name}": shape
                for layer in range(self.layers)
                for name, shape in self.block().items()
            },
            "model.norm.weight": (self.hidden,),
            "lm_head.weight": (rows, self.hidden),
        }


def near(billions: float) -> Sizes:
    """Of the models with about that many parameters, the one with the proportions of LLaMA.

    The smallest has one layer of 128 and 8.4 million parameters.
    """
    models = (_filled(hidden, billions * 1e9) for hidden in range(HEAD, WIDEST + 1, HEAD))
    return min(models, key=lambda sizes: abs(math.log(sizes.hidden / sizes.layers / ASPECT)))


def _filled(hidden: int, parameters: float) -> Sizes:
    block = sum(math.prod(shape) for shape in Sizes(hidden, 1).block().values())
    return Sizes(hidden, max(1, round((parameters - 2 * VOCABULARY * hidden) / block)))
