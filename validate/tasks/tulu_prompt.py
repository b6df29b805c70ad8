r"""Formats a question in Tulu's chat format, with a lead-in as the start of the answer.

The result is text; lm-evaluation-harness encodes it without BOS, like the evaluation of mid-2023.

`core/text/tulu_format.py` holds the same format as token ids.

Source: allenai/open-instruct e44fcf588, eval/*/run_eval.py with --use_chat_format.
"""

from __future__ import annotations


def format_tulu_prompt(question: str, lead_in: str) -> str:
    r"""Returns `<|user|>\n{question}\n<|assistant|>\n{lead_in}`."""
    return f"<|user|>\n{question}\n<|assistant|>\n{lead_in}"
