"""Who is to say which of two outputs is better, where verdicts are kept, and what they may cost."""

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
from camelpress.validate.settings import Validate

ANNOTATIONS_FILE = "verdicts.jsonl"
UNKNOWN_JUDGE = "stored annotations"
HASHES = re.compile(r"( [0-9a-f]{8,16})+$")  # at the end of a judge's name


class JudgeSession:
    """Whoever is to say which of two outputs is better.

    Args:
        settings: with the file of verdicts.
        judge: None if that file holds everything.
        name: of who gave, or gives, the verdicts.
        known: how many there are already.
    """

    def __init__(self, settings: JudgeSettings, judge: Judge | None, name: str, known: int) -> None:
        self._settings = settings
        self._judge = judge
        self._known = known
        self.name = name

    @classmethod
    def open(cls, settings: Validate, out: Path) -> JudgeSession | None:
        """The judge of the settings; None where they name none. Nobody is asked yet.

        Args:
            settings: the judge, and the folder of answers, beside which verdicts are kept.
            out: of the report, beside which they are kept where there is no such folder.
        Raises:
            RecipeProblem: two judges, half of one, or annotations that are malformed or empty.
            OutputProblem: nothing can be added to the annotations.
            CheckpointProblem: a judge that is to answer here has no chat template, or is none.
        """
        asked = settings.judge
        if asked.url and asked.local:
            raise RecipeProblem(
                "a judge at a service and one here are both named",
                next_step="give either its url or its folder",
            )
        if not (asked.url or asked.local or asked.annotations or asked.model):
            return None
        path = asked.annotations or _default_annotations_path(settings, out)
        asked = asked.model_copy(update={"annotations": path})
        judge = _open_judge(settings, asked)
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
        return cls(asked, judge, annotations.judge or UNKNOWN_JUDGE, len(annotations))

    def require_budget(self, loaded: LoadedTasks, *, whole: bool) -> None:
        """Say what the judge may be asked, before the models are: outputs of any length count.

        Args:
            loaded: the tasks.
            whole: all their items are asked.
        Raises:
            RecipeProblem: there is a budget but no price, or it does not even suffice for outputs
                that are empty.
        """
        if self._judge is None:
            return
        for column, task in loaded.judge_tasks():
            against = [
                each
                for doc in task.eval_docs
                for each in judge_prompts(
                    OutputPair(
                        "", doc["instruction"], "", doc["target"], both_orders=column.both_orders
                    )
                )
            ]
            direct = [
                each
                for doc in task.eval_docs
                for each in judge_prompts(OutputPair("", doc["instruction"], "", ""))
            ]
            outputs = 2 * len(against) + 2 * len(direct)
            longest = outputs * int(task.config.generation_kwargs["max_gen_toks"])
            most = estimate_judge_cost([*against, *against, *direct], self._settings, extra_tokens=longest)
            note(f"{column.name}: {strip_hashes(self.name)} will be asked at most {most}")
            certain = against if whole and not self._known else []
            require_affordable(estimate_judge_cost(certain, self._settings), self._settings)

    def probe_endpoint(self, loaded: LoadedTasks) -> None:
        """Ask a service one question: what is wrong with it shows before models have worked.

        Raises:
            EngineProblem: it refuses, or says what is no verdict.
            Interrupted: it cannot be reached.
        """
        if not isinstance(self._judge, EndpointJudge):
            return
        docs = (doc for _, task in loaded.judge_tasks() for doc in task.eval_docs if doc["target"])
        for doc in islice(docs, 1):
            pair = OutputPair("the first", doc["instruction"], doc["target"], "", both_orders=False)
            judge_pairs([pair], self._judge, self._settings)

    def compare_pairs(
        self, pairs: Sequence[OutputPair], direct: Sequence[OutputPair]
    ) -> list[Preference]:
        """The verdicts on pairs, asked or looked up.

        Args:
            pairs: of the models' outputs with a third one's.
            direct: of the models' outputs; where all verdicts are stored ones, these may be
                missing.
        Raises:
            Problem: as `compare`.
        """
        if self._judge is not None:
            return judge_pairs([*pairs, *direct], self._judge, self._settings)
        found = judge_pairs(pairs, None, self._settings)
        try:
            return found + judge_pairs(direct, None, self._settings)
        except RecipeProblem as problem:
            note(f"the models are not compared with one another: {problem.message}")
            return found


def strip_hashes(name: str) -> str:
    """A judge's name without the hashes of how it is asked."""
    return HASHES.sub("", name)


def _default_annotations_path(settings: Validate, out: Path) -> Path:
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
            f"{folder} cannot be made ({error.strerror})", next_step="name another place"
        ) from error


def _open_judge(settings: Validate, asked: JudgeSettings) -> Judge | None:
    if asked.local:
        resident = JudgeCheckpoint(asked.local, settings)
        return InProcessJudge(resident.name, resident)
    return EndpointJudge(asked) if asked.url or asked.model else None
