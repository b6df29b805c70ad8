"""Where a problem's own test runs: `check(candidate)`, with a candidate that lives elsewhere.

The test comes with the benchmark. It sees the candidate's answers as plain values only, and what it
finds goes to a line that the candidate has no way to write. Another process and box than the
candidate's, and yet a box: an answer may be made to keep a comparison busy for ever.
"""

from __future__ import annotations

import random
from typing import Any

from camelpress.validate.sandbox.guest.message_pipe import READY_MESSAGE, MessagePipe
from camelpress.validate.sandbox.guest.plain_values import decode_value, encode_value
from camelpress.validate.sandbox.guest.seccomp import confine_process


class CandidateError(Exception):
    """The candidate raised an exception instead of returning a value."""


def run_checker() -> None:
    """Define the test, run it, and say how it went."""
    wire = MessagePipe()
    job = wire.job
    wire.report_uncaught("broken")
    confine_process(**job["limits"])
    wire.send(READY_MESSAGE)

    def candidate(*arguments: Any, **keywords: Any) -> Any:
        wire.send({"call": encode_value([arguments, keywords])})
        answer = wire.receive()
        if "raised" in answer:
            raise CandidateError(answer["raised"])
        return decode_value(answer["value"])

    names: dict[str, Any] = {}
    exec(compile(job["prompt"], "<prompt>", "exec"), names)  # noqa: S102 - helpers the test calls
    names[job["entry_point"]] = candidate
    exec(compile(job["test"], "<test>", "exec"), names)  # noqa: S102 - of the benchmark
    check = names["check"]
    wire.report_uncaught("failed")
    random.seed(0)  # tests that draw their inputs: the same for all completions
    check(candidate)
    wire.send({"passed": True})


if __name__ == "__main__":
    run_checker()
