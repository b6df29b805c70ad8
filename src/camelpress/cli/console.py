"""What a person sees: progress on a terminal, plain lines elsewhere, results as tables."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from camelpress.core.errors import Problem, RecipeProblem
from camelpress.core.runtime.secrets_redaction import redact_secrets
from camelpress.core.runtime.terminal_text import escape_controls
from camelpress.reporting.rendering.terminal_summary import terminal_rows
from camelpress.reporting.stage_report import Report, Verdict

Item = TypeVar("Item")
VERDICT_COLOURS = {
    Verdict.PASS: "bold green",
    Verdict.FAIL: "bold red",
    Verdict.INCONCLUSIVE: "bold yellow",
    Verdict.ERROR: "bold red",
}
STATUS_COLOURS = {"PASS": "green", "NOTE": "yellow", "FAIL": "bold red"}
PROGRESS_INTERVAL = 10.0  # seconds between plain lines


class Screen:
    """Everything but the result goes to stderr; with `json` the result is one object on stdout.

    Args:
        json: results as JSON.
        quiet: no progress, no notes.
        silent: nothing at all; of several processes that work together, one speaks.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False, silent: bool = False) -> None:
        self.json = json
        self.quiet = quiet or silent
        self.silent = silent
        self.errors = Console(stderr=True, highlight=False, soft_wrap=True, quiet=silent)
        self.out = Console(stderr=json, highlight=False, quiet=silent)
        self._line_open = False

    def track(self, items: Sequence[Item], label: str) -> Iterator[Item]:
        """A bar on a terminal, a line every ten seconds elsewhere."""
        if self.quiet or not items:
            yield from items
        elif self.errors.is_terminal:
            yield from self._bar(items, label)
        else:
            yield from self._lines(items, label)

    def note(self, text: str, *, asked: bool = False) -> None:
        """One line about what was decided; also when quiet where somebody asked for it."""
        if asked or not self.quiet:
            self.errors.print(escape(escape_controls(redact_secrets(text))), style="dim")

    def stream_text(self, text: str) -> None:
        """Text that a model makes, as it comes; with `json` it stands in the result instead."""
        if text and not (self.json or self.silent):
            self._line_open = not text.endswith("\n")
            known = sys.stdout.encoding or "utf-8"
            sys.stdout.write(escape_controls(text).encode(known, "replace").decode(known))
            sys.stdout.flush()

    def line(self, text: str) -> None:
        """One line of a result, as it is but for secrets and what would act on a terminal."""
        self.out.print(escape_controls(redact_secrets(text)), soft_wrap=True, markup=False)

    def end_line(self) -> None:
        """A new line, unless what was said ends in one."""
        if self._line_open:
            self.stream_text("\n")

    @property
    def interactive(self) -> bool:
        """Whether a person types and reads on a terminal."""
        return sys.stdin.isatty() and self.out.is_terminal

    def label(self, text: str, style: str) -> None:
        """Who speaks now, for a person; a program knows."""
        if self.interactive:
            self.out.print(text, style=style, end="")
            self._line_open = True

    def greet(self, title: str, lines: Sequence[str]) -> None:
        """A box above a chat, for a person."""
        if self.interactive:
            text = "\n".join(escape(escape_controls(line)) for line in lines)
            self.out.print(Panel(text, title=escape(escape_controls(title)), title_align="left"))

    def ask(self, prompt: str) -> str:
        """One line of what is typed, with the prompt where a person types it.

        Raises:
            EOFError: there are no more.
            RecipeProblem: it is not UTF-8.
        """
        try:
            if not self.interactive:
                return input()
            import readline  # noqa: F401 - input() then has arrow keys and a history

            start, end = ("\001\033[1;36m\002", "\001\033[0m\002")  # of no width for readline
            return input(f"{start}{prompt}{end}" if self.out.color_system else prompt)
        except UnicodeDecodeError as error:
            raise RecipeProblem(
                f"what stands on stdin is not UTF-8 text ({error.reason})",
                next_step="give text in UTF-8",
            ) from error

    def problem(self, problem: Problem) -> None:
        """One line: what is wrong, and what to do."""
        self.errors.print(
            f"[bold red]error:[/] {escape(escape_controls(redact_secrets(str(problem))))}"
        )
        if self.json:
            told = {
                "what": redact_secrets(problem.message),
                "next_step": redact_secrets(problem.next_step),
            }
            self.print_json({"error": told, "exit_code": problem.exit_code})

    def print_json(self, content: Mapping[str, Any]) -> None:
        """The one JSON object."""
        if not self.silent:
            unicode = (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"
            text = redact_secrets(json.dumps(content, ensure_ascii=not unicode))
            sys.stdout.write((text if escape_controls(text) == text else _escaped(text)) + "\n")

    def result(self, report: Report) -> None:
        """A report as a table, or as JSON."""
        if self.json:
            self.print_json(flatten_report(report))
            return
        print_rows(self.out, report.stage, terminal_rows(report))
        self.verdict(report)

    def verdict(self, report: Report) -> None:
        """Each check, and the verdict over all."""
        for check in report.checks:
            self.out.print(
                f"  [{VERDICT_COLOURS[check.verdict]}]{check.verdict:<12}[/] {check.name}: "
                f"{escape(escape_controls(redact_secrets(check.reason)))}",
                soft_wrap=True,
            )
        if report.verdict is not None:
            self.out.print(f"[{VERDICT_COLOURS[report.verdict]}]{report.verdict}[/]")

    def plan(self, steps: Sequence[Mapping[str, Any]]) -> None:
        """What each stage of a run would do: its command, and what it would read and write."""
        if self.json:
            self.print_json({"steps": list(steps)})
            return
        for step in steps:
            self.line(step["command"])
            if step["unchanged"]:
                self.line("  unchanged, would be skipped")
                continue
            for name in step["only_recipe"]:
                self.line(f"  {name} as in the recipe, which no option can say")
            for kind in ("reads", "writes"):
                for each in step[kind]:
                    self.line(
                        f"  {kind:<7} "
                        f"{each['place']}{_format_file_size(each['size'], each['exact'])}"
                    )

    def engine_result(self, told: Mapping[str, Any]) -> None:
        """What an engine asks of a checkpoint: a line for each requirement, then the verdict."""
        self.out.print(f"[bold]{told['name']}[/]")
        self.out.print(f"needs {told['needs']}", style="dim")
        self.out.print(
            f"read in the source of {told['source']}; never run here", style="dim", markup=False
        )
        table = Table(show_header=False, box=None, pad_edge=False)
        for whole in (True, True, False):
            table.add_column(no_wrap=whole, overflow="fold")
        for row in told["requirements"]:
            step = f"; {row['next_step']}" if row["next_step"] else ""
            table.add_row(
                f"  [{STATUS_COLOURS[row['status']]}]{row['status']}[/]",
                row["name"],
                escape(escape_controls(row["reason"] + step)),
            )
        self.out.print(table)
        verdict = Verdict(told["verdict"])
        self.out.print(f"[{VERDICT_COLOURS[verdict]}]{verdict}[/]\n")

    def flip(self, task: str, row: Mapping[str, Any]) -> None:
        """An item that the two models answered differently: the question, both answers."""
        told = (f"{row['target_is']}: {row['target']}", row["verdicts"])
        table = Table(
            title=escape(escape_controls(f"{task} {row['item']}: {row['flip']}")),
            title_justify="left",
            caption=escape(escape_controls("\n".join(filter(None, told)))),
            caption_justify="left",
            expand=True,
        )
        for side in ("reference", "candidate"):
            table.add_column(f"{side}, {row['scores'][side]}", overflow="fold", ratio=1)
        table.add_row(*(escape(escape_controls(row[side])) for side in ("reference", "candidate")))
        self.out.print(escape(escape_controls(row["prompt"])), style="dim")
        self.out.print(table)

    def _bar(self, items: Sequence[Item], label: str) -> Iterator[Item]:
        with Progress(
            TextColumn("{task.description:<16}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.errors,
            transient=True,
        ) as progress:
            yield from progress.track(items, description=label)

    def _lines(self, items: Sequence[Item], label: str) -> Iterator[Item]:
        start = said = time.monotonic()
        for number, item in enumerate(items):
            yield item
            now = time.monotonic()
            if now - said >= PROGRESS_INTERVAL or number + 1 == len(items):
                said = now
                done, took = number + 1, now - start
                left = f", {took * (len(items) / done - 1):.0f}s left" if done < len(items) else ""
                self.errors.print(f"{label} {done}/{len(items)} {took:.0f}s{left}")


def _format_file_size(size: int | None, exact: bool) -> str:
    return "" if size is None else f", {'' if exact else 'about '}{size:,} bytes"


def _escaped(text: str) -> str:
    """JSON of the same value, with escapes for what a terminal would act on."""
    return "".join(
        letter if escape_controls(letter) == letter else json.dumps(letter)[1:-1] for letter in text
    )


def flatten_report(report: Report) -> dict[str, Any]:
    """A report with its facts at the top, as `--json` prints it."""
    content: dict[str, Any] = json.loads(report.model_dump_json())
    return content.pop("facts") | content


def print_rows(out: Console, title: str, entries: Sequence[tuple[str, str]]) -> None:
    """A table of two columns."""
    table = Table(
        title=escape(escape_controls(title)),
        title_justify="left",
        show_header=False,
        box=None,
        pad_edge=False,
    )
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in entries:
        table.add_row(name, escape(escape_controls(redact_secrets(value))))
    out.print(table)
