r"""A question in Tulu's format, with the beginning of the answer put into the model's mouth.

Text, not ids: lm-evaluation-harness encodes it, without BOS, as the evaluation of mid-2023 did.

Source: allenai/open-instruct e44fcf588, eval/*/run_eval.py with --use_chat_format.
"""

from __future__ import annotations


def format_tulu_prompt(question: str, lead_in: str) -> str:
    r"""`<|user|>\n{question}\n<|assistant|>\n{lead_in}`."""
    return f"<|user|>\n{question}\n<|assistant|>\n{lead_in}"
