"""What keeps a process away from this machine: bubblewrap, or a container, or nothing is run.

A box is the beginning of a command. What follows runs without a network, with no files but those
of the interpreter and of `inside/`, without the environment of this process, with nowhere to write
and no sight of other processes. What it may ask of the kernel it gives up by itself
(`inside/lockdown.py`). A container differs in what it has of its own: the files of its image, its
own `/proc`, and places for empty files that go with it. It takes a second to start, bubblewrap less
than a tenth of one.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from camelpress.validate.sandbox import guest
from camelpress.validate.sandbox.program_limits import ProgramLimits

GUEST_FOLDER = Path(__file__).resolve().with_name("guest")
GUEST_ROOT = "/code"
GUEST_SCRIPTS = f"{GUEST_ROOT}/{guest.__name__.replace('.', '/')}"
NOBODY_ID = "65534"
ENVIRONMENT = {
    "PYTHONPATH": GUEST_ROOT,
    "PYTHONHASHSEED": "0",
}  # the order in a set is the same each time
PYTHON_FLAGS = ("-s", "-S", "-B", "-P")  # the standard library, and nothing written
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
IMAGE = f"docker.io/library/python:{sys.version_info.major}.{sys.version_info.minor}-slim"
INSTALL_ADVICE = (
    f"install bubblewrap (Debian: apt install bubblewrap), or pull {IMAGE} with podman or docker"
)


@dataclass(frozen=True)
class Sandbox:
    """A kind of sandbox: `command`, with a script of `THERE` after it."""

    name: str
    command: tuple[str, ...]


def installed_sandboxes(limits: ProgramLimits) -> Iterator[Sandbox]:
    """The boxes whose program is installed here, the best first; perhaps none of them works."""
    if path := shutil.which("bwrap"):
        yield Sandbox("bubblewrap", tuple(_bubblewrap_command(path)))
    for name in ("podman", "docker"):
        if path := shutil.which(name):
            yield Sandbox(name, tuple(_container_command(path, limits)))


def _bubblewrap_command(path: str) -> Iterator[str]:
    """Source: bwrap(1) of bubblewrap 0.8."""
    python = Path(sys.executable).resolve()
    yield from (path, "--unshare-all", "--unshare-user", "--uid", NOBODY_ID, "--gid", NOBODY_ID)
    yield from ("--hostname", "sandbox")
    yield from ("--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv")
    for name, value in ENVIRONMENT.items():
        yield from ("--setenv", name, value)
    own = (str(python), f"{sys.base_prefix}/lib", f"{sys.base_prefix}/lib64")
    for place in (*LIBRARIES, *own):
        yield from ("--ro-bind-try", place, place)
    yield from ("--ro-bind", str(GUEST_FOLDER), GUEST_SCRIPTS)
    yield from ("--remount-ro", "/", "--chdir", "/", "--", str(python), *PYTHON_FLAGS)


def _container_command(path: str, limits: ProgramLimits) -> Iterator[str]:
    """`timeout` ends what would go on after its client is gone.

    Source: docker-run(1), podman-run(1).
    """
    yield from (path, "run", "--rm", "--interactive", "--pull", "never", "--log-driver", "none")
    yield from ("--network", "none", "--read-only", "--cap-drop", "ALL", "--user", NOBODY_ID)
    yield from ("--security-opt", "no-new-privileges", "--pids-limit", "16", "--workdir", "/")
    yield from ("--memory", str(limits.memory), "--volume", f"{GUEST_FOLDER}:{GUEST_SCRIPTS}:ro")
    for name, value in ENVIRONMENT.items():
        yield from ("--env", f"{name}={value}")
    yield from (IMAGE, "timeout", "--signal", "KILL", str(limits.patience), "python", *PYTHON_FLAGS)
