"""The tasks that can be named: this project's own, and all that lm-evaluation-harness has."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from camelpress.core.errors import DataProblem, Problem, RecipeProblem, ToolProblem
from camelpress.core.progress import note
from camelpress.core.runtime import optional_packages
from camelpress.validate import tasks
from camelpress.validate.tasks import humaneval, task_data

TASKS_FOLDER = Path(tasks.__file__).parent
OWN_PREFIX = "tulu"  # our own names begin so
Task = Any  # of lm-evaluation-harness, which need not be installed
TaskManager = Any
TASK_LOAD_ERRORS = (  # of other people's tasks, whose data are elsewhere
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ImportError,
    RuntimeError,
)


@dataclass(frozen=True)
class BenchmarkSpec:
    """What a task says of itself."""

    name: str
    metric: str
    benchmark: str | None = None  # whose mean it is part of, where it is a column of a card
    title: str | None = None
    is_macro_average: bool = False  # the mean of the parts' means, not of the items
    add_bos: bool = True
    first_paragraph_only: bool = False  # only the first of a completion is marked
    protocol_context: int | None = None  # positions that the protocol was made for, and went beyond
    baseline: str | None = None  # whose outputs a judge holds the completions against
    both_orders: bool = True  # in both orders
    quirks: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class LoadedTasks:
    """Tasks with their items, and why others have none."""

    tasks: dict[str, Task]
    specs: dict[str, BenchmarkSpec]
    missing: dict[str, str]

    def judge_tasks(self) -> Iterator[tuple[BenchmarkSpec, Task]]:
        """Those whose completions a judge compares."""
        for name, task in self.tasks.items():
            if self.specs[name].baseline is not None:
                yield self.specs[name], task


def require_lm_eval() -> None:
    """See that lm-evaluation-harness is there.

    Raises:
        EngineProblem: it is not installed.
    """
    optional_packages.require_package(
        "lm_eval", need="tasks need lm-evaluation-harness", extra="tasks"
    )


def load_tasks(
    names: Sequence[str], *, data_dir: Path | None, tokenizer: Path, judged: bool
) -> LoadedTasks:
    """The tasks of these names; a group stands for its members.

    Args:
        names: of tasks and groups, or lists of them with commas.
        data_dir: folder of the data of this project's own tasks; None for the usual one.
        tokenizer: folder of the tokenizer by which prompts are cut.
        judged: there is a judge.
    Raises:
        RecipeProblem: no such name, or a task that was named needs a judge.
        DataProblem: the data of a task that was named, or the folder, are not there.
        EngineProblem: nor what it needs besides. A member of a group is left out then, and the
            reason is told.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise DataProblem(
            f"{data_dir} is not a folder", next_step="name the folder of the data with --data-dir"
        )
    names = [name.strip() for each in names for name in each.split(",")]
    metadata = {"tokenizer": str(tokenizer)}
    metadata |= {} if data_dir is None else {"data_dir": str(data_dir)}
    manager = _task_manager(names, metadata)
    below = task_data.data_folder(metadata.get("data_dir"))
    found: dict[str, Task] = {}
    missing: dict[str, str] = {}
    for name in dict.fromkeys(names):
        members = _group_members(manager, name)
        for member in members:
            try:
                loaded = _load(manager, member)
                _require_dependencies(loaded.values(), judged=judged)
                found |= loaded
            except (DataProblem, ToolProblem, RecipeProblem) as problem:
                if members == [name]:
                    raise
                missing[member] = problem.message.removeprefix(f"{below}/")
                note(f"{member} is left out: {problem.message}")
    if not found:
        reason = next(iter(missing.values()))
        raise DataProblem(f"no task of {', '.join(names)} has data: {reason}", next_step="add them")
    return LoadedTasks(
        found, {name: _read_spec(name, task) for name, task in found.items()}, missing
    )


@contextlib.contextmanager
def silence_lm_eval() -> Iterator[None]:
    """Keep lm-evaluation-harness' bars and remarks to itself."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _task_manager(names: Sequence[str], metadata: dict[str, Any]) -> TaskManager:
    """Ours alone where that is enough: there are thousands of others to look through."""
    from lm_eval import tasks as harness

    own = harness.TaskManager(
        include_path=str(TASKS_FOLDER), include_defaults=False, metadata=metadata
    )
    unknown = [name for name in names if name not in own.all_tasks]
    if not unknown:
        return own
    every = own
    if not any(name.startswith(OWN_PREFIX) for name in unknown):
        every = harness.TaskManager(include_path=str(TASKS_FOLDER), metadata=metadata)
    for name in unknown:
        if name not in every.all_tasks:
            close = get_close_matches(name, every.all_tasks, n=1)
            meant = f", did you mean {close[0]}?" if close else ""
            raise RecipeProblem(
                f"there is no task {name!r}{meant}",
                next_step="name tulu, tulu-fixed, one of their columns, or a task that "
                "`lm_eval ls tasks` lists",
            )
    return every


def _group_members(manager: TaskManager, name: str) -> list[str]:
    """The tasks of one of our groups; any other name stands for itself."""
    entry = manager.task_index[name]
    inside = (entry.cfg or {}).get("task")
    if not isinstance(inside, list) or not all(isinstance(member, str) for member in inside):
        return [name]
    return [each for member in inside for each in _group_members(manager, member)]


def _require_dependencies(loaded: Iterable[Task], *, judged: bool) -> None:
    """See that what a task needs besides data is there."""
    for task in loaded:
        told = task.config.metadata or {}
        if told.get("needs") == "sandbox":
            humaneval.require_sandbox()
        if told.get("against") and not judged:
            raise RecipeProblem(
                f"a judge has to compare its completions with {told['against']}'s, and none is "
                "named",
                next_step="give --judge-url and --judge-model, --judge-local or "
                "--judge-annotations",
            )


def _load(manager: TaskManager, name: str) -> dict[str, Task]:
    try:
        with silence_lm_eval():
            return dict(manager.load([name])["tasks"])
    except Problem:
        raise
    except TASK_LOAD_ERRORS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataProblem(
            f"the task {name} of lm-evaluation-harness cannot be loaded ({reason})",
            next_step="see what it needs with `lm_eval run --tasks` of that name",
        ) from error


def _read_spec(name: str, task: Task) -> BenchmarkSpec:
    told = task.config.metadata or {}
    metric = told.get("metric") or next(iter(task.aggregation()))
    return BenchmarkSpec(
        name=name,
        metric=metric,
        benchmark=told.get("benchmark"),
        title=told.get("column"),
        is_macro_average=told.get("mean") == "parts",
        add_bos=told.get("bos", True),
        first_paragraph_only=told.get("marked") == "paragraph",
        protocol_context=told.get("context"),
        baseline=told.get("against"),
        both_orders=told.get("orders") != "one",
        quirks=tuple((told.get("quirks") or {}).items()),
    )
