"""Everything that can go wrong on purpose, as one tree.

    Problem                  could not run
    ├── RecipeProblem        usage or recipe error (ExitCode.USAGE)
    ├── CheckpointProblem    a folder of weights is not what it should be
    │   ├── UnknownTensor
    │   ├── ShapeMismatch
    │   ├── TemplateProblem
    │   └── UnsafeShard
    ├── DataProblem          a data set on the hub cannot be had
    ├── OutputProblem        the result cannot be written
    │   └── OutputExists
    ├── NumericsProblem      numbers that cannot be worked with
    │   └── NotPositiveDefinite
    ├── OutOfMemory          a device is too small for what was asked
    ├── ToolProblem          another tool is not there, or failed
    ├── ReleaseRefusal       the gate said no (ExitCode.GATE_FAILED)
    └── Interruption         stopped half-way, a second run goes on (ExitCode.TRY_AGAIN)

A verdict (PASS, FAIL, INCONCLUSIVE) is a value in a report and not one of these.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from camelpress.core.exit_codes import ExitCode
from camelpress.core.input_limits import MAX_MESSAGE_CHARACTERS


class Problem(Exception):
    """What is wrong, and what to do next; printed as one line without a traceback.

    Args:
        what: names the file or tensor concerned.
        next_step: an imperative the reader can follow.
    """

    exit_code = ExitCode.PROBLEM
    can_resume = False  # whether the next step goes on with what a stage finished before it

    def __init__(self, what: str, *, next_step: str) -> None:
        super().__init__(what)
        self.message = what
        self.next_step = next_step

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), next_step=self.next_step), (self.message,)

    def __str__(self) -> str:
        return f"{_shorten_line(self.message)}; {_shorten_line(self.next_step)}"


def _shorten_line(text: str) -> str:
    """Returns a text as one line, its middle cut out where it is too long to be read."""
    line = " ".join(text.split())
    half = MAX_MESSAGE_CHARACTERS // 2
    return line if len(line) <= 2 * half else f"{line[:half]} ... {line[-half:]}"


class RecipeProblem(Problem):
    """An option, a recipe or a gate file says something that cannot be done."""

    exit_code = ExitCode.USAGE


class CheckpointProblem(Problem):
    """A checkpoint folder is incomplete, damaged or of an unexpected kind."""


class UnknownTensor(CheckpointProblem):
    """A tensor is missing, or one is there that does not belong."""


class ShapeMismatch(CheckpointProblem):
    """Two tensors that must agree in shape do not."""


class TemplateProblem(CheckpointProblem):
    """A chat template is broken, refuses a conversation, or takes too much time or memory."""

    reason = ""  # the fault alone, for a message that names the model, too


class UnsafeShard(CheckpointProblem):
    """An index names a file that a checkpoint has no business with."""


class DataProblem(Problem):
    """A data set on the hub is not there, not for this user, or out of reach."""

    can_resume = True


class OutputProblem(Problem):
    """The output cannot be written: no space, no right, a file in the way."""

    can_resume = True


class OutputExists(OutputProblem):
    """The output is already there."""


class NumericsProblem(Problem):
    """Values that are not finite, or that no base and diff could give."""


class NotPositiveDefinite(NumericsProblem):
    """A damped Hessian has no Cholesky factor."""

    can_resume = True  # more fallbacks may be allowed, and change no other layer


class OutOfMemory(Problem):
    """A device is too small for what was asked."""

    can_resume = True


class ToolProblem(Problem):
    """Another tool is not there, failed, or did something else than it was asked for."""

    can_resume = True


class ReleaseRefusal(Problem):
    """What was to be published has not passed its gate."""

    exit_code = ExitCode.GATE_FAILED


class Interruption(Problem):
    """Stopped before the end; the same command resumes."""

    exit_code = ExitCode.TRY_AGAIN
    can_resume = True
