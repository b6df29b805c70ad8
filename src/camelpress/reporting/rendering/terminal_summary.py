"""Summarizes each report for the terminal as rows of a name and a value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from camelpress.core.documents.omissions import omission_rows
from camelpress.reporting import sentences
from camelpress.reporting.metrics import METRICS, Metric, metrics_on
from camelpress.reporting.model_precision import quantized_reference_caveat, with_precision
from camelpress.reporting.number_format import NBSP, NOT_RECORDED, add_unit, format_points_interval
from camelpress.reporting.stage_report import Report
from camelpress.reporting.tables import preference_tables

EARLY_METRIC = "perplexity_ratio"  # shown for the beginnings of windows, too


def terminal_rows(report: Report) -> list[tuple[str, str]]:
    """Returns the rows of a report, or [] for a stage without a summary."""
    return SUMMARIES[report.stage](report) if report.stage in SUMMARIES else []


def _cost(report: Report) -> list[tuple[str, str]]:
    cost = report.cost
    if not cost:
        return []
    return [("time, memory", f"{cost['seconds']:.1f} s, peak {cost['peak_bytes'] / 1e6:,.0f} MB")]


def _recover(report: Report) -> list[tuple[str, str]]:
    facts = report.facts.record
    shares = facts["representable"]
    return [
        ("tensors", _tensors(facts)),
        ("rules", _rules(facts["tensors"])),
        ("fits", ", ".join(f"{name} {share:.2%}" for name, share in shares.items())),
        ("tokenizer", _tokenizer(facts["tokenizer"])),
        *_golden(facts.get("golden")),
        *_cost(report),
    ]


def _tensors(facts: Mapping[str, Any]) -> str:
    others = Counter(facts.get("dtypes", {}).values())
    return ", ".join(
        [f"{len(facts['tensors'])}", facts["dtype"], *(f"{n} {name}" for name, n in others.items())]
    )


def _rules(tensors: Sequence[dict[str, Any]]) -> str:
    counts = Counter(tensor["rule"] for tensor in tensors)
    return ", ".join(f"{rule} {count}" for rule, count in counts.most_common())


def _tokenizer(facts: dict[str, Any]) -> str:
    if facts["from"] is None:
        return "none: neither base nor diff has one"
    template = facts["chat_template"] or "no"
    origin = "the base's, " if facts.get("source") == "base" else ""
    return f"{origin}{facts['tokens']:,} tokens, pad is {facts['pad']}, {template} chat template"


def _golden(golden: dict[str, Any] | None) -> list[tuple[str, str]]:
    if golden is None:
        return []
    return [
        (
            "completions",
            f"{golden['completions']} known ones: perplexity {golden['perplexity']:.3f}, "
            f"{golden['greedy_agreement']:.1%} of {golden['tokens']:,} tokens as decoded",
        )
    ]


def _make_diff(report: Report) -> list[tuple[str, str]]:
    facts = report.facts.record
    return [
        ("tensors", f"{len(facts['tensors'])}, {facts['dtype']}"),
        ("lost", _loss_note(facts)),
        *_cost(report),
    ]


def _loss_note(facts: Mapping[str, Any]) -> str:
    if facts["inexact"]:
        return f"{facts['inexact']:,} values by up to {facts['largest_error']:.1e}"
    if facts.get("zero_signs"):
        return f"the sign of {facts['zero_signs']:,} zeros; every other bit comes back"
    return "nothing: every bit comes back"


def _rescue_note(facts: dict[str, Any]) -> str:
    count, lost = facts["rescues"], facts.get("lost")
    return ("" if count is None else f", {count} needed a rescue") + (
        f", {lost} lost: their error is beyond the limit" if lost else ""
    )


def _quantize(report: Report) -> list[tuple[str, str]]:
    facts, settings = report.facts.record, report.settings
    calibration = facts["calibration"]
    rows = [
        (
            "grid",
            f"{settings['bits']} bit, group {settings['group_size']}, "
            f"{'sym' if settings['sym'] else 'asym'}, {settings['method']}",
        ),
        ("layers", f"{len(facts['layers'])}{_rescue_note(facts)}"),
    ]
    versions = facts.get("engine", {}).get("versions")
    if versions:
        named = ", ".join(f"{name} {version}" for name, version in versions.items())
        rows.insert(0, ("engine", named))
    if facts["padded"]:
        padded = facts["padded"]
        rows.append(("padded", f"feed-forward {padded['from']:,} to {padded['to']:,} wide"))
    if calibration:
        rows.append(
            (
                "calibration",
                f"{calibration['tokens']:,} tokens in {calibration['samples']} sequences",
            )
        )
        rows += omission_rows(calibration["files"])
    return rows + _cost(report)


def _validate(report: Report) -> list[tuple[str, str]]:
    facts = report.facts.record
    scored = _metric_rows(facts) if facts["tokens"] else []
    return [*_caveat(facts), *scored, *_tasks(facts), *_cost(report)]


def _caveat(facts: dict[str, Any]) -> list[tuple[str, str]]:
    return [("caveat", sentence) for sentence in [quantized_reference_caveat(facts)] if sentence]


def _metric_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    reference = with_precision(facts["reference"], "reference")
    rows = []
    for metric in metrics_on("terminal"):
        rows.append((metric.text("terminal_label"), _metric_value(metric, facts, reference)))
        if metric.key == EARLY_METRIC:
            rows += _early_row(facts.get("early"))
    return [
        *rows,
        ("tokens", f"{facts['tokens']:,} in {facts['sequences']} sequences"),
        *omission_rows(facts["texts"]),
        *([("", sentences.repeats_sentence(facts, "sequences"))] if facts.get("repeats") else []),
    ]


def _metric_value(metric: Metric, facts: dict[str, Any], reference: str) -> str:
    value = metric.value(facts)
    if value is None:
        return NOT_RECORDED
    if metric.unit == "%":
        estimate = f"{value:.2%}"
    else:
        number = add_unit(f"{value:.5f}", metric.unit).replace(NBSP, " ")
        estimate = f"{number}{_span(metric.interval(facts))}"
    return metric.text("terminal", value=value, estimate=estimate, reference=reference)


def _tasks(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns both scores of each benchmark and the reason of each missing benchmark."""
    rows = []
    for task in facts.get("tasks") or []:
        scores = f"{task['reference_accuracy']:.2%} to {task['candidate_accuracy']:.2%}"
        flips = f"{task['lost']} lost, {task['won']} won of {task['n']:,}"
        rows.append((task.get("title") or task["name"], f"{scores}, {flips}{_detectable(task)}"))
        rows += _unlabelled(sentences.duplicate_items_sentence(task))
        rows += [("", sentence) for sentence in preference_tables.direct_preference_sentences(task)]
    averages = facts.get("averages")
    if averages:
        scores = f"{averages['reference']:.2%} to {averages['candidate']:.2%}"
        interval = format_points_interval(averages.get("delta_interval"), sign=True)
        known = f", difference {interval} points" if "delta_interval" in averages else ""
        rows.append((averages["name"], f"{scores}{known}"))
        rows += _unlabelled(sentences.missing_benchmarks_sentence(facts))
    return rows + [
        (name, f"not run: {why}") for name, why in (facts.get("tasks_missing") or {}).items()
    ]


def _unlabelled(sentence: str) -> list[tuple[str, str]]:
    return [("", sentence)] if sentence else []


def _detectable(task: dict[str, Any]) -> str:
    """States the detectable loss of a task; reports of earlier versions lack it."""
    if "detectable_loss" not in task:
        return ""
    loss = task["detectable_loss"]
    return f"; a loss of {loss:.1%} would be found" if loss else "; no loss would be found"


def _store(report: Report) -> list[tuple[str, str]]:
    facts = report.facts.record
    return [
        *_caveat(facts),
        ("predictions", f"{facts['predictions']:,} over {facts['vocabulary']:,} tokens"),
        ("kept of each", f"{facts['top_k']} likeliest, {facts['samples']} of the others"),
        ("remainder", f"{facts['remainder_mass']:.3%} of the probability"),
        *(
            [("repeats", sentences.repeats_sentence(facts, "sequences"))]
            if facts.get("repeats")
            else []
        ),
        ("protocol", facts["protocol"]),
        *omission_rows(facts["texts"]),
        *_cost(report),
    ]


def _early_row(early: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Returns the ratio at the beginning of windows; reports of earlier versions lack it."""
    if early is None or not (early["first"] and early["rest"]):
        return []
    ratio, rest = (METRICS[EARLY_METRIC].value(early[part]) for part in ("first", "rest"))
    return [("", f"{ratio:.5f} from the first {early['context']} tokens, {rest:.5f} after them")]


def _export(report: Report) -> list[tuple[str, str]]:
    facts, settings = report.facts.record, report.settings
    to = settings["to"] + (f", {settings['dtype']}" if settings["to"] == "dense" else "")
    lost = f"{facts['inexact']:,} values by up to {facts['largest_error']:.1e}"
    return [
        ("layers", f"{facts['layers']}, {' and '.join(facts['from'])} to {to}"),
        ("lost", lost if facts["inexact"] else "nothing: every weight is the same"),
        *_cost(report),
    ]


def _publish(report: Report) -> list[tuple[str, str]]:
    delivered = report.facts.record.get("delivered")
    place = _destination_rows(delivered) if delivered else []
    files = f"{len(report.outputs)}, sealed by provenance.json and SHA256SUMS"
    caveats = [("caveat", sentence) for sentence in report.facts.record.get("caveats", [])]
    return [*caveats, *place, ("files", files), *_cost(report)]


def _upload(report: Report) -> list[tuple[str, str]]:
    return [*_destination_rows(report.facts.record), *_cost(report)]


def _destination_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the address, visibility and commit of a release."""
    visibility = {True: ", private", False: ", public", None: ""}[facts.get("private")]
    gate = ", gated" if facts.get("gated") else ""
    return [("published", f"{facts['to']}{visibility}{gate}"), ("commit", facts["commit"])]


def _verify(report: Report) -> list[tuple[str, str]]:
    signed = [("signed", report.facts.record["signed"])] if "signed" in report.facts.record else []
    return [*signed, *(("problem", problem) for problem in report.facts.record["problems"])]


def _diff(report: Report) -> list[tuple[str, str]]:
    return [
        (kind, difference)
        for kind, differences in report.facts.record["differences"].items()
        for difference in differences
    ]


def _span(interval: Sequence[float] | None) -> str:
    return f"  ({interval[0]:.5f} to {interval[1]:.5f})" if interval else ""


SUMMARIES = {
    "recover": _recover,
    "make-diff": _make_diff,
    "quantize": _quantize,
    "validate": _validate,
    "export": _export,
    "store": _store,
    "publish": _publish,
    "upload": _upload,
    "verify": _verify,
    "rebuild": _verify,
    "card": _verify,
    "diff": _diff,
}
