"""Where a validation is made: hidden states in files beside the output, and who shares the work."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camelpress.core.files.file_hashes import package_versions, sha256_file
from camelpress.core.output.journal import Journal
from camelpress.inference.model.streamed_model import pick_device
from camelpress.inference.streaming.process_group import ProcessGroup
from camelpress.inference.streaming.rounding_facts import rounding_facts
from camelpress.inference.streaming.token_shards import SHARDS_FOLDER
from camelpress.validate.settings import ScoringSettings


@dataclass(frozen=True)
class Workspace:
    """An output that is being made.

    Args:
        team: who takes part.
        folder: of the output, while it has no name.
        journal: of the blocks that are finished; the first rank has it.
    """

    team: ProcessGroup
    folder: Path
    journal: Journal | None = None

    @classmethod
    @contextmanager
    def staged(
        cls,
        out: Path,
        made_from: Callable[[], dict[str, Any]],
        *,
        force: bool,
        restart: bool,
        writes: Collection[str],
    ) -> Iterator[Workspace]:
        """An output that gets its name if the block ends well.

        Args:
            out: where it will stand.
            made_from: gives everything that decides the hidden states; an interrupted run that is
                made from the same is gone on with.
            force: replace an earlier output.
            restart: begin again, whatever an unfinished run left.
            writes: names and patterns of the output's files.
        Raises:
            OutputExists: it is there.
            OutputProblem: it cannot be written.
        """
        team = ProcessGroup.join()
        with (
            team.restore_thread_count(out, restart=restart),
            team.staged(
                out, force=force, made_from=made_from(), restart=restart, writes=writes
            ) as folder,
        ):
            with Journal(folder) if team.is_main else nullcontext() as journal:
                yield cls(team, folder, journal)
            if (
                team.is_main and (folder / SHARDS_FOLDER).exists()
            ):  # not where tasks alone were answered
                shutil.rmtree(folder / SHARDS_FOLDER)


def resume_key(
    stage: str, settings: ScoringSettings, hashes: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """Name to value of everything that decides the hidden states.

    Args:
        stage: its name.
        settings: of the stage; the gate and the forms of the report decide nothing.
        hashes: role to the name and SHA-256 of each file of a model, or of a store.
    """
    texts = enumerate((path for path in settings.text if path.is_file()), start=1)
    scoring = set(ScoringSettings.model_fields) - {"text", "device"}
    return {
        "stage": stage,
        **settings.model_dump(mode="json", include=scoring),
        **rounding_facts(pick_device(settings.device)),
        **{f"version of {name}": number for name, number in package_versions().items()},
        **{f"text {number}": sha256_file(path) for number, path in texts},
        **{
            f"{role}/{name}": digest
            for role, files in hashes.items()
            for name, digest in files.items()
        },
    }
