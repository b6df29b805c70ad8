"""BIG-Bench-Hard: 27 tasks, 40 items of each, with three examples.

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
SEED, ITEMS_PER_TASK = 42, 40  # of each task
PREAMBLE = 2  # lines before the prompt: a warning not to train on this, and dashes
CONCLUSION = "So the answer is"
ANSWER = re.compile(r"So the answer is (.*?)\.")


def load_bbh(
    *, chain: bool, one_stream: bool, data_dir: str | None = None, **_: Any
) -> task_data.Splits:
    """40 items of each task, tasks by name, items in the order they were drawn.

    Args:
        chain: examples with a chain of thought.
        one_stream: one stream of random numbers serves all tasks, so that which items a task has
            depends on the tasks before it; else each has its own.
        data_dir: folder of the data.
    Raises:
        DataProblem: a file is missing, has too few items, or is not what it should be.
    """
    folder = task_data.find_data_file("bbh/bbh", data_dir)
    stream = random.Random(SEED)
    rows = []
    for path in sorted(folder.glob("*.json")):
        task = path.stem
        opening = _few_shot_prompt(
            task_data.find_data_file(f"bbh/cot-prompts/{task}.txt", data_dir), chain
        )
        items = _items(path)
        if len(items) < ITEMS_PER_TASK:
            raise DataProblem(
                f"{path} has {len(items)} items, of which {ITEMS_PER_TASK} are to be drawn",
                next_step="download it again",
            )
        draw = stream if one_stream else random.Random(f"{SEED} {task}")
        for number in draw.sample(range(len(items)), ITEMS_PER_TASK):
            question, target = items[number]
            rows.append(
                {
                    "id": f"{task}/{number}",
                    "part": task,
                    "prompt": format_tulu_prompt(f"{opening}\n\nQ: {question}", LEAD_IN),
                    "target": target,
                }
            )
    return task_data.make_test_split(rows, str(folder))


def extract_answer(completion: str) -> str:
    """What a completion says: after the first conclusion of its first paragraph, else all of it."""
    paragraph = completion.strip().split("\n\n")[0].strip()
    found = ANSWER.search(paragraph)
    return found[1].strip() if found else paragraph


def score_bbh(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the answer is the right one, case and punctuation aside."""
    return {
        "exact_match": float(answer_match.is_same_text(extract_answer(results[0]), doc["target"]))
    }


def score_bbh_strict(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The same, but signs of numbers count, and brackets where the answer is made of them."""
    return {
        "exact_match": float(answer_match.is_same_answer(extract_answer(results[0]), doc["target"]))
    }


def _items(path: Path) -> list[tuple[str, str]]:
    found = task_data.read_field(task_data.read_json_object(path), "examples", list, str(path))
    places = (f"{path}, example {number}" for number in range(len(found)))
    rows = [
        (task_data.require_type(row, dict, place), place)
        for row, place in zip(found, places, strict=True)
    ]
    return [
        (
            task_data.read_field(row, "input", str, place),
            task_data.read_field(row, "target", str, place),
        )
        for row, place in rows
    ]


def _few_shot_prompt(path: Path, chain: bool) -> str:
    """Description of the task and examples."""
    text = "\n".join(task_data.read_task_text(path).split("\n")[PREAMBLE:])
    fields = text.strip().split("\n\n")
    return "\n\n".join(
        fields if chain else [_drop_chain_of_thought(field, path) for field in fields]
    )


def _drop_chain_of_thought(field: str, path: Path) -> str:
    """An example without its chain of thought."""
    if not field.startswith("Q:"):
        return field
    question, mark, chain = field.partition("\nA:")
    if not (mark and CONCLUSION in chain):
        raise DataProblem(
            f"{path} has an example that does not end in {CONCLUSION!r}",
            next_step=task_data.REPAIR_STEP,
        )
    return f"{question.strip()}\nA: {chain.split(CONCLUSION)[-1].strip()}"
