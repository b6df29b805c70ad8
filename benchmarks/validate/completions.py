"""Completions beside transformers' own `generate`, in turns:

    python -m benchmarks.validate.completions .models/SmolLM2-135M-Instruct --items 64 --tokens 64

Both complete the same prompts of `--task`, the first items of one shuffle, with so many likeliest
tokens each and without stops, in fp32: ours with its rows side by side and what they begin with
read once, `generate` in batches filled up on the left. Prints tokens a second, reading included but
not loading, and the share of completions that are equal. Needs CAMELPRESS_DATA and
`camelpress[tasks]`.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.tables import spread, table
from benchmarks.validate.mmlu import asked
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.inference.generation.decoder import StreamedDecoder
from camelpress.inference.generation.decoding_loop import generate_batch
from camelpress.inference.generation.generator import MAX_BATCH_ROWS
from camelpress.inference.generation.sampling import SamplingParams, TokenPrompt
from camelpress.inference.model.streamed_model import StreamedModel

ANY = 2**31
Completes = Callable[[], list[str]]


def ours(folder: Path, prompts: list[list[int]], tokens: int) -> Completes:
    """All rows side by side."""
    checkpoint, tokenizer = Checkpoint.open(folder), Tokenizer.load(folder)
    model = StreamedModel(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    speaker = StreamedDecoder(model, "model", in_memory=True)
    decoding = SamplingParams(stop=(), max_tokens=tokens, temperature=0.0, top_p=1.0)

    def run() -> list[str]:
        found = generate_batch(
            speaker,
            [TokenPrompt(ids, "") for ids in prompts],
            decoding,
            tokenizer,
            ends=frozenset(),
            positions=ANY,
            rows=MAX_BATCH_ROWS,
            tokens=ANY,
        )
        return [each.text for each in sorted(found)]

    return run


def theirs(folder: Path, prompts: list[list[int]], tokens: int, batch: int) -> Completes:
    """Batch by batch, prompts of a length together."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    words = Tokenizer.load(folder).decode_text
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))

    def run() -> list[str]:
        texts: dict[int, str] = {}
        for at in range(0, len(order), batch):
            places = order[at : at + batch]
            longest = max(len(prompts[place]) for place in places)
            empty = [longest - len(prompts[place]) for place in places]
            ids = [[0] * left + prompts[place] for left, place in zip(empty, places, strict=True)]
            mask = [[0] * left + [1] * (longest - left) for left in empty]
            with torch.inference_mode():
                found = model.generate(
                    torch.tensor(ids),
                    attention_mask=torch.tensor(mask),
                    do_sample=False,
                    max_new_tokens=tokens,
                    pad_token_id=0,
                )
            for place, row in zip(places, found.tolist(), strict=True):
                before = prompts[place][-1:]
                said = words([*before, *row[longest:]])
                texts[place] = said[len(words(before)) :]
        return [texts[place] for place in range(len(prompts))]

    return run


def main() -> int:
    """Print the comparison as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--task", default="tulu_gsm_cot")
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    encode = Tokenizer.load(given.model).encode_template_text
    prompts = [encode(each.args[0]) for each in asked(given.model, given.task, given.items)]
    everyone = {
        "camelpress": ours(given.model, prompts, given.tokens),
        f"generate, batches of {given.batch}": theirs(
            given.model, prompts, given.tokens, given.batch
        ),
    }
    rates: dict[str, list[float]] = {name: [] for name in everyone}
    texts: dict[str, list[str]] = {}
    chance = random.Random(0)
    for _ in range(given.rounds):
        for name in chance.sample([*everyone], len(everyone)):
            begun = time.monotonic()
            texts[name] = everyone[name]()
            rates[name].append(len(prompts) * given.tokens / (time.monotonic() - begun))
    first, second = texts.values()
    same = sum(one == two for one, two in zip(first, second, strict=True)) / len(prompts)
    rows = [[name, spread(found)] for name, found in rates.items()]
    print(table(["", "tokens a second"], rows))
    print(f"\n{same:.1%} of {len(prompts)} completions are equal; rounds: {given.rounds}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
