"""How Tulu's training wrote an instruction, and its input where there is one, as a user's message.

Training drew one of 14 templates per example. A message loses the blanks around it before it is
encoded, so templates that differ only there are one row here, with the sum of their shares; that
also drops a newline at the start of some answers. "Plase" stands in the original.

Source: allenai/open-instruct e44fcf588, open_instruct/instruction_encode_templates.py. Ours
differs: which template an example gets comes from a hash of the example, not from a stream of
random numbers that depends on all examples before it. The shares are the same, and an example is
written alike whatever stands beside it.
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
TEMPLATES_WITH_INPUT = (  # share in percent, text
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
TEMPLATES_WITHOUT_INPUT = (
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


def format_instruction(instruction: str, given: str) -> str:
    """The user's message for an instruction and its input, which counts as none where blank."""
    instruction, given = instruction.strip(), given.strip()
    template = _draw_template(
        TEMPLATES_WITH_INPUT if given else TEMPLATES_WITHOUT_INPUT, instruction, given
    )
    return template.format(instruction=instruction, input=given)


def format_few_shot(instruction: str, examples: Sequence[Mapping[str, str]], given: str) -> str:
    """The same after examples, each an `input` and an `output`; there is one such template."""
    shown = [
        f"Input:\n{each['input'].strip()}\nOutput:\n{each['output'].strip()}" for each in examples
    ]
    return "\n\n".join([instruction.strip(), *shown, f"Input:\n{given.strip()}\nOutput:"])


def stable_seed(*parts: str) -> int:
    """A number below 2^64 that texts have for good, as evenly spread as a drawn one."""
    content = "\0".join(parts).encode("utf-8", errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())


def _draw_template(templates: Sequence[tuple[int, str]], *parts: str) -> str:
    draw = random.Random(stable_seed(*parts))  # noqa: S311 - a draw, not a secret
    shares, texts = zip(*templates, strict=True)
    drawn: str = draw.choices(texts, shares)[0]
    return drawn
