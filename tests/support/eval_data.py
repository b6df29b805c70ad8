"""Files of benchmarks' layouts, small ones, made in the test."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from camelpress.validate.tasks import task_data

LANGUAGES = [*json.loads(Path(task_data.__file__).with_name("tydiqa_words.json").read_bytes())]
SUBJECTS = ("anatomy", "world_religions")


def write_mmlu(folder: Path, count: int = 6) -> Path:
    """Two subjects of MMLU."""
    for part, items in (("dev", 5), ("test", count)):
        (folder / "mmlu" / part).mkdir(parents=True)
        for subject in SUBJECTS:
            rows = [
                f"what is {number}?,sea,old,man,None,{'ABCD'[number % 4]}"
                for number in range(items)
            ]
            path = folder / "mmlu" / part / f"{subject}_{part}.csv"
            path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def write_tydiqa(folder: Path, count: int = 120) -> Path:
    """Files of TyDiQA's layout."""
    (folder / "tydiqa").mkdir(parents=True)
    for part in ("dev", "train"):
        articles = [
            {
                "paragraphs": [
                    {
                        "context": f"{language} {part} {number}. " + "the sea. " * number * 3,
                        "qas": [
                            {
                                "id": f"{language}-{part}-{number}",
                                "question": f"what is {number}?",
                                "answers": [{"text": f"sea {number}", "answer_start": 0}],
                            }
                        ],
                    }
                ]
            }
            for language in reversed(LANGUAGES)
            for number in range(count)
        ]
        path = folder / "tydiqa" / f"tydiqa-goldp-v1.1-{part}.json"
        path.write_text(json.dumps({"version": "1.1", "data": articles}), encoding="utf-8")
    return folder


def write_codex(folder: Path) -> Path:
    """One problem of HumanEval, which nobody solves by chance."""
    row = {
        "task_id": "HumanEval/0",
        "prompt": 'def double(x):\n    """Twice x."""\n',
        "entry_point": "double",
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(candidate):\n    assert candidate(21) == 42\n",
    }
    path = folder / "codex_humaneval" / "HumanEval.jsonl.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(json.dumps(row).encode() + b"\n"))
    return folder


def write_alpaca(folder: Path, count: int = 6) -> Path:
    """Instructions with what text-davinci-003 might have answered: 0, 3, 6 ... letters."""
    rows = [
        {
            "instruction": f"Say {number}.",
            "input": "the sea" if number % 2 else "",
            "generator": "text-davinci-003-greedy-long",
            "output": "abc" * number,
        }
        for number in range(count)
    ]
    path = folder / "alpaca_farm" / "davinci_003_outputs.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(rows), encoding="utf-8")
    return folder


def as_on_the_hub(folder: Path, name: str, config: str, *, split: str) -> list[dict[str, Any]]:
    """What `datasets.load_dataset` gives, in the hub's shapes, of what these files hold."""
    if name == "cais/mmlu":
        return [
            {
                "question": cells[0],
                "choices": cells[1:5],
                "answer": "ABCD".index(cells[5]),
                "subject": subject,
            }
            for subject in SUBJECTS
            for line in (folder / f"mmlu/{split}/{subject}_{split}.csv").read_text().splitlines()
            for cells in [line.split(",")]
        ]
    part = {"validation": "dev", "train": "train"}[split]
    path = folder / f"tydiqa/tydiqa-goldp-v1.1-{part}.json"
    paragraphs = [
        paragraph
        for article in json.loads(path.read_text(encoding="utf-8"))["data"]
        for paragraph in article["paragraphs"]
    ]
    return [
        {
            "id": each["id"],
            "title": "",
            "context": paragraph["context"],
            "question": each["question"],
            "answers": {"text": [answer["text"] for answer in each["answers"]]},
        }
        for paragraph in paragraphs
        for each in paragraph["qas"]
    ]
