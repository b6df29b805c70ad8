"""What all commands share: their options, one line for an error, and exit codes."""

from __future__ import annotations

import inspect
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from camelpress.cli.console import Screen
from camelpress.cli.options import explicit_options, option_parameters
from camelpress.core.errors import Interruption, Problem, ToolProblem
from camelpress.core.exit_codes import ExitCode
from camelpress.core.progress import use_listener
from camelpress.core.runtime.cache_folders import provide_cache_folders
from camelpress.core.runtime.problem_translation import translate_faults
from camelpress.core.runtime.secrets_redaction import redact_secrets
from camelpress.core.runtime.standard_streams import LostOutput
from camelpress.core.settings import Settings

PANELS = ("Stages", "The whole pipeline", "Try a model", "Look and check")
STAGE_PANEL, PIPELINE_PANEL, CHAT_PANEL, INSPECT_PANEL = PANELS


class RedactedGroup(TyperGroup):
    """Parses a command line, and keeps a login that stands in it out of what it says of usage."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Parses the options before the command."""
        with _redacted_usage():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        """Parses the command and runs it."""
        with _redacted_usage():
            return super().invoke(ctx)


@contextmanager
def _redacted_usage() -> Iterator[None]:
    try:
        yield
    except TyperException as error:
        if isinstance(message := getattr(error, "message", None), str):
            vars(error)["message"] = redact_secrets(message)
        raise


app = typer.Typer(
    cls=RedactedGroup,
    help="From a published weight diff to a tested, published 4-bit release.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

FolderArgument = Annotated[Path, typer.Argument(show_default=False)]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what is there.")]

RestartOption = Annotated[
    bool,
    typer.Option("--restart", help="Begin again where an earlier run left an unfinished output."),
]

# fmt: off
COMMON_OPTIONS: dict[str, Any] = {
    "as_json": Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")],
    "quiet":   Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no notes.")],
    "verbose": Annotated[bool, typer.Option("-v", "--verbose", help="Warnings of libraries, too.")],
    "debug":   Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")],
}
# fmt: on


def command(
    name: str, panel: str, settings: type[Settings] | None = None
) -> Callable[[Callable[..., ExitCode]], Callable[..., ExitCode]]:
    """Register a function as a command, with the common options and those of its settings.

    The function gets a `screen`, its own parameters and, where there are settings, the options
    that were given as `options`; it returns the exit code.
    """

    def register(work: Callable[..., ExitCode]) -> Callable[..., ExitCode]:
        extra = option_parameters(settings) if settings else []

        @wraps(work)
        def run(**values: Any) -> None:
            common = {key: values.pop(key) for key in COMMON_OPTIONS}
            if settings:
                values["options"] = explicit_options(
                    {each.name: values.pop(each.name) for each in extra}
                )
            raise typer.Exit(_run_guarded(work, values, **common))

        own = [
            each
            for each in inspect.signature(work, eval_str=True).parameters.values()
            if each.name not in ("screen", "options")
        ]
        common = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
            for key, kind in COMMON_OPTIONS.items()
        ]
        signature = inspect.Signature([*own, *extra, *common])
        run.__signature__ = signature  # type: ignore[attr-defined]
        run.__annotations__ = {key: each.annotation for key, each in signature.parameters.items()}
        app.command(name, rich_help_panel=panel)(run)
        return work

    return register


def _run_guarded(
    work: Callable[..., ExitCode],
    values: dict[str, Any],
    *,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    debug: bool,
) -> ExitCode:
    follows = os.environ.get("RANK", "0") != "0"  # torchrun says so
    screen = Screen(json=as_json, quiet=quiet, silent=follows)
    signal.signal(signal.SIGTERM, _raise_interrupted)
    provide_cache_folders()
    if not verbose:
        warnings.simplefilter("ignore")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if quiet:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        with use_listener(screen), translate_faults():
            code = work(screen=screen, **values)
            return ExitCode.DONE if follows else code  # a verdict here would end the other ranks
    except Problem as problem:
        if debug:
            sys.stderr.write(redact_secrets(traceback.format_exc()))
        screen.problem(problem)
        return problem.exit_code
    except (KeyboardInterrupt, LostOutput):
        raise
    except SystemExit as end:
        if debug:
            sys.stderr.write(redact_secrets(traceback.format_exc()))
        screen.problem(_library_exit_problem(end))
        return ExitCode.PROBLEM
    except BaseException:  # noqa: BLE001 - a panic of Rust is no Exception; typer would end with 1
        sys.stderr.write(redact_secrets(traceback.format_exc()))
        return ExitCode.PROBLEM


def _library_exit_problem(end: SystemExit) -> Problem:
    return ToolProblem(
        f"a library ended the program ({end.code!r})",
        next_step="run the same command with --debug to see which",
    )


def _raise_interrupted(*_: object) -> None:
    """What a scheduler's SIGTERM does: nothing half-done stays, finished stages of a run do."""
    raise Interruption("stopped before the end", next_step="run the same command again")
