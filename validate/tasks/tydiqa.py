"""Loads and scores TyDiQA: 100 questions per language, nine languages, open or closed book.

Source: Clark et al., arXiv:2003.05002 (gold passage, v1.1); prompts and scoring as in
allenai/open-instruct e44fcf588, eval/tydiqa/run_eval.py.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from camelpress.core.errors import DataProblem
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.validate.tasks import answer_match, task_data
from camelpress.validate.tasks.tulu_prompt import format_tulu_prompt

SEED, ITEMS_PER_LANGUAGE = 42, 100  # questions drawn per language
MAX_PASSAGE_TOKENS = 512  # tokens of a passage
TEST, TRAIN = (f"tydiqa/tydiqa-goldp-v1.1-{part}.json" for part in ("dev", "train"))
HUB = {
    TEST: task_data.HubDataset("google-research-datasets/tydiqa", "secondary_task", "validation"),
    TRAIN: task_data.HubDataset("google-research-datasets/tydiqa", "secondary_task", "train"),
}
PromptWords = Mapping[str, str]


class TydiqaQuestion(NamedTuple):
    """A question with its passage and the right answers."""

    id: str
    language: str
    passage: str
    text: str
    golds: list[str]


def load_tydiqa(
    *,
    passage: bool,
    bos_in_passage: bool,
    data_dir: str | None = None,
    tokenizer: str | None = None,
    pretrained: str | None = None,
    **_: Any,
) -> task_data.Splits:
    """Loads 100 questions per language, sorted by language, each with one example.

    Args:
        passage: show the passage with the answer.
        bos_in_passage: a truncated passage begins with the text of BOS, counted as a token.
        data_dir: folder of the data.
        tokenizer, pretrained: folder of the model's tokenizer; required for passages.
    Returns:
        The split `test`, one row per question.
    Raises:
        DataProblem: A file is missing or malformed, or has another language.
    """
    words: dict[str, PromptWords] = json.loads(
        resources.files(__package__).joinpath("tydiqa_words.json").read_text(encoding="utf-8")
    )
    test_questions, train_questions = (
        _by_language(name, data_dir, words) for name in (TEST, TRAIN)
    )
    truncate = None
    if passage:
        truncate = _passage_truncator(
            task_data.load_task_tokenizer(tokenizer, pretrained), bos=bos_in_passage
        )
    rng = random.Random(SEED)
    sample_by_language = {
        language: rng.sample(questions, ITEMS_PER_LANGUAGE)
        if len(questions) > ITEMS_PER_LANGUAGE
        else questions
        for language, questions in sorted(test_questions.items())
    }
    rows = []
    for language, questions in sample_by_language.items():
        if not train_questions.get(language):
            raise DataProblem(
                f"{TRAIN} has no example in {language}", next_step="download it again"
            )
        (example,) = rng.sample(train_questions[language], 1)
        prompt_words = words[language]
        example_text = _format_question(example, prompt_words, truncate)
        example_answer = f"{prompt_words['answer']} {example.golds[0]}"
        instruction = prompt_words["with_passage" if passage else "closed_book"]
        few_shot = f"{instruction}\n\n{example_text}\n{example_answer}\n\n"
        rows += [
            {
                "id": question.id,
                "part": language,
                "prompt": format_tulu_prompt(
                    (few_shot + _format_question(question, prompt_words, truncate)).strip(),
                    prompt_words["answer"],
                ),
                "target": question.golds,
            }
            for question in questions
        ]
    return task_data.make_test_split(rows, TEST)


def score_tydiqa(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Scores word-overlap F1 with the best right answer, and exact match."""
    answer = results[0].strip()
    return {
        "f1": answer_match.f1_score(answer, doc["target"]),
        "exact_match": float(
            answer_match.normalized_words(answer)
            in [answer_match.normalized_words(gold) for gold in doc["target"]]
        ),
    }


def _passage_truncator(tokenizer: Tokenizer, *, bos: bool) -> Callable[[str], str]:
    """Returns a function to truncate passages to `MAX_PASSAGE_TOKENS` tokens."""
    encode = tokenizer.encode_document if bos else tokenizer.encode_template_text

    def truncate(passage: str) -> str:
        ids = encode(passage)
        return (
            tokenizer.decode(ids[:MAX_PASSAGE_TOKENS]) if len(ids) > MAX_PASSAGE_TOKENS else passage
        )

    return truncate


def _format_question(
    question: TydiqaQuestion, words: PromptWords, truncate: Callable[[str], str] | None
) -> str:
    line = f"{words['question']} {question.text}"
    return f"{words['passage']} {truncate(question.passage)}\n{line}" if truncate else line


def _by_language(
    name: str, data_dir: str | None, words: Mapping[str, PromptWords]
) -> dict[str, list[TydiqaQuestion]]:
    questions: dict[str, list[TydiqaQuestion]] = {}
    from_hub = task_data.data_folder(data_dir) is None
    for question in (
        _read_hub_questions(HUB[name])
        if from_hub
        else _read_file_questions(task_data.find_data_file(name, data_dir))
    ):
        if question.language not in words:
            raise DataProblem(
                f"{name} has {question.id!r}, whose language is none of {', '.join(words)}",
                next_step="give the gold-passage files of version 1.1",
            )
        questions.setdefault(question.language, []).append(question)
    return questions


def _read_hub_questions(hub: task_data.HubDataset) -> list[TydiqaQuestion]:
    """Reads all questions of a split on the Hub; answers are lists of texts."""
    questions = []
    for place, row in task_data.read_hub_rows(hub):
        question_id, context, text = (
            task_data.read_field(row, key, str, place) for key in ("id", "context", "question")
        )
        answers = task_data.read_field(row, "answers", dict, place)
        golds = [str(gold) for gold in task_data.read_field(answers, "text", list, place)]
        questions.append(
            TydiqaQuestion(question_id, question_id.split("-")[0], context, text, golds)
        )
    return questions


def _read_file_questions(path: Path) -> list[TydiqaQuestion]:
    """Reads all questions of a file in SQuAD v1.1 format."""
    questions = []
    articles = task_data.read_field(task_data.read_json_object(path), "data", list, str(path))
    for index, article in enumerate(articles):
        place = f"{path}, article {index}"
        for paragraph in task_data.read_field(
            task_data.require_type(article, dict, place), "paragraphs", list, place
        ):
            context = task_data.read_field(
                task_data.require_type(paragraph, dict, place), "context", str, place
            )
            for entry in task_data.read_field(paragraph, "qas", list, place):
                row = task_data.require_type(entry, dict, place)
                question_id = task_data.read_field(row, "id", str, place)
                question_place = f"{place}, {question_id}"
                answers = task_data.read_field(row, "answers", list, question_place)
                golds = [
                    task_data.read_field(
                        task_data.require_type(answer, dict, question_place),
                        "text",
                        str,
                        question_place,
                    )
                    for answer in answers
                ]
                if not golds:
                    raise DataProblem(
                        f"{question_place} has no answer", next_step=task_data.REPAIR_STEP
                    )
                text = task_data.read_field(row, "question", str, question_place)
                questions.append(
                    TydiqaQuestion(question_id, question_id.split("-")[0], context, text, golds)
                )
    return questions
