"""Loads and scores BIG-Bench-Hard: 27 tasks, 40 items per task, three examples.

Source: Suzgun et al., arXiv:2210.09261; prompts and scoring as in allenai/open-instruct e44fcf588,
eval/bbh/run_eval.py.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from camelpress.core.errors import DataProblem
from camelpress.validate.tasks import answer_match, task_data
from camelpress.validate.tasks.tulu_prompt import format_tulu_prompt

LEAD_IN = "A:"
SEED, ITEMS_PER_TASK = 42, 40  # items drawn per task
PREAMBLE = 2  # lines before the prompt: a canary warning and dashes
CONCLUSION = "So the answer is"
ANSWER = re.compile(r"So the answer is (.*?)\.")


def load_bbh(
    *, chain: bool, one_stream: bool, data_dir: str | None = None, **_: Any
) -> task_data.Splits:
    """Loads 40 items of each task, sorted by task name, items in draw order.

    Args:
        chain: few-shot examples have a chain of thought.
        one_stream: all tasks share one random stream, so the items of a task depend on the tasks
            before it; otherwise each task has a separate stream.
        data_dir: folder of the data.
    Returns:
        The split `test`, one row per item.
    Raises:
        DataProblem: A file is missing, malformed, or has too few items.
    """
    folder = task_data.find_data_file("bbh/bbh", data_dir)
    shared_rng = random.Random(SEED)
    rows = []
    for path in sorted(folder.glob("*.json")):
        task = path.stem
        few_shot = _few_shot_prompt(
            task_data.find_data_file(f"bbh/cot-prompts/{task}.txt", data_dir), chain
        )
        items = _items(path)
        if len(items) < ITEMS_PER_TASK:
            raise DataProblem(
                f"{path} has {len(items)} items, fewer than the {ITEMS_PER_TASK} to draw",
                next_step="download it again",
            )
        rng = shared_rng if one_stream else random.Random(f"{SEED} {task}")
        for number in rng.sample(range(len(items)), ITEMS_PER_TASK):
            question, target = items[number]
            rows.append(
                {
                    "id": f"{task}/{number}",
                    "part": task,
                    "prompt": format_tulu_prompt(f"{few_shot}\n\nQ: {question}", LEAD_IN),
                    "target": target,
                }
            )
    return task_data.make_test_split(rows, str(folder))


def extract_answer(completion: str) -> str:
    """Extracts the answer after "So the answer is"; else returns the whole first paragraph."""
    paragraph = completion.strip().split("\n\n")[0].strip()
    match = ANSWER.search(paragraph)
    return match[1].strip() if match else paragraph


def score_bbh(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Scores 1 for the right answer up to case and punctuation, else 0."""
    return {
        "exact_match": float(answer_match.is_same_text(extract_answer(results[0]), doc["target"]))
    }


def score_bbh_strict(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Scores like `score_bbh`, but counts signs of numbers and punctuation-only answers."""
    return {
        "exact_match": float(answer_match.is_same_answer(extract_answer(results[0]), doc["target"]))
    }


def _items(path: Path) -> list[tuple[str, str]]:
    examples = task_data.read_field(task_data.read_json_object(path), "examples", list, str(path))
    places = (f"{path}, example {number}" for number in range(len(examples)))
    rows = [
        (task_data.require_type(row, dict, place), place)
        for row, place in zip(examples, places, strict=True)
    ]
    return [
        (
            task_data.read_field(row, "input", str, place),
            task_data.read_field(row, "target", str, place),
        )
        for row, place in rows
    ]


def _few_shot_prompt(path: Path, chain: bool) -> str:
    """Reads the task description and the examples."""
    text = "\n".join(task_data.read_task_text(path).split("\n")[PREAMBLE:])
    fields = text.strip().split("\n\n")
    return "\n\n".join(
        fields if chain else [_drop_chain_of_thought(field, path) for field in fields]
    )


def _drop_chain_of_thought(field: str, path: Path) -> str:
    """Removes the chain of thought of an example, keeping the final answer."""
    if not field.startswith("Q:"):
        return field
    question, mark, chain = field.partition("\nA:")
    if not (mark and CONCLUSION in chain):
        raise DataProblem(
            f"{path} has an example that does not end in {CONCLUSION!r}",
            next_step=task_data.REPAIR_STEP,
        )
    return f"{question.strip()}\nA: {chain.split(CONCLUSION)[-1].strip()}"
