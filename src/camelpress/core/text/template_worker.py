"""Renders chat templates in a process of its own, within bounds on memory and time.

The worker reads requests from stdin and answers on stdout, one JSON object per line;
`template_renderer` is the other end. The kernel kills the process if a template takes too much CPU
time.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from camelpress.core.input_limits import (
    MAX_RENDERED_CHARACTERS,
    MAX_TEMPLATE_MEMORY_BYTES,
    MAX_TEMPLATE_SECONDS,
)

TEMPLATE_ERRORS = (  # Python errors during rendering
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


def serve_requests() -> None:
    """Answers requests until stdin ends."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + MAX_TEMPLATE_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for line in sys.stdin:
        # the signal of the timer kills the process
        signal.setitimer(signal.ITIMER_VIRTUAL, MAX_TEMPLATE_SECONDS)
        _write(_answer(json.loads(line)))
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _answer(request: dict[str, Any]) -> dict[str, str]:
    try:
        rendered: Any = render_jinja_template(
            [request["turns"]],
            chat_template=request["template"],
            add_generation_prompt=True,
            **request["tokens"],
        )
    except TemplateError as error:
        return {"fault": str(error) or type(error).__name__}
    except TEMPLATE_ERRORS as error:
        return {"fault": f"{type(error).__name__}: {error}" if str(error) else type(error).__name__}
    text = rendered[0][0]
    if len(text) > MAX_RENDERED_CHARACTERS:
        return {"fault": f"its text has more than {MAX_RENDERED_CHARACTERS:,} characters"}
    return {"text": text}


def _write(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve_requests()
