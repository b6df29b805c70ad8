"""Who is to say which of two outputs is better, where verdicts are kept, and what they may cost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from camelpress.core.errors import OutputProblem, RecipeProblem
from camelpress.core.progress import note
from camelpress.validate.benchmarks.task_catalogue import Loaded
from camelpress.validate.judge.annotations import Annotations
from camelpress.validate.judge.endpoint_judge import Endpoint
from camelpress.validate.judge.judge_cost import cost, require_affordable
from camelpress.validate.judge.judge_prompt import Pair, questions
from camelpress.validate.judge.judge_settings import Judging
from camelpress.validate.judge.local_checkpoint import Resident
from camelpress.validate.judge.local_judge import Local
from camelpress.validate.judge.pairwise import Judge, Verdict, compare
from camelpress.validate.settings import Validate

KEPT = "verdicts.jsonl"
UNNAMED = "stored annotations"
HASHES = re.compile(r"( [0-9a-f]{8,16})+$")  # at the end of a judge's name


class Arena:
    """Whoever is to say which of two outputs is better.

    Args:
        settings: with the file of verdicts.
        judge: None if that file holds everything.
        name: of who gave, or gives, the verdicts.
        known: how many there are already.
    """

    def __init__(self, settings: Judging, judge: Judge | None, name: str, known: int) -> None:
        self._settings = settings
        self._judge = judge
        self._known = known
        self.name = name

    @classmethod
    def open(cls, settings: Validate, out: Path) -> Arena | None:
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
        path = asked.annotations or _beside(settings, out)
        asked = asked.model_copy(update={"annotations": path})
        judge = _judge(settings, asked)
        annotations = Annotations(path, None if judge is None else judge.name)
        if judge is None and not len(annotations):
            raise RecipeProblem(
                f"{path} holds no verdicts",
                next_step="give annotations, or the url and the model of a judge",
            )
        if judge is not None:
            if settings.judge.annotations is None:
                _make(path.parent)
            annotations.require_growing()
        return cls(asked, judge, annotations.judge or UNNAMED, len(annotations))

    def forecast(self, loaded: Loaded, *, whole: bool) -> None:
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
        for column, task in loaded.judged():
            against = [
                each
                for doc in task.eval_docs
                for each in questions(
                    Pair("", doc["instruction"], "", doc["target"], twice=column.twice)
                )
            ]
            direct = [
                each
                for doc in task.eval_docs
                for each in questions(Pair("", doc["instruction"], "", ""))
            ]
            outputs = 2 * len(against) + 2 * len(direct)
            longest = outputs * int(task.config.generation_kwargs["max_gen_toks"])
            most = cost([*against, *against, *direct], self._settings, more=longest)
            note(f"{column.name}: {called(self.name)} will be asked at most {most}")
            certain = against if whole and not self._known else []
            require_affordable(cost(certain, self._settings), self._settings)

    def try_out(self, loaded: Loaded) -> None:
        """Ask a service one question: what is wrong with it shows before models have worked.

        Raises:
            EngineProblem: it refuses, or says what is no verdict.
            Interrupted: it cannot be reached.
        """
        if not isinstance(self._judge, Endpoint):
            return
        docs = (doc for _, task in loaded.judged() for doc in task.eval_docs if doc["target"])
        for doc in islice(docs, 1):
            pair = Pair("the first", doc["instruction"], doc["target"], "", twice=False)
            compare([pair], self._judge, self._settings)

    def compared(self, pairs: Sequence[Pair], direct: Sequence[Pair]) -> list[Verdict]:
        """The verdicts on pairs, asked or looked up.

        Args:
            pairs: of the models' outputs with a third one's.
            direct: of the models' outputs; where all verdicts are stored ones, these may be
                missing.
        Raises:
            Problem: as `compare`.
        """
        if self._judge is not None:
            return compare([*pairs, *direct], self._judge, self._settings)
        found = compare(pairs, None, self._settings)
        try:
            return found + compare(direct, None, self._settings)
        except RecipeProblem as problem:
            note(f"the models are not compared with one another: {problem.what}")
            return found


def called(name: str) -> str:
    """A judge's name without the hashes of how it is asked."""
    return HASHES.sub("", name)


def _beside(settings: Validate, out: Path) -> Path:
    return settings.answers / KEPT if settings.answers else Path(f"{out.absolute()}.{KEPT}")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputProblem(
            f"{folder} cannot be made ({error.strerror})", next_step="name another place"
        ) from error


def _judge(settings: Validate, asked: Judging) -> Judge | None:
    if asked.local:
        resident = Resident(asked.local, settings)
        return Local(resident.name, resident)
    return Endpoint(asked) if asked.url or asked.model else None
