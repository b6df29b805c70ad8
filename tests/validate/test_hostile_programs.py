"""What a model might write to be scored without being right, or to do harm: all of it scores 0."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from camelpress.validate.sandbox import isolation
from camelpress.validate.sandbox.execution import find_sandbox, run_programs
from camelpress.validate.sandbox.program_check import ProgramResult
from camelpress.validate.sandbox.program_limits import ProgramLimits
from hostile_programs import DEEDS, FORGERIES, HOSTILE, PROMPT, TEST, Hostile, program
from sandboxes import needs_bubblewrap

LIMITS = ProgramLimits(seconds=1, patience=4, memory=2**28)
HONEST = "    return x * 2\n"
BROKEN = re.compile("SyntaxError|IndentationError|NameError|ModuleNotFoundError|AttributeError")


def _idea(each: Hostile) -> str:
    return each.idea


pytestmark = needs_bubblewrap


@dataclass(frozen=True)
class Outcome:
    """What came of all hostile programs, run side by side with an honest one."""

    verdicts: dict[str, ProgramResult]
    place: Path
    token: str
    name: str
    port: int
    inside: Path
    connections: int


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    place = tmp_path_factory.mktemp("hostile")
    secret = place / "secret"
    secret.write_text("secret", encoding="utf-8")
    inside = place / "inside"
    shutil.copytree(isolation.GUEST_FOLDER, inside)
    token, name = f"T{secrets.token_hex(8)}", f"camelpress-{secrets.token_hex(8)}"
    with (
        pytest.MonkeyPatch.context() as patch,
        socket.create_server(("127.0.0.1", 0)) as served,
        socket.create_server(("127.0.0.1", 0)) as free,
    ):
        port = free.getsockname()[1]
        free.close()
        served.setblocking(False)
        patch.setattr(
            isolation, "GUEST_FOLDER", inside
        )  # tells this test's processes from all others
        patch.setenv(token, token)
        told = {
            "PYTHON": os.path.realpath(sys.executable),
            "PLACE": str(place),
            "SECRET": str(secret),
            "HOME": str(Path.home()),
            "CODE": isolation.GUEST_SCRIPTS,
            "TOKEN": token,
            "NAME": name,
            "PORT": str(port),
            "SERVED": str(served.getsockname()[1]),
        }
        ideas = {each.idea: program(each.completion, told) for each in HOSTILE}
        ideas["honest"] = program(HONEST)
        verdicts = dict(zip(ideas, run_programs([*ideas.values()], LIMITS), strict=True))
        yield Outcome(verdicts, place, token, name, port, inside, _accepted(served))


def _accepted(server: socket.socket) -> int:
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return 0
    return 1


def test_there_are_many_ideas_each_once() -> None:
    assert len({each.idea for each in HOSTILE}) == len(HOSTILE) >= 30
    assert len({each.completion for each in HOSTILE}) == len(HOSTILE)


def test_the_honest_program_passes_beside_them(outcome: Outcome) -> None:
    assert outcome.verdicts["honest"] == ProgramResult(True)


@pytest.mark.parametrize("hostile", HOSTILE, ids=_idea)
def test_it_scores_nothing(hostile: Hostile, outcome: Outcome) -> None:
    verdict = outcome.verdicts[hostile.idea]
    assert not verdict.passed
    assert verdict.reason and verdict.reason.isprintable()
    assert outcome.token not in verdict.reason
    assert not BROKEN.search(verdict.reason), verdict.reason  # it failed, but not by a slip of ours


@pytest.mark.parametrize("hostile", [each for each in FORGERIES if each.fools], ids=_idea)
def test_it_fools_a_harness_of_one_process(hostile: Hostile) -> None:
    """The usual one: program and test in one process, which passes if that ends well."""
    together = f"{PROMPT}{hostile.completion}\n{TEST}\ncheck(double)\n"
    done = subprocess.run([*find_sandbox(LIMITS).command, "-c", together], capture_output=True)
    assert done.returncode == 0


def test_nothing_is_left_on_disk(outcome: Outcome) -> None:
    assert {path.name for path in outcome.place.iterdir()} == {"secret", "inside"}
    left = {path.name for path in outcome.inside.iterdir()} - {"__pycache__"}
    assert left == {path.name for path in isolation.GUEST_FOLDER.iterdir()} - {"__pycache__"}
    for path in isolation.GUEST_FOLDER.glob("*.py"):
        assert (outcome.inside / path.name).read_bytes() == path.read_bytes()
    for folder in ("/", "/tmp", "/dev/shm", "/var/tmp", Path.home(), Path.cwd()):
        assert not (Path(folder) / "camelpress-was-here").exists()
    assert not (Path(os.__file__).parent / "sitecustomize.py").exists()


def test_no_process_is_left(outcome: Outcome) -> None:
    deadline = time.monotonic() + 30
    while left := _processes_with(str(outcome.inside)):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def _processes_with(text: str) -> list[str]:
    """The commands that hold a text: bubblewrap's own, with which all in a sandbox die."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has ended
        if text in command:
            found.append(command)
    return found


def test_nobody_listens_and_nobody_called(outcome: Outcome) -> None:
    with pytest.raises(ConnectionRefusedError), socket.socket(socket.AF_UNIX) as client:
        client.connect(f"\0{outcome.name}")
    with pytest.raises(ConnectionRefusedError), socket.socket() as client:
        client.connect(("127.0.0.1", outcome.port))
    assert outcome.connections == 0


def test_the_deeds_are_deeds_outside() -> None:
    """A deed that works nowhere would prove nothing. These do no harm."""
    harmless = {"runs a shell", "begins a thread", "makes a file of memory", "shares memory"}
    tried = [each for each in DEEDS if each.idea in harmless]
    assert len(tried) == len(harmless)
    for deed in tried:
        code = f"{PROMPT}{deed.completion}\nassert double(2) == 4\n"
        subprocess.run([sys.executable, "-c", code], check=True)
