"""A base that is not the one the diff was made from."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors.torch import load_file

import damage
import pico
import stages
from camelpress.core.errors import NumericsProblem
from refusal import refusal

SHARE = r"only (\d+\.\d)% of base \+ diff are (bfloat16|float16) numbers"
FLOAT32 = "--check off --dtype float32 if the tuned model is float32"


def test_an_unrelated_base_is_refused(diff: Path, tmp_path: Path, out: Path) -> None:
    other = pico.write_model(tmp_path / "other", seed=5)
    with refusal(
        NumericsProblem,
        re.compile(f"{re.escape(f'{other} is not the base of {diff}')}: {SHARE}"),
        next_step=f"give the exact base of this diff; {FLOAT32}",
        out=out,
    ):
        stages.recover(other, diff, out)


def test_a_base_that_was_rounded_to_bfloat16_is_refused(
    base: Path, diff: Path, tmp_path: Path, out: Path
) -> None:
    tensors = load_file(base / "model.safetensors")
    rounded = damage.with_tensors(
        base, tmp_path / "rounded", {name: tensor.bfloat16() for name, tensor in tensors.items()}
    )
    with refusal(
        NumericsProblem,
        re.compile(
            f"{re.escape(str(rounded))} was rounded to bfloat16, which all of its values fit, or "
            f"is not the base of {re.escape(str(diff))}: {SHARE}"
        ),
        next_step=f"take the exact base, LLaMA-1 in its original float16; {FLOAT32}",
        out=out,
    ):
        stages.recover(rounded, diff, out)


def test_one_layer_of_another_base_is_noticed(
    base: Path, diff: Path, tmp_path: Path, out: Path
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    other = load_file(pico.write_model(tmp_path / "other", seed=5) / "model.safetensors")
    patched = damage.with_tensors(base, tmp_path / "patched", {name: other[name]})
    with refusal(
        NumericsProblem,
        re.compile(f"{re.escape(f'{patched} is not the base of {diff}')}: {SHARE}"),
        next_step=f"give the exact base of this diff; {FLOAT32}",
        out=out,
    ):
        stages.recover(patched, diff, out)
