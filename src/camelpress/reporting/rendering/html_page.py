"""Renders a validation report as one self-contained HTML file, or as Markdown for a job summary.

Paths, names of texts and reasons are escaped. The page needs no script.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

import yaml
from jinja2 import StrictUndefined, Template
from jinja2.sandbox import SandboxedEnvironment
from markupsafe import Markup

from camelpress.reporting import sentences
from camelpress.reporting.facts.validation_facts import ValidateFacts
from camelpress.reporting.metrics import metrics_on
from camelpress.reporting.model_precision import quantized_reference_caveat
from camelpress.reporting.number_format import format_count
from camelpress.reporting.plots import validation_plots
from camelpress.reporting.report_classes import ValidationReport
from camelpress.reporting.tables import preference_tables, validation_tables
from camelpress.reporting.tables.markdown_table import escape_markdown, markdown_table
from camelpress.reporting.verdict import Verdict

MAX_FLIPS = 50  # items shown per task
MAX_MARKDOWN_ROWS = 20  # rows of a Markdown table; the page shows all rows

VERDICT_ORDER = (Verdict.ERROR, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)

# fmt: off
CHECK_COLUMNS = {
    "Check":         ("title",    ":--"),
    "Verdict":       ("verdict",  ":--"),
    "Estimate":      ("estimate", "--:"),
    "95 % interval": ("interval", "--:"),
    "Threshold":     ("limit",    "--:"),
    "Tokens or items": ("tokens", "--:"),
    "Pieces or items": ("clusters", "--:"),
    "Reason":        ("reason",   ":--"),
}
TASK_COLUMNS = {
    "Benchmark":     ("name",       ":--"),
    "Items":         ("n",          "--:"),
    "Reference":     ("reference",  "--:"),
    "Candidate":     ("candidate",  "--:"),
    "Difference":    ("delta",      "--:"),
    "95 % interval": ("interval",   "--:"),
    "Lost":          ("lost",       "--:"),
    "Won":           ("won",        "--:"),
    "p of no loss":  ("p_value",    "--:"),
    "Loss that would be found": ("detectable", "--:"),
}
DUEL_COLUMNS = {
    "Outputs":              ("outputs",             ":--"),
    "Wins":                 ("win_rate",            "--:"),
    "95 % interval":        ("win_rate_interval",   "--:"),
    "Length-controlled":    ("controlled",          "--:"),
    "95 % interval of it":  ("controlled_interval", "--:"),
    "Longer by, characters": ("characters",         "--:"),
    "Verdicts":             ("verdicts",            "--:"),
    "Draws":                ("draws",               "--:"),
    "Won by the first shown": ("first_shown",       "--:"),
    "Both orders agree":    ("agreement",           "--:"),
    "No verdict":           ("unread",              "--:"),
}
# fmt: on


def render_html(report: ValidationReport) -> str:
    """Renders the whole page; equal facts give equal bytes, whatever the cost."""
    facts = report.facts
    settings = report.model_dump(mode="json", include={"settings"})["settings"]
    return _template("page.html.jinja").render(
        _page_header(report),
        css=Markup(_resource("page.css")),
        tokens=format_count(facts.tokens),
        sequences=format_count(facts.sequences),
        checks=[validation_tables.gate_check_row(check) for check in report.checks],
        headline=validation_tables.headline_tiles(facts),
        drawings=validation_plots.validation_drawings(report),
        text_heads=_text_heads(),
        texts=validation_tables.text_metric_rows(facts),
        omissions=sentences.omission_sentences(facts),
        early=validation_tables.window_start_rows(facts),
        repeated=validation_tables.duplicate_sentences(facts),
        tasks=validation_tables.benchmark_rows(facts),
        missing=facts.tasks_missing,
        missing_sentence=sentences.missing_benchmarks_sentence(facts),
        preferences=preference_tables.preference_rows(facts),
        judges=preference_tables.judge_sentences(facts),
        quirks=validation_tables.quirk_rows(facts),
        models=validation_tables.model_rows(facts),
        protocol=facts.protocol,
        version=report.version,
        settings=yaml.safe_dump({report.stage: settings}, sort_keys=False, allow_unicode=True),
        inputs=report.inputs,
    )


def render_markdown(report: ValidationReport) -> str:
    """Renders verdict, checks and texts in fewer than 70 lines, failed checks first."""
    facts = report.facts
    opening = {key: escape_markdown(text) for key, text in _page_header(report).items()}
    ranked = sorted(report.checks, key=lambda check: VERDICT_ORDER.index(check.verdict))
    checks = [validation_tables.gate_check_row(check) for check in ranked]
    texts = validation_tables.text_metric_rows(facts)
    parts = [
        "## {mark} {verdict}: {candidate} against {reference}".format_map(opening),
        opening["summary"],
        *map(escape_markdown, validation_tables.duplicate_sentences(facts)),
        opening["caveat"],
        *(_limited_table(CHECK_COLUMNS, checks, "checks") if checks else ()),
        *(_limited_table(_text_columns("Text"), texts, "texts") if texts else ()),
        *map(escape_markdown, sentences.omission_sentences(facts)),
        *_early(validation_tables.window_start_rows(facts)),
        *_tasks(facts),
        f"Protocol: {escape_markdown(facts.protocol)}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def render_flips(report: ValidationReport, changed: Iterable[Mapping[str, Any]]) -> str:
    """Renders a page of flipped items, at most `MAX_FLIPS` per task.

    Args:
        report: report of a validation with tasks.
        changed: sample lines of the flipped items; all text of models is escaped.
    """
    by_task: dict[str, list[dict[str, Any]]] = {}
    for line in changed:
        by_task.setdefault(line["task"], []).append(validation_tables.flip_row(line))
    tasks = [
        {
            "name": task.label,
            "lost": task.lost,
            "won": task.won,
            "flips": by_task.get(task.name, [])[:MAX_FLIPS],
        }
        for task in report.facts.tasks
    ]
    return _template("flips.html.jinja").render(
        candidate=validation_tables.model_folder_name(report.facts.candidate),
        reference=validation_tables.model_folder_name(report.facts.reference),
        css=Markup(_resource("page.css")),
        tasks=tasks,
        version=report.version,
    )


def _early(rows: list[dict[str, Any]]) -> list[str]:
    return [_table(_text_columns("Part of each window"), rows)] if rows else []


def _tasks(facts: ValidateFacts) -> list[str]:
    rows = validation_tables.benchmark_rows(facts)
    preferences = preference_tables.preference_rows(facts)
    return [
        *(_limited_table(TASK_COLUMNS, rows, "benchmarks") if rows else ()),
        escape_markdown(sentences.missing_benchmarks_sentence(facts)),
        *(_limited_table(DUEL_COLUMNS, preferences, "pairs of models") if preferences else ()),
        *map(escape_markdown, preference_tables.judge_sentences(facts)),
        *(
            f"Not run: {escape_markdown(name)}: {escape_markdown(why)}"
            for name, why in facts.tasks_missing.items()
        ),
    ]


def _page_header(report: ValidationReport) -> dict[str, str]:
    verdict = report.verdict.value if report.verdict else "NOT JUDGED"
    return {
        "verdict": verdict,
        "tone": report.verdict.lower() if report.verdict else "none",
        "mark": sentences.VERDICT_SYMBOLS[report.verdict],
        "summary": sentences.verdict_sentence(report),
        "caveat": quantized_reference_caveat(report.facts.reference),
        "candidate": validation_tables.model_folder_name(report.facts.candidate),
        "reference": validation_tables.model_folder_name(report.facts.reference),
    }


def _text_columns(first: str) -> dict[str, tuple[str, str]]:
    """Returns the Markdown columns of the metrics of texts."""
    columns = {first: ("name", ":--"), "Tokens": ("tokens", "--:")}
    for metric in metrics_on("page"):
        columns[metric.title] = (metric.key, "--:")
        if metric.interval_column:
            columns[metric.interval_column] = (f"{metric.key}_interval", "--:")
    return columns


def _text_heads() -> dict[str, Markup]:
    """Maps the metrics of texts to the heads of their columns on the page."""
    heads = {}
    for metric in metrics_on("page"):
        lines = metric.text("page") + (",\n95 % interval" if metric.has_interval else "")
        heads[metric.key] = Markup("<br>").join(lines.splitlines())
    return heads


def _limited_table(
    columns: Mapping[str, tuple[str, str]], rows: list[dict[str, Any]], noun: str
) -> list[str]:
    unlisted = len(rows) - MAX_MARKDOWN_ROWS
    more = [f"… and {unlisted} more {noun} on the page."] if unlisted > 0 else []
    return [_table(columns, rows[:MAX_MARKDOWN_ROWS]), *more]


def _table(columns: Mapping[str, tuple[str, str]], rows: list[dict[str, Any]]) -> str:
    cells = [[row[key] for key, _ in columns.values()] for row in rows]
    alignments = [alignment for _, alignment in columns.values()]
    return markdown_table([*columns], cells, alignments, escape_markdown)


def _template(name: str) -> Template:
    environment = SandboxedEnvironment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_resource(name))


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
