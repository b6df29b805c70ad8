"""AlpacaFarm's 805 instructions, and what text-davinci-003 answered: a judge compares.

Source: Dubois et al., arXiv:2305.14387; prompts as in allenai/open-instruct e44fcf588,
eval/alpaca_farm_eval.py; the outputs are those of the fork that it used, hamishivi/alpaca_farm
a1475b3bf (greedy, up to 2,048 tokens; CC BY-NC 4.0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from camelpress.validate.tasks import task_data
from camelpress.validate.tasks.tulu_prompt import format_tulu_prompt

FILE = "alpaca_farm/davinci_003_outputs.json"


def load_alpaca_farm(
    *, blank_lines: bool, data_dir: str | None = None, **_: Any
) -> task_data.Splits:
    """All instructions in the order of the file; the target is what davinci-003 answered.

    An input is joined to its instruction by a blank line, and both are then stripped; an
    instruction without one is taken as it is.

    Args:
        blank_lines: leave them before and after an instruction without input, and around outputs:
            706 of the 805 begin with two line ends.
        data_dir: folder of the data.
    Raises:
        DataProblem: the file is missing, or a row is not what it should be.
    """
    rows = []
    for number, (place, row) in enumerate(
        task_data.read_json_list(task_data.find_data_file(FILE, data_dir))
    ):
        instruction = _join_input(row, place)
        output = task_data.read_field(row, "output", str, place)
        if not blank_lines:
            instruction, output = instruction.strip(), output.strip()
        rows.append(
            {
                "id": f"alpaca_farm/{number}",
                "part": "",
                "instruction": instruction,
                "prompt": format_tulu_prompt(instruction, ""),
                "target": output,
            }
        )
    return task_data.make_test_split(rows, FILE)


def count_characters(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Characters of the completion: all that can be told of it without a judge."""
    return {"characters": float(len(results[0]))}


def _join_input(row: task_data.TaskRow, place: str) -> str:
    instruction = task_data.read_field(row, "instruction", str, place)
    added = task_data.read_field(row, "input", str, place) if "input" in row else ""
    return f"{instruction.strip()}\n\n{added.strip()}" if added else instruction
