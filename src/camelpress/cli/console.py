"""Shows progress, notes, results and errors on a terminal, in a log or as JSON."""

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
from camelpress.reporting.stage_report import Report
from camelpress.reporting.verdict import Verdict

Item = TypeVar("Item")
VERDICT_COLOURS = {
    Verdict.PASS: "bold green",
    Verdict.FAIL: "bold red",
    Verdict.INCONCLUSIVE: "bold yellow",
    Verdict.ERROR: "bold red",
}
STATUS_COLOURS = {"PASS": "green", "NOTE": "yellow", "FAIL": "bold red"}
PROGRESS_INTERVAL = 10.0  # seconds between progress lines without a terminal


class Screen:
    """Writes results to stdout and all other output to stderr.

    Args:
        json: print results as one JSON object on stdout.
        quiet: hide progress and notes.
        silent: print nothing; set for all but the first process of a process group.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False, silent: bool = False) -> None:
        self.json = json
        self.quiet = quiet or silent
        self.silent = silent
        self.errors = Console(stderr=True, highlight=False, soft_wrap=True, quiet=silent)
        self.out = Console(stderr=json, highlight=False, quiet=silent)
        self._line_open = False

    def track(self, items: Sequence[Item], label: str) -> Iterator[Item]:
        """Yields items with a progress bar on a terminal, else with a line every ten seconds."""
        if self.quiet or not items:
            yield from items
        elif self.errors.is_terminal:
            yield from self._bar(items, label)
        else:
            yield from self._lines(items, label)

    def note(self, text: str, *, always: bool = False) -> None:
        """Prints one dim line; `always` prints it with `quiet`, too."""
        if always or not self.quiet:
            self.errors.print(escape(escape_controls(redact_secrets(text))), style="dim")

    def stream_text(self, text: str) -> None:
        """Prints a piece of generated text at once; with `json` the result holds it instead."""
        if text and not (self.json or self.silent):
            self._line_open = not text.endswith("\n")
            known = sys.stdout.encoding or "utf-8"
            sys.stdout.write(escape_controls(text).encode(known, "replace").decode(known))
            sys.stdout.flush()

    def line(self, text: str) -> None:
        """Prints one line of a result without secrets and terminal control characters."""
        self.out.print(escape_controls(redact_secrets(text)), soft_wrap=True, markup=False)

    def end_line(self) -> None:
        """Ends the line of streamed text, if it is still open."""
        if self._line_open:
            self.stream_text("\n")

    @property
    def interactive(self) -> bool:
        """True if stdin and stdout are terminals."""
        return sys.stdin.isatty() and self.out.is_terminal

    def label(self, text: str, style: str) -> None:
        """Prints the name of the speaker on a terminal."""
        if self.interactive:
            self.out.print(text, style=style, end="")
            self._line_open = True

    def greet(self, title: str, lines: Sequence[str]) -> None:
        """Prints a box above a chat on a terminal."""
        if self.interactive:
            text = "\n".join(escape(escape_controls(line)) for line in lines)
            self.out.print(Panel(text, title=escape(escape_controls(title)), title_align="left"))

    def ask(self, prompt: str) -> str:
        """Reads one line from stdin, with a prompt on a terminal.

        Raises:
            EOFError: stdin has ended.
            RecipeProblem: the line is not UTF-8.
        """
        try:
            if not self.interactive:
                return input()
            import readline  # noqa: F401 - gives input() arrow keys and a history

            start, end = "\001\033[1;36m\002", "\001\033[0m\002"  # \001, \002: zero width
            return input(f"{start}{prompt}{end}" if self.out.color_system else prompt)
        except UnicodeDecodeError as error:
            raise RecipeProblem(
                f"stdin is not UTF-8 text ({error.reason})", next_step="give text in UTF-8"
            ) from error

    def problem(self, problem: Problem) -> None:
        """Prints the error and its next step on one line."""
        self.errors.print(
            f"[bold red]error:[/] {escape(escape_controls(redact_secrets(str(problem))))}"
        )
        if self.json:
            error = {
                "what": redact_secrets(problem.message),
                "next_step": redact_secrets(problem.next_step),
            }
            self.print_json({"error": error, "exit_code": problem.exit_code})

    def print_json(self, content: Mapping[str, Any]) -> None:
        """Prints one JSON object on stdout."""
        if not self.silent:
            unicode = (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"
            text = redact_secrets(json.dumps(content, ensure_ascii=not unicode))
            sys.stdout.write((text if escape_controls(text) == text else _escaped(text)) + "\n")

    def result(self, report: Report) -> None:
        """Prints a report as a table, or as JSON."""
        if self.json:
            self.print_json(flatten_report(report))
            return
        print_rows(self.out, report.stage, terminal_rows(report))
        self.verdict(report)

    def verdict(self, report: Report) -> None:
        """Prints each check, and the overall verdict."""
        for check in report.checks:
            self.out.print(
                f"  [{VERDICT_COLOURS[check.verdict]}]{check.verdict:<12}[/] {check.name}: "
                f"{escape(escape_controls(redact_secrets(check.reason)))}",
                soft_wrap=True,
            )
        if report.verdict is not None:
            self.out.print(f"[{VERDICT_COLOURS[report.verdict]}]{report.verdict}[/]")

    def plan(self, steps: Sequence[Mapping[str, Any]]) -> None:
        """Prints the command of each planned stage with its input and output files."""
        if self.json:
            self.print_json({"steps": list(steps)})
            return
        for step in steps:
            self.line(step["command"])
            if step["unchanged"]:
                self.line("  unchanged, would be skipped")
                continue
            for name in step["only_recipe"]:
                self.line(f"  {name} as in the recipe; the command line has no option for it")
            for kind in ("reads", "writes"):
                for file in step[kind]:
                    self.line(
                        f"  {kind:<7} "
                        f"{file['place']}{_format_file_size(file['size'], file['exact'])}"
                    )

    def engine_result(self, engine: Mapping[str, Any]) -> None:
        """Prints the requirements of an inference engine, met or not, and the verdict."""
        self.out.print(f"[bold]{engine['name']}[/]")
        self.out.print(f"needs {engine['needs']}", style="dim")
        self.out.print(
            f"from the source code of {engine['source']}; never run here", style="dim", markup=False
        )
        table = Table(show_header=False, box=None, pad_edge=False)
        for no_wrap in (True, True, False):
            table.add_column(no_wrap=no_wrap, overflow="fold")
        for row in engine["requirements"]:
            step = f"; {row['next_step']}" if row["next_step"] else ""
            table.add_row(
                f"  [{STATUS_COLOURS[row['status']]}]{row['status']}[/]",
                row["name"],
                escape(escape_controls(row["reason"] + step)),
            )
        self.out.print(table)
        verdict = Verdict(engine["verdict"])
        self.out.print(f"[{VERDICT_COLOURS[verdict]}]{verdict}[/]\n")

    def flip(self, task: str, row: Mapping[str, Any]) -> None:
        """Prints a benchmark item with different scores: the prompt, then both answers."""
        captions = (f"{row['target_is']}: {row['target']}", row["verdicts"])
        table = Table(
            title=escape(escape_controls(f"{task} {row['item']}: {row['flip']}")),
            title_justify="left",
            caption=escape(escape_controls("\n".join(filter(None, captions)))),
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
        start = printed_at = time.monotonic()
        for number, item in enumerate(items):
            yield item
            now = time.monotonic()
            if now - printed_at >= PROGRESS_INTERVAL or number + 1 == len(items):
                printed_at = now
                count, seconds = number + 1, now - start
                seconds_left = seconds * (len(items) / count - 1)
                estimate = f", {seconds_left:.0f}s left" if count < len(items) else ""
                self.errors.print(f"{label} {count}/{len(items)} {seconds:.0f}s{estimate}")


def _format_file_size(size: int | None, exact: bool) -> str:
    return "" if size is None else f", {'' if exact else 'about '}{size:,} bytes"


def _escaped(text: str) -> str:
    """Escapes terminal control characters in JSON text, and keeps its value."""
    return "".join(
        letter if escape_controls(letter) == letter else json.dumps(letter)[1:-1] for letter in text
    )


def flatten_report(report: Report) -> dict[str, Any]:
    """Returns a report as plain data with its facts at the top level, the form of `--json`."""
    content: dict[str, Any] = json.loads(report.model_dump_json())
    return content.pop("facts") | content


def print_rows(out: Console, title: str, entries: Sequence[tuple[str, str]]) -> None:
    """Prints a table of two columns."""
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
