"""Facts of reports: typed fields over the JSON object that is written again byte for byte."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from camelpress.core.settings import describe_validation_error
from camelpress.reporting.facts.quantize_facts import QuantizeFacts
from camelpress.reporting.facts.recover_facts import RecoverFacts
from camelpress.reporting.facts.validation_facts import ValidateFacts
from camelpress.reporting.facts_model import FactsModel, Interval, Number, OptionalNumber
from camelpress.reporting.report_classes import REPORTS, QuantizeReport, read_report
from camelpress.reporting.stage_report import Report
from fuzz_reports import FACTS

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 10**16) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


class Part(FactsModel):
    """A part of the facts below."""

    n: int = Field(ge=0)
    mean: OptionalNumber
    interval: Interval = None


class Facts(FactsModel):
    """Facts of a stage of these tests."""

    part: Part
    parts: list[Part]
    origin: str | None = Field(alias="from")
    size: Number = 0.0


RECORD: dict[str, Any] = {
    "new": {"key": [1, 1.0, None]},
    "from": "base",
    "parts": [{"interval": [1, 2.5], "n": 3, "mean": 1, "also": True}],
    "size": 2,
    "part": {"mean": None, "n": 0},
}


def test_the_fields_are_typed() -> None:
    facts = Facts.build(RECORD)
    assert facts.origin == "base"
    assert (facts.part.n, facts.part.mean, facts.parts[0].interval) == (0, None, (1.0, 2.5))
    assert facts.parts[0].record["also"] is True


def test_what_is_read_is_written_again_byte_for_byte() -> None:
    text = json.dumps(RECORD, separators=(",", ":"))
    for reading in ("strict", "lenient"):
        assert Facts.read(json.loads(text), reading).model_dump_json() == text


@given(st.dictionaries(st.sampled_from([*RECORD, "tensors", "layers", "tokens"]), JSON))
def test_a_lenient_reading_takes_any_object_and_loses_nothing(record: dict[str, Any]) -> None:
    for kind in (Facts, RecoverFacts, QuantizeFacts, ValidateFacts):
        assert kind.read(record).model_dump() == record


@given(st.sampled_from(sorted(FACTS)), JSON)
def test_a_damaged_field_reads_as_none_and_the_others_stay(key: str, value: Any) -> None:
    facts = ValidateFacts.read(FACTS | {key: value})
    assert facts.model_dump() == FACTS | {key: value}
    other = "tokens" if key != "tokens" else "sequences"
    assert getattr(facts, other) == FACTS[other]


def test_a_damaged_item_of_a_list_keeps_its_place() -> None:
    facts = Facts.read(RECORD | {"parts": [7, {"n": -1, "mean": 2.0}]})
    read: list[Any] = [(part.n, part.mean) for part in facts.parts]
    assert read == [(None, None), (None, 2.0)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": 3}, "parts: Input should be a valid array"),
        ({"part": 3}, "part: Input should be an object"),
        ({"size": 1e16}, "size: Input should be less than or equal to 1000000000000000"),
        ({"size": math.nan}, "size: Input should be a finite number"),
        ({"part": {"n": 0}}, "part.mean: Field required"),
        (
            {"part": {"n": 0, "mean": None, "interval": [2, 1]}},
            "part.interval: Value error, an interval ends before it begins",
        ),
    ],
)
def test_a_strict_reading_names_the_fault(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Facts.read(RECORD | change, "strict")
    assert describe_validation_error(caught.value) == message


def test_a_stage_may_build_numbers_that_json_lacks() -> None:
    facts = Facts.build(RECORD | {"size": math.inf, "part": {"n": 1, "mean": math.nan}})
    assert math.isnan(facts.part.mean or 0)
    written = json.loads(facts.model_dump_json())
    assert (written["size"], written["part"]["mean"]) == (None, None)


def test_a_stage_that_forgets_a_fact_is_stopped() -> None:
    with pytest.raises(ValidationError, match="parts"):
        Facts.build({key: value for key, value in RECORD.items() if key != "parts"})


def test_updated_facts_keep_the_order_of_the_others() -> None:
    facts = Facts.build(RECORD).updated(size=5.0, last=1)
    assert [*facts.record] == [*RECORD, "last"]
    assert facts.size == 5.0


@pytest.mark.parametrize("stage", REPORTS)
def test_the_report_of_each_stage_is_read_as_its_class(tmp_path: Path, stage: str) -> None:
    Report(stage=stage, inputs={}, settings={}, facts=FactsModel.build({"b": 1, "a": [2]})).write(
        tmp_path / "report.json"
    )
    report = read_report(tmp_path / "report.json")
    assert type(report) is REPORTS[stage]
    report.write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "report.json").read_bytes()


def test_a_report_of_an_unknown_stage_keeps_its_facts(tmp_path: Path) -> None:
    report = Report(stage="melt", inputs={}, settings={}, facts=FactsModel.build({"a": 1}))
    report.write(tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == report


def test_a_report_of_a_class_has_the_facts_of_its_class(tmp_path: Path) -> None:
    record = {"method": "gptq", "layers": [{"name": "q_proj", "loss": 0.5}]}
    Report(stage="quantize", inputs={}, settings={}, facts=FactsModel.build(record)).write(
        tmp_path / "report.json"
    )
    facts = QuantizeReport.read(tmp_path / "report.json").facts
    assert (facts.method, facts.layers[0].loss, facts.calibration) == ("gptq", 0.5, None)
