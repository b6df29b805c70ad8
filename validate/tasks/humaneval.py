"""HumanEval, which OpenAI's Codex was made known with: 164 functions to complete, 20 tries each.

What is generated runs in a sandbox, or not at all.

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
    """All problems in the order of the file; the prompt is the raw one, without a chat format.

    Raises:
        DataProblem: the file is missing, or a row is not what it should be.
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
    """See that programs can be run, before any is written.

    Raises:
        EngineProblem: there is no sandbox to run them in.
    """
    find_sandbox(LIMITS)


def pass_at_1(doc: Mapping[str, Any], results: Sequence[Sequence[str]]) -> dict[str, float]:
    """The share of the completions that pass the problem's test.

    Args:
        doc: a row of `dataset`.
        results: the completions, as the only entry.
    Raises:
        EngineProblem: there is no sandbox to run the programs in.
    """
    return {"pass@1": _pass_at(1, doc, *results)}


def pass_at_10(doc: Mapping[str, Any], results: Sequence[Sequence[str]]) -> dict[str, float]:
    """The chance that one of ten completions passes, as `pass_at_1`."""
    return {"pass@10": _pass_at(10, doc, *results)}


def _pass_at(k: int, doc: Mapping[str, Any], completions: Sequence[str]) -> float:
    programs = [
        Program(doc["id"], doc["prompt"], each, doc["entry_point"], doc["test"])
        for each in completions
    ]
    passed = sum(verdict.passed for verdict in run_programs(programs, LIMITS))
    return pass_at_k(len(programs), passed, k)
