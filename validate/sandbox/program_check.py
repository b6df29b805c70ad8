"""One program and its problem's test, in two boxes, and the lines between them.

The program is asked through one pipe and answers through another. What it writes there is handed
on unread, at most so many bytes of it. The verdict comes from the other box, on a pipe that the
program does not have: `sys.exit(0)`, a patched module or a forged report end or change its own
process and nothing else.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Timer
from typing import IO, Any

from camelpress.core.errors import RecipeProblem, ToolProblem
from camelpress.core.runtime.terminal_text import escape_controls
from camelpress.validate.sandbox.isolation import GUEST_SCRIPTS, Sandbox
from camelpress.validate.sandbox.program_limits import ProgramLimits

READY_LINE = b'"ready"\n'
CPU_LIMIT_STATUS = 128 + signal.SIGXCPU


@dataclass(frozen=True)
class Program:
    """A completion with the problem it completes, as a row of HumanEval has them."""

    task_id: str
    prompt: str
    completion: str
    entry_point: str
    test: str


@dataclass(frozen=True)
class ProgramResult:
    """Whether a program passed its test; if not, why, in one line that is safe to show."""

    passed: bool
    reason: str = ""


def check_program(program: Program, box: Sandbox, limits: ProgramLimits) -> ProgramResult:
    """Run a program against its test.

    Raises:
        EngineProblem: the box did not come up; that says nothing of the program.
        RecipeProblem: the test itself does not run.
    """
    shared = {
        "entry_point": program.entry_point,
        "limits": {"seconds": limits.seconds, "memory": limits.memory},
    }
    with ExitStack() as opened:
        candidate = opened.enter_context(
            _open_sandbox(
                box, "candidate", {"program": program.prompt + program.completion, **shared}
            )
        )
        checker = opened.enter_context(
            _open_sandbox(
                box, "checker", {"prompt": program.prompt, "test": program.test, **shared}
            )
        )
        late = opened.enter_context(_kill_after(limits.patience, candidate, checker))
        for process in (candidate, checker):
            _require_ready(process, box, limits)
        said = _relay_calls(candidate, checker, late, limits)
    if isinstance(said, ProgramResult):
        return said
    if "broken" in said:
        raise RecipeProblem(
            f"the test of {program.task_id} does not run: {_one_line(said['broken'])}",
            next_step="mend or leave out that problem",
        )
    return ProgramResult(said.get("passed") is True, _one_line(said.get("failed", "")))


def _relay_calls(
    candidate: subprocess.Popen[bytes],
    checker: subprocess.Popen[bytes],
    late: Event,
    limits: ProgramLimits,
) -> dict[str, Any] | ProgramResult:
    """Carry questions and answers until the checker says how it went, or one of them ends."""
    while True:
        said = _receive(checker, limits)
        if not said.endswith(b"\n"):
            return ProgramResult(
                False, f"the check of it {_explain_exit(checker, said, late, limits)}"
            )
        message = json.loads(said)
        if "call" not in message:
            return message
        _send(candidate, said)
        answer = _receive(candidate, limits)
        if not answer.endswith(b"\n"):
            return ProgramResult(False, _explain_exit(candidate, answer, late, limits))
        _send(checker, answer)


def _require_ready(process: subprocess.Popen[bytes], box: Sandbox, limits: ProgramLimits) -> None:
    """The process is confined; nothing untrusted has run, so what it says is true."""
    said = _receive(process, limits)
    if said == READY_LINE:
        return
    process.kill()
    status = process.wait()
    told = said.startswith(b'{"broken"') and said.endswith(b"\n")
    why = _one_line(json.loads(said)["broken"]) if told else f"exit status {status}"
    raise ToolProblem(
        f"a {box.name} sandbox did not start ({why})",
        next_step="run the same command again; with less running beside it if that recurs",
    )


@contextmanager
def _open_sandbox(
    box: Sandbox, role: str, job: Mapping[str, Any]
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [*box.command, f"{GUEST_SCRIPTS}/{role}.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        _send(process, json.dumps(job).encode() + b"\n")
        yield process
    finally:
        process.kill()  # bubblewrap's processes die with it
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(BrokenPipeError):  # what it did not read
                _require_pipe(pipe).close()


@contextmanager
def _kill_after(seconds: int, *processes: subprocess.Popen[bytes]) -> Iterator[Event]:
    """Kill them when the time is over, and tell so; their pipes then end for whoever reads."""
    late = Event()

    def end() -> None:
        late.set()
        for process in processes:
            process.kill()

    timer = Timer(seconds, end)
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def _send(process: subprocess.Popen[bytes], line: bytes) -> None:
    """Write a line; whoever has ended does not read it, which shows when its answer is read."""
    pipe = _require_pipe(process.stdin)
    with suppress(BrokenPipeError):
        pipe.write(line)
        pipe.flush()


def _receive(process: subprocess.Popen[bytes], limits: ProgramLimits) -> bytes:
    """A line, or as much of one as there is before its limit or the end."""
    return _require_pipe(process.stdout).readline(limits.answer + 1)


def _explain_exit(
    process: subprocess.Popen[bytes], said: bytes, late: Event, limits: ProgramLimits
) -> str:
    """Why there was no whole line."""
    if len(said) > limits.answer:
        return f"answered with more than {limits.answer:,} bytes"
    status = process.wait()
    if late.is_set():
        return f"did not answer within {limits.patience} s"
    if status == CPU_LIMIT_STATUS:
        return f"computed for more than {limits.seconds} s"
    return f"ended without an answer (exit status {status})"


def _one_line(text: str) -> str:
    """What a program made an exception say, as one line for a terminal or a report."""
    return " ".join(escape_controls(text).split())


def _require_pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise ValueError("the process was started without a pipe")
    return pipe
