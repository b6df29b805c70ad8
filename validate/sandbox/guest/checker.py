"""Runs the test of a problem, `check(candidate)`, against a candidate in another process.

The test comes with the benchmark. It sees the candidate's answers as plain values only and reports
its outcome through a pipe out of the candidate's reach. The checker runs in its own sandbox,
because an answer could keep a comparison busy forever.
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
    """Defines the test, runs it and reports the outcome."""
    pipe = MessagePipe()
    job = pipe.job
    pipe.report_uncaught("broken")
    confine_process(**job["limits"])
    pipe.send(READY_MESSAGE)

    def candidate(*arguments: Any, **keywords: Any) -> Any:
        pipe.send({"call": encode_value([arguments, keywords])})
        answer = pipe.receive()
        if "raised" in answer:
            raise CandidateError(answer["raised"])
        return decode_value(answer["value"])

    namespace: dict[str, Any] = {}
    exec(compile(job["prompt"], "<prompt>", "exec"), namespace)  # noqa: S102 - helpers for the test
    namespace[job["entry_point"]] = candidate
    exec(compile(job["test"], "<test>", "exec"), namespace)  # noqa: S102 - part of the benchmark
    check = namespace["check"]
    pipe.report_uncaught("failed")
    random.seed(0)  # tests with random inputs draw the same ones for all completions
    check(candidate)
    pipe.send({"passed": True})


if __name__ == "__main__":
    run_checker()
