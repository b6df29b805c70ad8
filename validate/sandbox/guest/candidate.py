"""Runs a model-written program and answers calls of its function with plain values.

Nothing in this process is trusted once the program has started. Its only output is answers, right
or wrong; the expected values are in another process.
"""

from __future__ import annotations

from typing import Any

from camelpress.validate.sandbox.guest.message_pipe import READY_MESSAGE, MessagePipe
from camelpress.validate.sandbox.guest.plain_values import decode_value, encode_value
from camelpress.validate.sandbox.guest.seccomp import confine_process


def run_candidate() -> None:
    """Defines the function, then answers calls until the input ends."""
    pipe = MessagePipe()
    job = pipe.job
    pipe.report_uncaught("broken")
    confine_process(**job["limits"])
    pipe.send(READY_MESSAGE)
    pipe.report_uncaught("raised")
    namespace: dict[str, Any] = {}
    exec(compile(job["program"], "<completion>", "exec"), namespace)  # noqa: S102 - sandboxed
    function = namespace[job["entry_point"]]
    while True:
        arguments, keywords = decode_value(pipe.receive()["call"])
        pipe.send({"value": encode_value(function(*arguments, **keywords))})


if __name__ == "__main__":
    run_candidate()
