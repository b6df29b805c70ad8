"""MMLU: 57 subjects, four choices, answered by the likeliest letter.

Source: Hendrycks et al., arXiv:2009.03300; prompts as in allenai/open-instruct e44fcf588,
eval/mmlu/run_eval.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from camelpress.core.errors import DataProblem
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.validate.tasks import task_data
from camelpress.validate.tasks.tulu_prompt import format_tulu_prompt

LETTERS = "ABCD"
LEAD_IN = "The answer is:"
CSV_FIELDS = 6  # question, four choices, letter
MAX_PROMPT_TOKENS = 2048  # tokens that a prompt may have before examples are left out
TOKEN_COUNT_MARGIN = (
    64  # from where on tokens are counted in the whole prompt and no longer piece by piece
)
# What pandas of version 2 reads as a missing value, which then was printed as "nan".
PANDAS_MISSING = frozenset(
    "#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan"
    "|null|".split("|")
)


class MmluQuestion(NamedTuple):
    """One record."""

    text: str
    choices: list[str]
    letter: str

    def __str__(self) -> str:
        lines = [
            f"{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices, strict=True)
        ]
        return "\n".join([self.text, *lines, "Answer:"])

    @property
    def as_example(self) -> str:
        """The question with its answer, as an example."""
        return f"{self} {self.letter}\n\n"


def load_mmlu(
    *,
    shots: int,
    missing_is_nan: bool,
    count_chat_format: bool,
    data_dir: str | None = None,
    tokenizer: str | None = None,
    pretrained: str | None = None,
    **_: Any,
) -> task_data.Splits:
    """All questions of all subjects, in the order of the subjects' names.

    Args:
        shots: solved examples before each question.
        missing_is_nan: choices such as "None" become "nan".
        count_chat_format: the chat format counts among the tokens that a prompt may have.
        data_dir: folder of the data.
        tokenizer, pretrained: folder of the model's tokenizer; needed where there are examples.
    Raises:
        DataProblem: a file is missing, or a record is not what it should be.
    """
    counter = task_data.load_task_tokenizer(tokenizer, pretrained) if shots else None
    asked_for = _by_subject("test", data_dir, missing_is_nan)
    solved = _by_subject("dev", data_dir, missing_is_nan) if shots else {}
    rows = []
    for subject, found in asked_for.items():
        if shots and len(solved.get(subject, [])) < shots:
            raise DataProblem(
                f"mmlu/dev has fewer than {shots} examples of {subject}",
                next_step=task_data.REPAIR_STEP,
            )
        examples = solved.get(subject, [])[:shots]
        opening = _FewShotPrompt(subject, examples, counter, count_chat_format=count_chat_format)
        for number, question in enumerate(found):
            rows.append(
                {
                    "id": f"{subject}/{number}",
                    "part": subject,
                    "prompt": format_tulu_prompt(opening.build(question), LEAD_IN),
                    "answer": LETTERS.index(question.letter),
                }
            )
    return task_data.make_test_split(rows, "mmlu/test")


def _by_subject(
    split: str, data_dir: str | None, missing_is_nan: bool
) -> dict[str, list[MmluQuestion]]:
    """The questions of a split, subjects by name."""
    found: dict[str, list[MmluQuestion]] = {}
    if task_data.data_folder(data_dir) is None:
        for place, row in task_data.read_hub_rows(task_data.HubDataset("cais/mmlu", "all", split)):
            record = [task_data.read_field(row, "question", str, place)]
            record += [str(each) for each in task_data.read_field(row, "choices", list, place)]
            record += LETTERS[task_data.read_field(row, "answer", int, place)]
            question = _question(place, record, missing_is_nan=missing_is_nan)
            found.setdefault(task_data.read_field(row, "subject", str, place), []).append(question)
        return dict(sorted(found.items()))
    for path in sorted(task_data.find_data_file(f"mmlu/{split}", data_dir).glob(f"*_{split}.csv")):
        subject = path.name.removesuffix(f"_{split}.csv")
        found[subject] = [*read_mmlu_questions(path, missing_is_nan=missing_is_nan)]
    return found


def read_mmlu_questions(path: Path, *, missing_is_nan: bool) -> Iterator[MmluQuestion]:
    """The records of a file.

    Raises:
        DataProblem: a record has too few fields, or its answer is no letter from A to D.
    """
    for place, record in task_data.read_csv_rows(path, CSV_FIELDS):
        yield _question(place, record, missing_is_nan=missing_is_nan)


def _question(place: str, record: list[str], *, missing_is_nan: bool) -> MmluQuestion:
    text, *choices, letter = record
    if letter not in LETTERS or len(letter) != 1:
        raise DataProblem(f"{place} answers {letter!r}", next_step=task_data.REPAIR_STEP)
    if missing_is_nan:
        text, *choices = ("nan" if each in PANDAS_MISSING else each for each in (text, *choices))
    return MmluQuestion(text, choices, letter)


class _FewShotPrompt:
    """What stands before a question: the subject, and as many examples as there is room for."""

    def __init__(
        self,
        subject: str,
        examples: Sequence[MmluQuestion],
        counter: Tokenizer | None,
        *,
        count_chat_format: bool,
    ) -> None:
        words = subject.replace("_", " ")
        self._header = (
            f"The following are multiple choice questions (with answers) about  {words}.\n\n"
        )
        self._solved = [example.as_example for example in examples]
        self._counter = counter
        self._whole = count_chat_format
        self._tokens = self._count(self._with(len(examples), ""))

    def build(self, question: MmluQuestion) -> str:
        """The whole prompt, without the chat format."""
        asked_for = str(question)
        shots = len(self._solved)
        if self._tokens + self._count(asked_for) > MAX_PROMPT_TOKENS - TOKEN_COUNT_MARGIN:
            while (
                shots
                and self._count(self._counted(self._with(shots, asked_for))) > MAX_PROMPT_TOKENS
            ):
                shots -= 1
        return self._with(shots, asked_for).strip()

    def _with(self, shots: int, question: str) -> str:
        return self._header + "".join(self._solved[:shots]) + question

    def _counted(self, prompt: str) -> str:
        return format_tulu_prompt(prompt.strip(), LEAD_IN) if self._whole else prompt

    def _count(self, text: str) -> int:
        return len(self._counter.encode_template_text(text)) if self._counter else 0
