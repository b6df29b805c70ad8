"""The first and the last prompt of each column of the Tulu card: makes `tasks_golden.json`.

    PYTHONPATH=src:tests/support python tests/support/tasks_golden.py DATA .models/llama-tokenizer

Written from the description of the protocol alone, in the order in which open-instruct's scripts
went (allenai/open-instruct e44fcf588, eval/*/run_eval.py with --use_chat_format, and
eval/alpaca_farm_eval.py): pandas reads
MMLU, one stream of `random` draws, GSM8K's examples are those of lm-evaluation-harness. Nothing of
camelpress is used. Texts are kept as hashes: questions of benchmarks have no business in a
repository.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

GOLDEN = Path(__file__).with_suffix(".json")
SHOWN = 12  # ids at either end
Prompts = list[tuple[str, str]]
Encode = Callable[[str], list[int]]


def mmlu(data: Path, encode: Encode, shots: int) -> Prompts:
    import pandas

    def written(row: Any) -> str:
        told = str(row[0])
        for place, letter in enumerate("ABCD"):
            told += f"\n{letter}. {row[1 + place]}"
        return told + "\nAnswer:"

    found = []
    for path in sorted((data / "mmlu" / "test").iterdir()):
        subject = path.name[: -len("_test.csv")]
        test, dev = (
            pandas.read_csv(data / "mmlu" / part / f"{subject}_{part}.csv", header=None)
            for part in ("test", "dev")
        )
        name = " ".join(subject.split("_"))
        head = f"The following are multiple choice questions (with answers) about  {name}.\n\n"
        for number in range(len(test)):
            left = shots
            while True:
                solved = ""
                for example in range(left):
                    row = list(dev.iloc[example])
                    solved += f"{written(row)} {row[5]}\n\n"
                whole = head + solved + written(list(test.iloc[number]))
                if not left or len(encode(whole)) <= 2048:
                    break
                left -= 1
            text = f"<|user|>\n{whole.strip()}\n<|assistant|>\nThe answer is:"
            found.append((f"{subject}/{number}", text))
    return found


def table20() -> list[tuple[str, str, str]]:
    """The eight examples as lm-evaluation-harness has them, which leaves out one word."""
    import lm_eval

    path = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k-cot.yaml"
    samples = yaml.safe_load(path.read_text(encoding="utf-8"))["fewshot_config"]["samples"]
    found = []
    for each in samples:
        chain, number = each["target"].rstrip(".").split(" The answer is ")
        found.append((each["question"], f"{chain} So the answer is {number}.", number))
    return found


def gsm(data: Path, chain: bool) -> Prompts:
    lines = (data / "gsm" / "test.jsonl").read_text(encoding="utf-8").strip().split("\n")
    rows = [(number, json.loads(line)) for number, line in enumerate(lines)]
    random.seed(42)
    rows = random.sample(rows, 200)
    told = "Answer the following questions.\n\n"
    for question, thought, number in table20():
        label = "Question" if chain else "Quesion"
        told += f"{label}: {question}\nAnswer: {thought if chain else number}\n\n"
    return [
        (
            f"test/{number}",
            f"<|user|>\n{told}Question: {row['question'].strip()}\n<|assistant|>\nAnswer:",
        )
        for number, row in rows
    ]


def bbh(data: Path, chain: bool) -> Prompts:
    random.seed(42)
    items = {}
    for path in sorted((data / "bbh" / "bbh").iterdir()):
        examples = json.loads(path.read_text(encoding="utf-8"))["examples"]
        items[path.stem] = random.sample([*enumerate(examples)], 40)
    found = []
    for task, drawn in items.items():
        with (data / "bbh" / "cot-prompts" / f"{task}.txt").open(encoding="utf-8") as file:
            text = "".join(file.readlines()[2:])
        if not chain:
            fields = []
            for each in text.split("\n\n"):
                if each.startswith("Q:"):
                    question = each.split("\nA:")[0].strip()
                    fields.append(question + "\nA: " + each.split("So the answer is")[-1].strip())
                else:
                    fields.append(each)
            text = "\n\n".join(fields)
        for number, example in drawn:
            prompt = f"<|user|>\n{text.strip()}\n\nQ: {example['input']}\n<|assistant|>\nA:"
            found.append((f"{task}/{number}", prompt))
    return found


def codex(data: Path) -> Prompts:
    packed = (data / "codex_humaneval" / "HumanEval.jsonl.gz").read_bytes()
    rows = [json.loads(line) for line in gzip.decompress(packed).decode().strip().split("\n")]
    return [(row["task_id"], row["prompt"]) for row in rows]


def alpaca(data: Path) -> Prompts:
    path = data / "alpaca_farm" / "davinci_003_outputs.json"
    found = []
    for number, row in enumerate(json.loads(path.read_text(encoding="utf-8"))):
        if row["input"] == "":
            text = "<|user|>\n" + row["instruction"] + "\n<|assistant|>\n"
        else:
            prompt = row["instruction"].strip() + "\n\n" + row["input"].strip()
            text = "<|user|>\n" + prompt + "\n<|assistant|>\n"
        found.append((f"alpaca_farm/{number}", text))
    return found


def columns(data: Path, encode: Encode) -> dict[str, Callable[[], Prompts]]:
    """By the name of the task."""
    return {
        "tulu_mmlu_0shot": lambda: mmlu(data, encode, 0),
        "tulu_mmlu_5shot": lambda: mmlu(data, encode, 5),
        "tulu_gsm_direct": lambda: gsm(data, False),
        "tulu_gsm_cot": lambda: gsm(data, True),
        "tulu_bbh_direct": lambda: bbh(data, False),
        "tulu_bbh_cot": lambda: bbh(data, True),
        "tulu_codex_pass1": lambda: codex(data),
        "tulu_codex_pass10": lambda: codex(data),
        "tulu_alpaca_farm": lambda: alpaca(data),
    }


WITH_BOS = ("tulu_alpaca_farm",)


def told(name: str, text: str, encode: Encode) -> dict[str, Any]:
    """An item as it is kept."""
    ids = encode(text)
    return {
        "id": name,
        "letters": len(text),
        "text": hashlib.sha256(text.encode()).hexdigest(),
        "tokens": len(ids),
        "first": ids[:SHOWN],
        "last": ids[-SHOWN:],
        "ids": hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest(),
    }


def main() -> None:
    """Write both ends of each column."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def begun(text: str) -> list[int]:
        return list(tokenizer(text)["input_ids"])

    golden = {}
    for name, prompts in columns(Path(sys.argv[1]) / "eval", encode).items():
        found = prompts()
        ends = (found[0], found[-1])
        ids = begun if name in WITH_BOS else encode
        golden[name] = {"items": len(found), "ends": [told(*each, ids) for each in ends]}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
