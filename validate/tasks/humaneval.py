"""Loads and scores HumanEval: 164 functions to complete, 20 completions per function.

Completions run in a sandbox only.

Source: Chen et al., arXiv:2107.03374; prompts as in allenai/open-instruct e44fcf588,
eval/codex_humaneval/run_eval.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from camelpress.validate.sandbox.execution import find_sandbox, run_programs
from camelpress.validate.sandbox.pass_at_k import pass_at_k
from camelpress.validate.sandbox.program_check import Program
from camelpress.validate.sandbox.program_limits import ProgramLimits
from camelpress.validate.tasks import task_data

LIMITS = ProgramLimits()
FILE = "codex_humaneval/HumanEval.jsonl.gz"
HUB = task_data.HubDataset("openai/openai_humaneval", "openai_humaneval", "test")
KEYS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")


def load_humaneval(*, data_dir: str | None = None, **_: Any) -> task_data.Splits:
    """Loads all problems in file order; prompts stay raw, without a chat format.

    Returns:
        The split `test`, one row per problem.
    Raises:
        DataProblem: The file is missing, or a row is malformed.
    """
    rows = []
    for place, row in task_data.read_task_rows(FILE, data_dir, HUB):
        task, prompt, name, solution, test = (
            task_data.read_field(row, key, str, place) for key in KEYS
        )
        rows.append(
            {
                "id": task,
                "part": "",
                "prompt": prompt,
                "target": solution,
                "entry_point": name,
                "test": test,
            }
        )
    return task_data.make_test_split(rows, FILE)


def require_sandbox() -> None:
    """Checks for a working sandbox before any model answers.

    Raises:
        ToolProblem: No sandbox works on this machine.
    """
    find_sandbox(LIMITS)


def pass_at_1(doc: Mapping[str, Any], results: Sequence[Sequence[str]]) -> dict[str, float]:
    """Returns the share of completions with a passed test.

    Args:
        doc: a row of `load_humaneval`.
        results: a list with one entry, the completions of the problem.
    Raises:
        ToolProblem: No sandbox works on this machine.
    """
    return {"pass@1": _pass_at(1, doc, *results)}


def pass_at_10(doc: Mapping[str, Any], results: Sequence[Sequence[str]]) -> dict[str, float]:
    """Estimates the probability of a passed test among ten completions, like `pass_at_1`."""
    return {"pass@10": _pass_at(10, doc, *results)}


def _pass_at(k: int, doc: Mapping[str, Any], completions: Sequence[str]) -> float:
    programs = [
        Program(doc["id"], doc["prompt"], completion, doc["entry_point"], doc["test"])
        for completion in completions
    ]
    passed = sum(result.passed for result in run_programs(programs, LIMITS))
    return pass_at_k(len(programs), passed, k)
