"""Loads MMLU: 57 subjects, four choices per question, scored by the likeliest letter.

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
MAX_PROMPT_TOKENS = 2048  # token limit of a prompt; longer prompts drop examples
TOKEN_COUNT_MARGIN = 64  # tokens below the limit; longer prompts are counted as a whole
# Strings read as missing values by pandas 2 and printed as "nan".
PANDAS_MISSING = frozenset(
    "#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan"
    "|null|".split("|")
)


class MmluQuestion(NamedTuple):
    """One question with its four choices and the right letter."""

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
        """Returns the question with its answer as a few-shot example."""
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
    """Loads all questions, sorted by subject name.

    Args:
        shots: number of examples before each question.
        missing_is_nan: replace choices such as "None" by "nan".
        count_chat_format: count the tokens of the chat format in the prompt length limit.
        data_dir: folder of the data.
        tokenizer, pretrained: folder of the model's tokenizer; required if `shots` > 0.
    Returns:
        The split `test`, one row per question.
    Raises:
        DataProblem: A file is missing, or a record is malformed.
    """
    token_counter = task_data.load_task_tokenizer(tokenizer, pretrained) if shots else None
    test_questions = _by_subject("test", data_dir, missing_is_nan)
    examples_by_subject = _by_subject("dev", data_dir, missing_is_nan) if shots else {}
    rows = []
    for subject, questions in test_questions.items():
        if shots and len(examples_by_subject.get(subject, [])) < shots:
            raise DataProblem(
                f"mmlu/dev has fewer than {shots} examples of {subject}",
                next_step=task_data.REPAIR_STEP,
            )
        examples = examples_by_subject.get(subject, [])[:shots]
        few_shot = _FewShotPrompt(
            subject, examples, token_counter, count_chat_format=count_chat_format
        )
        for number, question in enumerate(questions):
            rows.append(
                {
                    "id": f"{subject}/{number}",
                    "part": subject,
                    "prompt": format_tulu_prompt(few_shot.build(question), LEAD_IN),
                    "answer": LETTERS.index(question.letter),
                }
            )
    return task_data.make_test_split(rows, "mmlu/test")


def _by_subject(
    split: str, data_dir: str | None, missing_is_nan: bool
) -> dict[str, list[MmluQuestion]]:
    """Reads the questions of a split, grouped and sorted by subject."""
    questions: dict[str, list[MmluQuestion]] = {}
    if task_data.data_folder(data_dir) is None:
        for place, row in task_data.read_hub_rows(task_data.HubDataset("cais/mmlu", "all", split)):
            record = [task_data.read_field(row, "question", str, place)]
            record += [str(choice) for choice in task_data.read_field(row, "choices", list, place)]
            record += LETTERS[task_data.read_field(row, "answer", int, place)]
            question = _question(place, record, missing_is_nan=missing_is_nan)
            questions.setdefault(task_data.read_field(row, "subject", str, place), []).append(
                question
            )
        return dict(sorted(questions.items()))
    for path in sorted(task_data.find_data_file(f"mmlu/{split}", data_dir).glob(f"*_{split}.csv")):
        subject = path.name.removesuffix(f"_{split}.csv")
        questions[subject] = [*read_mmlu_questions(path, missing_is_nan=missing_is_nan)]
    return questions


def read_mmlu_questions(path: Path, *, missing_is_nan: bool) -> Iterator[MmluQuestion]:
    """Yields the questions of a CSV file.

    Args:
        path: file of one subject.
        missing_is_nan: replace choices such as "None" by "nan".
    Raises:
        DataProblem: A record has another number of fields, or an answer outside A to D.
    """
    for place, record in task_data.read_csv_rows(path, CSV_FIELDS):
        yield _question(place, record, missing_is_nan=missing_is_nan)


def _question(place: str, record: list[str], *, missing_is_nan: bool) -> MmluQuestion:
    text, *choices, letter = record
    if letter not in LETTERS or len(letter) != 1:
        raise DataProblem(f"{place} answers {letter!r}", next_step=task_data.REPAIR_STEP)
    if missing_is_nan:
        text, *choices = ("nan" if field in PANDAS_MISSING else field for field in (text, *choices))
    return MmluQuestion(text, choices, letter)


class _FewShotPrompt:
    """The text before a question: the subject and as many examples as fit."""

    def __init__(
        self,
        subject: str,
        examples: Sequence[MmluQuestion],
        tokenizer: Tokenizer | None,
        *,
        count_chat_format: bool,
    ) -> None:
        title = subject.replace("_", " ")
        self._header = (
            f"The following are multiple choice questions (with answers) about  {title}.\n\n"
        )
        self._examples = [example.as_example for example in examples]
        self._tokenizer = tokenizer
        self._count_chat_format = count_chat_format
        self._tokens = self._count(self._join(len(examples), ""))

    def build(self, question: MmluQuestion) -> str:
        """Returns the whole prompt without the chat format."""
        text = str(question)
        shots = len(self._examples)
        if self._tokens + self._count(text) > MAX_PROMPT_TOKENS - TOKEN_COUNT_MARGIN:
            while (
                shots and self._count(self._countable(self._join(shots, text))) > MAX_PROMPT_TOKENS
            ):
                shots -= 1
        return self._join(shots, text).strip()

    def _join(self, shots: int, question: str) -> str:
        return self._header + "".join(self._examples[:shots]) + question

    def _countable(self, prompt: str) -> str:
        return format_tulu_prompt(prompt.strip(), LEAD_IN) if self._count_chat_format else prompt

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode_template_text(text)) if self._tokenizer else 0
