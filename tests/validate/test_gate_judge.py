"""A figure passes only if its whole interval does, and nothing passes by being absent."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from camelpress.core.errors import RecipeProblem
from camelpress.reporting.facts.validation_facts import ValidateFacts
from camelpress.reporting.verdict import Check, Verdict
from camelpress.validate.gate.gate_judge import judge_facts, read_gate
from camelpress.validate.settings import (
    LIMIT_RANGES,
    Gate,
    MaxLimit,
    MinLimit,
    TaskGate,
    TextGate,
)

SILENT: dict[str, Any] = dict.fromkeys(
    ("perplexity_ratio", "kl_mean", "top1_agreement", "non_finite")
)


def part(**changes: Any) -> dict[str, Any]:
    """Figures of some tokens, good ones."""
    told: dict[str, Any] = {
        "tokens": 1000,
        "sequences": 20,
        "perplexity_ratio": 1.01,
        "perplexity_ratio_interval": [1.005, 1.015],
        "kl_mean": 0.02,
        "kl_mean_interval": [0.015, 0.025],
        "top1_agreement": 0.95,
        "top1_agreement_interval": [0.945, 0.955],
    }
    return told | changes


def facts(**changes: Any) -> dict[str, Any]:
    told = part(
        kl_percentiles={"90": 0.05, "99": 0.3, "99.9": 1.2},
        kl_percentiles_interval={"90": [0.04, 0.06], "99": [0.25, 0.4], "99.9": None},
        early={"context": 128, "first": part(perplexity_ratio=1.04), "rest": None},
        texts=[part(name="wiki.txt"), part(name="code.jsonl", kl_mean=0.03)],
    )
    return told | changes


def typed(**changes: Any) -> ValidateFacts:
    return ValidateFacts.read(facts(**changes))


def one(told: dict[str, Any], **asked: Any) -> Check:
    (check,) = judge_facts(ValidateFacts.read(told), Gate(**{**SILENT, **asked}))
    return check


def kl(mean: float, reach: float) -> dict[str, Any]:
    return facts(kl_mean=mean, kl_mean_interval=[mean - reach, mean + reach])


def top1(mean: float, reach: float) -> dict[str, Any]:
    return facts(top1_agreement=mean, top1_agreement_interval=[mean - reach, mean + reach])


# fmt: off
@pytest.mark.parametrize(
    ("mean", "reach", "limit", "verdict", "reason"),
    [
        (0.020, 0.005, 0.03, Verdict.PASS,
         "0.02 (95 % interval 0.015 to 0.025) is at most 0.03"),
        (0.040, 0.005, 0.03, Verdict.FAIL,
         "0.04 (95 % interval 0.035 to 0.045) should be at most 0.03"),
        (0.028, 0.005, 0.03, Verdict.INCONCLUSIVE,
         "0.028 (95 % interval 0.023 to 0.033) holds the threshold 0.03: give more text, "
         "about 120 pieces like these (5,800 tokens) would decide"),
        (0.032, 0.005, 0.03, Verdict.INCONCLUSIVE,
         "0.032 (95 % interval 0.027 to 0.037) holds the threshold 0.03: give more text, "
         "about 120 pieces like these (5,800 tokens) would decide"),
        (0.250, 0.250, 0.50, Verdict.PASS,
         "0.25 (95 % interval 0 to 0.5) is at most 0.5"),
        (0.750, 0.250, 0.50, Verdict.INCONCLUSIVE,
         "0.75 (95 % interval 0.5 to 1) holds the threshold 0.5: give more text, "
         "about 21 pieces like these (1,100 tokens) would decide"),
    ],
)
def test_the_whole_interval_decides(
    mean: float, reach: float, limit: float, verdict: Verdict, reason: str
) -> None:
    check = one(kl(mean, reach), kl_mean=MaxLimit(max=limit))
    assert (check.verdict, check.reason) == (verdict, reason)


@pytest.mark.parametrize(
    ("mean", "reach", "limit", "verdict", "reason"),
    [
        (0.960, 0.005, 0.94, Verdict.PASS,
         "0.96 (95 % interval 0.955 to 0.965) is at least 0.94"),
        (0.920, 0.005, 0.94, Verdict.FAIL,
         "0.92 (95 % interval 0.915 to 0.925) should be at least 0.94"),
        (0.942, 0.005, 0.94, Verdict.INCONCLUSIVE,
         "0.942 (95 % interval 0.937 to 0.947) holds the threshold 0.94: give more text, "
         "about 120 pieces like these (5,800 tokens) would decide"),
        (0.750, 0.250, 0.50, Verdict.PASS,
         "0.75 (95 % interval 0.5 to 1) is at least 0.5"),
        (0.100, 0.050, 0.01, Verdict.PASS,
         "0.1 (95 % interval 0.05 to 0.15) is at least 0.01"),
        (0.900, 0.500, 0.94, Verdict.INCONCLUSIVE,
         "0.9 (95 % interval 0.4 to 1) holds the threshold 0.94: give more text, about "
         "120 pieces like these (5,800 tokens) would decide"),
    ],
)
# fmt: on
def test_and_from_the_other_side(
    mean: float, reach: float, limit: float, verdict: Verdict, reason: str
) -> None:
    check = one(top1(mean, reach), top1_agreement=MinLimit(min=limit))
    assert (check.verdict, check.reason) == (verdict, reason)


@pytest.mark.parametrize("mean", [0.001, 0.9])
def test_one_piece_of_text_decides_nothing(mean: float) -> None:
    told = facts(kl_mean=mean, kl_mean_interval=None, sequences=1)
    check = one(told, kl_mean=MaxLimit(max=0.03))
    assert (check.verdict, check.interval) == (Verdict.INCONCLUSIVE, None)
    assert check.reason == (
        f"{mean:g}, from one piece of text and so without an interval, holds the threshold 0.03: "
        "give more text, 10 pieces like these (10,000 tokens) at least"
    )


@pytest.mark.parametrize("interval", [None, [0.1, math.inf], [None, 0.2]])
def test_an_interval_without_an_end_decides_nothing(interval: Any) -> None:
    check = one(facts(kl_mean_interval=interval), kl_mean=MaxLimit(max=0.03))
    assert (check.verdict, check.interval) == (Verdict.INCONCLUSIVE, None)
    assert check.reason == (
        "0.02, of which the report has no bounded interval, holds the threshold 0.03: "
        "give more text, 40 pieces like these (2,000 tokens) at least"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("kl_mean", -1.0), ("perplexity_ratio", -1.0), ("top1_agreement", 1.5)],
)
def test_a_figure_that_cannot_be_is_an_error(name: str, value: float) -> None:
    asked = MinLimit(min=0.94) if name == "top1_agreement" else MaxLimit(max=1.5)
    check = one(facts(**{name: value}), **{name: asked})
    assert (check.verdict, check.reason) == (Verdict.ERROR, f"{name} cannot be {value:g}")


@pytest.mark.parametrize("ends", [[1.0, 1.0], [0.99, 0.98]])
def test_an_interval_without_width_asks_for_another_validation(ends: Any) -> None:
    """More text like it cannot decide a report that has no interval of the text it has."""
    told = facts(top1_agreement=1.0, top1_agreement_interval=ends)
    check = one(told, top1_agreement=MinLimit(min=0.94))
    assert (check.verdict, check.interval) == (Verdict.INCONCLUSIVE, None)
    assert check.reason.endswith(
        "holds the threshold 0.94: validate again, this report was written by an earlier version "
        "or edited"
    )


def test_pieces_that_are_hardly_enough_tell_what_they_count_as() -> None:
    told = facts(sequences=10, effective_sequences=9.97)
    check = one(told, kl_mean=MaxLimit(max=0.03))
    assert check.verdict is Verdict.INCONCLUSIVE
    assert "comes from 10 pieces of text that count as 9.9 of equal size; no ch" in check.reason


@pytest.mark.parametrize("tokens", [0, None])
def test_no_tokens_are_an_error_and_never_a_pass(tokens: int | None) -> None:
    check = one(facts(tokens=tokens), kl_mean=MaxLimit(max=0.03))
    assert (check.verdict, check.reason) == (Verdict.ERROR, "no tokens were scored")
    assert (check.estimate, check.n) == (None, 0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_not_finite_is_an_error(value: float) -> None:
    check = one(facts(kl_mean=value), kl_mean=MaxLimit(max=0.03))
    assert (check.verdict, check.reason) == (Verdict.ERROR, "kl_mean is not finite")


# fmt: off
@pytest.mark.parametrize(
    ("name", "bound", "missing"),
    [
        ("kl_reverse_mean", MaxLimit(max=1.0),  "kl_reverse_mean"),
        ("top5_agreement",  MinLimit(min=0.5), "top5_agreement"),
        ("non_finite",      MaxLimit(max=0.0),  "non_finite.candidate"),
        ("noise_floor",     MaxLimit(max=1.0),  "noise_floor.kl_mean"),
        ("block_error",     MaxLimit(max=1.0),  "blocks.*.relative_error"),
    ],
)
# fmt: on
def test_a_figure_that_the_report_lacks_is_an_error(name: str, bound: Any, missing: str) -> None:
    check = one(facts(), **{name: bound})
    assert (check.verdict, check.reason) == (Verdict.ERROR, f"the report has no {missing}")


@pytest.mark.parametrize(
    ("name", "verdict", "estimate"),
    [
        ("kl_p90", Verdict.PASS, 0.05),
        ("kl_p99", Verdict.FAIL, 0.3),
        ("kl_p99_9", Verdict.INCONCLUSIVE, 1.2),
    ],
)
def test_percentiles_are_asked_for_by_name(name: str, verdict: Verdict, estimate: float) -> None:
    check = one(facts(), **{name: MaxLimit(max=0.2)})
    assert (check.verdict, check.estimate) == (verdict, estimate)


@pytest.mark.parametrize(("found", "verdict"), [(0, Verdict.PASS), (3, Verdict.FAIL)])
def test_a_count_needs_no_interval(found: int, verdict: Verdict) -> None:
    check = one(
        facts(non_finite={"reference": 0, "candidate": found}), non_finite=MaxLimit(max=0.0)
    )
    assert (check.verdict, check.estimate, check.interval) == (verdict, found, None)
    assert check.reason == f"{found} {'is' if found == 0 else 'should be'} at most 0"


def test_the_worst_block_counts() -> None:
    blocks = [{"relative_error": error} for error in (0.01, 0.2, None, 0.05)]
    told = facts(blocks=blocks, noise_floor={"kl_mean": 1e-5})
    assert one(told, block_error=MaxLimit(max=0.1)).estimate == 0.2
    assert one(told, noise_floor=MaxLimit(max=1e-4)).verdict is Verdict.PASS


def test_every_figure_of_the_table_can_be_asked_for_and_no_other() -> None:
    assert list(TextGate.model_fields) == list(LIMIT_RANGES)
    every = {name: TextGate.model_fields[name].annotation for name in LIMIT_RANGES}
    for name, kind in every.items():
        bound = MinLimit(min=0.5) if "MinLimit" in str(kind) else MaxLimit(max=0.75)
        assert one(facts(), **{name: bound}).name == name


def test_a_check_tells_what_it_held_against_what() -> None:
    check = one(kl(0.5, 0.25), kl_mean=MaxLimit(max=0.1))
    assert (check.name, check.estimate, check.interval) == ("kl_mean", 0.5, (0.25, 0.75))
    assert (check.threshold, check.direction, check.n, check.clusters) == (0.1, "max", 1000, 20)
    assert check.part is None


def test_the_default_gate_holds_four_checks() -> None:
    checks = judge_facts(typed(non_finite={"reference": 0, "candidate": 0}), Gate())
    assert [check.name for check in checks] == [
        *("perplexity_ratio", "kl_mean", "top1_agreement", "non_finite")
    ]
    assert [check.verdict for check in checks] == ["PASS"] * 4


def test_the_beginnings_of_windows_have_limits_of_their_own() -> None:
    check = one(facts(), early=TextGate(perplexity_ratio=MaxLimit(max=1.001)))
    assert (check.part, check.estimate) == ("first 128 tokens", 1.04)
    assert check.verdict is Verdict.FAIL
    lost = facts()
    del lost["early"]
    assert one(lost, early=TextGate(kl_mean=MaxLimit(max=1.0))).verdict is Verdict.ERROR


def test_each_text_is_judged_by_what_fits_its_name() -> None:
    texts = {
        "*": TextGate(kl_mean=MaxLimit(max=0.5), perplexity_ratio=MaxLimit(max=1.1)),
        "code*": TextGate(kl_mean=MaxLimit(max=0.01), perplexity_ratio=None),
    }
    told = [
        (check.part, check.name, check.threshold, check.verdict.value)
        for check in judge_facts(typed(), Gate(**SILENT, texts=texts))
    ]
    assert told == [
        ("wiki.txt", "perplexity_ratio", 1.1, "PASS"),
        ("wiki.txt", "kl_mean", 0.5, "PASS"),
        ("code.jsonl", "kl_mean", 0.01, "FAIL"),
    ]


def test_a_pattern_that_fits_no_text_or_task_is_an_error() -> None:
    gate = Gate(
        **SILENT,
        texts={"cod.jsonl": TextGate(kl_mean=MaxLimit(max=0.5))},
        tasks={"mmlu": TaskGate(margin=0.01, significance=0.05)},
    )
    checks = judge_facts(typed(), gate)
    told = [(check.part, check.name, check.verdict, check.reason) for check in checks]
    assert told == [
        ("cod.jsonl", "kl_mean", Verdict.ERROR, "the report has no text of this name"),
        ("mmlu", "accuracy_loss", Verdict.ERROR, "the report has no task of this name"),
        ("mmlu", "significant_loss", Verdict.ERROR, "the report has no task of this name"),
    ]


def task(name: str, n: int, lost: int, won: int) -> dict[str, Any]:
    return {"name": name, "n": n, "lost": lost, "won": won}


# fmt: off
@pytest.mark.parametrize(
    ("counts", "verdict", "reason"),
    [
        ((10_000, 60, 50), Verdict.PASS,
         "0.001 (95 % interval -0.0010738 to 0.0031064) is at most 0.01"),
        ((10_000, 300, 50), Verdict.FAIL,
         "0.025 (95 % interval 0.021479 to 0.02877) should be at most 0.01"),
        ((164, 5, 3), Verdict.INCONCLUSIVE,
         "0.012195 (95 % interval -0.026239 to 0.053787) holds the threshold 0.01: give more "
         "items, about 52,000 would decide; a loss of 4.8 % of all items would be found four "
         "times in five"),
        ((10, 0, 0), Verdict.INCONCLUSIVE,
         "0 (95 % interval -0.27753 to 0.27753) holds the threshold 0.01: give more items, about "
         "400 would decide; on so few no loss would be found four times in five"),
        ((0, 0, 0), Verdict.ERROR, "no items were answered"),
    ],
)
# fmt: on
def test_a_loss_of_accuracy_passes_if_it_is_surely_within_the_margin(
    counts: tuple[int, int, int], verdict: Verdict, reason: str
) -> None:
    told = facts(tasks=[task("mmlu", *counts)])
    check = one(told, tasks={"mmlu": TaskGate(margin=0.01)})
    assert (check.name, check.part, check.n) == ("accuracy_loss", "mmlu", counts[0])
    assert (check.verdict, check.reason) == (verdict, reason)


@pytest.mark.parametrize("told", [{"by_count": False}, {"distinct": dict(n=20, lost=0, won=0)}])
def test_counts_of_repeated_or_weighed_items_are_no_interval(told: dict[str, Any]) -> None:
    told = task("mmlu", 400, 0, 0) | told
    bound = {"mmlu": TaskGate(margin=0.02)}
    bare = one(facts(tasks=[told]), tasks=bound)
    assert (bare.verdict, bare.reason) == (Verdict.ERROR, "the report has no delta")
    wide = told | {"delta": 0.0, "delta_interval": [-0.16, 0.16]}
    assert one(facts(tasks=[wide]), tasks=bound).verdict is Verdict.INCONCLUSIVE


def test_a_small_task_can_only_object() -> None:
    told = typed(tasks=[task("humaneval", 164, 5, 3), task("broken", 164, 30, 2)])
    checks = judge_facts(told, Gate(**SILENT, tasks={"*": TaskGate(significance=0.05)}))
    assert [(check.part, check.verdict) for check in checks] == [
        ("humaneval", Verdict.PASS),
        ("broken", Verdict.FAIL),
    ]
    assert checks[0].reason == (
        "5 items lost and 3 won, p = 0.36 among 2 tasks: no significant loss, and a loss of 4.3 % "
        "of all items would be found four times in five"
    )
    assert checks[1].reason == (
        "30 items lost and 2 won, p = 2.5e-07 among 2 tasks is below 0.05: "
        "a loss that is no accident"
    )


def test_many_tasks_are_one_family() -> None:
    tasks = [task(f"task-{number}", 500, 18, 6) for number in range(20)]
    alone = one(facts(tasks=tasks[:1]), tasks={"*": TaskGate(significance=0.05)})
    assert alone.verdict is Verdict.FAIL
    assert alone.estimate == pytest.approx(0.0113, rel=0.01)
    gate = Gate(**SILENT, tasks={"*": TaskGate(significance=0.05)})
    assert {check.verdict for check in judge_facts(typed(tasks=tasks), gate)} == {Verdict.PASS}


def test_a_gate_without_checks_is_refused() -> None:
    with pytest.raises(RecipeProblem, match="the gate holds no check") as told:
        judge_facts(typed(), Gate(**SILENT))
    assert told.value.next_step == "name at least one threshold"


def written(folder: Path, text: str) -> Path:
    path = folder / "gate.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_gate_file_changes_what_it_names(tmp_path: Path) -> None:
    gate = read_gate(
        written(
            tmp_path,
            "kl_mean: {max: 0.5}\ntop1_agreement: null\nearly: {kl_p99: {max: 2}}\n"
            "texts: {'*.txt': {top5_agreement: {min: 0.5}}}\ntasks: {mmlu: {margin: 0.01}}\n",
        )
    )
    assert gate == Gate(
        kl_mean=MaxLimit(max=0.5),
        top1_agreement=None,
        early=TextGate(kl_p99=MaxLimit(max=2.0)),
        texts={"*.txt": TextGate(top5_agreement=MinLimit(min=0.5))},
        tasks={"mmlu": TaskGate(margin=0.01)},
    )
    assert gate.perplexity_ratio == Gate().perplexity_ratio


def test_a_gate_that_went_through_a_report_asks_the_same() -> None:
    """A pattern that does not speak of a figure does not take back what another one asks."""
    gate = Gate(
        top1_agreement=None,
        texts={"*": TextGate(kl_mean=MaxLimit(max=0.5)), "c*": TextGate(kl_p99=MaxLimit(max=1.0))},
        tasks={"mmlu": TaskGate(margin=0.01), "*": TaskGate(significance=0.05)},
    )
    again = Gate.parse(gate.model_dump(mode="json"), source="test")
    told = typed(tasks=[task("mmlu", 1000, 5, 3)])
    assert judge_facts(told, again) == judge_facts(told, gate)
    assert len(judge_facts(told, gate)) == 3 + 3 + 2
    assert again == gate
    assert gate.model_dump(mode="json")["texts"] == {
        "*": {"kl_mean": {"max": 0.5}},
        "c*": {"kl_p99": {"max": 1.0}},
    }
    assert Gate().model_dump(mode="json")["kl_mean"] == {"max": 0.03}


# fmt: off
@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("kl_meen: {max: 0.5}\n",
         "kl_meen: Extra inputs are not permitted (did you mean kl_mean?)"),
        ("texts: {'*': {top1_agrement: {min: 1}}}\n",
         "texts.*.top1_agrement: Extra inputs are not permitted (did you mean top1_agreement?)"),
        ("tasks: {mmlu: {margn: 0.5}}\n", "(did you mean margin?)"),
        ("bogus: {max: 0.5}\n", "bogus: Extra inputs are not permitted; correct"),
        ("kl_mean: {max: 0.5, min: 0.1}\n", "kl_mean.min: Extra inputs are not permitted"),
        ("kl_mean: {min: 0.1}\n", "kl_mean.max: Field required"),
        ("top1_agreement: {max: 0.1}\n", "top1_agreement.min: Field required"),
        ("kl_mean: {}\n", "kl_mean.max: Field required"),
        ("kl_mean: {max: 'a lot'}\n", "kl_mean.max: Input should be a valid number"),
        ("top1_agreement: {min: 94}\n",
         "top1_agreement: Input should be a share of tokens between 0 and 1, both excluded; "
         "write 0.94"),
        ("top5_agreement: {min: 1}\n", "between 0 and 1, both excluded; correct"),
        ("top5_agreement: {min: 0}\n", "between 0 and 1, both excluded; correct"),
        ("early: {top1_agreement: {min: 96.5}}\n", "early.top1_agreement: Input should be a"),
        ("perplexity_ratio: {max: 0.035}\n",
         "perplexity_ratio: Input should be a ratio of perplexities (1 is no change) between 0.5 "
         "and 100; write 1.035"),
        ("perplexity_ratio: {max: 103.5}\n", "; write 1.035"),
        ("texts: {'*': {kl_p99: {max: -0.1}}}\n",
         "texts.*.kl_p99: Input should be a divergence in nats above 0; correct"),
        ("kl_mean: {max: 0}\n", "kl_mean: Input should be a divergence in nats above 0"),
        ("non_finite: {max: -1}\n", "non_finite: Input should be a number of 0 or more"),
        ("noise_floor: {max: -1}\n", "noise_floor: Input should be a number of 0 or more"),
        ("block_error: {max: 50}\n", "block_error: Input should be a relative error between 0 "
         "and 1; write 0.5"),
        ("tasks: {mmlu: {significance: 5}}\n", "tasks.mmlu.significance: Input should be a "
         "probability between 0 and 1, both excluded; write 0.05"),
        ("tasks: {mmlu: {margin: .nan}}\n", "tasks.mmlu.margin: Input should be a share"),
        ("tasks: {mmlu: {margin: 0}}\n", "tasks.mmlu.margin: Input should be a share"),
        ("kl_mean: {max: .inf}\n", "kl_mean.max: Input should be a finite number"),
        ("kl_mean: {max: .nan}\n", "kl_mean.max: Input should be a finite number"),
        ("kl_mean: 0.5\n", "kl_mean: Input should be"),
        ("tasks: {mmlu: {}}\n", "tasks.mmlu: Value error, give margin, significance or both"),
        ("tasks: {mmlu: {margin: 1.5}}\n",
         "tasks.mmlu.margin: Input should be a share of items between 0 and 1"),
    ],
)
# fmt: on
def test_an_impossible_gate_is_refused_by_the_name_of_the_entry(
    tmp_path: Path, text: str, fault: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(RecipeProblem) as told:
        read_gate(path)
    assert str(told.value).startswith(f"{path}: ")
    assert fault in str(told.value)
    assert told.value.next_step == "correct these entries"
    assert told.value.exit_code == 2


@pytest.mark.parametrize(
    ("verdicts", "worst"),
    [
        ([], Verdict.ERROR),
        ([Verdict.PASS, Verdict.PASS], Verdict.PASS),
        ([Verdict.PASS, Verdict.INCONCLUSIVE], Verdict.INCONCLUSIVE),
        ([Verdict.INCONCLUSIVE, Verdict.FAIL], Verdict.FAIL),
        ([Verdict.FAIL, Verdict.ERROR, Verdict.PASS], Verdict.ERROR),
    ],
)
def test_the_worst_check_is_the_verdict(verdicts: list[Verdict], worst: Verdict) -> None:
    assert Verdict.combine(verdicts) is worst


def test_a_limit_at_the_end_of_its_range_is_possible_where_a_value_decides() -> None:
    assert Gate(non_finite=MaxLimit(max=0.0), block_error=MaxLimit(max=1.0)).block_error


def test_the_schema_has_the_range_of_each_limit() -> None:
    properties = Gate.model_json_schema()["properties"]
    assert properties["top1_agreement"]["properties"]["min"] == {
        "exclusiveMinimum": 0.0,
        "exclusiveMaximum": 1.0,
    }
    assert properties["kl_mean"]["properties"]["max"] == {"exclusiveMinimum": 0.0}
    for name, limits in LIMIT_RANGES.items():
        (key,) = ({"max", "min"} & {*properties[name]["properties"]}) - {
            "max" if name.startswith("top") else "min"
        }
        assert properties[name]["properties"][key] == limits.schema


@pytest.mark.parametrize(("pieces", "verdict"), [(9, Verdict.INCONCLUSIVE), (10, Verdict.PASS)])
@pytest.mark.parametrize("limit", [0.03, 1.0])
def test_nothing_is_decided_on_fewer_than_ten_pieces(
    pieces: int, verdict: Verdict, limit: float
) -> None:
    check = one(facts(sequences=pieces), kl_mean=MaxLimit(max=limit))
    assert (check.verdict, check.clusters) == (verdict, pieces)
    bad = one(facts(sequences=9), kl_mean=MaxLimit(max=0.001))
    assert bad.verdict is Verdict.INCONCLUSIVE
    assert bad.reason == (
        "0.02 (95 % interval 0.015 to 0.025) comes from 9 pieces of text; no check is decided on "
        "fewer than 10: give more text, about 10 pieces like these (1,200 tokens) would decide"
    )


def test_one_long_piece_beside_many_short_ones_is_hardly_more_than_one() -> None:
    told = facts(sequences=21, effective_sequences=1.14, repeats=299)
    check = one(told, kl_mean=MaxLimit(max=0.03))
    assert check.verdict is Verdict.INCONCLUSIVE
    assert (
        "comes from 21 pieces of text (299 of 320 repeat another) that count as 1.1 of equal size"
        in check.reason
    )


@pytest.mark.parametrize("ends", [[1.0, 1.0], [1.0, 1.0 + 1e-12], [1.0 + 1e-9, 1.0]])
def test_an_interval_without_a_width_in_an_old_report_decides_nothing(ends: list[float]) -> None:
    told = facts(top1_agreement=1.0, top1_agreement_interval=ends)
    check = one(told, top1_agreement=MinLimit(min=0.94))
    assert (check.verdict, check.interval) == (Verdict.INCONCLUSIVE, None)


def test_an_interval_beyond_a_share_in_an_old_report_is_cut() -> None:
    told = facts(top1_agreement=0.9469, top1_agreement_interval=[-0.49, 1.98])
    assert one(told, top1_agreement=MinLimit(min=0.5)).interval == (0.0, 1.0)
    told = facts(kl_mean_interval=[-0.01, 0.05])
    assert one(told, kl_mean=MaxLimit(max=0.1)).interval == (0.0, 0.05)


@pytest.mark.parametrize("place", [{"early": "first"}, {"texts": "wiki.txt"}])
def test_parts_of_few_pieces_are_not_decided_either(place: dict[str, str]) -> None:
    first = {"context": 128, "first": part(sequences=3), "rest": None}
    told = facts(early=first, texts=[part(sequences=3, name="wiki.txt")])
    bounds = TextGate(kl_mean=MaxLimit(max=0.5))
    gate = {"early": bounds} if "early" in place else {"texts": {"*": bounds}}
    assert one(told, **gate).verdict is Verdict.INCONCLUSIVE


def test_as_much_text_as_is_named_does_decide() -> None:
    """The interval that so many pieces would have ends before the threshold, and hardly sooner."""
    check = one(facts(kl_mean=0.02, kl_mean_interval=[0.0, 0.04]), kl_mean=MaxLimit(max=0.03))
    needed = int(check.reason.split("about ")[1].split(" ")[0])
    for pieces, verdict in ((needed, Verdict.PASS), (needed // 2, Verdict.INCONCLUSIVE)):
        reach = 0.02 / 2.093 * math.sqrt(20 / pieces) * 1.993  # Student's t, 19 and 73 degrees
        told = facts(kl_mean=0.02, kl_mean_interval=[0.02 - reach, 0.02 + reach], sequences=pieces)
        assert one(told, kl_mean=MaxLimit(max=0.03)).verdict is verdict


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [((9, 0, 0), Verdict.INCONCLUSIVE), ((9, 9, 0), Verdict.INCONCLUSIVE),
     ((10, 0, 0), Verdict.PASS), ((10, 10, 0), Verdict.FAIL)],
)  # fmt: skip
def test_a_task_of_few_items_cannot_object(counts: tuple[int, int, int], verdict: Verdict) -> None:
    told = facts(tasks=[task("few", *counts)])
    check = one(told, tasks={"*": TaskGate(significance=0.05)})
    assert check.verdict is verdict
    assert (verdict is not Verdict.INCONCLUSIVE) or "give 10 at least" in check.reason


def test_a_loss_that_could_never_be_significant_is_no_pass() -> None:
    """Of 12 items, a loss of all has p = 0.00024, which is no accident by 0.05 but by 0.0001."""
    told = facts(tasks=[task("few", 12, 0, 0)])
    check = one(told, tasks={"*": TaskGate(significance=0.0001)})
    assert check.verdict is Verdict.INCONCLUSIVE and "give 14 at least" in check.reason


def test_items_that_repeat_are_judged_once() -> None:
    copies = task("copies", 400, 390, 0) | {
        "by_count": False, "delta": -0.975, "delta_interval": [-1.0, -0.1],
        "distinct": {"n": 11, "lost": 1, "won": 0},
    }  # fmt: skip
    gate = Gate(**SILENT, tasks={"*": TaskGate(margin=0.05, significance=0.05)})
    checks = judge_facts(typed(tasks=[copies]), gate)
    assert [check.verdict for check in checks] == [Verdict.FAIL, Verdict.PASS]
    assert [(check.n, check.clusters) for check in checks] == [(400, 11)] * 2
    assert "1 items lost and 0 won, p = 0.5" in checks[1].reason
