"""Recognizes inputs with a new file identity and the same bytes, to resume an unfinished output.

`chmod`, a hard link or a copy change a file's metadata, but not its content. If the journal holds
the hash of a file, that hash decides; without one, the tensors of the file are computed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camelpress.convert.recover.diff_rules import TensorPlan
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.files.file_hashes import sha256_file
from camelpress.core.output.journal import invalidate_entries, read_journal
from camelpress.core.progress import note


@dataclass(frozen=True)
class InputReconciler:
    """Compares the inputs of an unfinished output with the current inputs.

    Args:
        current: name to value of everything the output is made from.
        checkpoints: role to input checkpoint, the base first.
        plans: plans of all tensors.
    """

    current: Mapping[str, Any]
    checkpoints: Mapping[str, Checkpoint]
    plans: Sequence[TensorPlan]

    def __call__(self, partial: Path, before: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the earlier values, with current ones for files of unchanged content.

        Args:
            partial: folder of the unfinished output.
            before: values at the start of the unfinished run.
        """
        files = {
            f"{role}/{path.name}": path
            for role, checkpoint in self.checkpoints.items()
            for path in checkpoint.weight_files()
        }
        names = {**before, **self.current}
        differing = [name for name in names if before.get(name) != self.current.get(name)]
        if not all(name in files and name in before for name in differing):
            return before
        entries = read_journal(partial)
        digests = {name: entries.get(str(files[name]), {}).get("sha256") for name in differing}
        for name, digest in digests.items():
            note(f"{files[name]} was touched since {partial.name} was begun: reading its content")
            if digest is not None and digest != sha256_file(files[name]):
                return before
        unhashed = {files[name] for name, digest in digests.items() if digest is None}
        outdated = self._tensors_from(unhashed) & entries.keys()
        if outdated:
            note(f"{len(outdated)} tensors are computed again: the hash of their input is unknown")
        invalidate_entries(partial, outdated)
        return {**before, **{name: self.current[name] for name in differing}}

    def _tensors_from(self, files: set[Path]) -> set[str]:
        """Returns the names of all tensors with an input among the files."""
        if any(
            path.suffix == ".pth" for path in files
        ):  # Meta's layout: each file has a part of every tensor
            return {plan.name for plan in self.plans}
        return {plan.name for plan in self.plans if not files.isdisjoint(self._files_of(plan))}

    def _files_of(self, plan: TensorPlan) -> set[Path]:
        names = (plan.pair.base_name, plan.name)
        return {
            checkpoint.folder / checkpoint.tensor_info(name).shard
            for checkpoint, name in zip(self.checkpoints.values(), names, strict=True)
            if name
        }
