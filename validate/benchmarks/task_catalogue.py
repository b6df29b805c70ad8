"""Loads tasks by name: this project's own, and those of lm-evaluation-harness."""

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
OWN_PREFIX = "tulu"  # prefix of this project's task names
Task = Any  # a task of lm-evaluation-harness, an optional package
TaskManager = Any
TASK_LOAD_ERRORS = (  # errors from loading third-party tasks and their data
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
    """The specification of a task, from its metadata."""

    name: str
    metric: str
    benchmark: str | None = None  # benchmark of the card for this column
    title: str | None = None
    is_macro_average: bool = False  # mean of part means instead of item mean
    add_bos: bool = True
    first_paragraph_only: bool = False  # score the first paragraph of a completion only
    protocol_context: int | None = None  # context of the original models, exceeded by the protocol
    baseline: str | None = None  # name of the baseline outputs for the judge
    both_orders: bool = True  # judge each pair in both orders
    quirks: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class LoadedTasks:
    """Loaded tasks, and the reasons for missing ones."""

    tasks: dict[str, Task]
    specs: dict[str, BenchmarkSpec]
    missing: dict[str, str]

    def judge_tasks(self) -> Iterator[tuple[BenchmarkSpec, Task]]:
        """Yields the tasks with completions for a judge."""
        for name, task in self.tasks.items():
            if self.specs[name].baseline is not None:
                yield self.specs[name], task


def require_lm_eval() -> None:
    """Checks for lm-evaluation-harness.

    Raises:
        ToolProblem: lm-evaluation-harness is not installed.
    """
    optional_packages.require_package(
        "lm_eval", need="tasks need lm-evaluation-harness", extra="tasks"
    )


def load_tasks(
    names: Sequence[str], *, data_dir: Path | None, tokenizer: Path, judged: bool
) -> LoadedTasks:
    """Loads the tasks of the given names; a group expands to its members.

    A group member with missing requirements is skipped with a note.

    Args:
        names: names of tasks and groups, or comma-separated lists.
        data_dir: data folder of this project's own tasks; None for the default folder.
        tokenizer: folder of the tokenizer for truncating prompts.
        judged: True if a judge is set.
    Raises:
        RecipeProblem: A name is unknown, or a named task needs a judge.
        DataProblem: The folder or the data of a named task are missing.
        ToolProblem: Another requirement of a named task is missing.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise DataProblem(
            f"{data_dir} is not a folder", next_step="give the data folder with --data-dir"
        )
    names = [name.strip() for entry in names for name in entry.split(",")]
    metadata = {"tokenizer": str(tokenizer)}
    metadata |= {} if data_dir is None else {"data_dir": str(data_dir)}
    manager = _task_manager(names, metadata)
    folder = task_data.data_folder(metadata.get("data_dir"))
    loaded_tasks: dict[str, Task] = {}
    missing: dict[str, str] = {}
    for name in dict.fromkeys(names):
        members = _group_members(manager, name)
        for member in members:
            try:
                member_tasks = _load(manager, member)
                _require_dependencies(member_tasks.values(), judged=judged)
                loaded_tasks |= member_tasks
            except (DataProblem, ToolProblem, RecipeProblem) as problem:
                if members == [name]:
                    raise
                missing[member] = problem.message.removeprefix(f"{folder}/")
                note(f"{member} is left out: {problem.message}")
    if not loaded_tasks:
        reason = next(iter(missing.values()))
        raise DataProblem(
            f"no task of {', '.join(names)} has data: {reason}", next_step="add the data"
        )
    return LoadedTasks(
        loaded_tasks, {name: _read_spec(name, task) for name, task in loaded_tasks.items()}, missing
    )


@contextlib.contextmanager
def silence_lm_eval() -> Iterator[None]:
    """Silences the progress bars and log lines of lm-evaluation-harness."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _task_manager(names: Sequence[str], metadata: dict[str, Any]) -> TaskManager:
    """Indexes this project's tasks, and thousands of third-party tasks only if needed."""
    from lm_eval import tasks as harness

    own_manager = harness.TaskManager(
        include_path=str(TASKS_FOLDER), include_defaults=False, metadata=metadata
    )
    unknown_names = [name for name in names if name not in own_manager.all_tasks]
    if not unknown_names:
        return own_manager
    manager = own_manager
    if not any(name.startswith(OWN_PREFIX) for name in unknown_names):
        manager = harness.TaskManager(include_path=str(TASKS_FOLDER), metadata=metadata)
    for name in unknown_names:
        if name not in manager.all_tasks:
            matches = get_close_matches(name, manager.all_tasks, n=1)
            suggestion = f", did you mean {matches[0]}?" if matches else ""
            raise RecipeProblem(
                f"there is no task {name!r}{suggestion}",
                next_step="name tulu, tulu-fixed, one of their columns, or a task that "
                "`lm_eval ls tasks` lists",
            )
    return manager


def _group_members(manager: TaskManager, name: str) -> list[str]:
    """Returns the task names of a group of this project; other names stay unchanged."""
    entry = manager.task_index[name]
    member_names = (entry.cfg or {}).get("task")
    if not isinstance(member_names, list) or not all(
        isinstance(member, str) for member in member_names
    ):
        return [name]
    return [task_name for member in member_names for task_name in _group_members(manager, member)]


def _require_dependencies(tasks_to_check: Iterable[Task], *, judged: bool) -> None:
    """Checks the requirements of tasks other than data: sandbox and judge."""
    for task in tasks_to_check:
        metadata = task.config.metadata or {}
        if metadata.get("needs") == "sandbox":
            humaneval.require_sandbox()
        if metadata.get("against") and not judged:
            raise RecipeProblem(
                f"a judge has to compare its completions with {metadata['against']}'s, and none is "
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
            next_step="see its requirements with `lm_eval run --tasks` of that name",
        ) from error


def _read_spec(name: str, task: Task) -> BenchmarkSpec:
    metadata = task.config.metadata or {}
    metric = metadata.get("metric") or next(iter(task.aggregation()))
    return BenchmarkSpec(
        name=name,
        metric=metric,
        benchmark=metadata.get("benchmark"),
        title=metadata.get("column"),
        is_macro_average=metadata.get("mean") == "parts",
        add_bos=metadata.get("bos", True),
        first_paragraph_only=metadata.get("marked") == "paragraph",
        protocol_context=metadata.get("context"),
        baseline=metadata.get("against"),
        both_orders=metadata.get("orders") != "one",
        quirks=tuple((metadata.get("quirks") or {}).items()),
    )
