"""Text from a model, in its own chat format."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from camelpress.chat.settings import Generate
from camelpress.cli.command import CHAT_PANEL, FolderArgument, command
from camelpress.cli.console import Screen, flatten_report
from camelpress.core.exit_codes import ExitCode


@command("generate", CHAT_PANEL, Generate)
def generate_command(
    screen: Screen,
    model: FolderArgument,
    options: dict[str, Any],
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The message; without it, stdin.")
    ] = None,
) -> ExitCode:
    """One reply of a plain or quantized model, in its own chat format, as it comes."""
    from camelpress.chat.run import run as work
    from camelpress.cli.chat_session import read_stdin_prompt
    from camelpress.core.checkpoint.checkpoint import Checkpoint

    chosen = Generate.parse(options, source="generate")
    checkpoint = Checkpoint.open(model)
    try:
        report = work(
            checkpoint,
            read_stdin_prompt() if prompt is None else prompt,
            chosen,
            screen.stream_text,
        )
    finally:
        screen.end_line()
    if screen.json:
        screen.print_json(flatten_report(report))
    else:
        screen.note(
            f"{len(report.facts['ids'])} tokens, {report.cost['tokens_per_second']:.1f} a second, "
            f"stopped by {report.facts['stopped']}"
        )
    return ExitCode.DONE


@command("chat", CHAT_PANEL, Generate)
def chat_command(screen: Screen, model: FolderArgument, options: dict[str, Any]) -> ExitCode:
    """A conversation with a plain or quantized model; /help lists what can be done in it."""
    from camelpress.chat.chat_model import ChatModel
    from camelpress.cli.chat_session import ChatSession
    from camelpress.core.checkpoint.checkpoint import Checkpoint

    chosen = Generate.parse(options, source="chat")
    ChatSession.open(screen, ChatModel(Checkpoint.open(model), chosen)).run()
    return ExitCode.DONE
