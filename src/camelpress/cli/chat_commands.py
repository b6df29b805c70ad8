"""Generates text with a model in its own chat format."""

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
        str | None, typer.Option("--prompt", "-p", help="Message to the model; stdin by default.")
    ] = None,
) -> ExitCode:
    """Generates one reply of a 16-bit or quantized model, in its own chat format."""
    from camelpress.chat.run import run as work
    from camelpress.cli.chat_session import read_stdin_prompt
    from camelpress.core.checkpoint.checkpoint import Checkpoint

    settings = Generate.parse(options, source="generate")
    checkpoint = Checkpoint.open(model)
    try:
        report = work(
            checkpoint,
            read_stdin_prompt() if prompt is None else prompt,
            settings,
            screen.stream_text,
        )
    finally:
        screen.end_line()
    if screen.json:
        screen.print_json(flatten_report(report))
    else:
        screen.note(
            f"{len(report.facts.ids)} tokens, {report.cost['tokens_per_second']:.1f} a second, "
            f"stopped by {report.facts.stopped}"
        )
    return ExitCode.DONE


@command("chat", CHAT_PANEL, Generate)
def chat_command(screen: Screen, model: FolderArgument, options: dict[str, Any]) -> ExitCode:
    """Starts a conversation with a 16-bit or quantized model; /help lists its commands."""
    from camelpress.chat.chat_model import ChatModel
    from camelpress.cli.chat_session import ChatSession
    from camelpress.core.checkpoint.checkpoint import Checkpoint

    settings = Generate.parse(options, source="chat")
    ChatSession.open(screen, ChatModel(Checkpoint.open(model), settings)).run()
    return ExitCode.DONE
