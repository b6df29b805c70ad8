"""Exception tree of camelpress, with the exit code of each class.

    Problem                     3   the command could not run
    ├── RecipeProblem           2   usage or recipe error
    ├── CheckpointProblem       3   incomplete, damaged or unexpected checkpoint
    │   ├── UnknownTensor
    │   ├── ShapeMismatch
    │   ├── TemplateProblem
    │   └── UnsafeShard
    ├── DataProblem             3   unavailable data set on the hub
    ├── OutputProblem           3   unwritable output
    │   └── OutputExists
    ├── NumericsProblem         3   unusable numbers
    │   └── NotPositiveDefinite
    ├── OutOfMemory             3   too little device memory
    ├── ToolProblem             3   external tool missing or failed
    ├── ReleaseRefusal          1   gate not passed
    └── Interruption           75   stopped early; the same command resumes

A verdict (PASS, FAIL, INCONCLUSIVE) is a value in a report, not an exception.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from camelpress.core.exit_codes import ExitCode
from camelpress.core.input_limits import MAX_MESSAGE_CHARACTERS


class Problem(Exception):
    """Base of all expected errors: a message and a next step, printed as one line.

    Args:
        what: Message; names the file or tensor concerned.
        next_step: Imperative sentence with the action for the reader.
    """

    exit_code = ExitCode.PROBLEM
    can_resume = False  # True if the next run reuses the work finished before this error

    def __init__(self, what: str, *, next_step: str) -> None:
        super().__init__(what)
        self.message = what
        self.next_step = next_step

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), next_step=self.next_step), (self.message,)

    def __str__(self) -> str:
        return f"{_shorten_line(self.message)}; {_shorten_line(self.next_step)}"


def _shorten_line(text: str) -> str:
    """Joins a text into one line and cuts the middle out of a very long one."""
    line = " ".join(text.split())
    half = MAX_MESSAGE_CHARACTERS // 2
    return line if len(line) <= 2 * half else f"{line[:half]} ... {line[-half:]}"


class RecipeProblem(Problem):
    """An option, a recipe or a gate file is invalid."""

    exit_code = ExitCode.USAGE


class CheckpointProblem(Problem):
    """A checkpoint folder is incomplete, damaged or of an unexpected kind."""


class UnknownTensor(CheckpointProblem):
    """A tensor is missing or unexpected."""


class ShapeMismatch(CheckpointProblem):
    """Two tensors disagree in shape."""


class TemplateProblem(CheckpointProblem):
    """A chat template is broken, refuses a conversation, or exceeds its time or memory limit."""

    reason = ""  # the fault alone, for messages that also name the model


class UnsafeShard(CheckpointProblem):
    """An index names a file outside the checkpoint folder or of an unsafe kind."""


class DataProblem(Problem):
    """A data set on the hub is missing, denied to this user, or out of reach."""

    can_resume = True


class OutputProblem(Problem):
    """The output cannot be written: no space, no permission, or a file in the way."""

    can_resume = True


class OutputExists(OutputProblem):
    """The output already exists."""


class NumericsProblem(Problem):
    """Values are not finite, or cannot result from any base and diff."""


class NotPositiveDefinite(NumericsProblem):
    """A damped Hessian has no Cholesky factor."""

    can_resume = True  # a higher fallback limit changes no other layer


class OutOfMemory(Problem):
    """A device has too little memory for the work."""

    can_resume = True


class ToolProblem(Problem):
    """An external tool is missing, failed, or returned an unexpected result."""

    can_resume = True


class ReleaseRefusal(Problem):
    """The release has not passed its gate."""

    exit_code = ExitCode.GATE_FAILED


class Interruption(Problem):
    """The run stopped before the end; the same command resumes it."""

    exit_code = ExitCode.TRY_AGAIN
    can_resume = True
