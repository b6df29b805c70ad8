"""What a person sees: progress on a terminal, plain lines elsewhere, results as tables."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
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
from camelpress.core.printable import printable
from camelpress.core.report import Report, Verdict
from camelpress.core.secrets import redacted

Item = TypeVar("Item")
COLOURS = {
    Verdict.PASS: "bold green",
    Verdict.FAIL: "bold red",
    Verdict.INCONCLUSIVE: "bold yellow",
    Verdict.ERROR: "bold red",
}
STATUS_COLOURS = {"PASS": "green", "NOTE": "yellow", "FAIL": "bold red"}
EVERY = 10.0  # seconds between plain lines


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
            self.errors.print(escape(printable(redacted(text))), style="dim")

    def say(self, text: str) -> None:
        """Text that a model makes, as it comes; with `json` it stands in the result instead."""
        if text and not (self.json or self.silent):
            self._line_open = not text.endswith("\n")
            known = sys.stdout.encoding or "utf-8"
            sys.stdout.write(printable(text).encode(known, "replace").decode(known))
            sys.stdout.flush()

    def line(self, text: str) -> None:
        """One line of a result, as it is but for what would act on a terminal."""
        self.out.print(printable(text), soft_wrap=True, markup=False)

    def end_line(self) -> None:
        """A new line, unless what was said ends in one."""
        if self._line_open:
            self.say("\n")

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
            text = "\n".join(escape(printable(line)) for line in lines)
            self.out.print(Panel(text, title=escape(printable(title)), title_align="left"))

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
        self.errors.print(f"[bold red]error:[/] {escape(printable(redacted(str(problem))))}")
        if self.json:
            told = {"what": redacted(problem.what), "next_step": redacted(problem.next_step)}
            self.emit({"error": told, "exit_code": problem.exit_code})

    def emit(self, content: Mapping[str, Any]) -> None:
        """The one JSON object."""
        if not self.silent:
            text = json.dumps(content, ensure_ascii=False)
            sys.stdout.write((text if printable(text) == text else _escaped(text)) + "\n")

    def result(self, report: Report) -> None:
        """A report as a table, or as JSON."""
        if self.json:
            self.emit(flat(report))
            return
        rows(self.out, report.stage, ROWS[report.stage](report) if report.stage in ROWS else [])
        self.verdict(report)

    def verdict(self, report: Report) -> None:
        """Each check, and the verdict over all."""
        for check in report.checks:
            self.out.print(
                f"  [{COLOURS[check.verdict]}]{check.verdict:<12}[/] {check.name}: "
                f"{escape(printable(check.reason))}",
                soft_wrap=True,
            )
        if report.verdict is not None:
            self.out.print(f"[{COLOURS[report.verdict]}]{report.verdict}[/]")

    def plan(self, steps: Sequence[Mapping[str, Any]]) -> None:
        """What each stage of a run would do: its command, and what it would read and write."""
        if self.json:
            self.emit({"steps": list(steps)})
            return
        for step in steps:
            self.line(step["command"])
            for name in step["only_recipe"]:
                self.line(f"  {name} as in the recipe, which no option can say")
            for place, size in step["reads"]:
                self.line(f"  reads   {place}{_bytes(size)}")
            place, size = step["writes"]
            self.line(f"  writes  {place}{_bytes(size, about=True)}")

    def engine(self, told: Mapping[str, Any]) -> None:
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
                escape(printable(row["reason"] + step)),
            )
        self.out.print(table)
        verdict = Verdict(told["verdict"])
        self.out.print(f"[{COLOURS[verdict]}]{verdict}[/]\n")

    def flip(self, task: str, row: Mapping[str, Any]) -> None:
        """An item that the two models answered differently: the question, both answers."""
        table = Table(
            title=escape(printable(f"{task} {row['item']}: {row['flip']}")),
            title_justify="left",
            caption=escape(printable(f"right: {row['target']}")),
            caption_justify="left",
            expand=True,
        )
        for side in ("reference", "candidate"):
            table.add_column(f"{side}, {row['scores'][side]}", overflow="fold", ratio=1)
        table.add_row(*(escape(printable(row[side])) for side in ("reference", "candidate")))
        self.out.print(escape(printable(row["prompt"])), style="dim")
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
            if now - said >= EVERY or number + 1 == len(items):
                said = now
                done, took = number + 1, now - start
                left = f", {took * (len(items) / done - 1):.0f}s left" if done < len(items) else ""
                self.errors.print(f"{label} {done}/{len(items)} {took:.0f}s{left}")


def _bytes(size: int | None, *, about: bool = False) -> str:
    return "" if size is None else f", {'about ' if about else ''}{size:,} bytes"


def _escaped(text: str) -> str:
    """JSON of the same value, with escapes for what a terminal would act on."""
    return "".join(
        letter if printable(letter) == letter else json.dumps(letter)[1:-1] for letter in text
    )


def flat(report: Report) -> dict[str, Any]:
    """A report with its facts at the top, as `--json` prints it."""
    content: dict[str, Any] = json.loads(report.model_dump_json())
    return content.pop("facts") | content


def rows(out: Console, title: str, entries: Sequence[tuple[str, str]]) -> None:
    """A table of two columns."""
    table = Table(
        title=escape(printable(title)),
        title_justify="left",
        show_header=False,
        box=None,
        pad_edge=False,
    )
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in entries:
        table.add_row(name, escape(printable(value)))
    out.print(table)


def _cost(report: Report) -> list[tuple[str, str]]:
    cost = report.cost
    if not cost:
        return []
    return [("time, memory", f"{cost['seconds']:.1f} s, peak {cost['peak_bytes'] / 1e6:,.0f} MB")]


def _recover(report: Report) -> list[tuple[str, str]]:
    facts = report.facts
    shares = facts["representable"]
    return [
        ("tensors", f"{len(facts['tensors'])}, {facts['dtype']}"),
        ("rules", _rules(facts["tensors"])),
        ("fits", ", ".join(f"{name} {share:.2%}" for name, share in shares.items())),
        ("tokenizer", _tokenizer(facts["tokenizer"])),
        *_golden(facts.get("golden")),
        *_cost(report),
    ]


def _rules(tensors: Sequence[dict[str, Any]]) -> str:
    counts = Counter(tensor["rule"] for tensor in tensors)
    return ", ".join(f"{rule} {count}" for rule, count in counts.most_common())


def _tokenizer(told: dict[str, Any]) -> str:
    if told["from"] is None:
        return "none: neither base nor diff has one"
    template = told["chat_template"] or "no"
    return f"{told['tokens']:,} tokens, pad is {told['pad']}, {template} chat template"


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
    facts = report.facts
    lost = f"{facts['inexact']:,} values by up to {facts['largest_error']:.1e}"
    return [
        ("tensors", f"{len(facts['tensors'])}, {facts['dtype']}"),
        ("lost", lost if facts["inexact"] else "nothing: every bit comes back"),
        *_cost(report),
    ]


def _rescued(count: int | None) -> str:
    return "" if count is None else f", {count} needed a rescue"


def _quantize(report: Report) -> list[tuple[str, str]]:
    facts, settings = report.facts, report.settings
    calibration = facts["calibration"]
    told = [
        (
            "grid",
            f"{settings['bits']} bit, group {settings['group_size']}, "
            f"{'sym' if settings['sym'] else 'asym'}, {settings['method']}",
        ),
        ("layers", f"{len(facts['layers'])}{_rescued(facts['rescues'])}"),
    ]
    versions = facts.get("engine", {}).get("versions")
    if versions:
        told.insert(0, ("engine", ", ".join(f"{name} {each}" for name, each in versions.items())))
    if facts["padded"]:
        padded = facts["padded"]
        told.append(("padded", f"feed-forward {padded['from']:,} to {padded['to']:,} wide"))
    if calibration:
        told.append(
            (
                "calibration",
                f"{calibration['tokens']:,} tokens in {calibration['samples']} sequences",
            )
        )
    return told + _cost(report)


def _validate(report: Report) -> list[tuple[str, str]]:
    facts = report.facts
    return [*(_scored(facts) if facts["tokens"] else []), *_tasks(facts), *_cost(report)]


def _scored(facts: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("perplexity", f"{facts['reference_perplexity']:.4f} 16-bit reference"),
        ("", f"{facts['candidate_perplexity']:.4f} candidate"),
        ("ratio", f"{facts['perplexity_ratio']:.5f}{_span(facts['perplexity_ratio_interval'])}"),
        *_early(facts.get("early")),
        ("KL divergence", f"{facts['kl_mean']:.5f} nats{_span(facts['kl_mean_interval'])}"),
        ("top-1 agreement", f"{facts['top1_agreement']:.2%}"),
        ("tokens", f"{facts['tokens']:,} in {facts['sequences']} sequences"),
    ]


def _tasks(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Both scores of each benchmark; what did not run, and why."""
    told = []
    for task in facts.get("tasks") or []:
        scores = f"{task['reference_accuracy']:.2%} to {task['candidate_accuracy']:.2%}"
        flips = f"{task['lost']} lost, {task['won']} won of {task['n']:,}"
        told.append((task.get("title") or task["name"], f"{scores}, {flips}{_detectable(task)}"))
    averages = facts.get("averages")
    if averages:
        scores = f"{averages['reference']:.2%} to {averages['candidate']:.2%}"
        told.append((averages["name"], scores))
    return told + [
        (name, f"not run: {why}") for name, why in (facts.get("tasks_missing") or {}).items()
    ]


def _detectable(task: dict[str, Any]) -> str:
    """What so many items are enough for; reports of earlier versions do not tell it."""
    if "detectable_loss" not in task:
        return ""
    found = task["detectable_loss"]
    return f"; a loss of {found:.1%} would be found" if found else "; no loss would be found"


def _store(report: Report) -> list[tuple[str, str]]:
    facts = report.facts
    return [
        ("predictions", f"{facts['predictions']:,} over {facts['vocabulary']:,} tokens"),
        ("kept of each", f"{facts['top_k']} likeliest, {facts['samples']} of the others"),
        ("remainder", f"{facts['remainder_mass']:.3%} of the probability"),
        ("protocol", facts["protocol"]),
        *_cost(report),
    ]


def _early(early: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The ratio at the beginning of windows; reports of earlier versions do not tell it."""
    if early is None or not (early["first"] and early["rest"]):
        return []
    ratio, rest = (early[part]["perplexity_ratio"] for part in ("first", "rest"))
    return [("", f"{ratio:.5f} from the first {early['context']} tokens, {rest:.5f} after them")]


def _export(report: Report) -> list[tuple[str, str]]:
    facts, settings = report.facts, report.settings
    to = settings["to"] + (f", {settings['dtype']}" if settings["to"] == "dense" else "")
    lost = f"{facts['inexact']:,} values by up to {facts['largest_error']:.1e}"
    return [
        ("layers", f"{facts['layers']}, {' and '.join(facts['from'])} to {to}"),
        ("lost", lost if facts["inexact"] else "nothing: every weight is the same"),
        *_cost(report),
    ]


def _publish(report: Report) -> list[tuple[str, str]]:
    delivered = report.facts.get("delivered")
    place = _place(delivered) if delivered else []
    return [*place, ("files", str(len(report.outputs))), *_cost(report)]


def _upload(report: Report) -> list[tuple[str, str]]:
    return [*_place(report.facts), *_cost(report)]


def _place(told: dict[str, Any]) -> list[tuple[str, str]]:
    """Where a release is now, and who can see it."""
    seen = {True: ", private", False: ", public", None: ""}[told.get("private")]
    gate = ", gated" if told.get("gated") else ""
    return [("published", f"{told['to']}{seen}{gate}"), ("commit", told["commit"])]


def _verify(report: Report) -> list[tuple[str, str]]:
    signed = [("signed", report.facts["signed"])] if "signed" in report.facts else []
    return [*signed, *(("problem", problem) for problem in report.facts["problems"])]


def _diff(report: Report) -> list[tuple[str, str]]:
    return [
        (kind, difference)
        for kind, found in report.facts["differences"].items()
        for difference in found
    ]


def _span(interval: Sequence[float] | None) -> str:
    return f"  ({interval[0]:.5f} to {interval[1]:.5f})" if interval else ""


ROWS = {
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
