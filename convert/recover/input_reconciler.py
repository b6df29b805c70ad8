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

from camelpress.convert.recover.diff_rules import Plan
from camelpress.core.checkpoint.checkpoint import Checkpoint
from camelpress.core.files.file_hashes import sha256_file
from camelpress.core.output.journal import entries, forget
from camelpress.core.progress import note


@dataclass(frozen=True)
class TouchedInputs:
    """Compares the inputs of an unfinished output with those of now.

    Args:
        now: the values that the output is made from now.
        inputs: role to checkpoint, the base first.
        plans: of all tensors.
    """

    now: Mapping[str, Any]
    inputs: Mapping[str, Checkpoint]
    plans: Sequence[Plan]

    def __call__(self, partial: Path, before: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the earlier values, those of now in the place of each that means the same bytes.

        Args:
            partial: folder of the unfinished output.
            before: the values that it was begun with.
        """
        files = {
            f"{role}/{path.name}": path
            for role, checkpoint in self.inputs.items()
            for path in checkpoint.files()
        }
        names = {**before, **self.now}
        differing = [name for name in names if before.get(name) != self.now.get(name)]
        if not all(name in files and name in before for name in differing):
            return before
        done = entries(partial)
        digests = {name: done.get(str(files[name]), {}).get("sha256") for name in differing}
        for name, digest in digests.items():
            note(f"{files[name]} was touched since {partial.name} was begun: its content is read")
            if digest is not None and digest != sha256_file(files[name]):
                return before
        unknown = {files[name] for name, digest in digests.items() if digest is None}
        again = self._tensors(unknown) & done.keys()
        if again:
            note(f"{len(again)} tensors are made again: nobody knows what they were read from")
        forget(partial, again)
        return {**before, **{name: self.now[name] for name in differing}}

    def _tensors(self, files: set[Path]) -> set[str]:
        """Returns the names of all tensors that are made from one of some files."""
        if any(path.suffix == ".pth" for path in files):  # of Meta: each has a part of each tensor
            return {plan.name for plan in self.plans}
        return {plan.name for plan in self.plans if not files.isdisjoint(self._files(plan))}

    def _files(self, plan: Plan) -> set[Path]:
        names = (plan.pair.base_name, plan.name)
        return {
            checkpoint.folder / checkpoint.info(name).shard
            for checkpoint, name in zip(self.inputs.values(), names, strict=True)
            if name
        }
