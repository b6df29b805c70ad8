"""Runs a chat with a model, with prompts and colours on a terminal and as plain text elsewhere.

A line is a message unless it begins with a slash. Ctrl-C ends a reply; the end of the input ends
the chat.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from camelpress.chat.chat_history import ChatHistory
from camelpress.chat.chat_model import ChatModel
from camelpress.chat.reply_generator import ChatReply, ReplyGenerator
from camelpress.cli.console import Screen
from camelpress.core.checkpoint.portable_config import dtype_name
from camelpress.core.errors import RecipeProblem
from camelpress.inference.generation.stop_rule import FinishReason
from camelpress.reporting.checkpoint_summary import summarize_checkpoint

LINE_CONTINUATION = "\\"  # last character of a line with a continuation
QUIT_COMMAND = "/quit"
MAX_CHAT_TOKENS = 4096  # tokens of a chat in the memory estimate
CHAT_HELP = """\
/reset   forget the conversation
/undo    take back the last message and its answer
/quit    end the chat, as Ctrl-D does
/help    show this list
End a line with \\ to continue it on the next line. Begin a message with // to send a leading /."""
USER_PROMPT, CONTINUATION_PROMPT, MODEL_PROMPT = "you › ", "... › ", "model › "
FINISH_NOTES = {
    FinishReason.END: "",
    FinishReason.LENGTH: "; cut off at --max-new-tokens",
    FinishReason.CONTEXT: "; cut off at the model's last position: /reset starts a new chat, /undo "
    "takes back the last exchange",
    FinishReason.INTERRUPTED: "; interrupted",
}


class ChatSession:
    """Chat between stdin and one model.

    Args:
        screen: output of the chat.
        chat_model: chat format and limits of the model.
        history: messages and replies of the chat.
        generator: loaded model.
    """

    def __init__(
        self,
        screen: Screen,
        chat_model: ChatModel,
        history: ChatHistory,
        generator: ReplyGenerator,
    ) -> None:
        self._screen = screen
        self._positions = chat_model.positions
        self._history = history
        self._generator = generator
        self._commands: dict[str, Callable[[], str]] = {
            "/help": lambda: CHAT_HELP,
            "/reset": self._reset,
            "/undo": self._undo,
        }

    @classmethod
    def open(cls, screen: Screen, chat_model: ChatModel) -> ChatSession:
        """Loads the model and prints its size, dtype and sampling settings.

        Raises:
            RecipeProblem: the chat format has no turns.
            OutOfMemory: the model does not fit into memory.
            CheckpointProblem: the weights do not match the config.
        """
        history = ChatHistory(chat_model)
        generator = chat_model.load(tokens=MAX_CHAT_TOKENS)
        summary, settings = summarize_checkpoint(chat_model.checkpoint), chat_model.settings
        precision = f"{summary.bits} bits" if summary.bits else summary.dtype
        screen.greet(
            summary.path,
            [
                f"{summary.architecture}, {summary.parameters:,} weights in {precision}, "
                f"computed in {dtype_name(generator.model.dtype)} on {generator.model.device}",
                f"sampled with temperature {settings.temperature:g}, top-p {settings.top_p:g}"
                if settings.temperature > 0
                else "greedy decoding: always the likeliest token",
                "/help lists commands, Ctrl-C ends a reply, Ctrl-D the chat",
            ],
        )
        return cls(screen, chat_model, history, generator)

    def run(self) -> None:
        """Answers messages until the input ends."""
        for text in self._messages():
            if not text.strip():
                continue
            if text.strip() == QUIT_COMMAND:
                return
            if text.startswith("/") and not text.startswith("//"):
                self._screen.note(self._run_slash_command(text.strip()), always=True)
            else:
                self._answer(text.removeprefix("/") if text.startswith("//") else text)

    def _run_slash_command(self, name: str) -> str:
        command = self._commands.get(name)
        return command() if command else f"there is no command {name}; /help lists the commands"

    def _reset(self) -> str:
        self._history.reset()
        return "forgotten"

    def _undo(self) -> str:
        return "taken back" if self._history.undo() else "there is nothing to take back"

    def _answer(self, text: str) -> None:
        try:
            ids = self._history.prompt_ids(text)
        except RecipeProblem as problem:
            commands = "; /reset starts a new chat, /undo takes back the last exchange"
            hint = commands if len(self._history) else f"; {problem.next_step}"
            self._screen.note(f"{problem.message}{hint}", always=True)
            return
        self._screen.label(MODEL_PROMPT, "bold green")
        reply = self._generator.reply(ids, self._screen.stream_text)
        self._screen.end_line()
        if reply.text.strip():
            self._history.add_exchange(text, reply.text)
        self._screen.note(self._footer(reply))
        if self._screen.interactive:
            self._screen.out.print()

    def _footer(self, reply: ChatReply) -> str:
        new_tokens, positions = len(reply.ids), reply.prompt_tokens + len(reply.ids)
        return (
            f"{new_tokens} tokens, {reply.tokens_per_second:.1f} a second; {positions:,} of "
            f"{self._positions:,} positions{FINISH_NOTES[reply.finish_reason]}"
        )

    def _messages(self) -> Iterator[str]:
        """Yields messages, with continued lines joined."""
        lines: list[str] = []
        while (line := self._line(CONTINUATION_PROMPT if lines else USER_PROMPT)) is not None:
            lines.append(line.removesuffix(LINE_CONTINUATION))
            if not line.endswith(LINE_CONTINUATION):
                yield "\n".join(lines)
                lines = []
        if lines:
            yield "\n".join(lines)

    def _line(self, prompt: str) -> str | None:
        """Reads one line without its line break; None at the end of the input."""
        while True:
            try:
                return self._screen.ask(prompt)
            except EOFError:
                if self._screen.interactive:
                    self._screen.out.print()
                return None
            except KeyboardInterrupt:
                self._screen.note("\nCtrl-D or /quit ends the chat", always=True)


def read_stdin_prompt() -> str:
    """Reads all of stdin.

    Raises:
        RecipeProblem: stdin is not UTF-8.
    """
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise RecipeProblem(
            f"stdin is not UTF-8 text ({error.reason} at byte {error.start})",
            next_step="give text in UTF-8",
        ) from error
