"""Loads AlpacaFarm: 805 instructions with the outputs of text-davinci-003, for a judge.

Source: Dubois et al., arXiv:2305.14387; prompts as in allenai/open-instruct e44fcf588,
eval/alpaca_farm_eval.py; outputs from its fork hamishivi/alpaca_farm a1475b3bf (greedy, up to
2,048 tokens; CC BY-NC 4.0).
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
    """Loads all instructions in file order; the target is the output of text-davinci-003.

    An input is stripped and joined to its stripped instruction by a blank line. An instruction
    without input stays unstripped.

    Args:
        blank_lines: keep blank lines around instructions without input and around outputs; 706 of
            the 805 outputs begin with two line ends.
        data_dir: folder of the data.
    Returns:
        The split `test`, one row per instruction.
    Raises:
        DataProblem: The file is missing, or a row is malformed.
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
    """Returns the length of the completion in characters, the only score without a judge."""
    return {"characters": float(len(results[0]))}


def _join_input(row: task_data.TaskRow, place: str) -> str:
    instruction = task_data.read_field(row, "instruction", str, place)
    input_text = task_data.read_field(row, "input", str, place) if "input" in row else ""
    return f"{instruction.strip()}\n\n{input_text.strip()}" if input_text else instruction
