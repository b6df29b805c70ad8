"""Where a validation is made: hidden states in files beside the output, and who shares the work."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from camelpress.core.computing import computing
from camelpress.core.journal import Journal
from camelpress.core.lanes import LANES
from camelpress.core.provenance import appearance, sha256_file, sha256_json, versions
from camelpress.core.team import Team
from camelpress.validate.settings import Scoring


@dataclass(frozen=True)
class Workplace:
    """An output that is being made.

    Args:
        team: who takes part.
        folder: of the output, while it has no name.
        journal: of the blocks that are finished; the first rank has it.
    """

    team: Team
    folder: Path
    journal: Journal | None = None

    @classmethod
    @contextmanager
    def staged(cls, out: Path, made_from: str, *, force: bool) -> Iterator[Workplace]:
        """An output that gets its name if the block ends well.

        Args:
            out: where it will stand.
            made_from: a fingerprint; an interrupted run with the same one is gone on with.
            force: replace an earlier output.
        Raises:
            OutputExists: it is there.
            OutputProblem: it cannot be written.
        """
        team = Team.join()
        with team.staged(out, force=force, resumable=made_from) as folder:
            with Journal(folder) if team.leads else nullcontext() as journal:
                yield cls(team, folder, journal)
            if team.leads and (folder / LANES).exists():  # not where tasks alone were answered
                shutil.rmtree(folder / LANES)


def fingerprint(settings: Scoring, sources: Sequence[Path]) -> str:
    """Of all that decides the hidden states.

    Args:
        settings: of which the gate and the forms of the report do not.
        sources: folders of the models, or of a store.
    """
    return sha256_json(
        {
            "versions": versions(),
            "computing": computing(),
            "settings": settings.model_dump(mode="json", include=set(Scoring.model_fields)),
            "texts": [sha256_file(path) for path in settings.text if path.is_file()],
            "sources": [appearance(folder) for folder in sources],
        }
    )
