"""auto-round: its light recipe (50 steps for each block), saved in the GPTQ layout.

It tunes the rounding by gradients where GPTQ solves for it.
"""

from __future__ import annotations

import torch
from auto_round import AutoRound
from transformers import AutoModelForCausalLM, AutoTokenizer

from camelpress.quantize.backends.drivers import backend_job

LIGHT = {"iters": 50, "lr": 5e-3, "batch_size": 8}


def main() -> None:
    """Quantize."""
    given = backend_job.read_job()
    rounding = AutoRound(
        AutoModelForCausalLM.from_pretrained(given.model, dtype=given.dtype),
        tokenizer=AutoTokenizer.from_pretrained(given.model),
        scheme="W4A16",
        bits=given.bits,
        group_size=given.group_size,
        sym=given.sym,
        dataset=[torch.tensor([ids]) for ids in given.tokens],
        nsamples=len(given.tokens),
        seqlen=given.max_length,
        device_map="cpu",
        **LIGHT,
    )
    rounding.quantize_and_save(given.out, format="auto_gptq")


if __name__ == "__main__":
    main()
