"""Compares answers with the right answers of benchmarks."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")
SIGN = re.compile(r"-(?=\d)")
MINUS_WORD = "minus"  # replaces the sign of a number before punctuation is removed


def is_same_text(answer: str, gold: str) -> bool:
    """Returns True for texts equal up to case and ASCII punctuation.

    Source: exact_match of Hugging Face's evaluate with ignore_case and ignore_punctuation.
    """
    return answer.lower().translate(PUNCTUATION) == gold.lower().translate(PUNCTUATION)


def is_same_answer(answer: str, gold: str) -> bool:
    """Compares like `is_same_text`, but keeps signs of numbers and punctuation-only answers."""
    if not gold.translate(PUNCTUATION).strip():
        return answer.split() == gold.split()
    return is_same_text(SIGN.sub(MINUS_WORD, answer), SIGN.sub(MINUS_WORD, gold))


def f1_score(answer: str, golds: Sequence[str]) -> float:
    """Returns the best word-overlap F1 with any right answer, in [0, 1].

    Source: the evaluation script of SQuAD v1.1 (Rajpurkar et al., arXiv:1606.05250).
    """
    return max(_overlap(normalized_words(answer), normalized_words(gold)) for gold in golds)


def normalized_words(text: str) -> list[str]:
    """Returns the lower-case words of a text without ASCII punctuation and English articles."""
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def _overlap(answer: list[str], gold: list[str]) -> float:
    common = (Counter(answer) & Counter(gold)).total()
    if not common:
        return 0.0
    precision, recall = common / len(answer), common / len(gold)
    return 2 * precision * recall / (precision + recall)
