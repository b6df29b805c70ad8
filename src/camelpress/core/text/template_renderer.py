"""Renders chat templates, untrusted programs, in a child process with bounds.

A sandboxed template can still loop forever, multiply a text until memory is full, or divide by
zero. One child starts at the first conversation and renders all later ones, too.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from camelpress.core.input_limits import (
    MAX_TEMPLATE_CHARACTERS,
    MAX_TEMPLATE_MEMORY_BYTES,
    MAX_TEMPLATE_SECONDS,
)

WORKER_MODULE = "camelpress.core.text.template_worker"
# Environment variables inherited by the child.
WORKER_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TZ")
LIMIT_MESSAGE = (
    f"it takes more than {MAX_TEMPLATE_SECONDS} seconds or "
    f"{MAX_TEMPLATE_MEMORY_BYTES // 2**20:,} MiB"
)


def render_template(
    template: str, turns: Sequence[Mapping[str, str]], tokens: Mapping[str, Any]
) -> str:
    """Renders a conversation by a chat template, ready for an answer.

    Args:
        template: chat template in the form of transformers.
        turns: messages with `role` and `content`.
        tokens: special tokens by name, such as `bos_token`.
    Raises:
        ValueError: the template is broken, refuses the conversation, or exceeds a bound.
    """
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise ValueError(f"it is longer than {MAX_TEMPLATE_CHARACTERS:,} characters")
    request = {"template": template, "turns": list(turns), "tokens": dict(tokens)}
    answer = {} if template in _ENDLESS_TEMPLATES else _WORKER.ask(request)
    if not answer:
        _ENDLESS_TEMPLATES.add(template)
    if "text" not in answer:
        raise ValueError(answer.get("fault", LIMIT_MESSAGE))
    return answer["text"]


class _TemplateWorker:
    """Child process for rendering; each fork of the parent starts its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0  # id of the parent process

    def ask(self, request: Mapping[str, Any]) -> dict[str, str]:
        """Returns the answer to a request; empty if the child ends without one."""
        with self._lock:
            if self._process is None or self._owner != os.getpid():
                self._process = self._start()
            answer: dict[str, str] = json.loads(_exchange_line(self._process, request) or "{}")
            if not answer:
                self._end()
            return answer

    def _start(self) -> subprocess.Popen[str]:
        environment = {name: os.environ[name] for name in WORKER_ENVIRONMENT if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        environment["HF_HUB_OFFLINE"] = "1"
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", WORKER_MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
            encoding="utf-8",
        )
        self._owner = os.getpid()
        atexit.register(self._end)
        return process

    def _end(self) -> None:
        process, self._process = self._process, None
        atexit.unregister(self._end)
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.communicate()


def _exchange_line(process: subprocess.Popen[str], request: Mapping[str, Any]) -> str:
    """Sends a request and returns the answer line; empty if the process ends before."""
    if process.stdin is None or process.stdout is None:
        return ""
    try:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        return ""
    return process.stdout.readline()


_WORKER = _TemplateWorker()
_ENDLESS_TEMPLATES: set[str] = set()  # templates killed at a bound; never tried again
