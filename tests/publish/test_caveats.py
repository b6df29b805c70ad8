"""A card begins with what its figures do not show, and a release that needs a reason has one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from camelpress.core.errors import ReleaseRefusal
from camelpress.core.files.file_hashes import checkpoint_digest
from camelpress.publish.verify_release import verify_release
from camelpress.reporting.report_classes import read_report
from camelpress.reporting.stage_report import Report
from camelpress.reporting.verdict import Check, Verdict

Publisher = Callable[..., tuple[Path, Report]]
Judge = Callable[..., Path]
REASON = "a baseline, to compare with"


def changed(folder: Path, **parts: Any) -> None:
    """Replaces parts of the report of validate."""
    path = folder / "report.json"
    read_report(path).model_copy(update=parts).write(path)


def body(out: Path) -> list[str]:
    """The lines of a card under its title."""
    text = (out / "README.md").read_text(encoding="utf-8")
    _, _, rest = text.split("---\n", 2)
    title, _, lines = rest.strip().partition("\n")
    assert title == "# Tulu 65B GPTQ"
    return lines.strip().splitlines()


def task_check(name: str = "accuracy_loss") -> Check:
    return Check(
        name=name, part="gsm", verdict=Verdict.PASS, estimate=0.0, interval=None,
        threshold=0.02, direction="max", n=400, clusters=400, reason="no loss",
    )  # fmt: skip


def of_tasks_alone(folder: Path) -> None:
    report = read_report(folder / "report.json")
    facts = report.facts.updated(texts=[], tokens=0, tasks=[{"name": "gsm", "n": 400}])
    checks = (task_check(), task_check("significant_loss"))
    changed(folder, facts=facts, checks=checks)


def test_a_card_without_caveats_names_the_reference_by_its_type(publish: Publisher) -> None:
    out, report = publish()
    assert body(out)[0] == (
        "4-bit GPTQ weights, compared with the 16-bit reference before quantization."
    )
    assert report.facts.record["caveats"] == []


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"path": "m", "dtype": "float32", "bytes": 1}, "32-bit reference"),
        ({"path": "m", "dtype": "unknown", "bytes": 1}, "reference"),
    ],
)
def test_a_reference_of_another_type_is_called_by_it(
    publish: Publisher, judge: Judge, facts: dict[str, Any], name: str
) -> None:
    judge(reference=facts, tasks=[{"name": "gsm", "n": 8, "lost": 1, "won": 0}])
    out, _ = publish()
    for path in (path for path in out.rglob("*") if path.suffix in (".md", ".json", ".yaml")):
        text = path.read_text(encoding="utf-8")
        assert "16-bit" not in text and "16 bits" not in text, path
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"| perplexity, {name} | 3.53 |" in card
    assert f"| {name} | not recorded |" in card


def test_a_reference_that_is_not_the_source_is_said_first(publish: Publisher, judge: Judge) -> None:
    folder = judge()
    inputs = read_report(folder / "report.json").inputs | {"reference": "9" * 64}
    changed(folder, inputs=inputs)
    out, report = publish()
    first, *_ = body(out)
    assert first.startswith("> **The reference of the validation is not, file for file, the model")
    assert "compared with a 16-bit reference." in "\n".join(body(out))
    assert "reference before quantization" not in "\n".join(body(out))
    assert report.facts.record["caveats"] == [first.removeprefix("> **").removesuffix("**")]
    assert verify_release(out).verdict is Verdict.PASS


@pytest.mark.parametrize("known", [False, True])
def test_a_model_of_unknown_origin_is_said_first(
    publish: Publisher, judge: Judge, candidate: Path, known: bool
) -> None:
    path = candidate / "quantize-report.json"
    if known:
        read_report(path).model_copy(update={"inputs": {}}).write(path)
    else:
        path.unlink()
    judge()
    out, _ = publish()
    assert body(out)[0].startswith("> **No report says which model these weights were quantized fr")
    assert verify_release(out).verdict is Verdict.PASS


def test_a_quantized_reference_is_said_first(publish: Publisher, judge: Judge) -> None:
    folder = judge(reference={"path": "m", "dtype": "float16", "bits": 8, "bytes": 1})
    changed(folder, settings={"allow_quantized_reference": True})
    out, _ = publish()
    assert body(out)[0].startswith("> **The reference is itself quantized (8-bit): these figures")
    assert "| perplexity, 8-bit reference |" in (out / "README.md").read_text()


@pytest.mark.parametrize("reason", [None, REASON])
@pytest.mark.parametrize(
    ("reference", "word"),
    [
        ({"path": "m", "dtype": "float16", "bits": 4, "bytes": 1}, "4-bit"),
        ({"path": "m", "dtype": "float32", "dequantized": True, "bytes": 1}, "dequantized"),
    ],
)
def test_a_quantized_reference_that_nobody_asked_for_is_refused(
    publish: Publisher, judge: Judge, reference: dict[str, Any], word: str, reason: str | None
) -> None:
    judge(reference=reference)
    with pytest.raises(ReleaseRefusal, match=rf"itself quantized \({word}\)") as refused:
        publish(allow_failed_gate=reason)
    assert refused.value.exit_code == 1


@pytest.mark.parametrize("reason", [None, REASON])
def test_a_model_against_itself_is_refused_whatever_the_reason(
    publish: Publisher, judge: Judge, candidate: Path, tmp_path: Path, reason: str | None
) -> None:
    folder = judge()
    own = checkpoint_digest(candidate)
    changed(folder, inputs={"reference": own, "candidate": own})
    with pytest.raises(ReleaseRefusal, match="compares the model with itself") as refused:
        publish(allow_failed_gate=reason)
    assert refused.value.next_step == "validate it against the model before quantization"
    assert not (tmp_path / "release").exists()


@pytest.mark.parametrize(
    "extra", [(), ("non_finite",), ("noise_floor", "non_finite"), ("block_error",)]
)
def test_tasks_alone_need_a_reason(
    publish: Publisher, judge: Judge, tmp_path: Path, extra: tuple[str, ...]
) -> None:
    folder = judge()
    of_tasks_alone(folder)
    checks = read_report(folder / "report.json").checks
    changed(folder, checks=(*checks, *map(task_check, extra)))
    with pytest.raises(ReleaseRefusal, match="without a check of how predictions on text") as no:
        publish()
    assert no.value.exit_code == 1
    assert "--text" in no.value.next_step and "--allow-failed-gate" in no.value.next_step
    assert not (tmp_path / "release").exists()
    out, _ = publish(allow_failed_gate=REASON)
    lines = body(out)
    assert lines[0] == "> **The gate of this release judged no predictions on text.**"
    assert lines[2] == f"> It was published for this reason: {REASON}"
    assert verify_release(out).verdict is Verdict.PASS


def test_tasks_and_text_together_need_none(publish: Publisher, judge: Judge) -> None:
    folder = judge()
    checks = read_report(folder / "report.json").checks
    changed(folder, checks=(*checks, task_check()))
    assert publish()[1].facts.record["caveats"] == []


@pytest.mark.parametrize("reason", [None, REASON])
@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"interval": (1.034, 1.034)}, "its interval has no width"),
        ({"interval": None}, "its interval has no width"),
        ({"clusters": 3}, "it comes from fewer than 10 pieces of text"),
        ({"interval": (1.03, 1.06)}, "1.03 to 1.06 is not within 1.05"),
        ({"direction": "min", "threshold": 1.04}, "1.03 to 1.038 is not within 1.04"),
        ({"estimate": None, "interval": None}, "it has no estimate"),
        ({"verdict": Verdict.FAIL}, "it is FAIL"),
    ],
)
def test_a_pass_that_its_figures_do_not_bear_out_is_refused(
    publish: Publisher, judge: Judge, figures: dict[str, Any], words: str, reason: str | None
) -> None:
    folder = judge()
    (check,) = read_report(folder / "report.json").checks
    changed(folder, checks=(check.model_copy(update=figures),))
    with pytest.raises(ReleaseRefusal, match=f"perplexity_ratio contradicts it: {words}") as no:
        publish(allow_failed_gate=reason)
    assert f"camelpress gate {folder} --out" in no.value.next_step


def test_several_caveats_stand_in_order_of_weight(
    publish: Publisher, judge: Judge, candidate: Path
) -> None:
    (candidate / "quantize-report.json").unlink()
    folder = judge(Verdict.FAIL, reference={"path": "m", "dtype": "float16", "bits": 4, "bytes": 1})
    changed(folder, settings={"allow_quantized_reference": True})
    out, report = publish(allow_failed_gate=REASON)
    quoted = [line for line in body(out) if line.startswith("> **")]
    starts = ("did not pass its gate: FAIL", "is itself quantized", "No report says")
    assert [start in line for start, line in zip(starts, quoted, strict=True)] == [True] * 3
    assert len(report.facts.record["caveats"]) == 3
