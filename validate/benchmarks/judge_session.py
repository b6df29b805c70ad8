"""Opens the judge of the settings, with its stored verdicts and its budget."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from camelpress.core.errors import OutputProblem, RecipeProblem
from camelpress.core.progress import note
from camelpress.validate.benchmarks.task_catalogue import LoadedTasks
from camelpress.validate.judge.annotations import AnnotationFile
from camelpress.validate.judge.endpoint_judge import EndpointJudge
from camelpress.validate.judge.judge_cost import estimate_judge_cost, require_affordable
from camelpress.validate.judge.judge_prompt import OutputPair, judge_prompts
from camelpress.validate.judge.judge_settings import JudgeSettings
from camelpress.validate.judge.local_checkpoint import JudgeCheckpoint
from camelpress.validate.judge.local_judge import InProcessJudge
from camelpress.validate.judge.pairwise import Judge, Preference, judge_pairs
from camelpress.validate.settings import ValidateSettings

ANNOTATIONS_FILE = "verdicts.jsonl"
UNKNOWN_JUDGE = "stored annotations"
HASHES = re.compile(r"( [0-9a-f]{8,16})+$")  # suffix of a judge's name


class JudgeSession:
    """A judge with its stored verdicts.

    Args:
        settings: settings with the file of verdicts.
        judge: the judge; None uses stored verdicts only.
        name: name of the judge.
        n_stored: number of stored verdicts.
    """

    def __init__(
        self, settings: JudgeSettings, judge: Judge | None, name: str, n_stored: int
    ) -> None:
        self._settings = settings
        self._judge = judge
        self._n_stored = n_stored
        self.name = name

    @classmethod
    def open(cls, settings: ValidateSettings, out: Path) -> JudgeSession | None:
        """Opens the judge of the settings without any request; None if there is no judge.

        Args:
            settings: the judge, and the folder of answers, the default place of the verdicts.
            out: folder of the report; verdicts go beside it without a folder of answers.
        Raises:
            RecipeProblem: The settings have two judges or an incomplete one, or the annotations
                are malformed or empty.
            OutputProblem: The annotations are not appendable.
            CheckpointProblem: The local judge is no checkpoint, or has no chat template.
        """
        judge_settings = settings.judge
        if judge_settings.url and judge_settings.local:
            raise RecipeProblem(
                "both a judge at a service and a local judge are set",
                next_step="give either its url or its folder",
            )
        if not (
            judge_settings.url
            or judge_settings.local
            or judge_settings.annotations
            or judge_settings.model
        ):
            return None
        path = judge_settings.annotations or _default_annotations_path(settings, out)
        judge_settings = judge_settings.model_copy(update={"annotations": path})
        judge = _open_judge(settings, judge_settings)
        annotations = AnnotationFile(path, None if judge is None else judge.name)
        if judge is None and not len(annotations):
            raise RecipeProblem(
                f"{path} holds no verdicts",
                next_step="give annotations, or the url and the model of a judge",
            )
        if judge is not None:
            if settings.judge.annotations is None:
                _make_folder(path.parent)
            annotations.require_appendable()
        return cls(judge_settings, judge, annotations.judge or UNKNOWN_JUDGE, len(annotations))

    def require_budget(self, task_set: LoadedTasks, *, all_items: bool) -> None:
        """Logs the maximum cost of judging, before any model answers, and checks the budget.

        Args:
            task_set: the tasks.
            all_items: True if every item is answered.
        Raises:
            RecipeProblem: There is a budget without prices, or it is too low even for empty
                outputs.
        """
        if self._judge is None:
            return
        for spec, task in task_set.judge_tasks():
            baseline_prompts = [
                prompt
                for doc in task.eval_docs
                for prompt in judge_prompts(
                    OutputPair(
                        "", doc["instruction"], "", doc["target"], both_orders=spec.both_orders
                    )
                )
            ]
            direct_prompts = [
                prompt
                for doc in task.eval_docs
                for prompt in judge_prompts(OutputPair("", doc["instruction"], "", ""))
            ]
            n_outputs = 2 * len(baseline_prompts) + 2 * len(direct_prompts)
            max_output_tokens = n_outputs * int(task.config.generation_kwargs["max_gen_toks"])
            max_cost = estimate_judge_cost(
                [*baseline_prompts, *baseline_prompts, *direct_prompts],
                self._settings,
                extra_tokens=max_output_tokens,
            )
            note(f"{spec.name}: {strip_hashes(self.name)} will be asked at most {max_cost}")
            certain_prompts = baseline_prompts if all_items and not self._n_stored else []
            require_affordable(estimate_judge_cost(certain_prompts, self._settings), self._settings)

    def probe_endpoint(self, task_set: LoadedTasks) -> None:
        """Sends one question to a judge service, so faults show before any model answers.

        Raises:
            ToolProblem: The service rejects the request, or gives no verdict.
            Interruption: The service cannot be reached.
        """
        if not isinstance(self._judge, EndpointJudge):
            return
        docs = (
            doc for _, task in task_set.judge_tasks() for doc in task.eval_docs if doc["target"]
        )
        for doc in islice(docs, 1):
            pair = OutputPair("the first", doc["instruction"], doc["target"], "", both_orders=False)
            judge_pairs([pair], self._judge, self._settings)

    def compare_pairs(
        self, pairs: Sequence[OutputPair], direct: Sequence[OutputPair]
    ) -> list[Preference]:
        """Returns the verdicts on pairs, stored or requested.

        Args:
            pairs: pairs of a model's output and the baseline's.
            direct: pairs of both models' outputs; optional if only stored verdicts are used.
        Raises:
            Problem: The same problems as `judge_pairs`.
        """
        if self._judge is not None:
            return judge_pairs([*pairs, *direct], self._judge, self._settings)
        verdicts = judge_pairs(pairs, None, self._settings)
        try:
            return verdicts + judge_pairs(direct, None, self._settings)
        except RecipeProblem as problem:
            note(f"no direct comparison of the two models: {problem.message}")
            return verdicts


def strip_hashes(name: str) -> str:
    """Returns a judge's name without its identity hashes."""
    return HASHES.sub("", name)


def _default_annotations_path(settings: ValidateSettings, out: Path) -> Path:
    return (
        settings.answers / ANNOTATIONS_FILE
        if settings.answers
        else Path(f"{out.absolute()}.{ANNOTATIONS_FILE}")
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputProblem(
            f"{folder} cannot be created ({error.strerror})", next_step="give another folder"
        ) from error


def _open_judge(settings: ValidateSettings, judge_settings: JudgeSettings) -> Judge | None:
    if judge_settings.local:
        checkpoint = JudgeCheckpoint(judge_settings.local, settings)
        return InProcessJudge(checkpoint.name, checkpoint)
    return EndpointJudge(judge_settings) if judge_settings.url or judge_settings.model else None
