"""Tasks from the command to the report: what runs, what is left out and why, what changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import eval_data
import pico
import stages
from benches import part
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.errors import CheckpointProblem, DataProblem, RecipeProblem, ToolProblem
from camelpress.core.files.file_hashes import sha256_file
from camelpress.core.progress import use_listener
from camelpress.core.runtime import optional_packages
from camelpress.inference.generation.generator import LocalGenerator
from camelpress.inference.generation.vllm_generator import VllmGenerator
from camelpress.reporting import validation_report
from camelpress.reporting.rendering import html_page
from camelpress.reporting.report_classes import ValidationReport
from camelpress.reporting.stage_report import Report
from camelpress.reporting.verdict import Verdict
from camelpress.validate.benchmarks import samples, task_catalogue
from camelpress.validate.benchmarks.run_benchmarks import note_unread_data
from camelpress.validate.gate.report_files import regate_report
from camelpress.validate.run import run as work
from camelpress.validate.settings import Gate, ValidateSettings
from command import Run
from notes import Notes
from refusal import refusal
from sandboxes import needs_bubblewrap

pytest.importorskip("lm_eval", reason='tasks need: pip install "camelpress[tasks]"')
MMLU, TYDIQA = "tulu_mmlu_0shot", "tulu_tydiqa_cb"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    eval_data.write_mmlu(folder)
    return eval_data.write_tydiqa(folder, 2)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model with room for prompts, and one near it."""
    folder = tmp_path_factory.mktemp("models")
    base = pico.write_model(folder / "base", pico.Sizes(positions=1024))
    return base, pico.write_tuned(folder / "near", base, extra_rows=0, dtype=torch.float16)


Asked = Callable[..., Report]


@pytest.fixture
def asked(models: tuple[Path, Path], data: Path, tmp_path: Path) -> Asked:
    def ask(*tasks: str, out: str = "out", **changes: Any) -> Report:
        told = {"tasks": tasks, "data_dir": str(data)} | changes
        settings = ValidateSettings.parse(told, source="test")
        return work(
            Checkpoint.open(models[0]), Checkpoint.open(models[1]), tmp_path / out, settings
        )

    return ask


@pytest.fixture(scope="module")
def report(models: tuple[Path, Path], data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "out"
    settings = ValidateSettings.parse(
        {"tasks": [MMLU, TYDIQA], "data_dir": str(data)}, source="test"
    )
    work(Checkpoint.open(models[0]), Checkpoint.open(models[1]), out, settings)
    return out


def test_both_models_are_told_for_each_task(report: Path, models: tuple[Path, Path]) -> None:
    told = validation_report.read_validation(report)
    mmlu, tydiqa = told.facts.record["tasks"]
    assert (mmlu["title"], mmlu["n"], mmlu["of"], mmlu["metric"]) == ("MMLU 0-shot", 12, 12, "acc")
    assert (tydiqa["title"], tydiqa["n"], tydiqa["parts"]) == ("TydiQA Closed-book", 18, 9)
    assert "no_bos" in mmlu["quirks"]
    assert told.facts.record["texts"] == [] and told.facts.record["tokens"] == 0
    assert told.facts.record["averages"] is None  # no benchmark has all its columns
    assert [(check.name, check.part) for check in told.checks] == [
        (name, part) for name in ("accuracy_loss", "significant_loss") for part in (MMLU, TYDIQA)
    ]
    assert told.verdict is Verdict.INCONCLUSIVE  # of so few items
    assert set(told.inputs) == {"reference", "candidate", f"task:{MMLU}", f"task:{TYDIQA}"}


def test_scores_are_those_of_the_harness_own_backend(
    report: Path, models: tuple[Path, Path], data: Path
) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(
        include_path=str(task_catalogue.TASKS_FOLDER),
        include_defaults=False,
        metadata={"data_dir": str(data), "tokenizer": str(models[0])},
    )
    backend = HFLM(
        pretrained=pico.load_model(models[1]), tokenizer=str(models[1]), device="cpu",
        batch_size=1, add_bos_token=False,
    )  # fmt: skip
    results = lm_eval.simple_evaluate(
        model=backend, tasks=[MMLU, TYDIQA], task_manager=manager, bootstrap_iters=0
    )
    for task in validation_report.read_validation(report).facts.record["tasks"]:
        expected = results["results"][task["name"]][f"{task['metric']},none"]
        assert task["candidate_accuracy"] == pytest.approx(expected, abs=1e-9)


@needs_bubblewrap
def test_programs_are_written_by_models_and_run_in_the_sandbox(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = ["    return x + x\n", *(["    return x\n"] * 19)]
    monkeypatch.setattr(LocalGenerator, "generate", lambda *_: enumerate(written))
    told = asked("tulu_codex_pass1", data_dir=str(eval_data.write_codex(tmp_path / "eval")))
    (task,) = told.facts.record["tasks"]
    assert (task["title"], task["n"], task["metric"]) == ("Codex-Eval Pass@1", 1, "pass@1")
    assert task["reference_accuracy"] == task["candidate_accuracy"] == pytest.approx(1 / 20)


def test_a_benchmark_shows_the_columns(report: Path) -> None:
    told = validation_report.read_validation(report).facts.record
    _, _, mmlu, tydiqa = part("validate.card_benchmarks").columns(told).splitlines()
    low, high = (100 * end for end in told["tasks"][0]["delta_interval"])
    assert mmlu.startswith("| MMLU 0-shot | 12 of 12 | ") and f"({low:+.1f} to {high:+.1f})" in mmlu
    assert tydiqa.startswith("| TydiQA Closed-book | 18 of 18 | ")


def test_samples_are_kept_with_hashes(report: Path) -> None:
    told = ValidationReport.read(report / "report.json")
    assert set(told.outputs) == {f"samples/{name}.jsonl" for name in (MMLU, TYDIQA)}
    for name, digest in told.outputs.items():
        assert sha256_file(report / name) == digest
    lines = [
        json.loads(line) for line in (report / f"samples/{MMLU}.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 12
    assert {line["models"]["candidate"] for line in lines} == {told.inputs["candidate"]}
    for line in lines:
        scores = line["reference"]["score"], line["candidate"]["score"]
        assert line["flip"] == {(1, 0): "lost", (0, 1): "won"}.get(scores, "same")
        assert line["prompt"].startswith("<|user|>\nThe following are multiple choice questions")
        assert line["reference"]["chosen"].strip() in "ABCD"
        assert len(line["reference"]["responses"]) == 4
        right = line["reference"]["chosen"].strip() == line["target"]
        assert line["reference"]["score"] == right


def test_flips_are_what_differs(report: Path, tmp_path: Path) -> None:
    told = ValidationReport.read(report / "report.json")
    for task in told.facts.record["tasks"]:
        found = [*samples.read_flips(told, report, task["name"])]
        kinds = [flip["flip"] for flip in found]
        assert (kinds.count("lost"), kinds.count("won")) == (task["lost"], task["won"])
    assert len([*samples.read_flips(told, report)]) == sum(
        task["lost"] + task["won"] for task in told.facts.record["tasks"]
    )
    with refusal(
        CheckpointProblem,
        f"the report in {report} has no samples of the task tulu_gsm",
        next_step="give a report of validate --tasks, with its folder",
        out=None,
    ):
        [*samples.read_flips(told, report, "tulu_gsm")]
    (tmp_path / "samples").mkdir()
    (tmp_path / f"samples/{MMLU}.jsonl").write_text("{}\n")
    with pytest.raises(CheckpointProblem, match="is not the file recorded in the report"):
        [*samples.read_flips(told, tmp_path, MMLU)]


def test_all_forms_tell_of_tasks(report: Path) -> None:
    html_page = (report / "report.html").read_text(encoding="utf-8")
    assert "MMLU 0-shot" in html_page and "Benchmarks, both models on the same items" in html_page
    assert "no BOS before the prompt" in html_page
    assert "Text by text" not in html_page and "KL divergence per token" not in html_page
    markdown = (report / "report.md").read_text(encoding="utf-8")
    assert "| TydiQA Closed-book | 18 |" in markdown
    assert MMLU in (report / "junit.xml").read_text(encoding="utf-8")


def test_what_models_say_is_escaped(report: Path) -> None:
    told = ValidationReport.read(report / "report.json")
    hostile = "<script>alert(1)</script> {{ 7 * 6 }}"
    line = {
        "task": TYDIQA,
        "item": hostile,
        "flip": "lost",
        "prompt": hostile,
        "target": [hostile],
        "reference": {"score": 1.0, "responses": [hostile]},
        "candidate": {"score": 0.0, "responses": ["", hostile]},
    }
    shown = html_page.render_flips(told, [line])
    assert "<script" not in shown and shown.count("&lt;script&gt;") == 6
    kept = (report / "flips.html").read_text(encoding="utf-8")
    assert kept.count("<h3>") == len([*samples.read_flips(told, report)])


def test_a_report_of_tasks_can_be_judged_again(report: Path) -> None:
    strict = regate_report(
        report, Gate.parse({**TEXTS_ASIDE, "tasks": {"*": {"margin": 0.5}}}, source="t")
    )
    by_name = {check.part: check for check in strict.checks}
    told = {task["name"]: task for task in strict.facts.record["tasks"]}
    low, high = told[TYDIQA]["delta_interval"]
    assert by_name[TYDIQA].interval == (-high, -low)
    assert by_name[MMLU].estimate == -told[MMLU]["delta"]
    text = regate_report(report, Gate())
    assert text.verdict is Verdict.ERROR  # no text was scored, and nothing passes by being absent


TEXTS_ASIDE = {"perplexity_ratio": None, "kl_mean": None, "top1_agreement": None}


def test_text_and_tasks_go_into_one_report(asked: Asked, prose: Path) -> None:
    told = asked(MMLU, text=[str(prose)], max_tokens=60, gate={"kl_mean": {"max": 9.0}})
    assert told.facts.record["tokens"] > 0 and len(told.facts.record["tasks"]) == 1
    assert {check.name for check in told.checks} == {
        "perplexity_ratio",
        "kl_mean",
        "top1_agreement",
        "non_finite",
    }


def test_columns_without_data_are_left_out_of_a_group_and_told(
    asked: Asked, tmp_path: Path
) -> None:
    told = asked("tulu", data_dir=str(eval_data.write_mmlu(tmp_path / "only")))
    assert [task["title"] for task in told.facts.record["tasks"]] == ["MMLU 0-shot", "MMLU 5-shot"]
    missing = told.facts.record["tasks_missing"]
    assert len(missing) == 9
    assert "gsm/test.jsonl does not exist; it comes from" in missing["tulu_gsm_cot"].replace(
        "; ", "; "
    )
    averages = told.facts.record["averages"]
    assert averages["name"] == "Mean of 1 of 6 benchmarks"
    assert averages["reference"] == pytest.approx(
        sum(task["reference_accuracy"] for task in told.facts.record["tasks"]) / 2
    )
    assert "Not run: tulu_gsm_cot: gsm/test.jsonl" in (tmp_path / "out/report.md").read_text()


def test_a_task_that_is_named_must_have_its_data(asked: Asked, tmp_path: Path) -> None:
    with refusal(
        DataProblem,
        f"{tmp_path / 'gsm/test.jsonl'} does not exist; it comes from grade_school_math/data of "
        "openai/grade-school-math on GitHub",
        next_step="put it there, or give another folder with --data-dir",
        out=tmp_path / "out",
    ):
        asked("tulu_gsm_cot", data_dir=str(tmp_path))


def test_a_data_folder_that_is_not_there_is_never_passed_over(asked: Asked, tmp_path: Path) -> None:
    with refusal(
        DataProblem,
        f"{tmp_path / 'none'} is not a folder",
        next_step="give the data folder with --data-dir",
        out=tmp_path / "out",
    ):
        asked("tulu", data_dir=str(tmp_path / "none"))


def test_a_data_folder_without_tasks_is_said_not_to_be_read(
    models: tuple[Path, Path], prose: Path, data: Path, tmp_path: Path
) -> None:
    notes = Notes()
    with use_listener(notes):
        stages.validate(*models, tmp_path / "out", prose, data_dir=str(data))
    assert [line for line in notes.heard if line.startswith(f"{data} is not read: only tasks of")]


def test_only_tasks_of_other_projects_leave_the_data_folder_unread(data: Path) -> None:
    foreign = task_catalogue.BenchmarkSpec("arc_easy", "acc")
    notes = Notes()
    with use_listener(notes):
        note_unread_data(None, [foreign])
        note_unread_data(
            data, [foreign, task_catalogue.BenchmarkSpec(MMLU, "acc", benchmark="MMLU")]
        )
    assert notes.heard == []
    with use_listener(notes):
        note_unread_data(data, [foreign])
    assert len(notes.heard) == 1


def test_the_tasks_of_this_project_read_the_data_folder(asked: Asked) -> None:
    notes = Notes()
    with use_listener(notes):
        asked(MMLU)
    assert not [line for line in notes.heard if "is not read" in line]


def test_a_name_that_is_nearly_right_is_suggested(asked: Asked, tmp_path: Path) -> None:
    with refusal(
        RecipeProblem,
        "there is no task 'tulu_mmlu_0shots', did you mean tulu_mmlu_0shot?",
        next_step="name tulu, tulu-fixed, one of their columns, or a task that `lm_eval ls tasks` "
        "lists",
        out=tmp_path / "out",
        exit_code=2,
    ):
        asked("tulu_mmlu_0shots")


def test_without_the_harness_it_is_said_how_to_get_it(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optional_packages, "find_spec", lambda _: None)
    with refusal(
        ToolProblem,
        "tasks need lm-evaluation-harness, which is not installed",
        next_step='pip install "camelpress[tasks]"',
        out=tmp_path / "out",
    ):
        asked(MMLU)


def test_without_vllm_it_is_said_before_anything_is_read(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        optional_packages, "find_spec", lambda name: None if name == "vllm" else True
    )
    with refusal(
        ToolProblem,
        "completions by vLLM need vLLM, which is not installed",
        next_step='pip install "camelpress[vllm]"',
        out=tmp_path / "out",
    ):
        asked(TYDIQA, completions="vllm")


def test_completions_may_come_from_elsewhere(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(optional_packages, "find_spec", lambda _: True)
    monkeypatch.setattr(
        VllmGenerator, "generate", lambda _, asked: ((n, "x") for n in range(len(asked)))
    )
    asked(TYDIQA, completions="vllm")
    lines = (tmp_path / f"out/samples/{TYDIQA}.jsonl").read_text().splitlines()
    assert {json.loads(line)["candidate"]["responses"][0] for line in lines} == {"x"}


def test_a_prompt_without_room_is_refused(base: Path, data: Path, tmp_path: Path) -> None:
    settings = ValidateSettings.parse({"tasks": [MMLU], "data_dir": str(data)}, source="test")
    model, wide = (Checkpoint.open(each) for each in (base, stages.widened(base)))
    with pytest.raises(RecipeProblem, match="the reference has 128 positions, and the task"):
        work(model, wide, tmp_path / "out", settings)


def test_a_model_loses_nothing_to_itself(
    models: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    settings = ValidateSettings.parse({"tasks": [MMLU], "data_dir": str(data)}, source="test")
    model, wide = (Checkpoint.open(each) for each in (models[0], stages.widened(models[0])))
    told = work(model, wide, tmp_path / "out", settings)
    (task,) = told.facts.record["tasks"]
    assert (task["lost"], task["won"], task["delta"], told.verdict) == (
        0,
        0,
        0.0,
        Verdict.INCONCLUSIVE,
    )
    assert task["detectable_loss"] is None


def test_a_budget_asks_fewer_items(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from camelpress.validate.benchmarks import time_budget

    totals: list[int] = []

    def seven(total: int, *_: Any, **__: Any) -> int:
        totals.append(total)
        return 7

    monkeypatch.setattr(time_budget, "answer_within_budget", seven)
    told = asked(MMLU, TYDIQA, budget="5m")
    assert totals == [18, 12]  # completions first: what these leave, likelihoods can use
    mmlu, tydiqa = told.facts.record["tasks"]
    assert (mmlu["n"], mmlu["of"], tydiqa["n"], tydiqa["of"]) == (7, 12, 9, 18)
    again = asked(MMLU, TYDIQA, budget="5m", out="again")
    assert again.inputs == told.inputs and again.facts == told.facts
    lines = (tmp_path / f"out/samples/{TYDIQA}.jsonl").read_text().splitlines()
    assert len({json.loads(line)["part"] for line in lines}) == 9


def test_within_a_budget_both_models_are_asked_the_same_once(asked: Asked, tmp_path: Path) -> None:
    """What one model answers while the items are counted, it is not asked again."""
    told = asked(MMLU, TYDIQA, budget="1s", answers=str(tmp_path / "kept"))
    counts = {task["name"]: task["n"] for task in told.facts.record["tasks"]}
    assert 1 <= counts[MMLU] <= 12 and counts[TYDIQA] in (9, 18)
    requests = 4 * counts[MMLU] + counts[TYDIQA]
    for path in (tmp_path / "kept").glob("*.jsonl"):
        assert len([line for line in path.read_text().splitlines() if line]) == requests


def test_answers_that_are_kept_are_not_asked_again(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from camelpress.inference.generation import generator
    from camelpress.validate.benchmarks import lm_eval_adapter

    first = asked(MMLU, TYDIQA, answers=str(tmp_path / "kept"))
    monkeypatch.setattr(lm_eval_adapter, "continuation_likelihoods", None)
    monkeypatch.setattr(generator, "generate_batch", None)
    again = asked(MMLU, TYDIQA, answers=str(tmp_path / "kept"), out="again")
    assert again.facts == first.facts
    assert len([*(tmp_path / "kept").glob("*.jsonl")]) == 2  # a file for each model


def test_a_column_that_cannot_be_scored_takes_no_other_along(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    from camelpress.validate.tasks import tydiqa

    def refuse(*_: Any) -> Any:
        raise ToolProblem("there is no sandbox", next_step="install one")

    monkeypatch.setattr(tydiqa, "score_tydiqa", refuse)
    told = asked(MMLU, TYDIQA)
    assert [task["name"] for task in told.facts.record["tasks"]] == [MMLU]
    assert told.facts.record["tasks_missing"] == {TYDIQA: "there is no sandbox"}


def test_a_store_answers_no_tasks(
    models: tuple[Path, Path], prose: Path, data: Path, tmp_path: Path
) -> None:
    from camelpress.validate.settings import StoreSettings
    from camelpress.validate.store import build_store
    from camelpress.validate.store.prediction_store import PredictionStore

    kept = StoreSettings(text=(prose,), max_tokens=40, top_k=16)
    build_store.build_store(Checkpoint.open(models[0]), tmp_path / "store", kept)
    settings = ValidateSettings.parse({"tasks": [MMLU], "data_dir": str(data)}, source="test")
    with refusal(
        RecipeProblem,
        f"{tmp_path / 'store'} is a store of predictions and cannot answer tasks",
        next_step="give the model itself",
        out=tmp_path / "out",
        exit_code=2,
    ):
        store = PredictionStore.open(tmp_path / "store")
        work(store, Checkpoint.open(models[1]), tmp_path / "out", settings)


def test_the_command_shows_flips(report: Path, run: Run) -> None:
    flips = [*samples.read_flips(ValidationReport.read(report / "report.json"), report)]
    shown = run("flips", report)
    assert (shown.code, shown.out.count("right: ")) == (0, len(flips))
    assert json.loads(run("flips", report, "--json").out)["flips"] == flips
