"""Where a model's program runs: its function is called from outside, and answers in plain values.

Nothing here can be trusted once the program has begun. All that leaves this process is lines, and
all that they can do is to be right or wrong answers: what they are compared with is not here.
"""

from __future__ import annotations

from typing import Any

from camelpress.validate.sandbox.guest.message_pipe import READY, Wire
from camelpress.validate.sandbox.guest.plain_values import decode, encode
from camelpress.validate.sandbox.guest.seccomp import confine


def main() -> None:
    """Define the function, then answer calls until nobody asks."""
    wire = Wire()
    job = wire.job
    wire.tell_uncaught("broken")
    confine(**job["limits"])
    wire.send(READY)
    wire.tell_uncaught("raised")
    names: dict[str, Any] = {}
    exec(compile(job["program"], "<completion>", "exec"), names)  # noqa: S102 - what the box is for
    function = names[job["entry_point"]]
    while True:
        arguments, keywords = decode(wire.receive()["call"])
        wire.send({"value": encode(function(*arguments, **keywords))})


if __name__ == "__main__":
    main()
