"""AlpacaFarm from the command to the report: a judge over HTTP, its faults, and what it said."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest
import torch

import eval_data
import pico
import stages
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.progress import use_listener
from camelpress.inference.generation.generator import LocalGenerator
from camelpress.reporting import validation_report
from camelpress.reporting.facts.validation_facts import ValidateFacts
from camelpress.reporting.report_classes import ValidationReport
from camelpress.reporting.tables import preference_tables
from camelpress.validate.benchmarks import samples, task_catalogue
from camelpress.validate.judge.rate_limit import RateLimiter
from camelpress.validate.judge.service_access import KEY_VARIABLE
from camelpress.validate.run import run as work
from camelpress.validate.settings import ValidateSettings
from command import Ended, Run
from judge_server import Service, serving
from notes import Notes

pytest.importorskip("lm_eval", reason='tasks need: pip install "camelpress[tasks]"')
TASK, FIXED, MMLU = "tulu_alpaca_farm", "tulu_fixed_alpaca_farm", "tulu_mmlu_0shot"
ITEMS = 6
LENGTHS = {"reference": (1, 9, 5, 9, 13, 0), "candidate": (1, 9, 5, 12, 11, 3)}  # of outputs
KEPT = "kept/verdicts.jsonl"
JUDGE = {"model": "judge-1", "price_in": 10.0, "price_out": 30.0}
PRICES = ("--judge-price-in", "10", "--judge-price-out", "30")
TARGETS = tuple(3 * number for number in range(ITEMS))  # of davinci-003's


class Asker(NamedTuple):
    """Runs `camelpress validate` with a judge."""

    run: Run
    models: tuple[Path, Path]
    data: Path
    service: Service
    folder: Path

    def __call__(self, *options: object, out: str = "out", task: str = TASK) -> Ended:
        return self.run(
            "validate", *self.models, "--tasks", task, "--data-dir", self.data,
            "--out", self.folder / out, *options,
        )  # fmt: skip

    @property
    def judge(self) -> tuple[str, ...]:
        return ("--judge-url", self.service.url, "--judge-model", "judge-1")


class Judged(NamedTuple):
    """A report that judge-1 had a part in, and what was noted meanwhile."""

    folder: Path
    report: ValidationReport
    notes: list[str]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model with little room, and one near it."""
    folder = tmp_path_factory.mktemp("models")
    base = pico.write_model(folder / "base", pico.Sizes(positions=160))
    return base, pico.write_tuned(folder / "near", base, extra_rows=0, dtype=torch.float16)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return eval_data.write_alpaca(tmp_path_factory.mktemp("eval"), ITEMS)


@contextmanager
def quickly_serving(patch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A judge that nobody waits for."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", KEY_VARIABLE):
        patch.delenv(name, raising=False)
    patch.setattr(RateLimiter, "acquire", lambda self, over: not over.is_set())
    with serving() as service:
        yield service


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    with quickly_serving(monkeypatch) as service:
        yield service


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalGenerator, "generate", complete)


def complete(self: Any, wanted: Any) -> Iterator[tuple[int, str]]:
    """Both models answer so many letters, and not what they would."""
    assert [each.sampling.max_tokens for each in wanted] == [2048] * ITEMS
    yield from enumerate("x" * count for count in LENGTHS[self._target.label])


def never(self: Any, wanted: Any) -> Iterator[tuple[int, str]]:
    raise AssertionError("no model shall answer")


@pytest.fixture
def asked(
    run: Run, models: tuple[Path, Path], data: Path, service: Service, tmp_path: Path
) -> Asker:
    return Asker(run, models, data, service, tmp_path)


@pytest.fixture(scope="module")
def judged(
    models: tuple[Path, Path], data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Judged:
    out, listener = tmp_path_factory.mktemp("judged") / "out", Notes()
    with (
        pytest.MonkeyPatch.context() as patch,
        quickly_serving(patch) as service,
        use_listener(listener),
    ):
        patch.setattr(LocalGenerator, "generate", complete)
        told = {"tasks": [FIXED], "data_dir": str(data), "judge": JUDGE | {"url": service.url}}
        settings = ValidateSettings.parse(told, source="test")
        report = work(Checkpoint.open(models[0]), Checkpoint.open(models[1]), out, settings)
    return Judged(out, report, listener.heard)


def wins(own: int, other: int, *, first: bool) -> float:
    """What the service says: the longer output, and between equally long ones the first."""
    return float(first) if own == other else float(own > other)


def test_marks_are_shares_of_verdicts(judged: Judged) -> None:
    (task,) = validation_report.read_validation(judged.folder).facts.record["tasks"]
    assert (task["n"], task["of"], task["benchmark"]) == (ITEMS, ITEMS, "AlpacaFarm")
    assert task["title"] == "AlpacaFarm vs Davinci-003, judged by judge-1"
    marks = {
        side: [
            fmean(wins(own, other, first=first) for first in (True, False))
            for own, other in zip(lengths, TARGETS, strict=True)
        ]
        for side, lengths in LENGTHS.items()
    }
    for side, found in marks.items():
        assert task[f"{side}_accuracy"] == pytest.approx(fmean(found))
        assert task["judged"][side]["win_rate"] == pytest.approx(fmean(found))
    assert task["delta"] == pytest.approx(task["candidate_accuracy"] - task["reference_accuracy"])
    flips = [one - other for one, other in zip(*marks.values(), strict=True)]
    assert (task["lost"], task["won"]) == (sum(x > 0 for x in flips), sum(x < 0 for x in flips))
    direct = task["judged"]["direct"]
    assert (direct["pairs"], direct["draws"], direct["unread"]) == (ITEMS, 6, 0)
    assert direct["win_rate"] == pytest.approx((3 * 0.5 + 1 + 0 + 1) / ITEMS)
    assert direct["agreement"] == 1.0
    assert direct["length_controlled_interval"] is None  # this judge looks at nothing but length


def test_the_mean_has_its_interval_and_says_what_it_lacks(judged: Judged) -> None:
    averages = judged.report.facts.record["averages"]
    assert averages["name"] == "Mean of 1 of 6 benchmarks"
    assert averages["missing"] == ["MMLU", "GSM", "BBH", "TydiQA", "Codex-Eval"]
    low, high = averages["delta_interval"]
    assert low < averages["delta"] < high


def test_all_forms_tell_of_both_models_side_by_side(judged: Judged, run: Run) -> None:
    name = judged.report.facts.record["tasks"][0]["judged"]["judge"]
    direct = "candidate against reference: wins 58.33 %"
    for file in ("report.md", "report.html"):
        text = (judged.folder / file).read_text(encoding="utf-8")
        for told in (
            "candidate against text-davinci-003", "candidate against reference", "58.33",
            f"verdicts of {name}", "The mean is without MMLU, GSM, BBH, TydiQA and Codex-Eval",
        ):  # fmt: skip
            assert told in text, (file, told)
    properties = {
        each.attrib["name"]: each.attrib["value"]
        for each in ElementTree.parse(judged.folder / "junit.xml").iter("property")
    }
    assert properties[f"{FIXED}, direct"].startswith(direct)
    assert properties["Mean of 1 of 6 benchmarks"].endswith(" points")
    assert direct in " ".join(run("gate", judged.folder).out.split())


def test_of_two_tasks_each_row_says_which(judged: Judged) -> None:
    (task,) = judged.report.facts.record["tasks"]
    told = [
        row["outputs"]
        for row in preference_tables.preference_rows(
            ValidateFacts.read({"tasks": [task, task | {"name": TASK}]})
        )
    ]
    assert [each.split(", ")[1] for each in told] == [FIXED] * 3 + [TASK] * 3
    assert (
        preference_tables.preference_rows(ValidateFacts.read({"tasks": [task]}))[2]["outputs"]
        == "candidate against reference"
    )


def test_samples_have_the_verdicts_and_flips_show_them(judged: Judged, run: Run) -> None:
    name = judged.report.facts.record["tasks"][0]["judged"]["judge"]
    path = judged.folder / f"samples/{FIXED}.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == ITEMS
    for number, line in enumerate(lines):
        assert (line["judge"], line["metric"]) == (name, "win_rate")
        for side, lengths in LENGTHS.items():
            told = line[side]
            assert told["responses"] == ["x" * lengths[number]]
            assert told["score"] == fmean(each["won"] for each in told["verdicts"])
            for each in told["verdicts"]:
                first = each["shown_first"]
                assert each["won"] == wins(lengths[number], TARGETS[number], first=first)
    flips = [*samples.read_flips(judged.report, judged.folder)]
    assert flips
    shown = run("flips", judged.folder)
    assert shown.code == 0
    assert shown.out.count("compared with: ") == len(flips)
    assert "candidate against reference loses shown" in " ".join(shown.out.split())
    page = (judged.folder / "flips.html").read_text(encoding="utf-8")
    assert page.count(f"{name}: reference ") == len(flips)


def test_the_cost_is_told_before_models_answer_and_before_the_judge_is_asked(
    judged: Judged,
) -> None:
    forecast, trial, asking = judged.notes
    # each model in both orders, both between them; of each question one or two outputs are unknown
    questions, unknown = 6 * ITEMS, 8 * ITEMS
    begin = f"{FIXED}: judge-1 will be asked at most {questions} questions, about "
    assert forecast.startswith(begin)
    tokens = int(forecast.removeprefix(begin).split()[0].replace(",", ""))
    assert 0 < tokens - unknown * 2048 < 400 * questions
    cost = (tokens * 10 + questions * 32 * 30) / 1e6
    assert forecast.endswith(f"at most {questions * 32:,} to write, at most ${cost:,.2f}")
    name = judged.report.facts.record["tasks"][0]["judged"]["judge"]
    assert trial.startswith(f"asking {name}: 1 questions, about ")
    assert asking.startswith(f"asking {name}: 24 questions, about ")  # of 36; 12 are the same


def test_lm_eval_alone_runs_the_task_and_counts_letters(data: Path) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(
        include_path=str(task_catalogue.TASKS_FOLDER),
        include_defaults=False,
        metadata={"data_dir": str(data)},
    )
    results = lm_eval.simple_evaluate(
        model="dummy", tasks=[TASK, FIXED], task_manager=manager, bootstrap_iters=0
    )
    for name in (TASK, FIXED):
        assert results["results"][name]["characters,none"] == len("lol")  # what dummies say


def test_models_really_answer(asked: Asker, tmp_path: Path) -> None:
    """No completion is made up; they end where the little models do."""
    ended = asked(*asked.judge, "--answers", tmp_path / "kept")
    assert ended.code == 4, ended.err
    (task,) = validation_report.read_validation(tmp_path / "out").facts.record["tasks"]
    assert task["n"] == ITEMS
    kept = (tmp_path / KEPT).read_text(encoding="utf-8").splitlines()
    assert len(kept) == len(asked.service.asked) > 0
    assert {json.loads(line)["annotator"] for line in kept} == {task["judged"]["judge"]}
    for each in asked.service.asked:
        text = each.body["messages"][-1]["content"]
        assert "Say " in text and "base" not in text and "near" not in text
    before = len(asked.service.asked)
    options = ("--answers", tmp_path / "kept", "--judge-annotations", tmp_path / KEPT)
    again = asked(*options, out="again")
    assert (again.code, len(asked.service.asked)) == (4, before)
    assert validation_report.read_validation(tmp_path / "again").facts.record["tasks"] == [task]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--judge-budget", "1"), "a budget needs prices; give both prices of the judge"),
        (("--judge-budget", "0.0001", "--judge-price-in", "10", "--judge-price-out", "10"),
         "and the budget is $0.00; raise the budget"),
        (("--judge-local", "nowhere"), "both a judge at a service and a local judge are set"),
        (("--judge-annotations", "no/a.jsonl"), "no is not a folder; make it"),
        (("--judge-annotations", "a.json"), "a.json is a JSON list, to which nothing can be added"),
        (("--judge-parallel", "0"), "judge.parallel: Input should be greater than 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_refused_before_models_answer(
    asked: Asker, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr(LocalGenerator, "generate", never)
    ended = asked(*asked.judge, *options)
    assert ended.code in (2, 3)
    assert said in ended.err and "Traceback" not in ended.err
    assert not asked.service.asked


# fmt: off
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "a judge has to compare its completions with text-davinci-003's, and none is named; "
             "give --judge-url and --judge-model, --judge-local or --judge-annotations"),
        (("--judge-model", "m"), "a judge needs an address and a model; give both, or annotations"),
        (("--judge-annotations", "none.jsonl"),
         "none.jsonl holds no verdicts; give annotations, or the url and the model of a judge"),
    ],
)
# fmt: on
def test_without_a_judge_the_task_alone_is_refused(
    asked: Asker, options: tuple[str, ...], said: str
) -> None:
    ended = asked(*options)
    assert (ended.code, ended.err.splitlines()[-1]) == (2, f"error: {said}")


def test_without_a_judge_a_group_says_that_the_column_is_missing(
    asked: Asker, models: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    both = eval_data.write_alpaca(eval_data.write_mmlu(tmp_path / "eval"), 2)
    roomy = pico.write_model(tmp_path / "roomy", pico.Sizes(positions=1024))
    ended = asked.run(
        "validate", roomy, stages.widened(roomy), "--tasks", "tulu", "--data-dir", both,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert ended.code == 4, ended.err
    told = validation_report.read_validation(tmp_path / "out").facts.record
    assert told["tasks_missing"][TASK] == (
        "a judge has to compare its completions with text-davinci-003's, and none is named"
    )
    assert [task["benchmark"] for task in told["tasks"]] == ["MMLU", "MMLU"]
    assert "AlpacaFarm" in told["averages"]["missing"]
    assert f"Not run: {TASK}: a judge has" in (tmp_path / "out/report.md").read_text()


def test_a_judge_that_stays_away_ends_with_75_and_the_command_goes_on(
    asked: Asker, said: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked.service.faults, asked.service.always = deque([""] * 4), "500"
    options = (*asked.judge, "--judge-attempts", "2", "--judge-parallel", "1")
    ended = asked(*options)
    assert ended.code == 75
    assert ended.err.splitlines()[-1] == (
        "error: the judge at 127.0.0.1 failed 2 times at one question, the last time with HTTP "
        "500; run the same command again: the verdicts so far are kept"
    )
    kept = tmp_path / "out.verdicts.jsonl"
    assert len(kept.read_text().splitlines()) == 4 and not (tmp_path / "out").exists()
    asked.service.always, before = "", len(asked.service.asked)
    monkeypatch.setattr(LocalGenerator, "generate", never)  # no model answers again
    assert asked(*options).code == 4
    whole = len(kept.read_text().splitlines())
    assert len(asked.service.asked) - before == whole - 4
    assert {each.name for each in (tmp_path / "out").iterdir()} == {
        "samples", "flips.html", "report.json", "report.md", "report.html", "junit.xml",
    }  # fmt: skip


def test_faults_on_the_way_change_nothing(
    asked: Asker, said: None, judged: Judged, tmp_path: Path
) -> None:
    asked.service.faults = deque(["", "429", "500", "cut", "reset", "html", "other JSON", "503"])
    asked.service.after = "0.001"
    assert asked(*asked.judge, *PRICES, "--judge-attempts", "9", task=FIXED).code == 4
    facts = validation_report.read_validation(judged.folder).facts.record
    assert validation_report.read_validation(tmp_path / "out").facts.record == facts


@pytest.mark.parametrize(
    ("always", "told"),
    [
        ("nonsense", "gave no verdict, 1 times so far: 'I would rather not.'; use a"),
        ("401", f"the judge at 127.0.0.1 requires a key; set {KEY_VARIABLE}"),
    ],
)
def test_a_judge_that_is_none_is_one_line(
    asked: Asker, always: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shows before the models answer."""
    monkeypatch.setattr(LocalGenerator, "generate", never)
    asked.service.always = always
    ended = asked(*asked.judge, "--judge-parallel", "1")
    assert ended.code == 3
    assert told in ended.err.splitlines()[-1] and "Traceback" not in ended.err
    assert not (tmp_path / "out").exists()


def test_a_column_that_cannot_be_judged_takes_no_other_along(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = eval_data.write_alpaca(eval_data.write_mmlu(tmp_path / "eval"), 2)
    roomy = pico.write_model(tmp_path / "roomy", pico.Sizes(positions=1024))
    wide = Checkpoint.open(stages.widened(roomy))
    monkeypatch.setattr(LocalGenerator, "generate", lambda *_: enumerate(["a", "b"]))
    service.faults, service.always = deque([""]), "401"
    told: dict[str, Any] = {"tasks": [MMLU, TASK], "data_dir": str(both)}
    told["judge"] = {"url": service.url, "model": "judge-1"}
    settings = ValidateSettings.parse(told, source="test")
    report = work(Checkpoint.open(roomy), wide, tmp_path / "out", settings)
    assert [task["name"] for task in report.facts.record["tasks"]] == [MMLU]
    assert report.facts.record["tasks_missing"] == {TASK: "the judge at 127.0.0.1 requires a key"}
    assert service.url not in report.model_dump_json()
