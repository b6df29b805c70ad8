"""HumanEval, which OpenAI's Codex was made known with: 164 functions to complete, 20 tries each.

What is generated is never run here: that is a sandbox's business.

Source: Chen et al., arXiv:2107.03374; prompts as in allenai/open-instruct e44fcf588,
eval/codex_humaneval/run_eval.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from camelpress.core.errors import EngineProblem
from camelpress.validate.tasks import source

FILE = "codex_humaneval/HumanEval.jsonl.gz"
HUB = source.Hub("openai/openai_humaneval", "openai_humaneval", "test")
KEYS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")


def dataset(*, data_dir: str | None = None, **_: Any) -> source.Splits:
    """All problems in the order of the file; the prompt is the raw one, without a chat format.

    Raises:
        DataProblem: the file is missing, or a row is not what it should be.
    """
    rows = []
    for place, row in source.rows(FILE, data_dir, HUB):
        task, prompt, name, solution, test = (source.entry(row, key, str, place) for key in KEYS)
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
    return source.table(rows, FILE)


def require_sandbox() -> None:
    """See that programs can be run, before any is written.

    Raises:
        EngineProblem: there is no sandbox to run them in.
    """
    raise EngineProblem(
        "completions are programs, and there is no sandbox to run them in",
        next_step="leave Codex-Eval out",
    )


def score(doc: Mapping[str, Any], results: Sequence[Sequence[str]]) -> dict[str, float]:
    """The unbiased estimates of pass@1 and pass@10.

    Raises:
        EngineProblem: there is no sandbox to run the programs in.
    """
    require_sandbox()
    return {}
