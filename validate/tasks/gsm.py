"""Loads and scores GSM8K: 200 word problems, with or without a chain of thought.

Source: Cobbe et al., arXiv:2110.14168; examples from table 20 of Wei et al., arXiv:2201.11903;
prompts and scoring as in allenai/open-instruct e44fcf588, eval/gsm/run_eval.py.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from camelpress.core.errors import DataProblem
from camelpress.validate.tasks import answer_match, task_data
from camelpress.validate.tasks.tulu_prompt import format_tulu_prompt

LEAD_IN = "Answer:"
SEED, ITEMS = 42, 200
FILE = "gsm/test.jsonl"
HUB = task_data.HubDataset("openai/gsm8k", "main", "test")
THOUSANDS = re.compile(r"(\d),(\d)")
NUMBER = re.compile(r"[-+]?\d*\.\d+|\d+")  # matches signs of decimal numbers only
SIGNED = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)")


def load_gsm(
    *, chain: bool, example_label: str, data_dir: str | None = None, **_: Any
) -> task_data.Splits:
    """Loads the 200 problems in draw order.

    Args:
        chain: few-shot examples have a chain of thought.
        example_label: label before the question of an example.
        data_dir: folder of the data.
    Returns:
        The split `test`, one row per problem.
    Raises:
        DataProblem: The file is missing or has too few rows, or a row is malformed.
    """
    problems = [
        _problem(place, row) for place, row in task_data.read_task_rows(FILE, data_dir, HUB)
    ]
    if len(problems) < ITEMS:
        raise DataProblem(
            f"{FILE} has {len(problems)} rows, fewer than the {ITEMS} to draw",
            next_step="download it again",
        )
    few_shot = "Answer the following questions.\n\n" + "".join(
        f"{example_label} {question}\nAnswer: {answer}\n\n"
        for question, answer in few_shot_examples(chain)
    )
    rows = [
        {
            "id": f"test/{number}",
            "part": "",
            "prompt": format_tulu_prompt(
                f"{few_shot}Question: {problems[number][0].strip()}", LEAD_IN
            ),
            "target": problems[number][1],
        }
        for number in sample_problem_indices(len(problems))
    ]
    return task_data.make_test_split(rows, FILE)


def sample_problem_indices(count: int) -> list[int]:
    """Draws the row indices of the 200 problems, with a fixed seed."""
    return random.Random(SEED).sample(range(count), ITEMS)


def few_shot_examples(chain: bool) -> list[tuple[str, str]]:
    """Returns the eight few-shot examples as pairs of question and answer."""
    text = resources.files(__package__).joinpath("gsm_examples.json").read_text(encoding="utf-8")
    return [
        (
            example["question"],
            f"{example['chain']} So the answer is {example['answer']}."
            if chain
            else example["answer"],
        )
        for example in json.loads(text)
    ]


def score_gsm(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Scores 1 if the last number equals the target as text, else 0."""
    text = _without_commas(results[0])
    numbers = NUMBER.findall(text)
    return {
        "exact_match": float(
            answer_match.is_same_text(numbers[-1] if numbers else text, doc["target"])
        )
    }


def score_gsm_value(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Scores 1 if the last number equals the target in value, else 0."""
    numbers = SIGNED.findall(_without_commas(results[0]))
    return {"exact_match": float(bool(numbers) and float(numbers[-1]) == float(doc["target"]))}


def _problem(place: str, row: task_data.TaskRow) -> tuple[str, str]:
    question = task_data.read_field(row, "question", str, place)
    _, mark, answer = task_data.read_field(row, "answer", str, place).partition("####")
    number = _without_commas(answer.strip())
    if not (mark and SIGNED.fullmatch(number)):
        raise DataProblem(f"{place} has no number after ####", next_step=task_data.REPAIR_STEP)
    return question, number


def _without_commas(text: str) -> str:
    return THOUSANDS.sub(r"\1\2", text)
