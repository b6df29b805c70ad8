"""Formats an instruction and its optional input as a user message, by the templates of Tulu.

Training drew one of 14 templates per example. Messages are stripped of blanks before encoding, so
templates that differ only in blanks are one row here, with the sum of their shares; this also drops
a newline at the start of some answers. "Plase" is a typo of the original.

Source: allenai/open-instruct e44fcf588, open_instruct/instruction_encode_templates.py. This version
picks the template by a hash of the example, not from a random stream that depends on all earlier
examples. The shares are the same, and the form of an example does not depend on other examples.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence

ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
ALPACA_WITHOUT_INPUT = (
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)

# fmt: off
TEMPLATES_WITH_INPUT = (  # share in percent, template
    (20, "{instruction}\n\n{input}"),
    (20, "{instruction}\n{input}"),
    (5,  "{instruction}\n\nInput: {input}\n\nOutput:"),
    (5,  "{instruction}\nInput: {input}\nOutput:"),
    (5,  "{instruction}\n{input}\n\nResponse:"),
    (5,  "{instruction}\n\nAdditional Context:\n{input}\n\nAnswer:"),
    (5,  "Task: {instruction}\nInput: {input}\nOutput:"),
    (5,  "Task: {instruction}\n\n{input}"),
    (5,  "Task: {instruction}\n\n{input}\n\nAnswer:"),
    (5,  "You need to complete the following task:\n\n{instruction}\n\n{input}\n\nAnswer:"),
    (5,  "{instruction}\n\nNow complete the following instance -\nInput: {input}\nOutput:"),
    (5,  "Instruction:{instruction}\n\nInput: {input}"),
    (10, ALPACA),
)
TEMPLATES_WITHOUT_INPUT = (  # share in percent, template
    (40, "{instruction}"),
    (5,  "{instruction} Output:"),
    (5,  "{instruction}\nResponse:"),
    (5,  "{instruction}\n\nAnswer:"),
    (5,  "Task: {instruction}"),
    (5,  "Instruction: {instruction}"),
    (5,  "Instruction: {instruction}\nOutput:"),
    (5,  "You need to complete the following task:\n\n{instruction}"),
    (5,  "Can you help with this?\n\n{instruction}"),
    (5,  "Plase answer the following request: {instruction}\nAnswer:"),
    (5,  "Tell me how would you respond to the following request.\n{instruction}"),
    (10, ALPACA_WITHOUT_INPUT),
)
# fmt: on


def format_instruction(instruction: str, context: str) -> str:
    """Returns the user message for an instruction and its input; a blank input counts as none."""
    instruction, context = instruction.strip(), context.strip()
    template = _draw_template(
        TEMPLATES_WITH_INPUT if context else TEMPLATES_WITHOUT_INPUT, instruction, context
    )
    return template.format(instruction=instruction, input=context)


def format_few_shot(instruction: str, examples: Sequence[Mapping[str, str]], context: str) -> str:
    """Returns the user message for an instruction after examples of `input` and `output`."""
    blocks = [
        f"Input:\n{example['input'].strip()}\nOutput:\n{example['output'].strip()}"
        for example in examples
    ]
    return "\n\n".join([instruction.strip(), *blocks, f"Input:\n{context.strip()}\nOutput:"])


def stable_seed(*parts: str) -> int:
    """Hashes texts to a number below 2^64."""
    content = "\0".join(parts).encode("utf-8", errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())


def _draw_template(templates: Sequence[tuple[int, str]], *parts: str) -> str:
    draw = random.Random(stable_seed(*parts))  # noqa: S311 - a draw, not a secret
    shares, texts = zip(*templates, strict=True)
    template: str = draw.choices(texts, shares)[0]
    return template
