"""Programs that a model wrote, each run against its test where it can do no harm.

No sandbox, no verdict: without bubblewrap or a container nothing is run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from camelpress.core.errors import ToolProblem
from camelpress.core.progress import track
from camelpress.validate.sandbox.isolation import INSTALL_ADVICE, Sandbox, installed_sandboxes
from camelpress.validate.sandbox.program_check import Program, ProgramResult, check_program
from camelpress.validate.sandbox.program_limits import ProgramLimits

SELF_TEST = Program(
    task_id="one",
    prompt='def one():\n    """1"""\n',
    completion="    return 1\n",
    entry_point="one",
    test="def check(candidate):\n    assert candidate() == 1\n",
)


def run_programs(programs: Sequence[Program], limits: ProgramLimits) -> list[ProgramResult]:
    """Whether each program passes the test of its problem.

    Programs that are equal are run once. Only the standard library is there for them. The protocol
    is that of the published evaluation with these differences: the limit is processor time and not
    time on the clock; the test sees plain values, and helpers as the prompt has them; tests that
    draw random inputs draw the same ones for all programs, and sets have one order.

    Returns:
        one verdict per program, in their order.
    Raises:
        EngineProblem: there is no sandbox here, or it broke; no program has then a verdict.
        RecipeProblem: a test does not run.
    Source:
        Chen et al. 2021, arXiv:2107.03374, section 2.2; openai/human-eval 6d43fb9 (execution.py).
    """
    distinct = list(dict.fromkeys(programs))
    if not distinct:
        return []
    judge = partial(check_program, box=find_sandbox(limits), limits=limits)
    pool = ThreadPoolExecutor(limits.workers or len(os.sched_getaffinity(0)))
    try:
        under_way = [pool.submit(judge, program) for program in distinct]
        verdicts = [each.result() for each in track(under_way, "programs run")]
    finally:
        pool.shutdown(cancel_futures=True)
    found = dict(zip(distinct, verdicts, strict=True))
    return [found[program] for program in programs]


def find_sandbox(limits: ProgramLimits) -> Sandbox:
    """The best sandbox that works here, which it shows by running a program.

    Raises:
        EngineProblem: there is none.
    """
    faults = []
    for box in installed_sandboxes(limits):
        try:
            if check_program(SELF_TEST, box, limits).passed:
                return box
            faults.append(f"{box.name} runs nothing")
        except ToolProblem as error:
            faults.append(error.message)
    raise ToolProblem(
        "programs of a model are run in a sandbox only, and there is none here "
        f"({', '.join(faults) or 'neither bubblewrap nor podman nor docker is installed'})",
        next_step=INSTALL_ADVICE,
    )
