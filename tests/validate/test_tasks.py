"""Prompts of benchmarks are those of the protocol, letter by letter; files are read strictly."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import eval_data
import tasks_golden
from camelpress.core.errors import DataProblem
from camelpress.core.files.yaml_files import parse_yaml
from camelpress.core.text.hf_tokenizer import Tokenizer
from camelpress.validate.tasks import (
    alpaca_farm,
    answer_match,
    bbh,
    gsm,
    humaneval,
    mmlu,
    task_data,
    tydiqa,
)
from refusal import refusal
from sandboxes import needs_bubblewrap

ROOT = Path(__file__).parents[2]
LLAMA = ROOT / ".models" / "llama-tokenizer"
DATA = Path(os.environ.get("CAMELPRESS_DATA", "")) / "eval"
FOLDER = Path(task_data.__file__).parent
GOLDEN = json.loads(tasks_golden.GOLDEN.read_text(encoding="utf-8"))

with_data = pytest.mark.skipif(
    not (DATA / "mmlu").is_dir(),
    reason="the benchmarks' data are absent; set CAMELPRESS_DATA to the folder above eval/",
)
with_llama = pytest.mark.skipif(
    not LLAMA.is_dir(),
    reason=f"{LLAMA} is absent; make it with python tests/models/llama_tokenizer.py {LLAMA}",
)


@cache
def llama() -> Tokenizer:
    return Tokenizer.load(LLAMA)


def config(task: str) -> dict[str, Any]:
    """What the YAML of a task says, with the file that it includes."""
    family = "tulu_fixed" if task.startswith("tulu_fixed_") else "tulu"
    path = FOLDER / family / f"{task.removeprefix(f'{family}_')}.yaml"
    told = yaml(path)
    return (yaml(path.parent / told["include"]) if "include" in told else {}) | told


def yaml(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8").replace("!function ", "")
    told = parse_yaml(text, source=str(path))
    assert isinstance(told, dict)
    return told


MAKERS: dict[str, Callable[..., Any]] = {
    "mmlu": mmlu.load_mmlu,
    "gsm": gsm.load_gsm,
    "bbh": bbh.load_bbh,
    "tydiqa": tydiqa.load_tydiqa,
    "humaneval": humaneval.load_humaneval,
    "alpaca_farm": alpaca_farm.load_alpaca_farm,
}


def items(task: str, **where: Any) -> list[dict[str, Any]]:
    """The items of a task, as its YAML has them made."""
    told = config(task)
    module = told["custom_dataset"].split(".")[-2]
    return [*MAKERS[module](**(told["metadata"] | told.get("dataset_kwargs", {}) | where))["test"]]


TASKS = [
    f"{family}_{path.stem}"
    for family in ("tulu", "tulu_fixed")
    for path in sorted((FOLDER / family).glob("*.yaml"))
    if path.stem != family
]


@with_data
@with_llama
@pytest.mark.parametrize("task", [name for name in GOLDEN if "mmlu" not in name])
def test_prompts_are_the_twins_and_both_ends_are_golden(task: str) -> None:
    found = items(task, data_dir=str(DATA), tokenizer=str(LLAMA))
    twin = tasks_golden.columns(DATA, llama().encode_template_text)[task]()
    assert [(each["id"], each["prompt"]) for each in found] == twin
    compare(task, found)


@with_data
@with_llama
@pytest.mark.parametrize("shots", [0, 5])
def test_examples_are_left_out_where_there_is_no_room(tmp_path: Path, shots: int) -> None:
    """The first and the last subject, whose ends are the column's, and one of long questions."""
    long = "high_school_european_history"
    for part, most in (("dev", 5), ("test", 12)):
        (tmp_path / "mmlu" / part).mkdir(parents=True)
        for name in ("abstract_algebra", long, "world_religions"):
            place = f"mmlu/{part}/{name}_{part}.csv"
            rows = [row for _, row in task_data.read_csv_rows(DATA / place, 6)]
            with (tmp_path / place).open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(rows[:most] + rows[most:][-1:])
    twin = tasks_golden.mmlu(tmp_path, llama().encode_template_text, shots)
    found = items(f"tulu_mmlu_{shots}shot", data_dir=str(tmp_path), tokenizer=str(LLAMA))
    assert [(each["id"], each["prompt"]) for each in found] == twin
    given = {text.count("\nAnswer:") - 1 for name, text in twin if name.startswith(long)}
    assert max(given) < 5 if shots else given == {0}
    found[-1]["id"] = GOLDEN[f"tulu_mmlu_{shots}shot"]["ends"][1]["id"]  # of fewer rows
    compare(f"tulu_mmlu_{shots}shot", found, count=False)


def compare(task: str, found: list[dict[str, Any]], *, count: bool = True) -> None:
    encode = (
        llama().encode_document if config(task)["metadata"]["bos"] else llama().encode_template_text
    )
    if count:
        assert len(found) == GOLDEN[task]["items"]
    for end, golden in zip((found[0], found[-1]), GOLDEN[task]["ends"], strict=True):
        assert tasks_golden.told(end["id"], end["prompt"], encode) == golden


@with_data
def test_the_200_problems_are_those_that_were_drawn() -> None:
    indices = gsm.sample_problem_indices(1319)
    random.seed(42)
    expected = random.sample(range(1319), 200)
    assert indices == expected
    assert indices[:10] == [1309, 228, 51, 563, 501, 457, 285, 209, 1116, 178]
    found = items("tulu_gsm_direct", data_dir=str(DATA))
    assert [each["id"] for each in found] == [f"test/{number}" for number in indices]
    assert all(re.fullmatch(r"\d+", each["target"]) for each in found)


@with_data
def test_choices_become_nan_where_pandas_makes_them_so() -> None:
    pandas = pytest.importorskip("pandas")
    changed = asked = 0
    for path in sorted((DATA / "mmlu").glob("*/*.csv")):
        table = pandas.read_csv(path, header=None)
        read = [*mmlu.read_mmlu_questions(path, missing_is_nan=True)]
        as_written = [*mmlu.read_mmlu_questions(path, missing_is_nan=False)]
        told = [[str(cell) for cell in row] for row in table.itertuples(index=False)]
        assert [[each.text, *each.choices, each.letter] for each in read] == told, path
        changed += sum(one != other for one, other in zip(read, as_written, strict=True))
        asked += len(read) if path.parent.name == "test" else 0
    assert (changed, asked) == (10, GOLDEN["tulu_mmlu_0shot"]["items"])


@with_data
def test_the_fixed_columns_differ_where_they_say(tmp_path: Path) -> None:
    direct, fixed = (items(f"{each}_gsm_direct", data_dir=str(DATA)) for each in FAMILIES)
    assert [each["prompt"].replace("Quesion:", "Question:") for each in direct] == [
        each["prompt"] for each in fixed
    ]
    assert direct[0]["prompt"].count("Quesion:") == 8
    drawn, own = (items(f"{each}_bbh_cot", data_dir=str(DATA)) for each in FAMILIES)
    assert {each["id"] for each in drawn} != {each["id"] for each in own}
    for found in (drawn, own):
        assert [each["part"] for each in found] == [
            part for part in sorted({each["part"] for each in found}) for _ in range(40)
        ]


FAMILIES = ("tulu", "tulu_fixed")


@pytest.mark.parametrize("task", TASKS)
def test_every_quirk_is_named(task: str) -> None:
    told = config(task)
    quirks = told["metadata"]["quirks"]
    assert told["task"] == task
    assert all(len(each) > 20 for each in quirks.values())
    assert ("no_bos" in quirks) != told["metadata"]["bos"]
    asked = told.get("dataset_kwargs", {})
    assert ("missing_is_nan" in quirks) == asked.get("missing_is_nan", False)
    assert ("misspelt_label" in quirks) == (asked.get("example_label") == "Quesion:")
    assert ("bos_in_passage" in quirks) == asked.get("bos_in_passage", False)
    assert ("order_of_files" in quirks) == asked.get("one_stream", False)
    assert ("one_order" in quirks) == (told["metadata"].get("orders") == "one")
    assert ("blank_lines" in quirks) == asked.get("blank_lines", False)
    assert ("points_stripped" in quirks) == (
        told.get("process_results", "").endswith("gsm.score_gsm")
    )


@pytest.mark.parametrize("family", ["tulu", "tulu_fixed"])
def test_a_group_has_every_column_of_its_kind(family: str) -> None:
    group = yaml(FOLDER / family / f"{family}.yaml")
    columns = [config(task)["metadata"]["column"] for task in group["task"]]
    assert len(set(columns)) == len(columns) == 11
    own = [task for task in group["task"] if task.startswith(f"{family}_")]
    assert {f"{family}_{path.stem}" for path in (FOLDER / family).glob("*.yaml")} == {
        *own,
        f"{family}_{family}",
    }


# fmt: off
@pytest.mark.parametrize(
    ("said", "gold", "letters", "value"),
    [
        ("So it is 18.",              "18",   1.0, 1.0),
        ("16 - 3 = 13. It is 1,300.", "1300", 1.0, 1.0),
        ("6.00",                      "6",    0.0, 1.0),
        ("-10",                       "-10",  1.0, 1.0),  # both lose the sign
        ("10",                        "-10",  1.0, 0.0),
        ("no idea",                   "5",    0.0, 0.0),
        ("5 apples and 7 pears",      "5",    0.0, 0.0),
    ],
)
# fmt: on
def test_numbers_count_as_letters_and_as_values(
    said: str, gold: str, letters: float, value: float
) -> None:
    assert gsm.score_gsm({"target": gold}, [said]) == {"exact_match": letters}
    assert gsm.score_gsm_value({"target": gold}, [said]) == {"exact_match": value}


# fmt: off
@pytest.mark.parametrize(
    ("said", "gold", "loose", "meant"),
    [
        (" Let's think. So the answer is (A).\n\nQ: next", "(A)", 1.0, 1.0),
        ("A",                                         "(A)",   1.0, 1.0),
        ("So the answer is 219. So the answer is 3.", "-219",  1.0, 0.0),
        ("So the answer is -219.",                    "-219",  1.0, 1.0),
        ("] >",                                       "] ]",   1.0, 0.0),
        ("\n\nNo\n\nYes",                             "no",    1.0, 1.0),
        ("Not plausible",                             "no",    0.0, 0.0),
    ],
)
# fmt: on
def test_answers_are_found_in_what_is_said(
    said: str, gold: str, loose: float, meant: float
) -> None:
    assert bbh.score_bbh({"target": gold}, [said]) == {"exact_match": loose}
    assert bbh.score_bbh_strict({"target": gold}, [said]) == {"exact_match": meant}


@given(st.lists(st.sampled_from(["the", "cat", "sat", "Cat.", "mat", "-", "a"])), st.data())
def test_f1_counts_words_that_two_texts_share(words: list[str], data: st.DataObject) -> None:
    other = data.draw(st.permutations(words))
    counted = answer_match.normalized_words(" ".join(words))
    assert answer_match.f1_score(" ".join(words), [" ".join(other)]) == (1.0 if counted else 0.0)
    assert answer_match.f1_score(" ".join(words), ["dog"]) == 0.0
    if counted:
        precision, recall = 1 / len(counted), 1.0
        expected = 2 * precision * recall / (precision + recall)
        assert answer_match.f1_score(" ".join(words), ["dog bird", counted[0]]) == pytest.approx(
            2 * counted.count(counted[0]) and expected
        )


@with_llama
@pytest.mark.parametrize(("family", "begins"), [("tulu", "<s>"), ("tulu_fixed", "")])
def test_passages_are_cut_by_the_models_tokens(tmp_path: Path, family: str, begins: str) -> None:
    folder = eval_data.write_tydiqa(tmp_path)
    found = items(f"{family}_tydiqa_gp", data_dir=str(folder), tokenizer=str(LLAMA))
    assert len(found) == 900
    languages = [each["part"] for each in found]
    assert languages == sorted(languages)
    drawn = random.Random(42).sample([*range(120)], 100)
    assert [each["id"] for each in found[:100]] == [f"arabic-dev-{number}" for number in drawn]
    encode = llama().encode_document if begins else llama().encode_template_text
    cut = 0
    for each in [each for each in found if each["part"] == "english"]:
        passage = each["prompt"].split("Passage: ")[-1].split("\nQuestion:")[0]
        number = int(each["id"].split("-")[-1])
        whole = f"english dev {number}. " + "the sea. " * number * 3
        if len(encode(whole)) > 512:
            assert passage == llama().decode(encode(whole)[:512])
            assert passage.startswith(begins)
            cut += 1
        else:
            assert passage == whole
    assert cut > 10


def test_closed_book_prompts_are_written_as_they_were(tmp_path: Path) -> None:
    found = items("tulu_tydiqa_cb", data_dir=str(eval_data.write_tydiqa(tmp_path, 3)))
    one = next(each for each in found if each["id"] == "finnish-dev-1")
    example = re.findall(r"what is (\d)\?", one["prompt"])[0]
    assert one["prompt"] == (
        f"<|user|>\nVastaa seuraavaan kysymykseen.\n\nKysymys: what is {example}?\n"
        f"Vastaus: sea {example}\n\nKysymys: what is 1?\n<|assistant|>\nVastaus:"
    )
    assert tydiqa.score_tydiqa(one, [" The Sea 1 "]) == {"f1": 1.0, "exact_match": 1.0}
    assert tydiqa.score_tydiqa(one, ["sea"])["f1"] == pytest.approx(2 / 3)


def spoilt(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


ROW = '{"question": "?", "answer": "#### 1"}\n'
ANSWERED = '[{"instruction": "Say.", "output": "So."}'


@with_data
def test_an_instruction_has_its_input_and_the_answer_to_compare_with() -> None:
    rows = json.loads((DATA / alpaca_farm.FILE).read_bytes())
    plain, fixed = (items(f"{family}_alpaca_farm", data_dir=str(DATA)) for family in FAMILIES)
    assert len(plain) == len(fixed) == len({each["instruction"] for each in plain}) == 805
    assert [each["target"] for each in plain] == [row["output"] for row in rows]
    assert sum(each["target"].startswith("\n\n") for each in plain) == 706
    joined = [
        each["instruction"].endswith("\n\n" + row["input"].strip())
        for row, each in zip(rows, plain, strict=True)
        if row["input"]
    ]
    assert joined == [True] * 208
    blank = [each for each in plain if each["instruction"] != each["instruction"].strip()]
    assert len(blank) == 5
    for one, other in zip(plain, fixed, strict=True):
        for key in ("instruction", "target"):
            assert other[key] == one[key].strip()


@needs_bubblewrap
def test_programs_pass_at_one_or_ten_tries_as_their_tests_say() -> None:
    doc = {
        "id": "HumanEval/0",
        "prompt": 'def double(x):\n    """Twice x."""\n',
        "entry_point": "double",
        "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    }
    tries = ["    return x * 2\n", "    return x + x\n", *(["    return x\n"] * 18)]
    humaneval.require_sandbox()
    assert humaneval.pass_at_1(doc, [tries]) == {"pass@1": pytest.approx(2 / 20)}
    share = 1 - (10 * 9) / (20 * 19)
    assert humaneval.pass_at_10(doc, [tries]) == {"pass@10": pytest.approx(share)}


# fmt: off
@pytest.mark.parametrize(
    ("task", "name", "text", "said"),
    [
        ("gsm_cot", "gsm/test.jsonl", ROW + "{", "{path}:2 is not valid JSON"),
        ("gsm_cot", "gsm/test.jsonl", ROW + "[]", "{path}:2 is a list instead of a dict"),
        ("gsm_cot", "gsm/test.jsonl", ROW + '{"question": "?"}', "{path}:2 has no 'answer'"),
        ("gsm_cot", "gsm/test.jsonl", '{"question": "?", "answer": "one"}',
         "{path}:1 has no number after ####"),
        ("gsm_cot", "gsm/test.jsonl", ROW, "gsm/test.jsonl has 1 rows, fewer than the 200"),
        ("mmlu_0shot", "mmlu/test/anatomy_test.csv", 'q,1,2,3,4,A\nq,1,2,3,A\n',
         "{path}:2 has 5 fields instead of 6"),
        ("mmlu_0shot", "mmlu/test/anatomy_test.csv", 'q,1,2,3,4,E\n', "{path}:1 answers 'E'"),
        ("mmlu_0shot", "mmlu/test/anatomy_test.csv", '"q,1,2,3,4,A\n', "{path}:1: unexpected end"),
        ("mmlu_0shot", "mmlu/test/anatomy_test.csv", "", "mmlu/test holds no items"),
        ("bbh_cot", "bbh/bbh/snarks.json", '{"examples": [{"input": "?"}]}',
         "{path}, example 0 has no 'target'"),
        ("alpaca_farm", alpaca_farm.FILE, "[1]", "{path}[0] is a int instead of a dict"),
        ("alpaca_farm", alpaca_farm.FILE, "{}", "{path} is a dict instead of a list"),
        ("alpaca_farm", alpaca_farm.FILE, ANSWERED + ', {"instruction": ""}]',
         "{path}[1] has no 'output'"),
        ("alpaca_farm", alpaca_farm.FILE, ANSWERED, "{path} is not valid JSON"),
        ("alpaca_farm", alpaca_farm.FILE, "[]", f"{alpaca_farm.FILE} holds no items"),
        ("codex_pass1", "codex_humaneval/HumanEval.jsonl.gz", "no gzip",
         "{path} cannot be read as text (Not a gzipped file"),
    ],
)
# fmt: on
def test_a_fault_is_told_with_its_place(
    tmp_path: Path, task: str, name: str, text: str, said: str
) -> None:
    spoilt(tmp_path, "bbh/cot-prompts/snarks.txt", "canary\n---\nTask.\n\nQ: a\nA: b")
    path = spoilt(tmp_path, name, text)
    with pytest.raises(DataProblem) as caught:
        items(f"tulu_{task}", data_dir=str(tmp_path))
    assert caught.value.message.startswith(said.format(path=path, folder=path.parent))


def test_a_missing_file_is_told_with_where_it_comes_from(tmp_path: Path) -> None:
    with refusal(
        DataProblem,
        f"{tmp_path / 'gsm/test.jsonl'} does not exist; it comes from grade_school_math/data of "
        "openai/grade-school-math on GitHub",
        next_step="put it there, or give another folder with --data-dir",
        out=None,
    ):
        items("tulu_gsm_cot", data_dir=str(tmp_path))


def test_without_a_folder_the_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.delenv("CAMELPRESS_DATA", raising=False)
    with pytest.raises(DataProblem, match="no data folder is set for bbh/bbh; it comes from"):
        items("tulu_bbh_cot")  # its prompts are on no hub

    def refuse(*_: Any, **__: Any) -> Any:
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with refusal(
        DataProblem,
        "no data folder is set, and openai/gsm8k cannot be loaded from the Hub (ConnectionError)",
        next_step="give --data-dir, set CAMELPRESS_DATA to the folder above eval/, or connect",
        out=None,
    ):
        items("tulu_gsm_cot")


def test_rows_of_the_hub_make_the_same_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's rows have other shapes than the files."""
    datasets = pytest.importorskip("datasets")
    eval_data.write_tydiqa(eval_data.write_mmlu(tmp_path), 3)
    tasks = ("tulu_mmlu_0shot", "tulu_tydiqa_cb")
    files = [items(task, data_dir=str(tmp_path)) for task in tasks]
    monkeypatch.delenv("CAMELPRESS_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", partial(eval_data.as_on_the_hub, tmp_path))
    assert [items(task) for task in tasks] == files


def test_text_is_hashed_as_it_is_encoded() -> None:
    """The golden file's own form: a hash of the text and one of the ids."""
    told = tasks_golden.told("a", "b c", lambda _: [5, 6])
    assert told["text"] == hashlib.sha256(b"b c").hexdigest()
    assert told["ids"] == hashlib.sha256(b"5 6").hexdigest()
