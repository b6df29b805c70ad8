"""Everything that can go wrong on purpose, as one tree.

    Problem                     3   could not run
    ├── RecipeProblem           2   usage or recipe error
    ├── CheckpointProblem       3   a folder of weights is not what it should be
    │   ├── UnknownTensor
    │   ├── ShapeMismatch
    │   ├── TemplateProblem
    │   └── UnsafeShard
    ├── DataProblem             3   a data set on the hub cannot be had
    ├── OutputProblem           3   the result cannot be written
    │   └── OutputExists
    ├── NumericsProblem         3   numbers that cannot be worked with
    │   └── NotPositiveDefinite
    ├── OutOfMemory             3   a device is too small for what was asked
    ├── EngineProblem           3   another tool is not there, or failed
    ├── ReleaseRefused          1   the gate said no
    └── Interrupted            75   stopped half-way, a second run goes on

A verdict (PASS, FAIL, INCONCLUSIVE) is a value in a report and not one of these.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from camelpress.core.input_limits import MAX_MESSAGE_CHARACTERS


class Problem(Exception):
    """What is wrong, and what to do next; printed as one line without a traceback.

    Args:
        what: names the file or tensor concerned.
        next_step: an imperative the reader can follow.
    """

    exit_code = 3
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

    exit_code = 2


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

    exit_code = 1


class Interruption(Problem):
    """Stopped before the end; the same command resumes."""

    exit_code = 75
    can_resume = True
