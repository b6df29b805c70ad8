"""Builds the commands that isolate a process: bubblewrap, podman or docker.

A sandbox is a command prefix. The script after it runs without network, environment, writable
files or a view of other processes, and sees only the files of the interpreter and of `guest/`.
The process drops its system calls itself (`guest/seccomp.py`). A container also has the files of
its image, its own `/proc` and room for temporary empty files. A container takes about 1 s to
start, bubblewrap less than 0.1 s.
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
    "PYTHONHASHSEED": "0",  # sets iterate in the same order in every run
}
PYTHON_FLAGS = ("-s", "-S", "-B", "-P")  # standard library only, no bytecode files
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
IMAGE = f"docker.io/library/python:{sys.version_info.major}.{sys.version_info.minor}-slim"
INSTALL_ADVICE = (
    f"install bubblewrap (Debian: apt install bubblewrap), or pull {IMAGE} with podman or docker"
)


@dataclass(frozen=True)
class Sandbox:
    """A sandbox: its name, and the command prefix for a script in `GUEST_SCRIPTS`."""

    name: str
    command: tuple[str, ...]


def installed_sandboxes(limits: ProgramLimits) -> Iterator[Sandbox]:
    """Yields the installed sandboxes, preferred first; some may fail to start.

    Args:
        limits: memory and wall-clock limits for containers.
    """
    if path := shutil.which("bwrap"):
        yield Sandbox("bubblewrap", tuple(_bubblewrap_command(path)))
    for name in ("podman", "docker"):
        if path := shutil.which(name):
            yield Sandbox(name, tuple(_container_command(path, limits)))


def _bubblewrap_command(path: str) -> Iterator[str]:
    """Yields the bubblewrap command line.

    Source: bwrap(1) of bubblewrap 0.8.
    """
    python = Path(sys.executable).resolve()
    yield from (path, "--unshare-all", "--unshare-user", "--uid", NOBODY_ID, "--gid", NOBODY_ID)
    yield from ("--hostname", "sandbox")
    yield from ("--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv")
    for name, value in ENVIRONMENT.items():
        yield from ("--setenv", name, value)
    python_paths = (str(python), f"{sys.base_prefix}/lib", f"{sys.base_prefix}/lib64")
    for mount in (*LIBRARIES, *python_paths):
        yield from ("--ro-bind-try", mount, mount)
    yield from ("--ro-bind", str(GUEST_FOLDER), GUEST_SCRIPTS)
    yield from ("--remount-ro", "/", "--chdir", "/", "--", str(python), *PYTHON_FLAGS)


def _container_command(path: str, limits: ProgramLimits) -> Iterator[str]:
    """Yields the container command line; `timeout` ends a container without a client.

    Source: docker-run(1), podman-run(1).
    """
    yield from (path, "run", "--rm", "--interactive", "--pull", "never", "--log-driver", "none")
    yield from ("--network", "none", "--read-only", "--cap-drop", "ALL", "--user", NOBODY_ID)
    yield from ("--security-opt", "no-new-privileges", "--pids-limit", "16", "--workdir", "/")
    yield from ("--memory", str(limits.memory), "--volume", f"{GUEST_FOLDER}:{GUEST_SCRIPTS}:ro")
    for name, value in ENVIRONMENT.items():
        yield from ("--env", f"{name}={value}")
    yield from (IMAGE, "timeout", "--signal", "KILL", str(limits.patience), "python", *PYTHON_FLAGS)
