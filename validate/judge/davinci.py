"""What AlpacaFarm's outputs are compared with: 805 instructions and text-davinci-003's outputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from camelpress.core.errors import RecipeProblem
from camelpress.core.json import parse_json

SOURCE = (
    "get davinci_003_outputs.json from hamishivi/alpaca_farm, "
    "src/alpaca_farm/auto_annotations/annotators/greedy_gpt4 (CC BY-NC 4.0)"
)


@dataclass(frozen=True)
class Reference:
    """An instruction, its input joined to it, and the output to compare with."""

    instruction: str
    output: str


def read_references(path: Path) -> list[Reference]:
    """The rows of `davinci_003_outputs.json`, or of a file like it.

    An input is joined to its instruction by a blank line, and both are then stripped; an
    instruction without one is taken as it is. Outputs are not touched: 706 of the 805 begin with
    two line ends, five are empty.

    Raises:
        RecipeProblem: the file is missing or no JSON list, or a row is not in that form.
    Source:
        allenai/open-instruct e44fcf588, eval/alpaca_farm_eval.py.
    """
    try:
        rows = parse_json(path.read_bytes())
    except OSError as error:
        raise RecipeProblem(
            f"{path} cannot be read ({error.strerror})", next_step=SOURCE
        ) from error
    except (ValueError, RecursionError) as error:
        raise RecipeProblem(f"{path} is not valid JSON ({error})", next_step=SOURCE) from error
    if not isinstance(rows, list):
        raise RecipeProblem(f"{path} is not a JSON list", next_step=SOURCE)
    return [_reference(f"{path}[{number}]", row) for number, row in enumerate(rows)]


def _reference(place: str, row: object) -> Reference:
    if isinstance(row, dict):
        told = [row.get("instruction"), row.get("input", ""), row.get("output")]
        if all(isinstance(each, str) for each in told):
            instruction, added, output = told
            joined = f"{instruction.strip()}\n\n{added.strip()}" if added else instruction
            return Reference(joined, output)
    raise RecipeProblem(
        f"{place} has no instruction, input and output, each a text",
        next_step="mend or leave out that row",
    )
