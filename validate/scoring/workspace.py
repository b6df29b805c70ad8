"""Workspace of a validation: the unfinished output, its journal and the process group."""

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
    """An unfinished output.

    Args:
        team: process group of the run.
        folder: folder of the unfinished output.
        journal: journal of finished blocks; on the main rank only.
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
        """Creates an output that takes its final name if the block succeeds.

        Args:
            out: final path of the output.
            made_from: returns all facts that determine the hidden states; a run resumes an
                unfinished output with equal facts.
            force: replace an earlier output.
            restart: discard an unfinished run.
            writes: names and patterns of the output files.
        Raises:
            OutputExists: the output exists.
            OutputProblem: the output cannot be written.
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
            # a run with tasks alone has no shards
            if team.is_main and (folder / SHARDS_FOLDER).exists():
                shutil.rmtree(folder / SHARDS_FOLDER)


def resume_key(
    stage: str, settings: ScoringSettings, hashes: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """Returns all facts that determine the hidden states, by name.

    Args:
        stage: name of the stage.
        settings: settings of the stage; its gate and report settings are ignored.
        hashes: for each role the SHA-256 of each file of its model or store.
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
