"""The command line: parse, call one function of a stage, show its report."""

from __future__ import annotations

import inspect
import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from camelpress import __version__
from camelpress.console import Screen, flat, rows
from camelpress.convert.settings import Export, MakeDiff, Recover
from camelpress.core.errors import Interrupted, Problem
from camelpress.core.progress import listening
from camelpress.core.report import Report
from camelpress.core.secrets import redacted
from camelpress.core.settings import Settings
from camelpress.generate.settings import Generate
from camelpress.options import given, parameters
from camelpress.publish.settings import Publish
from camelpress.quantize.settings import Quantize
from camelpress.validate.settings import Keep, Reports, Validate

STAGES, RUNS, TALKS, LOOKS = "Stages", "The whole pipeline", "Try a model", "Look and check"

app = typer.Typer(
    help="From a published weight diff to a tested, published 4-bit release.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Folder = Annotated[Path, typer.Argument(show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]

# fmt: off
COMMON: dict[str, Any] = {
    "as_json": Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")],
    "quiet":   Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no notes.")],
    "verbose": Annotated[bool, typer.Option("-v", "--verbose", help="Warnings of libraries, too.")],
    "debug":   Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")],
}
# fmt: on


def command(
    name: str, panel: str, settings: type[Settings] | None = None
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Register a function as a command, with the common options and those of its settings.

    The function gets a `screen`, its own parameters and, where there are settings, the options
    that were given as `options`; it returns the exit code.
    """

    def register(work: Callable[..., int]) -> Callable[..., int]:
        extra = parameters(settings) if settings else []

        @wraps(work)
        def run(**values: Any) -> None:
            common = {key: values.pop(key) for key in COMMON}
            if settings:
                values["options"] = given({each.name: values.pop(each.name) for each in extra})
            raise typer.Exit(_guarded(work, values, **common))

        own = [
            each
            for each in inspect.signature(work, eval_str=True).parameters.values()
            if each.name not in ("screen", "options")
        ]
        common = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
            for key, kind in COMMON.items()
        ]
        signature = inspect.Signature([*own, *extra, *common])
        run.__signature__ = signature  # type: ignore[attr-defined]
        run.__annotations__ = {key: each.annotation for key, each in signature.parameters.items()}
        app.command(name, rich_help_panel=panel)(run)
        return work

    return register


def _guarded(
    work: Callable[..., int],
    values: dict[str, Any],
    *,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    debug: bool,
) -> int:
    follows = os.environ.get("RANK", "0") != "0"  # torchrun says so
    screen = Screen(json=as_json, quiet=quiet, silent=follows)
    signal.signal(signal.SIGTERM, _stop)
    if not verbose:
        warnings.simplefilter("ignore")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if quiet:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        with listening(screen):
            code = work(screen=screen, **values)
            return 0 if follows else code  # a verdict is told once; a failure would end the others
    except Problem as problem:
        if debug:
            sys.stderr.write(redacted(traceback.format_exc()))
        screen.problem(problem)
        return problem.exit_code
    except BrokenPipeError:  # who read our output has gone; typer would end with 1, "gate failed"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _stop(*_: object) -> None:
    """What a scheduler's SIGTERM does: nothing half-done stays, finished stages of a run do."""
    raise Interrupted("stopped before the end", next_step="run the same command again")


@command("recover", STAGES, Recover)
def recover(
    screen: Screen,
    raw: Folder,
    diff: Folder,
    out: Folder,
    options: dict[str, Any],
    force: Force = False,
) -> int:
    """16-bit tuned model from base + diff, streamed tensor by tensor."""
    from camelpress.convert.meta import open_base
    from camelpress.convert.run import recover as work
    from camelpress.core.checkpoint import Checkpoint

    chosen = Recover.parse(options, source="recover")
    screen.result(work(open_base(raw), Checkpoint.open(diff), out, chosen, force=force))
    return 0


@command("make-diff", STAGES, MakeDiff)
def make_diff(
    screen: Screen,
    raw: Folder,
    tuned: Folder,
    out: Folder,
    options: dict[str, Any],
    force: Force = False,
) -> int:
    """The inverse of recover: tuned - base, proved to come back bit for bit."""
    from camelpress.convert.diff import make_diff as work
    from camelpress.convert.meta import open_base
    from camelpress.core.checkpoint import Checkpoint

    chosen = MakeDiff.parse(options, source="make-diff")
    screen.result(work(open_base(raw), Checkpoint.open(tuned), out, chosen, force=force))
    return 0


@command("quantize", STAGES, Quantize)
def quantize(
    screen: Screen, model: Folder, out: Folder, options: dict[str, Any], force: Force = False
) -> int:
    """4-bit GPTQ checkpoint, calibrated block by block."""
    from camelpress.core.checkpoint import Checkpoint
    from camelpress.quantize.run import run as work

    chosen = Quantize.parse(options, source="quantize")
    screen.result(work(Checkpoint.open(model), out, chosen, force=force))
    return 0


@command("validate", STAGES, Validate)
def validate(
    screen: Screen,
    reference: Folder,
    candidate: Folder,
    options: dict[str, Any],
    out: Annotated[Path, typer.Option("--out", help="Folder for the reports.")] = Path(
        "validation"
    ),
    gate: Annotated[
        Path | None, typer.Option("--gate", help="Thresholds (YAML) that decide the exit code.")
    ] = None,
    force: Force = False,
) -> int:
    """Perplexity, KL divergence and agreement against the 16-bit model, held to a gate.

    REFERENCE is that model, or a store of its predictions.
    """
    from camelpress.core.checkpoint import Checkpoint
    from camelpress.validate.gate import read
    from camelpress.validate.run import run as work
    from camelpress.validate.store import Store

    if gate is not None:
        options["gate"] = read(gate).model_dump()
    chosen = Validate.parse(options, source="validate")
    source = Store.open(reference) if Store.is_at(reference) else Checkpoint.open(reference)
    report = work(source, Checkpoint.open(candidate), out, chosen, force=force)
    screen.result(report)
    if not screen.json:
        screen.out.print(f"report: {out / 'report.html'}", soft_wrap=True)
    return report.verdict.exit_code if report.verdict else 3


@command("store", STAGES, Keep)
def store(
    screen: Screen, reference: Folder, out: Folder, options: dict[str, Any], force: Force = False
) -> int:
    """A reference's predictions, computed once: validate takes them in its place."""
    from camelpress.core.checkpoint import Checkpoint
    from camelpress.validate.keep import run as work

    chosen = Keep.parse(options, source="store")
    screen.result(work(Checkpoint.open(reference), out, chosen, force=force))
    return 0


@command("gate", LOOKS, Reports)
def gate(
    screen: Screen,
    report: Annotated[Path, typer.Argument(help="report.json, or its folder.")],
    options: dict[str, Any],
    thresholds: Annotated[
        Path | None,
        typer.Option("--gate", help="Thresholds (YAML); without, those of the report itself."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the report with its new verdict.")
    ] = None,
    force: Force = False,
) -> int:
    """Judge a validation report again: other thresholds, the same figures, no models."""
    from camelpress.validate.gate import read
    from camelpress.validate.outputs import judge_again, save

    chosen = Reports.parse(options, source="gate")
    judged = judge_again(report, None if thresholds is None else read(thresholds))
    if out is not None:
        save(judged, out, chosen, source=report, force=force)
    screen.result(judged)
    return judged.verdict.exit_code if judged.verdict else 3


@command("flips", LOOKS)
def flips(
    screen: Screen,
    report: Annotated[Path, typer.Argument(help="report.json, or its folder.")],
    task: Annotated[str | None, typer.Option("--task", help="Of this task only.")] = None,
) -> int:
    """The items of benchmarks that one model answered better than the other, side by side."""
    from camelpress.validate import facts
    from camelpress.validate.samples import flips as changed
    from camelpress.validate.tables import flip_row

    folder = report if report.is_dir() else report.parent
    found = [*changed(facts.read(report), folder, task)]
    if screen.json:
        screen.emit({"flips": found})
    for flip in () if screen.json else found:
        screen.flip(flip["task"], flip_row(flip))
    return 0


@command("publish", STAGES, Publish)
def publish(
    screen: Screen,
    candidate: Folder,
    options: dict[str, Any],
    report: Annotated[Path, typer.Option("--report", help="Folder that validate wrote.")],
    force: Force = False,
) -> int:
    """A candidate that passed its gate, with card, checksums and licences, here or on the hub."""
    from camelpress.publish.deliver import publish as work

    chosen = Publish.parse(options, source="publish")
    screen.result(work(candidate, report, chosen, force=force))
    return 0


@command("export", STAGES, Export)
def export(
    screen: Screen, checkpoint: Folder, out: Folder, options: dict[str, Any], force: Force = False
) -> int:
    """A packed checkpoint in another layout: the same codes and scales, proved layer by layer."""
    from camelpress.convert.export import export as work
    from camelpress.core.checkpoint import Checkpoint

    chosen = Export.parse(options, source="export")
    screen.result(work(Checkpoint.open(checkpoint), out, chosen, force=force))
    return 0


@command("run", RUNS)
def run(
    screen: Screen,
    recipe: Annotated[Path, typer.Argument(show_default=False)],
    override: Annotated[
        list[str] | None,
        typer.Option("-o", "--override", help="section.key=value over the recipe; repeatable."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run finished stages again.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show commands, files and bytes; do nothing.")
    ] = False,
) -> int:
    """All stages of a recipe in order; finished ones are skipped while nothing changed."""
    from camelpress import pipeline
    from camelpress.recipe import read

    if dry_run:
        from camelpress.plan import plan

        screen.plan([asdict(step) for step in plan(read(recipe, override or ()))])
        return 0
    outcome = pipeline.run(read(recipe, override or ()), force=force)
    if screen.json:
        screen.emit(
            {
                "verdict": outcome.verdict,
                "skipped": outcome.skipped,
                "stages": {name: flat(report) for name, report in outcome.reports.items()},
            }
        )
    else:
        for report in outcome.reports.values():
            screen.result(report)
    return outcome.exit_code


@command("rebuild", RUNS)
def rebuild(
    screen: Screen,
    release: Folder,
    out: Folder,
    base: Annotated[Path | None, typer.Option("--base", help="The raw model.")] = None,
    diff: Annotated[Path | None, typer.Option("--diff", help="The weight diff.")] = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option("--calibration", help="A text that it was calibrated with; repeatable."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run finished stages again.")] = False,
) -> int:
    """The weights of a release, made again from base and diff and compared byte for byte."""
    from camelpress.rebuild import rebuild as work

    report = work(release, out, base=base, diff=diff, calibration=calibration or (), force=force)
    screen.result(report)
    return report.verdict.exit_code if report.verdict else 3


@command("demo", RUNS)
def demo(
    screen: Screen,
    out: Annotated[Path, typer.Argument(metavar="[DIR]")] = Path("camelpress-demo"),
    force: Annotated[bool, typer.Option("--force", help="Run finished stages again.")] = False,
) -> int:
    """The whole pipeline on an embedded tiny model, in less than a minute."""
    from camelpress.demo import run as work

    shown = work(out, force=force)
    if screen.json:
        screen.emit(
            flat(shown.outcome.reports["validate"])
            | {"round_to_nearest": flat(shown.rounded), "report": str(shown.page)}
        )
        return shown.outcome.exit_code
    for report in shown.outcome.reports.values():
        screen.result(report)
    rows(
        screen.out,
        "4 bits against 16 bits",
        [
            ("GPTQ", _beside(shown.outcome.reports["validate"])),
            ("round to nearest", _beside(shown.rounded)),
            ("report", str(shown.page)),
            ("release", str(shown.recipe.out / "release")),
        ],
    )
    return shown.outcome.exit_code


def _beside(report: Report) -> str:
    facts = report.facts
    return (
        f"perplexity ratio {facts['perplexity_ratio']:.5f}, KL {facts['kl_mean']:.5f} nats, "
        f"{report.verdict}"
    )


@command("generate", TALKS, Generate)
def generate(
    screen: Screen,
    model: Folder,
    options: dict[str, Any],
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The message; without it, stdin.")
    ] = None,
) -> int:
    """One reply of a 16-bit or 4-bit model, in its own chat format, as it comes."""
    from camelpress.chat import read_prompt
    from camelpress.core.checkpoint import Checkpoint
    from camelpress.generate.run import run as work

    chosen = Generate.parse(options, source="generate")
    checkpoint = Checkpoint.open(model)
    try:
        report = work(checkpoint, read_prompt() if prompt is None else prompt, chosen, screen.say)
    finally:
        screen.end_line()
    if screen.json:
        screen.emit(flat(report))
    else:
        screen.note(
            f"{len(report.facts['ids'])} tokens, {report.cost['tokens_per_second']:.1f} a second, "
            f"stopped by {report.facts['stopped']}"
        )
    return 0


@command("chat", TALKS, Generate)
def chat(screen: Screen, model: Folder, options: dict[str, Any]) -> int:
    """A conversation with a 16-bit or 4-bit model; /help lists what can be done in it."""
    from camelpress.chat import Chat
    from camelpress.core.checkpoint import Checkpoint
    from camelpress.generate.prepared import Prepared

    chosen = Generate.parse(options, source="chat")
    Chat.open(screen, Prepared(Checkpoint.open(model), chosen)).run()
    return 0


@command("inspect", LOOKS)
def inspect_(
    screen: Screen,
    checkpoint: Folder,
    engines: Annotated[
        list[str] | None,
        typer.Option(
            "--for",
            metavar="vllm|sglang|tgi|exllama|marlin|all",
            help="Whether that engine can run it, requirement by requirement; repeatable, or a "
            "list with commas.",
        ),
    ] = None,
) -> int:
    """What a checkpoint is: tensors, dtypes, sizes, quantization, tokenizer, template."""
    from camelpress.core.checkpoint import Checkpoint
    from camelpress.core.summary import describe

    if engines:
        return _for_engines(screen, checkpoint, engines)
    told = describe(Checkpoint.open(checkpoint))
    if screen.json:
        screen.emit(told)
    else:
        rows(
            screen.out,
            str(checkpoint),
            [(name, json.dumps(value)) for name, value in told.items() if name != "tensors"],
        )
        for tensor in told["tensors"]:
            screen.line(f"  {tensor['name']}  {tensor['dtype']} {tensor['shape']}")
    return 0


def _for_engines(screen: Screen, folder: Path, names: list[str]) -> int:
    from camelpress.core.checkpoint import Checkpoint
    from camelpress.core.report import Verdict
    from camelpress.core.summary import summary
    from camelpress.engines.check import check, chosen

    wanted = chosen(names)
    checkpoint = Checkpoint.open(folder)
    told = check(checkpoint, wanted)
    if screen.json:
        screen.emit(summary(checkpoint) | told)
    else:
        for engine in told["engines"]:
            screen.engine(engine)
    return Verdict(told["verdict"]).exit_code


@command("verify", LOOKS)
def verify(
    screen: Screen,
    release: Folder,
    key: Annotated[
        Path | None, typer.Option("--key", help="Public key that it has to be signed with.")
    ] = None,
) -> int:
    """Check a release again, here or at hf:org/name[@revision]: every checksum, no file more."""
    from camelpress.publish.verify import verify_at as work

    report = work(release, key)
    screen.result(report)
    return report.verdict.exit_code if report.verdict else 3


@command("diff", LOOKS)
def diff(screen: Screen, one: Folder, other: Folder) -> int:
    """What differs between two releases or models: config, tensors, figures, files; 1 if any."""
    from camelpress.publish.compare import compare

    report = compare(one, other)
    screen.result(report)
    return report.verdict.exit_code if report.verdict else 3


@command("card", LOOKS)
def card(
    screen: Screen,
    folder: Folder,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 where it is not what the files say.")
    ] = False,
) -> int:
    """The card of a release; with --check, held line by line against config and reports."""
    from camelpress.publish import card as cards

    if not check:
        text = cards.read(folder)
        if screen.json:
            screen.emit({"card": text})
        else:
            screen.line(text)
        return 0
    report = cards.check(folder)
    screen.result(report)
    return report.verdict.exit_code if report.verdict else 3


@command("schema", LOOKS)
def schema(
    screen: Screen,
    of: Annotated[
        Literal["recipe", "gate", "report"], typer.Argument(help="Of what.", metavar="[OF]")
    ] = "recipe",
) -> int:
    """The JSON Schema of a recipe or a gate, for editors, or of a validation report."""
    from camelpress.recipe import Recipe
    from camelpress.validate import facts
    from camelpress.validate.settings import Gate

    schemas = {
        "recipe": Recipe.model_json_schema,
        "gate": Gate.model_json_schema,
        "report": facts.schema,
    }
    screen.emit(schemas[of]())
    return 0


def _version(wanted: bool) -> bool:
    if wanted:
        sys.stdout.write(f"camelpress {__version__}\n")
        raise typer.Exit
    return wanted


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; a bug ends with a traceback and exit code 3, which no gate returns."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:  # noqa: BLE001 - Python's own code for a bug, 1, means "gate failed" here
        sys.stderr.write(redacted(traceback.format_exc()))
        sys.exit(3)
