"""The models that are quantized: a real one for quality, and random ones for time."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from benchmarks.shapes import Sizes

MADE = Path(__file__).parents[2] / ".models"
TOKENIZER = MADE / "llama-tokenizer"  # of the random ones


class Model(NamedTuple):
    """A model, and the groups that its widths allow."""

    title: str
    group_size: int
    folder: Path | None = None
    sizes: Sizes | None = None  # of random weights, which say nothing of quality


# fmt: off
MODELS = {  # 576, the width of the first, is no multiple of 128
    "smollm2":    Model("SmolLM2-135M-Instruct", 64, folder=MADE / "SmolLM2-135M-Instruct"),
    "llama-100m": Model("LLaMA of random weights", 128, sizes=Sizes(768, 12)),
}
# fmt: on
SMALLEST = Model("warm-up", 64, sizes=Sizes(128, 1))  # tools compile on it what they compile once
