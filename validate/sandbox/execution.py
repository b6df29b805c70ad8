"""Runs model-written programs against their tests inside a sandbox.

Without bubblewrap or a container no program runs and no result exists.
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
    """Runs each program against the test of its problem.

    Equal programs run once. Programs can import the standard library only. The protocol is that of
    the published evaluation, with four differences: the time limit counts CPU time instead of
    wall-clock time; the test sees plain values and the helpers of the prompt; tests with random
    inputs draw the same inputs for all programs; sets have one iteration order.

    Args:
        programs: completions with their problems.
        limits: limits of each program, and the number of parallel programs.
    Returns:
        One result per program, in input order.
    Raises:
        ToolProblem: No sandbox works on this machine, or it broke; no program has a result then.
        RecipeProblem: A test does not run.
    Source:
        Chen et al. 2021, arXiv:2107.03374, section 2.2; openai/human-eval 6d43fb9 (execution.py).
    """
    distinct = list(dict.fromkeys(programs))
    if not distinct:
        return []
    check = partial(check_program, sandbox=find_sandbox(limits), limits=limits)
    pool = ThreadPoolExecutor(limits.workers or len(os.sched_getaffinity(0)))
    try:
        futures = [pool.submit(check, program) for program in distinct]
        distinct_results = [future.result() for future in track(futures, "programs run")]
    finally:
        pool.shutdown(cancel_futures=True)
    results = dict(zip(distinct, distinct_results, strict=True))
    return [results[program] for program in programs]


def find_sandbox(limits: ProgramLimits) -> Sandbox:
    """Returns the first sandbox that runs the self-test program successfully.

    Raises:
        ToolProblem: No sandbox works on this machine.
    """
    faults = []
    for sandbox in installed_sandboxes(limits):
        try:
            if check_program(SELF_TEST, sandbox, limits).passed:
                return sandbox
            faults.append(f"{sandbox.name} failed the self-test")
        except ToolProblem as error:
            faults.append(error.message)
    raise ToolProblem(
        "model-written programs run in a sandbox only, and none works on this machine "
        f"({', '.join(faults) or 'neither bubblewrap nor podman nor docker is installed'})",
        next_step=INSTALL_ADVICE,
    )
