"""Inputs that were touched since an unfinished output was begun, and may hold the same bytes.

`chmod`, a hard link or a copy change what the file system says of a file and not its content. So
the hash of the content decides, where the journal has it; the tensors of a file without one are
made again.
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
    """Compares the inputs of an unfinished output with those of now.

    Args:
        now: the values that the output is made from now.
        inputs: role to checkpoint, the base first.
        plans: of all tensors.
    """

    current: Mapping[str, Any]
    checkpoints: Mapping[str, Checkpoint]
    plans: Sequence[TensorPlan]

    def __call__(self, partial: Path, before: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the earlier values, those of now in the place of each that means the same bytes.

        Args:
            partial: folder of the unfinished output.
            before: the values that it was begun with.
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
        done = read_journal(partial)
        digests = {name: done.get(str(files[name]), {}).get("sha256") for name in differing}
        for name, digest in digests.items():
            note(f"{files[name]} was touched since {partial.name} was begun: its content is read")
            if digest is not None and digest != sha256_file(files[name]):
                return before
        unknown = {files[name] for name, digest in digests.items() if digest is None}
        again = self._tensors_from(unknown) & done.keys()
        if again:
            note(f"{len(again)} tensors are made again: nobody knows what they were read from")
        invalidate_entries(partial, again)
        return {**before, **{name: self.current[name] for name in differing}}

    def _tensors_from(self, files: set[Path]) -> set[str]:
        """Returns the names of all tensors that are made from one of some files."""
        if any(path.suffix == ".pth" for path in files):  # of Meta: each has a part of each tensor
            return {plan.name for plan in self.plans}
        return {plan.name for plan in self.plans if not files.isdisjoint(self._files_of(plan))}

    def _files_of(self, plan: TensorPlan) -> set[Path]:
        names = (plan.pair.base_name, plan.name)
        return {
            checkpoint.folder / checkpoint.tensor_info(name).shard
            for checkpoint, name in zip(self.checkpoints.values(), names, strict=True)
            if name
        }
