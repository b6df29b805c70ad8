"""Registers a function as a command with common options, one-line errors and exit codes."""

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
    """Parses a command line, and redacts logins in its usage errors."""

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
    help="Turns a published weight diff into a tested, published 4-bit release.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

FolderArgument = Annotated[Path, typer.Argument(show_default=False)]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]

RestartOption = Annotated[
    bool,
    typer.Option("--restart", help="Start over instead of continuing an unfinished output."),
]

# fmt: off
COMMON_OPTIONS: dict[str, Any] = {
    "as_json": Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")],
    "quiet":   Annotated[bool, typer.Option("-q", "--quiet", help="Hide progress and notes.")],
    "verbose": Annotated[bool, typer.Option("-v", "--verbose", help="Show warnings of libraries.")],
    "debug":   Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")],
}
# fmt: on


def command(
    name: str, panel: str, settings: type[Settings] | None = None
) -> Callable[[Callable[..., ExitCode]], Callable[..., ExitCode]]:
    """Registers a function as a command, with the common options and those of its settings.

    The function receives a `screen`, its own parameters and, for a command with settings, a
    dictionary of the explicit options as `options`. It returns the exit code.

    Args:
        name: name of the command.
        panel: heading of the command in the help.
        settings: settings class with one option per field.
    """

    def register(work: Callable[..., ExitCode]) -> Callable[..., ExitCode]:
        setting_parameters = option_parameters(settings) if settings else []

        @wraps(work)
        def run(**values: Any) -> None:
            common = {key: values.pop(key) for key in COMMON_OPTIONS}
            if settings:
                values["options"] = explicit_options(
                    {parameter.name: values.pop(parameter.name) for parameter in setting_parameters}
                )
            raise typer.Exit(_run_guarded(work, values, **common))

        own_parameters = [
            parameter
            for parameter in inspect.signature(work, eval_str=True).parameters.values()
            if parameter.name not in ("screen", "options")
        ]
        common = [
            inspect.Parameter(
                key, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation
            )
            for key, annotation in COMMON_OPTIONS.items()
        ]
        signature = inspect.Signature([*own_parameters, *setting_parameters, *common])
        run.__signature__ = signature  # type: ignore[attr-defined]
        run.__annotations__ = {
            key: parameter.annotation for key, parameter in signature.parameters.items()
        }
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
    is_follower = os.environ.get("RANK", "0") != "0"  # set by torchrun
    screen = Screen(json=as_json, quiet=quiet, silent=is_follower)
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
            return ExitCode.DONE if is_follower else code  # only rank 0 exits with a verdict
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
    except BaseException:  # noqa: BLE001 - a Rust panic is no Exception; typer would exit with 1
        sys.stderr.write(redact_secrets(traceback.format_exc()))
        return ExitCode.PROBLEM


def _library_exit_problem(end: SystemExit) -> Problem:
    return ToolProblem(
        f"a library ended the program ({end.code!r})",
        next_step="run the same command with --debug for details",
    )


def _raise_interrupted(*_: object) -> None:
    """Handles SIGTERM of a scheduler: drops unfinished output and keeps finished stages."""
    raise Interruption("stopped before the end", next_step="run the same command again")
