"""Where a model's program runs: its function is called from outside, and answers in plain values.

Nothing here can be trusted once the program has begun. All that leaves this process is lines, and
all that they can do is to be right or wrong answers: what they are compared with is not here.
"""

from __future__ import annotations

from typing import Any

from camelpress.validate.sandbox.guest.message_pipe import READY_MESSAGE, MessagePipe
from camelpress.validate.sandbox.guest.plain_values import decode_value, encode_value
from camelpress.validate.sandbox.guest.seccomp import confine_process


def run_candidate() -> None:
    """Define the function, then answer calls until nobody asks."""
    wire = MessagePipe()
    job = wire.job
    wire.report_uncaught("broken")
    confine_process(**job["limits"])
    wire.send(READY_MESSAGE)
    wire.report_uncaught("raised")
    names: dict[str, Any] = {}
    exec(compile(job["program"], "<completion>", "exec"), names)  # noqa: S102 - what the box is for
    function = names[job["entry_point"]]
    while True:
        arguments, keywords = decode_value(wire.receive()["call"])
        wire.send({"value": encode_value(function(*arguments, **keywords))})


if __name__ == "__main__":
    run_candidate()
