"""Turns faults of memory and of disks into Problems, for the command line and for Python alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from camelpress.core.errors import OutOfMemory, Problem
from camelpress.core.runtime.out_of_memory import is_out_of_memory
from camelpress.core.runtime.secrets_redaction import redact_secrets


@contextmanager
def translate_faults() -> Iterator[None]:
    """Raises a Problem without secrets in place of any fault that the machine reports.

    Raises:
        OutOfMemory: memory ran out.
        Problem: a file or folder cannot be used, or a Problem left the block.
    """
    try:
        yield
    except Problem as problem:
        problem.message = redact_secrets(problem.message)
        problem.next_step = redact_secrets(problem.next_step)
        problem.args = (problem.message,)
        raise
    except (MemoryError, OSError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise OutOfMemory(
                "memory is not enough", next_step="use a machine with more memory"
            ) from error
        if not isinstance(error, OSError):
            raise
        raise _disk_problem(error) from error


def _disk_problem(error: OSError) -> Problem:
    """Returns the problem of a fault that a file system reports."""
    subject = f"{error.filename} cannot be used" if error.filename else "a file cannot be used"
    return Problem(
        redact_secrets(f"{subject} ({error.strerror or error})"),
        next_step="see that its disk is there, has space and is well, and run the command again",
    )
