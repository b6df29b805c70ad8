"""A chat with a model: on a terminal with prompts and colours, elsewhere plain text by the line.

What a person types is a message, unless it begins with a slash. Ctrl-C ends a reply, the end of
the input ends the chat.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from camelpress.chat.chat_history import ChatHistory
from camelpress.chat.chat_model import ChatModel
from camelpress.chat.transformers_decoder import ChatReply, StopReason, TransformersDecoder
from camelpress.cli.console import Screen
from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.errors import RecipeProblem
from camelpress.reporting.checkpoint_summary import summarize_checkpoint

LINE_CONTINUATION = "\\"  # at the end of a line: the message has another one
QUIT_COMMAND = "/quit"
MAX_CHAT_TOKENS = 4096  # tokens of a chat that memory is asked for
CHAT_HELP = """\
/reset   forget the conversation
/undo    take back the last message and its answer
/quit    end the chat, as Ctrl-D does
/help    this list
A line that ends in \\ goes on in the next one. Write // for a message that begins with /."""
USER_PROMPT, CONTINUATION_PROMPT, MODEL_PROMPT = "you › ", "... › ", "model › "
FINISH_NOTES = {
    StopReason.END: "",
    StopReason.LENGTH: "; cut off at --max-new-tokens",
    StopReason.CONTEXT: "; cut off where the model's positions end: /reset begins anew, /undo takes "
    "the last exchange back",
    StopReason.INTERRUPTED: "; interrupted",
}


class ChatSession:
    """One chat.

    Args:
        screen: where it is shown.
        prepared: the model's format and limits.
        history: what was said.
        speaker: the model.
    """

    def __init__(
        self,
        screen: Screen,
        prepared: ChatModel,
        history: ChatHistory,
        speaker: TransformersDecoder,
    ) -> None:
        self._screen = screen
        self._positions = prepared.positions
        self._history = history
        self._speaker = speaker
        self._commands: dict[str, Callable[[], str]] = {
            "/help": lambda: CHAT_HELP,
            "/reset": self._reset,
            "/undo": self._undo,
        }

    @classmethod
    def open(cls, screen: Screen, prepared: ChatModel) -> ChatSession:
        """Load the model and say what it is.

        Raises:
            RecipeProblem: its format has no turns.
            OutOfMemory: it does not fit.
            CheckpointProblem: its weights do not fit its config.
        """
        history = ChatHistory(prepared)
        speaker = prepared.load(tokens=MAX_CHAT_TOKENS)
        model, draws = summarize_checkpoint(prepared.checkpoint), prepared.settings.temperature > 0
        stored = f"{model['bits']} bits" if model["bits"] else model["dtype"]
        screen.greet(
            model["path"],
            [
                f"{model['architecture']}, {model['parameters']:,} weights in {stored}, computed "
                f"in {dtype_name(speaker.model.dtype)} on {speaker.model.device}",
                "drawn with "
                f"temperature {prepared.settings.temperature:g}, top-p {prepared.settings.top_p:g}"
                if draws
                else "greedy: always the likeliest token",
                "/help lists commands, Ctrl-C ends a reply, Ctrl-D the chat",
            ],
        )
        return cls(screen, prepared, history, speaker)

    def run(self) -> None:
        """Until the input ends."""
        for text in self._messages():
            if not text.strip():
                continue
            if text.strip() == QUIT_COMMAND:
                return
            if text.startswith("/") and not text.startswith("//"):
                self._screen.note(self._run_slash_command(text.strip()), asked=True)
            else:
                self._answer(text.removeprefix("/") if text.startswith("//") else text)

    def _run_slash_command(self, name: str) -> str:
        command = self._commands.get(name)
        return command() if command else f"there is no {name}; /help lists what there is"

    def _reset(self) -> str:
        self._history.reset()
        return "forgotten"

    def _undo(self) -> str:
        return "taken back" if self._history.undo() else "there is nothing to take back"

    def _answer(self, text: str) -> None:
        try:
            ids = self._history.prompt_ids(text)
        except RecipeProblem as problem:
            left = "; /reset begins anew, /undo takes the last exchange back"
            told = f"{problem.message}{left if len(self._history) else f'; {problem.next_step}'}"
            self._screen.note(told, asked=True)
            return
        self._screen.label(MODEL_PROMPT, "bold green")
        reply = self._speaker.reply(ids, self._screen.stream_text)
        self._screen.end_line()
        if reply.text.strip():
            self._history.add_exchange(text, reply.text)
        self._screen.note(self._footer(reply))
        if self._screen.interactive:
            self._screen.out.print()

    def _footer(self, reply: ChatReply) -> str:
        made, used = len(reply.ids), reply.prompt_tokens + len(reply.ids)
        return (
            f"{made} tokens, {reply.tokens_per_second:.1f} a second; {used:,} of "
            f"{self._positions:,} positions{FINISH_NOTES[reply.finish_reason]}"
        )

    def _messages(self) -> Iterator[str]:
        """What is typed, joined where a line goes on."""
        lines: list[str] = []
        while (line := self._line(CONTINUATION_PROMPT if lines else USER_PROMPT)) is not None:
            lines.append(line.removesuffix(LINE_CONTINUATION))
            if not line.endswith(LINE_CONTINUATION):
                yield "\n".join(lines)
                lines = []
        if lines:
            yield "\n".join(lines)

    def _line(self, prompt: str) -> str | None:
        """One line without its end; None where there are no more."""
        while True:
            try:
                return self._screen.ask(prompt)
            except EOFError:
                if self._screen.interactive:
                    self._screen.out.print()
                return None
            except KeyboardInterrupt:
                self._screen.note("\nCtrl-D or /quit ends the chat", asked=True)


def read_stdin_prompt() -> str:
    """All of stdin.

    Raises:
        RecipeProblem: it is not UTF-8.
    """
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise RecipeProblem(
            f"stdin is not UTF-8 text ({error.reason} at byte {error.start})",
            next_step="give text in UTF-8",
        ) from error
