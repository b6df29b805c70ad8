"""TyDiQA: 100 questions in each of nine languages, with or without the passage that answers them.

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

SEED, ITEMS_PER_LANGUAGE = 42, 100  # of each language
MAX_PASSAGE_TOKENS = 512  # of a passage
TEST, TRAIN = (f"tydiqa/tydiqa-goldp-v1.1-{part}.json" for part in ("dev", "train"))
HUB = {
    TEST: task_data.HubDataset("google-research-datasets/tydiqa", "secondary_task", "validation"),
    TRAIN: task_data.HubDataset("google-research-datasets/tydiqa", "secondary_task", "train"),
}
PromptWords = Mapping[str, str]


class TydiqaQuestion(NamedTuple):
    """A question, its passage and the answers that count."""

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
    """100 questions of each language, languages by name, each with an example of its language.

    Args:
        passage: give the passage that holds the answer.
        bos_in_passage: a passage that is cut begins with the text of BOS, which counts as a token.
        data_dir: folder of the data.
        tokenizer, pretrained: folder of the model's tokenizer; needed to cut passages.
    Raises:
        DataProblem: a file is missing, holds another language, or is not what it should be.
    """
    words: dict[str, PromptWords] = json.loads(
        resources.files(__package__).joinpath("tydiqa_words.json").read_text(encoding="utf-8")
    )
    asked_for, known = (_by_language(name, data_dir, words) for name in (TEST, TRAIN))
    cut = None
    if passage:
        cut = _passage_truncator(
            task_data.load_task_tokenizer(tokenizer, pretrained), bos=bos_in_passage
        )
    stream = random.Random(SEED)
    chosen = {
        language: stream.sample(found, ITEMS_PER_LANGUAGE)
        if len(found) > ITEMS_PER_LANGUAGE
        else found
        for language, found in sorted(asked_for.items())
    }
    rows = []
    for language, questions in chosen.items():
        if not known.get(language):
            raise DataProblem(
                f"{TRAIN} has no example in {language}", next_step="download it again"
            )
        (example,) = stream.sample(known[language], 1)
        said = words[language]
        solved = f"{_format_question(example, said, cut)}\n{said['answer']} {example.golds[0]}"
        opening = f"{said['with_passage' if passage else 'closed_book']}\n\n{solved}\n\n"
        rows += [
            {
                "id": question.id,
                "part": language,
                "prompt": format_tulu_prompt(
                    (opening + _format_question(question, said, cut)).strip(), said["answer"]
                ),
                "target": question.golds,
            }
            for question in questions
        ]
    return task_data.make_test_split(rows, TEST)


def score_tydiqa(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The overlap with the nearest answer, and whether it is the same."""
    answer = results[0].strip()
    return {
        "f1": answer_match.f1_score(answer, doc["target"]),
        "exact_match": float(
            answer_match.normalized_words(answer)
            in [answer_match.normalized_words(gold) for gold in doc["target"]]
        ),
    }


def _passage_truncator(tokenizer: Tokenizer, *, bos: bool) -> Callable[[str], str]:
    """Passages of at most `TOKENS` tokens."""
    encode = tokenizer.encode_document if bos else tokenizer.encode_template_text

    def cut(passage: str) -> str:
        ids = encode(passage)
        return (
            tokenizer.decode(ids[:MAX_PASSAGE_TOKENS]) if len(ids) > MAX_PASSAGE_TOKENS else passage
        )

    return cut


def _format_question(
    question: TydiqaQuestion, said: PromptWords, cut: Callable[[str], str] | None
) -> str:
    line = f"{said['question']} {question.text}"
    return f"{said['passage']} {cut(question.passage)}\n{line}" if cut else line


def _by_language(
    name: str, data_dir: str | None, words: Mapping[str, PromptWords]
) -> dict[str, list[TydiqaQuestion]]:
    found: dict[str, list[TydiqaQuestion]] = {}
    online = task_data.data_folder(data_dir) is None
    for question in (
        _read_hub_questions(HUB[name])
        if online
        else _read_file_questions(task_data.find_data_file(name, data_dir))
    ):
        if question.language not in words:
            raise DataProblem(
                f"{name} has {question.id!r}, whose language is none of {', '.join(words)}",
                next_step="give the gold-passage files of version 1.1",
            )
        found.setdefault(question.language, []).append(question)
    return found


def _read_hub_questions(hub: task_data.HubDataset) -> list[TydiqaQuestion]:
    """All questions of a split on the hub, where answers are lists of texts."""
    found = []
    for place, row in task_data.read_hub_rows(hub):
        name, context, text = (
            task_data.read_field(row, key, str, place) for key in ("id", "context", "question")
        )
        answers = task_data.read_field(row, "answers", dict, place)
        golds = [str(each) for each in task_data.read_field(answers, "text", list, place)]
        found.append(TydiqaQuestion(name, name.split("-")[0], context, text, golds))
    return found


def _read_file_questions(path: Path) -> list[TydiqaQuestion]:
    """All questions of a file that is shaped like SQuAD v1.1."""
    found = []
    articles = task_data.read_field(task_data.read_json_object(path), "data", list, str(path))
    for number, article in enumerate(articles):
        place = f"{path}, article {number}"
        for paragraph in task_data.read_field(
            task_data.require_type(article, dict, place), "paragraphs", list, place
        ):
            context = task_data.read_field(
                task_data.require_type(paragraph, dict, place), "context", str, place
            )
            for each in task_data.read_field(paragraph, "qas", list, place):
                row = task_data.require_type(each, dict, place)
                name = task_data.read_field(row, "id", str, place)
                here = f"{place}, {name}"
                answers = task_data.read_field(row, "answers", list, here)
                golds = [
                    task_data.read_field(
                        task_data.require_type(answer, dict, here), "text", str, here
                    )
                    for answer in answers
                ]
                if not golds:
                    raise DataProblem(f"{here} has no answer", next_step=task_data.REPAIR_STEP)
                text = task_data.read_field(row, "question", str, here)
                found.append(TydiqaQuestion(name, name.split("-")[0], context, text, golds))
    return found
