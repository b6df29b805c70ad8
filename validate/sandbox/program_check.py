"""Runs one program and the test of its problem in two sandboxes and relays their messages.

The program receives calls through one pipe and answers through another. The relay forwards its
answers unparsed, up to a byte limit. The result comes from the second sandbox, through a pipe out
of the program's reach: `sys.exit(0)`, a patched module or a forged report affects only the
program's own process.
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
    """A completion with the fields of its HumanEval problem."""

    task_id: str
    prompt: str
    completion: str
    entry_point: str
    test: str


@dataclass(frozen=True)
class ProgramResult:
    """The outcome of a test; `reason` is one printable line, empty for a passed test."""

    passed: bool
    reason: str = ""


def check_program(program: Program, sandbox: Sandbox, limits: ProgramLimits) -> ProgramResult:
    """Runs a program against its test.

    Raises:
        ToolProblem: The sandbox did not start, so the program has no result.
        RecipeProblem: The test itself does not run.
    """
    shared_fields = {
        "entry_point": program.entry_point,
        "limits": {"seconds": limits.seconds, "memory": limits.memory},
    }
    with ExitStack() as stack:
        candidate = stack.enter_context(
            _open_sandbox(
                sandbox,
                "candidate",
                {"program": program.prompt + program.completion, **shared_fields},
            )
        )
        checker = stack.enter_context(
            _open_sandbox(
                sandbox,
                "checker",
                {"prompt": program.prompt, "test": program.test, **shared_fields},
            )
        )
        timed_out = stack.enter_context(_kill_after(limits.patience, candidate, checker))
        for process in (candidate, checker):
            _require_ready(process, sandbox, limits)
        outcome = _relay_calls(candidate, checker, timed_out, limits)
    if isinstance(outcome, ProgramResult):
        return outcome
    if "broken" in outcome:
        raise RecipeProblem(
            f"the test of {program.task_id} does not run: {_one_line(outcome['broken'])}",
            next_step="correct or remove that problem",
        )
    return ProgramResult(outcome.get("passed") is True, _one_line(outcome.get("failed", "")))


def _relay_calls(
    candidate: subprocess.Popen[bytes],
    checker: subprocess.Popen[bytes],
    timed_out: Event,
    limits: ProgramLimits,
) -> dict[str, Any] | ProgramResult:
    """Relays calls and answers until the checker reports the outcome or a process ends."""
    while True:
        line = _receive(checker, limits)
        if not line.endswith(b"\n"):
            return ProgramResult(
                False, f"the check of it {_explain_exit(checker, line, timed_out, limits)}"
            )
        message = json.loads(line)
        if "call" not in message:
            return message
        _send(candidate, line)
        answer = _receive(candidate, limits)
        if not answer.endswith(b"\n"):
            return ProgramResult(False, _explain_exit(candidate, answer, timed_out, limits))
        _send(checker, answer)


def _require_ready(
    process: subprocess.Popen[bytes], sandbox: Sandbox, limits: ProgramLimits
) -> None:
    """Waits for the ready message; no untrusted code has run yet, so the message is trusted.

    Raises:
        ToolProblem: The process sent another message or ended.
    """
    line = _receive(process, limits)
    if line == READY_LINE:
        return
    process.kill()
    status = process.wait()
    is_error = line.startswith(b'{"broken"') and line.endswith(b"\n")
    reason = _one_line(json.loads(line)["broken"]) if is_error else f"exit status {status}"
    raise ToolProblem(
        f"a {sandbox.name} sandbox did not start ({reason})",
        next_step="run the same command again; if it recurs, with fewer other processes",
    )


@contextmanager
def _open_sandbox(
    sandbox: Sandbox, role: str, job: Mapping[str, Any]
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [*sandbox.command, f"{GUEST_SCRIPTS}/{role}.py"],
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
            with suppress(BrokenPipeError):  # unread input of the process
                _require_pipe(pipe).close()


@contextmanager
def _kill_after(seconds: int, *processes: subprocess.Popen[bytes]) -> Iterator[Event]:
    """Kills the processes after a timeout and sets the event; their pipes then reach EOF."""
    timed_out = Event()

    def kill_all() -> None:
        timed_out.set()
        for process in processes:
            process.kill()

    timer = Timer(seconds, kill_all)
    timer.start()
    try:
        yield timed_out
    finally:
        timer.cancel()


def _send(process: subprocess.Popen[bytes], line: bytes) -> None:
    """Writes a line; a process that has ended shows when its answer is read."""
    pipe = _require_pipe(process.stdin)
    with suppress(BrokenPipeError):
        pipe.write(line)
        pipe.flush()


def _receive(process: subprocess.Popen[bytes], limits: ProgramLimits) -> bytes:
    """Reads a line; returns it without a newline if it is cut by the size limit or by EOF."""
    return _require_pipe(process.stdout).readline(limits.answer + 1)


def _explain_exit(
    process: subprocess.Popen[bytes], line: bytes, timed_out: Event, limits: ProgramLimits
) -> str:
    """Explains a missing or incomplete answer."""
    if len(line) > limits.answer:
        return f"answered with more than {limits.answer:,} bytes"
    status = process.wait()
    if timed_out.is_set():
        return f"did not answer within {limits.patience} s"
    if status == CPU_LIMIT_STATUS:
        return f"computed for more than {limits.seconds} s"
    return f"ended without an answer (exit status {status})"


def _one_line(text: str) -> str:
    """Returns an untrusted message as one line without control characters."""
    return " ".join(escape_controls(text).split())


def _require_pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise ValueError("the process was started without a pipe")
    return pipe
