"""Summarizes each report for the terminal as rows of a name and a value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from camelpress.core.documents.omissions import omission_rows
from camelpress.reporting import sentences
from camelpress.reporting.facts.quantize_facts import QuantizeFacts
from camelpress.reporting.facts.recover_facts import (
    KnownCompletionFacts,
    MakeDiffFacts,
    RecoverFacts,
    ReportedTensor,
    TokenizerFacts,
)
from camelpress.reporting.facts.release_facts import UploadFacts
from camelpress.reporting.facts.task_facts import TaskFacts
from camelpress.reporting.facts.validation_facts import (
    ModelFacts,
    ValidateFacts,
    WindowStartFacts,
)
from camelpress.reporting.metrics import METRICS, Metric, metrics_on
from camelpress.reporting.model_precision import quantized_reference_caveat, with_precision
from camelpress.reporting.number_format import NBSP, NOT_RECORDED, add_unit, format_points_interval
from camelpress.reporting.report_classes import (
    ExportReport,
    MakeDiffReport,
    ProblemReport,
    PublishReport,
    QuantizeReport,
    RecoverReport,
    ReleaseDiffReport,
    StoreReport,
    UploadReport,
    ValidationReport,
)
from camelpress.reporting.stage_report import Report
from camelpress.reporting.tables import preference_tables

EARLY_METRIC = "perplexity_ratio"  # shown for the beginnings of windows, too


def terminal_rows(report: Report) -> list[tuple[str, str]]:
    """Returns the rows of a report, or [] for a stage without a summary."""
    summarize = SUMMARIES.get(type(report))
    return summarize(report) if summarize else []


def _cost(report: Report) -> list[tuple[str, str]]:
    cost = report.cost
    if not cost:
        return []
    return [("time, memory", f"{cost['seconds']:.1f} s, peak {cost['peak_bytes'] / 1e6:,.0f} MB")]


def _recover(report: RecoverReport) -> list[tuple[str, str]]:
    facts = report.facts
    shares = facts.representable
    return [
        ("tensors", _tensors(facts)),
        ("rules", _rules(facts.tensors)),
        ("fits", ", ".join(f"{name} {share:.2%}" for name, share in shares.items())),
        ("tokenizer", _tokenizer(facts.tokenizer)),
        *_golden(facts.golden),
        *_cost(report),
    ]


def _tensors(facts: RecoverFacts) -> str:
    others = Counter(facts.dtypes.values())
    return ", ".join(
        [f"{len(facts.tensors)}", facts.dtype, *(f"{n} {name}" for name, n in others.items())]
    )


def _rules(tensors: Sequence[ReportedTensor]) -> str:
    counts = Counter(tensor.rule for tensor in tensors)
    return ", ".join(f"{rule} {count}" for rule, count in counts.most_common())


def _tokenizer(facts: TokenizerFacts) -> str:
    if facts.folder is None:
        return "none: neither base nor diff has one"
    template = facts.chat_template or "no"
    origin = "the base's, " if facts.source == "base" else ""
    return f"{origin}{facts.tokens:,} tokens, pad is {facts.pad}, {template} chat template"


def _golden(golden: KnownCompletionFacts | None) -> list[tuple[str, str]]:
    if golden is None:
        return []
    return [
        (
            "completions",
            f"{golden.completions} known ones: perplexity {golden.perplexity:.3f}, "
            f"{golden.greedy_agreement:.1%} of {golden.tokens:,} tokens as decoded",
        )
    ]


def _make_diff(report: MakeDiffReport) -> list[tuple[str, str]]:
    facts = report.facts
    return [
        ("tensors", f"{len(facts.tensors)}, {facts.dtype}"),
        ("lost", _loss_note(facts)),
        *_cost(report),
    ]


def _loss_note(facts: MakeDiffFacts) -> str:
    if facts.inexact:
        return f"{facts.inexact:,} values by up to {facts.largest_error:.1e}"
    if facts.zero_signs:
        return f"the sign of {facts.zero_signs:,} zeros; every other bit comes back"
    return "nothing: every bit comes back"


def _rescue_note(facts: QuantizeFacts) -> str:
    count, lost = facts.rescues, facts.lost
    return ("" if count is None else f", {count} needed a rescue") + (
        f", {lost} lost: their error is beyond the limit" if lost else ""
    )


def _quantize(report: QuantizeReport) -> list[tuple[str, str]]:
    facts, settings = report.facts, report.settings
    calibration = facts.calibration
    rows = [
        (
            "grid",
            f"{settings['bits']} bit, group {settings['group_size']}, "
            f"{'sym' if settings['sym'] else 'asym'}, {settings['method']}",
        ),
        ("layers", f"{len(facts.layers)}{_rescue_note(facts)}"),
    ]
    if facts.engine and facts.engine.versions:
        named = ", ".join(f"{name} {version}" for name, version in facts.engine.versions.items())
        rows.insert(0, ("engine", named))
    if facts.padded:
        change = facts.padded
        rows.append(("padded", f"feed-forward {change.width:,} to {change.padded:,} wide"))
    if calibration:
        rows.append(
            (
                "calibration",
                f"{calibration.tokens:,} tokens in {calibration.samples} sequences",
            )
        )
    for file in facts.calibration_files:
        rows += omission_rows(file.name, file.omissions, file.rows, file.unanswered)
    return rows + _cost(report)


def _validate(report: ValidationReport) -> list[tuple[str, str]]:
    facts = report.facts
    scored = _metric_rows(facts) if facts.tokens else []
    return [*_caveat(facts.reference), *scored, *_tasks(facts), *_cost(report)]


def _caveat(reference: ModelFacts) -> list[tuple[str, str]]:
    sentence = quantized_reference_caveat(reference)
    return [("caveat", sentence)] if sentence else []


def _metric_rows(facts: ValidateFacts) -> list[tuple[str, str]]:
    reference = with_precision(facts.reference, "reference")
    rows = []
    for metric in metrics_on("terminal"):
        rows.append((metric.text("terminal_label"), _metric_value(metric, facts, reference)))
        if metric.key == EARLY_METRIC:
            rows += _early_row(facts.early)
    return [
        *rows,
        ("tokens", f"{facts.tokens:,} in {facts.sequences} sequences"),
        *sentences.text_omission_rows(facts.texts),
        *_unlabelled(sentences.repeats_sentence(facts, "sequences")),
    ]


def _metric_value(metric: Metric, facts: ValidateFacts, reference: str) -> str:
    value = metric.value(facts)
    if value is None:
        return NOT_RECORDED
    if metric.unit == "%":
        estimate = f"{value:.2%}"
    else:
        number = add_unit(f"{value:.5f}", metric.unit).replace(NBSP, " ")
        estimate = f"{number}{_span(metric.interval(facts))}"
    return metric.text("terminal", value=value, estimate=estimate, reference=reference)


def _tasks(facts: ValidateFacts) -> list[tuple[str, str]]:
    """Returns both scores of each benchmark and the reason of each missing benchmark."""
    rows = []
    for task in facts.tasks:
        scores = f"{task.reference_accuracy:.2%} to {task.candidate_accuracy:.2%}"
        flips = f"{task.lost} lost, {task.won} won of {task.n:,}"
        rows.append((task.label, f"{scores}, {flips}{_detectable(task)}"))
        rows += _unlabelled(sentences.duplicate_items_sentence(task))
        rows += [("", sentence) for sentence in preference_tables.direct_preference_sentences(task)]
    averages = facts.averages
    if averages:
        scores = f"{averages.reference:.2%} to {averages.candidate:.2%}"
        interval = format_points_interval(averages.delta_interval, sign=True)
        is_known = "delta_interval" in averages.model_fields_set
        known = f", difference {interval} points" if is_known else ""
        rows.append((averages.name, f"{scores}{known}"))
        rows += _unlabelled(sentences.missing_benchmarks_sentence(facts))
    return rows + [(name, f"not run: {why}") for name, why in facts.tasks_missing.items()]


def _unlabelled(sentence: str) -> list[tuple[str, str]]:
    return [("", sentence)] if sentence else []


def _detectable(task: TaskFacts) -> str:
    """States the detectable loss of a task; reports of earlier versions lack it."""
    if "detectable_loss" not in task.model_fields_set:
        return ""
    loss = task.detectable_loss
    return f"; a loss of {loss:.1%} would be found" if loss else "; no loss would be found"


def _store(report: StoreReport) -> list[tuple[str, str]]:
    facts = report.facts
    repeats = sentences.repeats_sentence(facts, "sequences")
    return [
        *_caveat(facts.reference),
        ("predictions", f"{facts.predictions:,} over {facts.vocabulary:,} tokens"),
        ("kept of each", f"{facts.top_k} likeliest, {facts.samples} of the others"),
        ("remainder", f"{facts.remainder_mass:.3%} of the probability"),
        *([("repeats", repeats)] if repeats else []),
        ("protocol", facts.protocol),
        *sentences.text_omission_rows(facts.texts),
        *_cost(report),
    ]


def _early_row(early: WindowStartFacts | None) -> list[tuple[str, str]]:
    """Returns the ratio at the beginning of windows; reports of earlier versions lack it."""
    if early is None or not (early.first and early.rest):
        return []
    ratio, rest = (METRICS[EARLY_METRIC].value(part) for part in (early.first, early.rest))
    return [("", f"{ratio:.5f} from the first {early.context} tokens, {rest:.5f} after them")]


def _export(report: ExportReport) -> list[tuple[str, str]]:
    facts, settings = report.facts, report.settings
    to = settings["to"] + (f", {settings['dtype']}" if settings["to"] == "dense" else "")
    lost = f"{facts.inexact:,} values by up to {facts.largest_error:.1e}"
    return [
        ("layers", f"{facts.layers}, {' and '.join(facts.layouts)} to {to}"),
        ("lost", lost if facts.inexact else "nothing: every weight is the same"),
        *_cost(report),
    ]


def _publish(report: PublishReport) -> list[tuple[str, str]]:
    """Returns caveats, destination and files; reports of earlier versions lack the caveats."""
    facts = report.facts
    place = _destination_rows(facts.delivered) if facts.delivered else []
    files = f"{len(report.outputs)}, sealed by provenance.json and SHA256SUMS"
    caveats = [("caveat", sentence) for sentence in facts.caveats or []]
    return [*caveats, *place, ("files", files), *_cost(report)]


def _upload(report: UploadReport) -> list[tuple[str, str]]:
    return [*_destination_rows(report.facts), *_cost(report)]


def _destination_rows(facts: UploadFacts) -> list[tuple[str, str]]:
    """Returns the address, visibility and commit of a release."""
    visibility = {True: ", private", False: ", public", None: ""}[facts.private]
    gate = ", gated" if facts.gated else ""
    return [("published", f"{facts.to}{visibility}{gate}"), ("commit", facts.commit or "")]


def _problems(report: ProblemReport) -> list[tuple[str, str]]:
    facts = report.facts
    signed = [] if facts.signed is None else [("signed", facts.signed)]
    return [*signed, *(("problem", problem) for problem in facts.problems)]


def _diff(report: ReleaseDiffReport) -> list[tuple[str, str]]:
    return [
        (kind, difference)
        for kind, differences in report.facts.differences.items()
        for difference in differences
    ]


def _span(interval: Sequence[float] | None) -> str:
    return f"  ({interval[0]:.5f} to {interval[1]:.5f})" if interval else ""


SUMMARIES: Mapping[type[Report], Callable[[Any], list[tuple[str, str]]]] = {
    RecoverReport: _recover,
    MakeDiffReport: _make_diff,
    QuantizeReport: _quantize,
    ValidationReport: _validate,
    ExportReport: _export,
    StoreReport: _store,
    PublishReport: _publish,
    UploadReport: _upload,
    ProblemReport: _problems,
    ReleaseDiffReport: _diff,
}
