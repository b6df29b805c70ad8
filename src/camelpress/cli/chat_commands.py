"""Text from a model, in its own chat format."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from camelpress.chat.settings import Generate
from camelpress.cli.command import TALKS, Folder, command
from camelpress.cli.console import Screen, flat
from camelpress.core.exit_codes import ExitCode


@command("generate", TALKS, Generate)
def generate(
    screen: Screen,
    model: Folder,
    options: dict[str, Any],
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The message; without it, stdin.")
    ] = None,
) -> ExitCode:
    """One reply of a plain or quantized model, in its own chat format, as it comes."""
    from camelpress.chat.run import run as work
    from camelpress.cli.chat_session import read_prompt
    from camelpress.core.checkpoint.checkpoint import Checkpoint

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
    return ExitCode.DONE


@command("chat", TALKS, Generate)
def chat(screen: Screen, model: Folder, options: dict[str, Any]) -> ExitCode:
    """A conversation with a plain or quantized model; /help lists what can be done in it."""
    from camelpress.chat.chat_model import Prepared
    from camelpress.cli.chat_session import Chat
    from camelpress.core.checkpoint.checkpoint import Checkpoint

    chosen = Generate.parse(options, source="chat")
    Chat.open(screen, Prepared(Checkpoint.open(model), chosen)).run()
    return ExitCode.DONE
