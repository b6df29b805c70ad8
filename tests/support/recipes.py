"""A recipe that fits the pico model, with everything that it names beside it."""

from __future__ import annotations

from pathlib import Path

import pico
import stages

TEXT = """
base: base
diff: diff
out: out
quantize: {group_size: 32, calibration: [chat.jsonl], samples: 4, sequence_length: 64}
validate:
  text: [prose.txt]
  sequence_length: 32
  gate: {perplexity_ratio: {max: 2.0}, kl_mean: {max: 2.0}, top1_agreement: null}
publish: {license: mit}
"""


def write_recipe(place: Path, text: str = TEXT) -> Path:
    """The recipe's file in a folder that exists."""
    base = pico.write_model(place / "base")
    tuned = pico.write_tuned(place / "tuned", base)
    stages.make_diff(base, tuned, place / "diff")
    pico.write_chat(place / "chat.jsonl")
    pico.write_text(place / "prose.txt")
    (place / "recipe.yaml").write_text(text, encoding="utf-8")
    return place / "recipe.yaml"
